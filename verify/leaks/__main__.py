"""``python -m verify leaks``: plant every fault and print which check caught which.

Exit code 0 if every due catch was made and the clean system raised no alarm, 1 if not, 2 for bad input.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from s3t.engine.mode import ENGINES, Precision, choose
from s3t.errors import S3TError, did_you_mean
from verify.leaks import CLEAN, LEAKS
from verify.leaks.leak import Leak, not_planted
from verify.leaks.matrix import LEVELS, Cell, faults, full, play, reduced, write
from verify.leaks.settings import SETTINGS, VICTIMS
from verify.leaks.tables import markdown, terminal

BAD_INPUT = 2
ALL = (CLEAN, *LEAKS)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(prog="python -m verify leaks", description=__doc__)
    size = made.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="every fault in every setting, around every victim")
    size.add_argument("--reduced", action="store_true", help="every fault once, settings in turn (the default)")
    made.add_argument("--leak", type=int, nargs="+", metavar="N", help="only these faults, by number")
    made.add_argument("--setting", action="append", metavar="NAME", help="only this setting; repeatable")
    made.add_argument("--victims", type=int, metavar="K", help=f"the first K victims of each setting (1 to {VICTIMS})")
    made.add_argument("--engine", choices=ENGINES, default="reference", help="plant them in this engine")
    made.add_argument(
        "--precision", choices=get_args(Precision), default="float32", help="of the fast engine (default: float32)"
    )
    made.add_argument("--levels", nargs="+", metavar="LEVEL", help=f"only these levels of {', '.join(LEVELS)}")
    made.add_argument("--jobs", type=int, default=1, metavar="N", help="processes side by side (default: 1)")
    made.add_argument(
        "--out", type=Path, metavar="DIR", help="write the matrix there; an interrupted run goes on where it stopped"
    )
    made.add_argument("--markdown", action="store_true", help="print the matrix as Markdown")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Play the chosen cells, print the matrix, and return the exit code."""
    given = parser().parse_args(arguments)
    try:
        return _main(given)
    except S3TError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT


def _main(given: argparse.Namespace) -> int:
    mode = choose(given.engine, given.precision)
    leaks = (CLEAN, *_chosen(given.leak, mode.name))
    names, levels = _settings(given.setting or ()), _levels(given.levels or LEVELS)
    victims = VICTIMS if given.victims is None else given.victims
    if not 1 <= victims <= VICTIMS:
        raise S3TError(f"--victims {victims} is out of range; a setting has 1 to {VICTIMS}")
    if given.jobs < 1:
        raise S3TError(f"--jobs {given.jobs} is not possible; give at least 1")
    many = given.full or given.victims is not None
    work = full(leaks, names, victims, mode) if many else reduced(leaks, names, mode)
    with tempfile.TemporaryDirectory(prefix="s3t-matrix-") as folder:
        out = given.out or Path(folder)
        cells = play(work, out, levels, given.jobs, _tell)
        write(cells, ALL, out, complete=True)
    if given.markdown:
        print(markdown(cells, ALL), end="")
    else:
        _print(cells, mode.name)
    wrong = faults(cells, ALL)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


def _print(cells: Sequence[Cell], engine: str) -> None:
    from rich.console import Console

    console = Console()
    console.print(terminal(cells, ALL))
    for number, why in not_planted(LEAKS, engine).items():
        console.print(f"{number} not planted: {why}", highlight=False)


def _tell(done: int, total: int, what: str) -> None:
    print(f"{done}/{total} {what}", file=sys.stderr)


def _chosen(numbers: Sequence[int] | None, engine: str) -> list[Leak]:
    known, apart = {leak.number: leak for leak in LEAKS if engine not in leak.absent}, not_planted(LEAKS, engine)
    for number in numbers or ():
        if number not in known:
            why = f": {apart[number]}" if number in apart else f"; there are 1 to {max(leak.number for leak in LEAKS)}"
            raise S3TError(f"fault {number} is not planted{why}")
    return [known[number] for number in numbers] if numbers else list(known.values())


def _settings(names: Sequence[str]) -> list[str]:
    known = [setting.name for setting in SETTINGS]
    for name in names:
        if name not in known:
            raise S3TError(f"setting {name!r} is unknown{did_you_mean(name, known)}; choose from {', '.join(known)}")
    return list(names)


def _levels(levels: Sequence[str]) -> list[str]:
    for level in levels:
        if level not in LEVELS:
            raise S3TError(f"level {level!r} is unknown{did_you_mean(level, LEVELS)}; choose from {', '.join(LEVELS)}")
    return [level for level in LEVELS if level in levels]


if __name__ == "__main__":
    sys.exit(main())
