"""All short histories of one small system, and very many random ones of others, against the oracle: 0 ULP.

Exhaustive: 2 shards x 3 slices x 3 orders, one victim per slot. The 720 orders of hitting the six slots are walked as a tree of
1,957 states (every beginning of an order is visited once; the run folder is copied at branches), and every state is compared
with the oracle, so all 64 sets of hit slots are too; states of the same set must have the same bits. Each set is then refreshed
once, with the clean room's nodes memoised by shard, prefix and rows. Random: small systems as the soak draws them, each fitted
once, with several histories of deletions, retirements, refreshes, extensions, restarts and crashes, compared after every step.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from s3t.contract import Progress, Slot
from s3t.errors import S3TError
from s3t.records import Layout, Recipe, Record, canonical_json, sha256
from verify import crash, derive
from verify.histories import Player, close, final_state
from verify.oracle import Expected, Oracle, Tally
from verify.plans import EAGER
from verify.report import Finding
from verify.small import Small, SmallLab, draw, draw_steps
from verify.trace import Step, written

LAYOUT = Layout(shards=2, slices=3, budget=3)
KEY = bytes(range(32))
RECIPE = Recipe(epochs=1.5, batch_size=4, window=2, dropout=0.1, rank=1)
PER_SYSTEM = 10
"""Random histories on copies of one fit."""


def full_slots(layout: Layout, each: int = 4) -> tuple[Small, dict[Slot, str]]:
    """Return a small system with ``each`` records in every slot, and one victim per slot."""
    places = {(shard, s): each for shard in range(layout.shards) for s in range(layout.slices)}
    records: list[Record] = []
    victims: dict[Slot, str] = {}
    number = 0
    while any(places.values()):
        name = f"row-{number:03d}"
        slot = derive.slot(KEY, name, layout.shards, layout.slices)
        if places[slot]:
            places[slot] -= 1
            victims.setdefault(slot, name)
            records.append(Record(name, {"text": f"number {number} of {' '.join(name[4:])}"}, number % 3))
        number += 1
    kept = tuple(Record(f"probe-{i}", {"text": f"number {i} of {i} {i * 7}"}, i % 3) for i in range(4))
    model = f"tiny-{layout.slices}"
    small = Small("s3t", layout, RECIPE, model, ("a", "b", "c"), 3, KEY, tuple(records), ((), kept))
    return small, dict(sorted(victims.items()))


@dataclass
class Walk:
    """A walk over the tree of all orders of hitting the slots of ``small``, one victim each."""

    small: Small
    victims: dict[Slot, str]
    home: Path
    progress: Progress | None = None
    tally: Tally = field(default_factory=Tally)
    ends: dict[frozenset[Slot], str] = field(default_factory=dict)
    orders: int = 0
    refreshed: int = 0

    def __post_init__(self) -> None:
        self.lab = SmallLab(self.small)
        self.oracle = Oracle(self.small, self.tally)

    def run(self) -> dict[str, Any]:
        """Fit the base and walk; return what was seen."""
        base = self.home / "base"
        system: Any = self.lab.make(base)
        try:
            system.fit(list(self.small.records))
            self._visit(system, base, ())
        finally:
            close(system)
        self._branch(base, ())
        return {
            "layout": self.small.layout.to_json(),
            "slots": len(self.victims),
            "sets": len(self.ends),
            "orders": self.orders,
            "refreshed_sets": self.refreshed,
            **dataclasses.asdict(self.tally),
        }

    def _branch(self, folder: Path, done: tuple[Slot, ...]) -> None:
        rest = [slot for slot in self.victims if slot not in done]
        self.orders += not rest
        for slot in rest:
            child = folder.with_name(f"{folder.name}-{slot[0]}{slot[1]}")
            shutil.copytree(folder, child)
            system = self.lab.open(child)
            try:
                system.delete([self.victims[slot]])
                self._visit(system, child, (*done, slot))
            finally:
                close(system)
            self._branch(child, (*done, slot))
            shutil.rmtree(child)
        if self.progress and len(done) == 2:
            self.progress(self.orders, 0, f"orders that begin with {done}")

    def _visit(self, system: Any, folder: Path, done: tuple[Slot, ...]) -> None:
        """Compare a state with the oracle, and with the state that another order of the same slots led to."""
        expected = Expected(self.small)
        for slot in done:
            expected.happen(Step("delete", (self.victims[slot],)).event)
        self._check(system, folder, expected, f"order {list(done)}")
        end = _bits(system, folder, self.small)
        first = self.ends.setdefault(frozenset(done), end)
        if first != end:
            self.tally.different.append(f"order {list(done)} ends in other bits than another order of the same slots")
        if list(done) == sorted(done):  # once per set
            self._refresh(folder, expected, f"set {list(done)}, refreshed")

    def _check(self, system: Any, folder: Path, expected: Expected, where: str) -> None:
        self.tally.different += [f"{where}: {said(finding)}" for finding in self.oracle.check(system, folder, expected)]

    def _refresh(self, folder: Path, expected: Expected, where: str) -> None:
        copy = folder.with_name("refreshed")
        shutil.copytree(folder, copy)
        system = self.lab.open(copy)
        try:
            system.refresh()
            expected.happen(Step("refresh").event)
            self._check(system, copy, expected, where)
            self.refreshed += 1
        finally:
            close(system)
            shutil.rmtree(copy)


def _bits(system: Any, folder: Path, small: Small) -> str:
    """Return a digest of what serves and of every stored tensor file."""
    files = sorted((path.parent.name, path.name, path.read_bytes()) for path in folder.glob("nodes/*/*.safetensors"))
    stored = [[key, name, sha256(content)] for key, name, content in files]
    return sha256(canonical_json([final_state(system, small.probes), stored]))


def random_histories(count: int, seed: int, home: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Play ``count`` random histories and compare every surviving node after every step; return what was seen."""
    tally, methods, steps = Tally(), Counter[str](), Counter[str]()
    restarts = crashes = 0
    for number in range(-(-count // PER_SYSTEM)):
        small = draw(seed, number, steps=False)
        lab, oracle = SmallLab(small), Oracle(small, tally)
        base = home / f"base-{number}"
        system: Any = lab.make(base)
        system.fit(list(small.records))
        close(system)
        for turn in range(min(PER_SYSTEM, count - number * PER_SYSTEM)):
            past = list(_history(small, Random(f"s3t random histories v1 {seed} {number} {turn}")))
            player = Player(lab, home / "run", small.method in EAGER)
            shutil.copytree(base, player.folder)
            for finding in _play(player, past, Expected(small), oracle):
                tally.different.append(f"system {number}, {written(past)}: {said(finding)}")
            shutil.rmtree(player.folder)
            methods[small.method] += 1
            steps.update(step.kind for step in past)
            restarts, crashes = restarts + player.restarts, crashes + player.crashes
        shutil.rmtree(base)
        if progress:
            progress(sum(methods.values()), count, f"{tally.nodes} nodes, {len(tally.different)} differences")
    seen = {"histories": sum(methods.values()), "methods": dict(sorted(methods.items())), "steps": dict(steps)}
    return {"seed": seed, **seen, "restarts": restarts, "crashes": crashes, **dataclasses.asdict(tally)}


def _history(small: Small, rng: Random) -> Iterator[Step]:
    """Yield random steps, at least one of them a deletion, some of which kill the process."""
    steps = [Step("delete", (rng.choice(small.records).id,)), *draw_steps(small, rng)]
    for step in steps:
        able = step.kind not in ("restart", "unknown") and not crash.why_not()
        yield dataclasses.replace(step, kill=rng.randint(1, 20) if able and rng.random() < 0.1 else 0)


def _play(player: Player, past: Sequence[Step], expected: Expected, oracle: Oracle) -> Iterator[Finding]:
    """Play ``past`` step by step; yield each difference that the oracle finds."""
    system: Any = player.lab.open(player.folder)
    try:
        for step in past:
            system = player.step(system, step)
            if step.kind not in ("restart", "unknown"):
                expected.happen(step.event)
            yield from oracle.check(system, player.folder, expected)
    finally:
        close(system)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the histories that are asked for: 0 for the same bits everywhere, 1 for any difference, 2 bad input."""
    made = argparse.ArgumentParser(prog="python -m verify histories", description=__doc__)
    made.add_argument("--exhaustive", action="store_true", help="all 64 sets and 720 orders of 2 shards x 3 slices")
    made.add_argument("--random", type=int, default=0, metavar="N", help="random histories of random small systems")
    made.add_argument("--seed", type=int, default=0, help="what systems and histories are drawn from")
    made.add_argument("--out", type=Path, help="file of the outcome (JSON); it is printed in any case")
    given = made.parse_args(arguments)
    if not given.exhaustive and given.random < 1:
        print("error: nothing to do; give --exhaustive, --random N, or both", file=sys.stderr)
        return 2
    import torch

    from verify.machine import describe_machine

    torch.set_num_threads(1)
    began = time.monotonic()
    outcome: dict[str, Any] = {"schema": 1, "what": "histories against the clean room, 0 ULP"}
    try:
        with tempfile.TemporaryDirectory(prefix="s3t-histories-") as name:
            if given.exhaustive:
                outcome["exhaustive"] = Walk(*full_slots(LAYOUT), Path(name), say).run()
            if given.random:
                outcome["random"] = random_histories(given.random, given.seed, Path(name), say)
    except S3TError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    outcome |= {"seconds": round(time.monotonic() - began, 1), "machine": describe_machine()}
    text = json.dumps(outcome, indent=1, ensure_ascii=False)
    if given.out is not None:
        given.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    parts = [outcome[part] for part in ("exhaustive", "random") if part in outcome]
    return 1 if any(part["different"] for part in parts) else 0


def said(finding: Finding) -> str:
    """Return a finding in one line."""
    return " ".join(part for part in (finding.node, finding.tensor, finding.message) if part)


def say(done: int, total: int, what: str) -> None:
    """Report progress on stderr."""
    print(f"{done}{f'/{total}' if total else ''}: {what}", file=sys.stderr, flush=True)
