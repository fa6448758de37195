"""``python -m verify ports``: audit ports of two reference designs, with every known mistake alone, none, and all.

Exit code 0 if every mistake that can be seen was rejected and the clean systems raised no alarm, 1 if not, 2 for bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from s3t.errors import S3TError
from verify.ports.audits import PORTS, Name, audit_all, faults, read
from verify.ports.tables import document, table


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(prog="python -m verify ports", description=__doc__)
    made.add_argument("--port", choices=list(PORTS), action="append", help="only this port; repeatable")
    made.add_argument("--mistake", action="append", metavar="SWITCH", help="only this mistake; repeatable")
    made.add_argument("--out", type=Path, metavar="DIR", help="write the rows there")
    made.add_argument("--rows", type=Path, metavar="DIR", help="audit nothing; read the rows there")
    made.add_argument("--document", type=Path, metavar="FILE", help="write docs/PORTS.md from the rows of both ports")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit, print the table, and return the exit code."""
    given = parser().parse_args(arguments)
    try:
        return _main(given)
    except S3TError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _main(given: argparse.Namespace) -> int:
    known = [mistake.switch for mistakes in PORTS.values() for mistake in mistakes]
    unknown = sorted(set(given.mistake or ()) - set(known))
    if unknown:
        raise S3TError(f"--mistake {unknown[0]!r} is unknown; known are {', '.join(known)}")
    ports: list[Name] = [port for port in PORTS if not given.port or port in given.port]
    if given.rows:
        rows = [row for row in read(given.rows)[0] if row.port in ports]
    else:
        rows = audit_all(ports, given.mistake or (), given.out, lambda line: print(line, file=sys.stderr, flush=True))
    for port in ports:
        print(f"\n{table(port, rows)}")
    if given.document:
        given.document.write_text(document(*read(given.rows or given.out)), encoding="utf-8")
    missed = faults(rows)
    for line in missed:
        print(f"MISSED {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
