"""Works that delete: records one after the other, a person's records at once, and a request that a start has to complete."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from verify import derive
from verify.crashes.bench import (
    FIRST,
    GROUP,
    KEY,
    RECORDS,
    SECOND,
    Fault,
    Say,
    Work,
    delete_first,
    delete_group,
    delete_second,
    differences,
    folder,
    state,
    traces,
)

if TYPE_CHECKING:
    from s3t.system import System


class Delete(Work):
    """Two deletions, one after the other, each acknowledged."""

    name = "delete"
    steps: ClassVar[tuple[tuple[Callable[[Any], None], tuple[str, ...]], ...]]
    steps = ((delete_first, (FIRST,)), (delete_second, (SECOND,)))

    def start(self) -> Path | None:
        """Return a fitted run."""
        return self.bench.start()

    def do(self, root: Path, say: Say) -> None:
        """Delete, step by step."""
        system = self.bench.open(root)
        for step, _ in self.steps:
            step(system)
            say()

    def check(self, root: Path, said: int) -> Iterator[Fault]:
        """Nothing acknowledged is there, before any start as after it; what is on record is complete; the rest can be done."""
        wanted = [self.bench.end(*(step for step, _ in self.steps[:i])) for i in range(len(self.steps) + 1)]
        acknowledged = [name for _, names in self.steps[:said] for name in names]
        yield from traces(root, acknowledged)
        if said == len(self.steps):
            yield from folder(root)
        with contextlib.closing(self.bench.open(root)) as system:
            yield from folder(root)
            gone = [record.id for record in RECORDS if record.id not in system.ids()]
            yield from traces(root, gone)
            if lost := set(acknowledged) - set(gone):
                yield "loss", f"the deletion of {sorted(lost)} was acknowledged and is lost"
            done = next((i for i in range(said, len(wanted)) if self._gone(i) == set(gone)), None)
            if done is None or done > said + 1 or system.status().deleted != len(gone):
                yield "difference", f"{sorted(gone)} are deleted after {said} acknowledged deletions"
                return
            yield from differences(state(system), wanted[done])
            for step, _ in self.steps[done:]:
                step(system)
            yield from differences(state(system), wanted[-1])
            yield from traces(root, sorted(self._gone(len(self.steps))))
            system.delete([FIRST] if FIRST in self._gone(len(self.steps)) else gone[-1:])  # again: nothing to do
            yield from differences(state(system), wanted[-1])
        yield from folder(root)

    def _gone(self, steps: int) -> set[str]:
        return {name for _, names in self.steps[:steps] for name in names}


class DeleteGroup(Delete):
    """All records of a person, in one request."""

    name = "delete group"
    steps = ((delete_group, tuple(record.id for record in RECORDS if record.id.startswith(GROUP))),)


class Recover(Work):
    """A request is in the ledger and nothing else was done; the start that completes it is cut short too."""

    name = "recover"

    def start(self) -> Path | None:
        """Return a fitted run with a request on record."""
        return self.bench.start(_pending)

    def do(self, root: Path, say: Say) -> None:
        """Open, which completes the request."""
        self.bench.open(root)
        say()

    def check(self, root: Path, said: int) -> Iterator[Fault]:
        """Once a start has returned, nothing of the request is left to do; the next start comes to the same."""
        if said:
            yield from traces(root, [FIRST])
            yield from folder(root)
        with contextlib.closing(self.bench.open(root)) as system:
            yield from traces(root, [FIRST])
            yield from folder(root)
            yield from differences(state(system), self.bench.end(delete_first))


def _pending(system: System) -> None:
    from s3t.runs import open_run

    place, tags = derive.slot(KEY, FIRST, 1, 2), [derive.tag(KEY, FIRST)]
    with contextlib.closing(open_run(system.path)) as run:
        run.ledger.append_request({"tags": tags, "slots": [list(place)]}, tags, [place])
