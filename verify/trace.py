"""Histories as data: their steps, how they are written down and read back, and which of them are equivalent.

What is served is a function of the retained records, of the orders in force, of the slots dropped since the last *barrier*
(a refresh or an extension, both of which rebuild everything), and of seed and recipe; this is what both claims say. So a
history may be replaced by another one under these rules, and by no others:

- Deletions before the last barrier come in any order, in any of the phases before it, batched or split: the last barrier
  rebuilds what they dropped, from the retained records alone.
- Deletions after the last barrier stay after it, in any order, batched or split. They do not pass a ``retire``, for a
  system that rebuilds at once after a deletion would rebuild the retired slots as well.
- ``refresh``, ``retire`` and ``extend`` stay in place, in their own order.
- Further refreshes, claim "retrained": anywhere (the end state holds nothing but what a fresh fit holds). Claim
  "non-interference": before the last barrier; after it only where every slot dropped since then is dropped again later.
- Anywhere: a restart; a request for what is deleted already; an id twice in one request; a request with an unknown id,
  which must raise RecordError and change nothing, known ids beside it included; a crash at any write, after which the same
  request is made again. Where a system rebuilds within a deletion a refresh follows that request, for to delete what is
  deleted need not rebuild; so no deletion is killed there between a ``retire`` and the next barrier.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal, get_args

from s3t.contract import Claim, Slot
from s3t.errors import S3TError
from verify.case import Event

Kind = Literal["delete", "retire", "extend", "refresh", "restart", "unknown"]
BARRIERS = ("refresh", "extend")


@dataclass(frozen=True)
class Step:
    """One step: an event's kind, a restart, or a request that must fail (``unknown``).

    ``kill``: the write at which a process that performs it dies first (0: none); the step is then repeated.
    """

    kind: Kind
    ids: tuple[str, ...] = ()
    slots: tuple[Slot, ...] = ()
    budget: int = 0
    kill: int = 0

    @property
    def event(self) -> Event:
        """The step as an event."""
        if self.kind in ("restart", "unknown"):
            raise S3TError(f"a step {self.kind!r} is no event")
        return Event(self.kind, self.ids, self.slots, self.budget)  # type: ignore[arg-type]

    def __str__(self) -> str:
        said = {"retire": list(map(list, self.slots)), "extend": self.budget}.get(self.kind, list(self.ids))
        given = [] if said == [] else [json.dumps(said, separators=(",", ":"))]
        return " ".join([self.kind, *given, *([f"killed at write {self.kill}"] if self.kill else [])])


def written(steps: Sequence[Step]) -> str:
    """Return a history in one line, which :func:`read` reads back."""
    return "; ".join(map(str, steps)) or "nothing"


def read(line: str) -> tuple[Step, ...]:
    """Read what :func:`written` wrote. S3TError if it is no history."""
    steps, rest = [], "" if line == "nothing" else line
    while rest:
        word = rest.split(" ", 1)[0].rstrip(";")
        if word not in get_args(Kind):
            raise S3TError(f"{rest[:40]!r} does not begin a step; known are {', '.join(get_args(Kind))}")
        rest, value = rest[len(word) :].removeprefix(" "), None
        if rest[:1] and rest[0] in '["0123456789':
            value, end = json.JSONDecoder().raw_decode(rest)
            rest = rest[end:].removeprefix(" ")
        kill = re.match(r"killed at write (\d+)", rest)
        rest = rest[kill.end() if kill else 0 :].removeprefix("; ").lstrip()
        made = Step(word, kill=int(kill[1]) if kill else 0)  # type: ignore[arg-type]
        if word == "retire":
            made = replace(made, slots=tuple((int(a), int(b)) for a, b in value or ()))
        elif word == "extend":
            made = replace(made, budget=int(value or 0))
        else:
            made = replace(made, ids=tuple(value or ()))
        steps.append(made)
    return tuple(steps)


@dataclass(frozen=True)
class Skeleton:
    """What stays in place (``fixed``), and per deleted id the gaps it may come in: gap i lies before the i-th fixed step."""

    fixed: tuple[Step, ...]
    places: Mapping[str, tuple[int, ...]]

    def every(self) -> Iterator[tuple[Step, ...]]:
        """Yield every arrangement of the deletions, the number of which grows faster than factorials."""
        for chosen in itertools.product(*self.places.values()):
            yield from map(self._merge, partitioned(self._gaps(chosen)))

    def sample(self, rng: Random) -> tuple[Step, ...]:
        """Return a random arrangement."""
        batches = []
        for gap in self._gaps([rng.choice(places) for places in self.places.values()]):
            ids = rng.sample(gap, len(gap))
            cuts = [0, *(i for i in range(1, len(ids)) if rng.random() < 0.5), len(ids)]
            batches.append(tuple(tuple(ids[a:b]) for a, b in itertools.pairwise(cuts) if a < b))
        return self._merge(batches)

    def _gaps(self, chosen: Sequence[int]) -> list[list[str]]:
        placed = list(zip(self.places, chosen, strict=True))
        return [[name for name, place in placed if place == gap] for gap in range(len(self.fixed) + 1)]

    def _merge(self, batches: Sequence[Sequence[tuple[str, ...]]]) -> tuple[Step, ...]:
        steps: list[Step] = []
        for gap, step in itertools.zip_longest(batches, self.fixed):
            steps += [Step("delete", ids) for ids in gap] + ([step] if step else [])
        return tuple(steps)


def skeleton(history: Sequence[Event]) -> Skeleton:
    """Return what the rules leave in place of ``history``."""
    fixed = [Step(event.kind, (), event.slots, event.budget) for event in history if event.kind != "delete"]
    last = max((i for i, step in enumerate(fixed) if step.kind in BARRIERS), default=-1)
    places: dict[str, tuple[int, ...]] = {}
    gap = 0
    for event in history:
        gap += event.kind != "delete"
        for name in event.ids:
            places.setdefault(name, tuple(range(last + 1)) if gap <= last else (gap,))
    return Skeleton(tuple(fixed), places)


def ordered_partitions(items: Sequence[str]) -> Iterator[tuple[tuple[str, ...], ...]]:
    """Yield every way to split ``items`` into requests in a row: 1, 1, 3, 13, 75 ways for 0, 1, 2, 3, 4 items."""
    if not items:
        yield ()
    for size in range(len(items), 0, -1):
        for first in itertools.combinations(items, size):
            for rest in ordered_partitions([item for item in items if item not in first]):
                yield (first, *rest)


def partitioned(gaps: Sequence[Sequence[str]]) -> Iterator[tuple[tuple[tuple[str, ...], ...], ...]]:
    """Yield every choice of one ordered partition per gap, one at a time: there may be more than can be held."""
    if not gaps:
        yield ()
        return
    for first in ordered_partitions(gaps[0]):
        for rest in partitioned(gaps[1:]):
            yield (first, *rest)


def refreshable(steps: Sequence[Step], claim: Claim, slot: Callable[[str], Slot | None]) -> list[bool]:
    """Say for each position 0..len(steps) whether a further refresh there leaves the end state as it is."""
    if claim == "retrained":
        return [True] * (len(steps) + 1)
    last = max((i for i, step in enumerate(steps) if step.kind in BARRIERS), default=-1)
    hit: list[set[Slot | None]] = [{*step.slots, *map(slot, step.ids)} for step in steps]
    mask = set().union(*hit[last + 1 :])
    if None in mask:
        return [position <= last + 1 for position in range(len(steps) + 1)]
    return [i <= last or mask <= set().union(*hit[i:]) for i in range(len(steps) + 1)]


@dataclass(frozen=True)
class Extras:
    """What may be strewn into a history. ``keep``: a retained id, ``unknown``: one that no record has.

    ``eager``: whether the system rebuilds within a deletion.
    """

    claim: Claim
    slot: Callable[[str], Slot | None]
    keep: str
    unknown: str
    kill: bool
    eager: bool = False

    def strew(self, steps: Sequence[Step], rng: Random) -> tuple[Step, ...]:
        """Return ``steps`` with restarts, repeated and impossible requests, further refreshes, and crashes."""
        out: list[Step] = []
        gone: list[str] = []
        free = refreshable(steps, self.claim, self.slot)
        for position, step in enumerate((*steps, None)):
            if free[position] and rng.random() < 0.15:
                out.append(Step("refresh"))
            if gone and rng.random() < 0.2:
                out.append(Step("delete", (rng.choice(gone),)))
            if rng.random() < 0.15:
                beside = (self.keep,) if self.keep and rng.random() < 0.7 else ()
                out.append(Step("unknown", (*beside, self.unknown)))
            if rng.random() < 0.3:
                out.append(Step("restart"))
            if step is not None:
                out.append(self._repeating(step, gone, rng))
                gone += step.ids
        able = list(self._killable(out))
        if self.kill and able:
            for i in rng.sample(able, min(len(able), rng.choice((0, 1, 1, 2)))):
                most = 60 if out[i].kind in BARRIERS else 18
                out[i] = replace(out[i], kill=rng.randint(1, most))
        return tuple(out)

    def _killable(self, steps: Sequence[Step]) -> Iterator[int]:
        """Yield the positions of the steps in which a process may be killed."""
        retired = False
        for position, step in enumerate(steps):
            retired = (retired or step.kind == "retire") and step.kind not in BARRIERS
            if step.kind in ("retire", *BARRIERS) or (step.kind == "delete" and not (self.eager and retired)):
                yield position

    def _repeating(self, step: Step, gone: Sequence[str], rng: Random) -> Step:
        """Return a deletion with an id that is given twice or was deleted before, sometimes; other steps as they are."""
        if step.kind != "delete" or rng.random() < 0.6:
            return step
        more = rng.choice([*step.ids, *gone])
        ids = [*step.ids, more]
        return replace(step, ids=tuple(rng.sample(ids, len(ids))))
