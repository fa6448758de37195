"""Hostile input to everything that reads: ``python -m verify fuzz [--cases N]``. No traceback, no hang, no change of state.

Each case takes a good input, spoils it by a seeded draw (bits, bytes, pieces, JSON values, words that trip parsers) and hands
it to the reader of its kind. Allowed are an answer and one of our errors (:class:`s3t.errors.S3TError`); anything else is a
failure, and so is a reader that takes longer than ``SECONDS``. The command line is called with spoiled arguments on a run,
which must be as it was unless the call succeeded. The HTTP service has a fuzz test of its own (tests/service).
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from s3t.errors import S3TError

SECONDS = 20
"""A reader that takes longer hangs."""
WORDS = (
    *(b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"-1", b"1e999", b"NaN", b"null", b"[]", b"{}", b'"', b"'", b",", b"\n"),
    *(b"9" * 40, b"../../x", b"[" * 3000, b'{"a":' * 2000, b"\xed\xa0\x80", b"\x1f", b"true", b"0", b"\r", b"=cmd()"),
)
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**70,
    1.5,
    "",
    "x" * 300,
    "\x00",
    [],
    {},
    [[]],
    {"a": None},
    "../x",
    -(10.0**300),
)


@dataclass(frozen=True)
class Failure:
    """A case that failed: ``number`` and the run's seed give it again."""

    target: str
    number: int
    what: str
    place: str


class Hang(Exception):
    """A reader did not come to an end."""


@dataclass(frozen=True)
class Target:
    """Something that reads: ``file`` is where the spoiled content is put, ``good`` what is spoiled, ``use`` the reader."""

    name: str
    file: Path
    good: tuple[bytes, ...]
    use: Callable[[], object]

    def play(self, draw: random.Random) -> None:
        """Read one spoiled input. Raises what the reader raises."""
        self.file.write_bytes(spoil(draw, draw.choice(self.good), self.good))
        try:
            self.use()
        finally:
            if self.file.exists():
                self.file.write_bytes(self.good[0])


def spoil(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Return ``content`` with one to four things wrong in it."""
    if draw.random() < 0.4 and (spoiled := _json(draw, content)) is not None:
        return spoiled
    made = bytearray(content)
    for _ in range(draw.randrange(1, 5)):
        at = draw.randrange(len(made) + 1)
        end = min(len(made), at + draw.choice((1, 4, 30, 1000)))
        kind = draw.randrange(8)
        if kind == 0 and at < len(made):
            made[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            made[at:end] = draw.randbytes(end - at)
        elif kind == 2:
            del made[at:end]
        elif kind == 3:
            made[at:at] = made[at:end]
        elif kind == 4:
            made[at:at] = draw.choice(WORDS)
        elif kind == 5:
            del made[at:]
        elif kind == 6:
            made[at:end] = bytes(end - at)
        else:
            other = draw.choice(others)
            start = draw.randrange(len(other) + 1)
            made[at:at] = other[start : start + 200]
    return bytes(made)


def _json(draw: random.Random, content: bytes) -> bytes | None:
    """Return JSON ``content`` with values of other kinds in some places; None if it is no JSON."""
    try:
        raw = json.loads(content)
    except ValueError:
        return None
    for _ in range(draw.randrange(1, 4)):
        raw = _replaced(draw, raw)
    return json.dumps(raw).encode()


def _replaced(draw: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and draw.random() < 0.85:
        name = draw.choice(sorted(value))
        if draw.random() < 0.15:
            return {key: one for key, one in value.items() if key != name}
        return {**value, name: _replaced(draw, value[name])}
    if isinstance(value, list) and value and draw.random() < 0.8:
        place = draw.randrange(len(value))
        return [_replaced(draw, one) if i == place else one for i, one in enumerate(value)]
    return draw.choice(ODD)


@contextmanager
def limited() -> Iterator[None]:
    """Raise Hang in the body after ``SECONDS``. Only in the main thread."""

    def ring(*_: Any) -> None:
        raise Hang(f"longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fuzz(
    targets: Sequence[Target], cases: int, seed: int, each: Callable[[int], None] = lambda done: None
) -> list[Failure]:
    """Play ``cases`` in turn over the targets and return those that failed; ``each`` is told how many are done."""
    failures = []
    for number in range(cases):
        target = targets[number % len(targets)]
        try:
            with limited(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                target.play(random.Random(f"s3t fuzz v1 {seed} {number}"))
        except S3TError:
            pass
        except (Exception, Hang) as error:
            frames = traceback.extract_tb(error.__traceback__)
            frame = next((f for f in reversed(frames) if "s3t/" in f.filename or "verify/" in f.filename), frames[-1])
            place = f"{Path(frame.filename).name}:{frame.lineno}"
            failures.append(Failure(target.name, number, f"{type(error).__name__}: {str(error)[:200]}", place))
        each(number + 1)
    return failures


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz and say what failed; 0 if nothing did, 1 if something did, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m verify fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=2000, help="inputs in all (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument("--target", action="append", help="only what is called this; repeatable")
    parser.add_argument("--out", type=Path, help="write the outcome as JSON")
    given = parser.parse_args(arguments)
    from verify.fuzz_targets import targets

    with tempfile.TemporaryDirectory(prefix="s3t-fuzz-") as scratch:
        known = targets(Path(scratch))
        chosen = [target for target in known if not given.target or target.name in given.target]
        if not chosen or given.cases < 1:
            names = ", ".join(target.name for target in known)
            print(f"error: nothing to fuzz with --cases {given.cases}; targets are {names}", file=sys.stderr)
            return 2
        failures = fuzz(chosen, given.cases, given.seed, _progress)
    counted = Counter(chosen[number % len(chosen)].name for number in range(given.cases))
    for failure in failures:
        print(f"{failure.target} {failure.number}: {failure.what} at {failure.place}")
    print(f"{given.cases} inputs to {len(chosen)} readers, seed {given.seed}: {len(failures)} failed")
    if given.out:
        from verify.machine import describe_machine

        told = {"schema": 1, "machine": describe_machine(), "seed": given.seed, "cases": dict(counted)}
        given.out.write_text(json.dumps({**told, "failures": [asdict(f) for f in failures]}, indent=1) + "\n")
    return 1 if failures else 0


def _progress(done: int) -> None:
    if done % 5000 == 0:
        print(f"{done} done", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
