"""Commands about certificates: certify what serves after a request, check a certificate."""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from s3t.cli.options import Json
from s3t.durable import put
from s3t.errors import RunError, S3TError

Keys = Annotated[Path | None, typer.Option(help="Folder of keys (default $S3T_KEYS, else ~/.config/s3t/keys).")]


def certify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.")],
    request: Annotated[str, typer.Option(help="The request, as `s3t delete` printed it, such as r000001.")],
    report: Annotated[
        Path | None, typer.Option(help="Report of `python -m verify RUN --json` (else it is made).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write (default: RUN's name, the request, .cert.json).")
    ] = None,
    level: Annotated[list[str] | None, typer.Option(help="Level to audit; repeatable (default: E0, E1a).")] = None,
    by: Annotated[str, typer.Option(help="Who ran the audit, to be stated.")] = "",
    keys: Keys = None,
    leaks: Annotated[Path | None, typer.Option(help="Matrix of planted faults (matrix.json), to be stated.")] = None,
    undecided: Annotated[bool, typer.Option("--allow-undecided", help="Certify UNDECIDED levels as such.")] = False,
) -> None:
    """Audit a run and sign what was found, tied to its ledger and to every served tensor; a violation is not signed."""
    from verify.attest import AttestError
    from verify.attest.issue import certify as issue
    from verify.attest.keys import default_folder, signer
    from verify.attest.told import read_report

    if not run.is_dir():
        raise RunError(f"there is no run at {run}; train one with `s3t train {run}`")
    if report and level:
        raise AttestError("--level is given together with --report, which has its levels; give one of them")
    target = out or Path(f"{run.resolve().name}-{request}.cert.json")
    if target.resolve().is_relative_to(run.resolve()):
        raise AttestError(f"{target} lies inside the run, where nothing else may lie; give another --out")
    folder = keys or default_folder()
    key = signer(folder, run)
    with tempfile.TemporaryDirectory(prefix="s3t-certify-") as scratch:
        told = report or _audit(run, level or ["E0", "E1a"], Path(scratch) / "report.json")
        now = datetime.now(UTC)
        raw = issue(run, request, read_report(told), key, issued=now, by=by, undecided=undecided, leaks=leaks)
    try:
        put(target, raw)
    except OSError as error:
        raise AttestError(f"{target} cannot be written ({error.strerror}); give another --out") from error
    typer.echo(f"{target}: signed by {key.public_key.keyid}; hand out {folder / (key.public_key.keyid + '.pub')}")


def _audit(run: Path, levels: list[str], report: Path) -> Path:
    """Run the audit as `python -m verify` does and return its report's file."""
    from verify.cli import BAD_INPUT, main

    given = [str(run), "--out", str(report), *(word for level in levels for word in ("--level", level))]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = main(given)
    if code == BAD_INPUT:
        raise typer.Exit(BAD_INPUT)
    if code:
        sys.stderr.write(said.getvalue())
    return report


def check(
    certificate: Annotated[Path, typer.Argument(metavar="CERTIFICATE", help="The signed file.")],
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="The run's folder, to compare with.")] = None,
    key: Annotated[Path | None, typer.Option(help="The signer's public key (KEYID.pub).")] = None,
    keys: Keys = None,
    as_json: Json = False,
) -> None:
    """Verify a certificate, without torch, training data or any secret: 0 holds, 1 violated, 2 bad input, 3 undecided."""
    from verify.attest import check as checking
    from verify.attest.keys import default_folder, public_key

    if run is not None and not run.is_dir():
        raise RunError(f"there is no run at {run}; leave it out to check the certificate alone")
    try:
        raw = certificate.read_bytes()
    except OSError as error:
        raise S3TError(f"{certificate} cannot be read ({error.strerror}); give a file of `s3t certify`") from error
    known = public_key(key) if key else None
    report = checking.check(raw, run, key=known, keys=keys or default_folder())
    if as_json:
        typer.echo(report.dumps())
    else:
        report.print()
    raise typer.Exit(report.verdict.exit_code)
