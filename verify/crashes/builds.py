"""Works that train: a fit, a refresh after a deletion, further orders; each followed by the same again, or by a deletion."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from verify.crashes.bench import (
    FIRST,
    PROBES,
    RECORDS,
    RUN,
    SECOND,
    Fault,
    Say,
    Work,
    delete_first,
    differences,
    folder,
    refresh,
    state,
    traces,
    trained,
)

if TYPE_CHECKING:
    from s3t.system import System


class Train(Work):
    """Make a run in a folder whose parents are made too, and train all."""

    name = "train"

    def start(self) -> Path | None:
        """Return nothing: the run does not exist yet."""
        return None

    def do(self, root: Path, say: Say) -> None:
        """Fit."""
        self.bench.system(root).fit(RECORDS)
        say()

    def check(self, root: Path, said: int) -> Iterator[Fault]:
        """Fit again: finished nodes are kept, and all ends as without the interruption."""
        wanted = self.bench.end()
        before = trained(root)
        if said and not before:
            yield "loss", "the run is gone, though it was trained"
        with contextlib.closing(self.bench.system(root)) as system:
            cost = system.fit(RECORDS)
            yield from _continued(root, before, cost.nodes, len(trained(self.bench.start())), said)
            yield from differences(state(system), wanted)
        yield from folder(root)


class TrainDelete(Train):
    """The same, and a deletion comes next, before any further training."""

    name = "train, then delete"

    def check(self, root: Path, said: int) -> Iterator[Fault]:
        """Delete from what is there: nothing trained on the record is left on disk. Then finish."""
        if (root / RUN).exists():
            with contextlib.closing(self.bench.open(root)) as system:
                system.delete([FIRST])
                yield from traces(root, [FIRST])
                yield from folder(root)
                system.refresh()
                yield from differences(state(system), self.bench.end(without=[FIRST]))
            yield from folder(root)


def _continued(root: Path, before: list[str], cost: int, total: int, said: int) -> Iterator[Fault]:
    """Yield a fault if a finished node was trained again, or the ledger's earlier facts are not those of before."""
    if trained(root)[: len(before)] != before or cost != total - len(before):
        yield "loss", f"{cost} nodes were trained, {len(before)} of {total} had been finished"
    if said and cost:
        yield "loss", "what was acknowledged as trained had to be trained again"


class Refresh(Work):
    """Train again what a deletion has dropped."""

    name = "refresh"

    def start(self) -> Path | None:
        """Return a run with a deletion."""
        return self.bench.start(delete_first)

    def do(self, root: Path, say: Say) -> None:
        """Refresh."""
        self.bench.open(root).refresh()
        say()

    def check(self, root: Path, said: int) -> Iterator[Fault]:
        """Refresh again; it ends as without the interruption, and as a run that never met the record."""
        yield from traces(root, [FIRST])
        before = trained(root)
        with contextlib.closing(self.bench.open(root)) as system:
            if system.status().live:
                system.predict(PROBES)  # what survives serves in the meantime
            cost, total = system.refresh(), len(trained(self.bench.start(delete_first, refresh)))
            yield from _continued(root, before, cost.nodes, total, said)
            yield from differences(state(system), self.bench.end(delete_first, refresh))
            yield from differences(state(system), self.bench.end(without=[FIRST]))
        yield from traces(root, [FIRST])
        yield from folder(root)


class RefreshDelete(Refresh):
    """The same, and another deletion comes next, before any further training."""

    name = "refresh, then delete"

    def check(self, root: Path, said: int) -> Iterator[Fault]:
        """Delete from what is there: nothing trained on either record is left on disk. Then finish."""
        with contextlib.closing(self.bench.open(root)) as system:
            system.delete([SECOND])
            yield from traces(root, [FIRST, SECOND])
            yield from folder(root)
            system.refresh()
            yield from differences(state(system), self.bench.end(without=[FIRST, SECOND]))
        yield from folder(root)


class Extend(Work):
    """Raise the number of orders, and train what that adds."""

    name = "extend"

    def start(self) -> Path | None:
        """Return a run with one order."""
        return self.bench.start(budget=1)

    def do(self, root: Path, say: Say) -> None:
        """Extend to two orders."""
        self.bench.open(root).extend(2)
        say()

    def check(self, root: Path, said: int) -> Iterator[Fault]:
        """Extend again; what was finished is kept."""
        before = trained(root)
        with contextlib.closing(self.bench.open(root)) as system:
            cost, total = system.extend(2), len(trained(self.bench.start(_extend, budget=1)))
            yield from _continued(root, before, cost.nodes, total, said)
            yield from differences(state(system), self.bench.end(_extend, budget=1))
        yield from folder(root)


def _extend(system: System) -> None:
    system.extend(2)
