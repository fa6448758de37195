"""The command line, called in this process."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner


def said(*args: object, **options: Any) -> tuple[int, str, str]:
    """Call ``s3t`` and return the exit code, stdout and stderr; an error that is not one of ours goes on."""
    from s3t.cli import app

    done = CliRunner().invoke(app, [str(arg) for arg in args], **options)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def call(*args: object) -> str:
    """Call ``s3t``, which succeeds; return stdout."""
    code, out, err = said(*args)
    assert code == 0, err
    return out


def refused(*args: object) -> str:
    """Call ``s3t``, which refuses with nothing on stdout and one line on stderr; return that line."""
    code, out, err = said(*args)
    assert (code, out) == (2, ""), (code, out, err)
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err.strip()
