"""What the levels beyond lineage and clean room work on: a system, its history, and a laboratory that makes more like it.

A case comes from a run folder (:mod:`verify.laboratory`), from an adapter of a third-party system
(:mod:`verify.adapter`), or from a planted fault (:mod:`verify.leaks`). The levels know nothing else of the system but the
contract.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from s3t.contract import Progress, Slot, UnlearningSystem
from s3t.errors import S3TError
from s3t.records import Record


@dataclass(frozen=True)
class Event:
    """What happened after the fit: records deleted, whole slots retired, orders added, or dropped parts rebuilt.

    ``slots``: what the request dropped (delete, retire). ``budget``: the new number of orders (extend).
    """

    kind: Literal["delete", "retire", "extend", "refresh"]
    ids: tuple[str, ...] = ()
    slots: tuple[Slot, ...] = ()
    budget: int = 0


@dataclass(frozen=True)
class Variant:
    """In what a further system differs from the audited one. ``seed``: of the run; ``None`` keeps it.

    ``poisoned``: words whose input embedding is NaN, so that whatever reads one of them is NaN as well. ``tolerant``:
    training goes on where it would stop for a loss that is not finite.
    """

    seed: int | None = None
    poisoned: tuple[str, ...] = ()
    tolerant: bool = False


SAME = Variant()


class Lab(Protocol):
    """Makes further systems of the audited configuration (method, recipe, layout, slot key, base model)."""

    def make(self, folder: Path, variant: Variant = SAME) -> UnlearningSystem:
        """Describe a system in ``folder``, which does not exist yet; nothing is trained."""

    def open(self, folder: Path) -> UnlearningSystem:
        """Open what a system of this laboratory left in ``folder`` or in a copy of it, as after a restart."""


@dataclass(frozen=True)
class Case:
    """A live ``system``, everything ever handed in for training (``records``), its ``history``, and ``probes`` to ask.

    ``dropped``: hit slots from which nothing that is served or may be served has read. ``survivors``: the nodes (shard,
    prefix) that survive, where a ledger says so.
    """

    system: UnlearningSystem
    lab: Lab
    records: tuple[Record, ...]
    history: tuple[Event, ...]
    probes: tuple[Record, ...]
    dropped: frozenset[Slot] = frozenset()
    survivors: frozenset[tuple[int, tuple[int, ...]]] | None = None

    @property
    def deleted(self) -> frozenset[str]:
        """The ids that any event deleted."""
        return frozenset(name for event in self.history for name in event.ids)

    @property
    def victims(self) -> tuple[Record, ...]:
        """The deleted records."""
        return tuple(record for record in self.records if record.id in self.deleted)

    @property
    def retained(self) -> tuple[Record, ...]:
        """The records that were never deleted."""
        return tuple(record for record in self.records if record.id not in self.deleted)

    def never_ingested(self) -> tuple[Event, ...]:
        """Return what must happen to a reference that never meets the deleted records, by what the system claims.

        "retrained": nothing but additions of orders, for the fresh fit is what is claimed. "non-interference": the same
        history; :func:`play` turns its deletions into the same slot mask.
        """
        if self.system.provenance().claim == "retrained":
            return tuple(event for event in self.history if event.kind == "extend")
        return self.history


class CannotPlayError(S3TError):
    """A system cannot be brought through a history: a capability is missing, or an operation failed."""


def play(
    system: UnlearningSystem,
    records: Sequence[Record],
    history: Sequence[Event],
    progress: Progress | None = None,
) -> UnlearningSystem:
    """Fit ``system`` on ``records`` and repeat ``history`` on it; return it.

    Ids that are not among ``records`` cannot be deleted; their slots are retired instead (same slot mask), by the optional
    capability ``retire(slots)``. Raises CannotPlayError, naming what is missing or failed.
    """
    try:
        system.fit(records, progress)
        present = {record.id for record in records}
        for event in history:
            apply(system, event, present, progress)
    except CannotPlayError:
        raise
    except S3TError as error:
        raise CannotPlayError(f"the reference cannot be fitted: {error}") from error
    return system


def apply(system: Any, event: Event, present: Collection[str], progress: Progress | None = None) -> None:
    """Repeat one event on ``system``, which was fitted on the ids ``present``."""
    if event.kind == "refresh":
        system.refresh(progress)
    elif event.kind == "extend":
        _able(system, "extend")(event.budget)
    elif event.kind == "delete" and set(event.ids) <= set(present):
        system.delete(list(event.ids))
    else:
        here = [name for name in event.ids if name in present]
        _able(system, "retire")(event.slots)
        if here:
            system.delete(here)


def _able(system: Any, capability: str) -> Any:
    if not hasattr(system, capability):
        raise CannotPlayError(
            f"the system cannot {capability} (no such method), so no reference can be brought to the same state"
        )
    return getattr(system, capability)
