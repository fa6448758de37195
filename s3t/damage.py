"""Files of nodes, and features, that are damaged or gone, as far as is known: not served until a refresh. No torch.

A node counts as damaged as a whole: whichever of its files is missing or not what the ledger says, it does not serve. It is
known by the ledger entry of its training, so that a node trained again is a new one; and it is read again once its files
change, for they may have been put back. Once it is read and found to be whole it is no longer known as damaged. So it is with
the features that an analytic head reads, which are of one file and one ledger entry.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from s3t.analytic.store import FEATURES
from s3t.errors import DamageError
from s3t.facts import Facts
from s3t.graph import Node
from s3t.selection import TrainedNode
from s3t.store import NodeStore

LOG = logging.getLogger("s3t")
"""Says once of each damaged node that it is left out. The command line shows it on stderr."""

REST = 5.0
"""Seconds without a change after which a file of features is taken to be at rest."""

Stamp = tuple[tuple[int, int, int] | None, ...]
"""Inode, size and time of change of each file of a node; None for one that cannot be looked at."""


@dataclass(frozen=True)
class _Found:
    fact: TrainedNode
    reason: str
    stamp: Stamp


class Damage:
    """What is known of one run's files of nodes, by ledger entry, and of features. Views of several threads may share it."""

    def __init__(self, store: NodeStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._whole: set[int] = set()
        self._found: dict[int, _Found] = {}
        self._features: tuple[int, Stamp, str] = (0, (None,), "")

    def read(self, fact: TrainedNode, wanted: Iterable[str] = ()) -> dict[str, bytes]:
        """Check all files of a node and return those that are ``wanted``, by name; only these are in memory.

        DamageError if one is missing or not what the ledger says.
        """
        content = {name: self._store.read(fact.key, name, fact.files[name]) for name in wanted}
        self._store.check(fact.key, {name: digest for name, digest in fact.files.items() if name not in content})
        with self._lock:
            self._whole.add(fact.seq)
            self._found = {seq: found for seq, found in self._found.items() if seq != fact.seq}
        return content

    def check(self, wanted: Iterable[TrainedNode]) -> None:
        """Read the files of those of ``wanted`` that never were. DamageError for the first that is damaged."""
        for fact in wanted:
            if fact.seq not in self._whole:
                self.read(fact)

    def whole(self, wanted: Iterable[TrainedNode]) -> bool:
        """Say whether all of ``wanted`` have been read and were as recorded."""
        return all(fact.seq in self._whole for fact in wanted)

    def survey(self, facts: Facts, wanted: Iterable[TrainedNode]) -> None:
        """Read the files of ``wanted`` anew; keep in mind, and tell of, those that are damaged.

        Not of those that a deletion has dropped meanwhile: ``facts`` is brought up to date first.
        """
        failed = []
        for fact in wanted:
            stamp = self._stamp(fact)
            try:
                self.read(fact)
            except DamageError as error:
                failed.append(_Found(fact, str(error), stamp))
        facts.update()  # a deletion is in the ledger before it erases a file
        for found in failed:
            alive = facts.alive.get(found.fact.node)
            if alive is not None and alive.seq == found.fact.seq:
                self._note(found)

    def _note(self, found: _Found) -> None:
        with self._lock:
            new = found.fact.seq not in self._found
            self._found = {**self._found, found.fact.seq: found}
            self._whole.discard(found.fact.seq)
        if new:
            LOG.warning("%s is left out: %s", found.fact.node.name, found.reason)

    def lost(self, facts: Facts) -> frozenset[int]:
        """Return the entries of surviving nodes that are known to be damaged, and whose files are as they were then."""
        return frozenset(self._of(facts))

    def nodes(self, facts: Facts) -> set[Node]:
        """Return the surviving nodes that are known to be damaged."""
        return {found.fact.node for found in self._of(facts).values()}

    def told(self, facts: Facts) -> dict[str, str]:
        """Return the names of surviving nodes that are known to be damaged, each with the reason."""
        return {found.fact.node.name: found.reason for found in self._of(facts).values()}

    def note_features(self, made: int, stamp: Stamp, reason: str) -> None:
        """Keep in mind what is wrong, or nothing, with the features that the ledger's entry ``made`` says are all there;
        ``stamp``: of their file, from before they were read."""
        self._features = (made, stamp, reason)

    def features(self, facts: Facts) -> str:
        """Return what is known to be wrong with the features that an analytic head reads, nothing where that was before they
        were made anew or their file changed."""
        made, stamp, reason = self._features
        return reason if reason and made == facts.head and stamp == self.features_stamp() else ""

    def features_stamp(self) -> Stamp:
        """Return how the file of features looks from outside."""
        return (_look(self._store.root.parent / FEATURES),)

    def features_at_rest(self) -> Stamp | None:
        """Return the same, or None where the file was changed a moment ago, as by a refresh that is under way."""
        (seen,) = stamp = self.features_stamp()
        return None if seen is not None and time.time() - seen[2] / 1e9 < REST else stamp

    def _of(self, facts: Facts) -> dict[int, _Found]:
        if not self._found:
            return {}
        alive = {fact.seq for fact in facts.alive.values()}
        now = {seq: found for seq, found in sorted(self._found.items()) if seq in alive}
        changed = {seq for seq, found in now.items() if self._stamp(found.fact) != found.stamp}
        with self._lock:
            self._found = {seq: found for seq, found in self._found.items() if seq not in changed}
        return {seq: found for seq, found in now.items() if seq not in changed}

    @property
    def names(self) -> list[str]:
        """The names of the nodes that are known to be damaged."""
        return [found.fact.node.name for found in self._found.values()]

    def keep(self, entries: Iterable[int]) -> None:
        """Forget every node but those of these ledger entries."""
        alive = set(entries)
        with self._lock:
            self._whole &= alive
            self._found = {seq: found for seq, found in self._found.items() if seq in alive}

    def _stamp(self, fact: TrainedNode) -> Stamp:
        return tuple(_look(self._store.root / fact.key / name) for name in sorted(fact.files))


def _look(path: Path) -> tuple[int, int, int] | None:
    try:
        seen = os.stat(path)
    except OSError:
        return None
    return seen.st_ino, seen.st_size, seen.st_mtime_ns
