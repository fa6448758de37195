"""The command line: thin commands over :mod:`s3t.system`; nothing heavy is imported before a command needs it.

Results go to stdout (``--json`` for programs), progress and errors to stderr. Exit codes: 0 done, 2 bad input,
130 interrupted; ``verify`` adds 1 violated and 3 undecided.
"""

from __future__ import annotations

import errno
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from s3t.cli.attest import certify, check
from s3t.cli.deleting import delete
from s3t.cli.exporting import check_export, export
from s3t.cli.judging import judge
from s3t.cli.options import Json, Run
from s3t.cli.output import plain, print_result, warnings_shown
from s3t.cli.planning import plan
from s3t.cli.predicting import predict
from s3t.cli.records import duplicates
from s3t.cli.serving import serve
from s3t.cli.training import refresh, train
from s3t.cli.tuning import tune
from s3t.errors import S3TError

REFUSED_PATHS = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)
"""What the system says of paths that are not usable, whoever asked for them."""


class _OneLineErrors(TyperGroup):
    """Ends our own errors, and paths that the system refuses, in one line and exit code; others keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with warnings_shown():
                return super().invoke(ctx)
        except S3TError as error:
            typer.echo("error: " + " ".join(str(error).split()), err=True)
            raise typer.Exit(error.exit_code) from None
        except OSError as error:
            if error.errno not in REFUSED_PATHS or not isinstance(error.filename, str):
                raise
            typer.echo(f"error: {error.filename[:80]!r} cannot be used ({error.strerror}); give another path", err=True)
            raise typer.Exit(S3TError.exit_code) from None
        except KeyboardInterrupt:
            typer.echo("interrupted: nothing acknowledged is lost; the same command continues", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_OneLineErrors,
    help="Exact machine unlearning: train, delete, serve, refresh, verify.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line (entry point ``s3t``)."""
    app(prog_name="s3t")


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Packs, such as minilm and trec6.")],
) -> None:
    """Bring pinned models and data into the cache and verify their digests."""
    from s3t.data.fetch import fetch as bring

    for name in names:
        folder = bring(name, progress=lambda line: typer.echo(line, err=True))
        typer.echo(f"{name}: {folder}")


app.command()(train)
app.command()(predict)
app.command()(judge)
app.command()(delete)
app.command()(duplicates)
app.command()(certify)
app.command()(check)
app.command()(plan)
app.command()(tune)
app.command()(export)
app.command()(check_export)
app.command()(serve)
app.command()(refresh)


@app.command()
def status(run: Run, as_json: Json = False) -> None:
    """Say how a run stands; the files of all trained nodes are checked, and an analytic head's features."""
    from s3t.system import System

    with closing(System.open(run)) as system:
        facts = asdict(system.status(check=True))
    lines = [f"{name.replace('_', ' '):<16} {plain(value)}" for name, value in facts.items()]
    print_result(as_json, facts, "\n".join(lines))


@app.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
def verify(ctx: typer.Context) -> None:
    """Audit a run bit for bit, as `python -m verify` does: 0 holds, 1 violated, 2 bad input, 3 undecided."""
    from verify.cli import main as audit

    raise typer.Exit(audit(ctx.args))


@app.command()
def plot(
    rows: Annotated[Path, typer.Option(help="Folder with the rows of the benchmarks.")] = Path("results/rows"),
    out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("results/figures"),
    profile: Annotated[str | None, typer.Option(help="Only the rows of this profile.")] = None,
    include_dirty: Annotated[bool, typer.Option(help="Also rows from a tree with uncommitted changes.")] = False,
) -> None:
    """Draw the figures from the rows of the benchmarks alone."""
    from benchmarks.figures import draw

    for figure in draw(rows, out, include_dirty=include_dirty, profile=profile):
        typer.echo(str(figure))
