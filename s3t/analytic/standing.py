"""The analytic head of a run, in memory: its sums over the retained records, and the map solved from them.

Sums are made from the run's stored features, one record in memory at a time. A deletion by this process takes a record's
features out of them; after one by another process they are made anew. Both give the same bits, for they are integers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s3t.analytic.features import Reader
from s3t.analytic.head import NAME
from s3t.analytic.solving import Linear, Workspace, solve
from s3t.analytic.sums import ROWS, Features, Sums
from s3t.answers import target
from s3t.backbone import Backbone
from s3t.contract import NodeFacts
from s3t.errors import DamageError
from s3t.ledger import Ledger
from s3t.observing import ObservedRows
from s3t.partition import tag
from s3t.records import canonical_json, sha256
from s3t.rows import RecordStore, StoredRow
from s3t.runs import LEDGER, Run

LOG = logging.getLogger("s3t")
SHARD = -1
"""Where it stands among what serves: it belongs to no shard."""


@dataclass(frozen=True)
class Kept:
    """A retained record as it is in the sums: its id and commitment, its features, its answer."""

    name: str
    commitment: str
    features: Features
    answer: float


class StandingHead:
    """The head of one run. Its owner calls everything but ``reader``, which reads features, under one lock.

    ``linear``: what serves now, None where nothing does: it was not finished, its features are damaged, or no record is
    retained. ``trouble``: what it lacks, or nothing.
    """

    def __init__(self, run: Run, backbone: Backbone) -> None:
        assert run.config.plan.head is not None
        self._run = run
        self._head = run.config.plan.head
        self.reader = Reader(backbone, self._head, run.config.seed)
        self._sums: Sums | None = None
        self._workspace = Workspace(self.reader.size)
        self._behind: dict[str, str] = {}
        self._seen: tuple[int, int, object] | None = None
        self._environment: Mapping[str, object] = {}
        self.linear: Linear | None = None
        self.trouble = ""

    def follow(self) -> None:
        """Bring the head in line with the ledger as of now. After a request that :meth:`forget` was not told of, and after a
        build, that takes the features of all retained records."""
        ledger, store = Ledger(self._run.path / LEDGER), RecordStore(self._run.path)  # any thread may come here
        try:
            while self._seen != (now := self._state(ledger)):
                self._read(ledger, store)
                settled = now == self._state(ledger)  # else a deletion may have erased features as they were read
                self._seen = now if settled or not self.trouble else self._seen
        finally:
            store.close()
            ledger.close()

    def _read(self, ledger: Ledger, store: RecordStore) -> None:
        self._sums, self._behind, self.linear, said, self.trouble = None, {}, None, self.trouble, ""
        made = ledger.last("head")
        if made is None:
            self.trouble = "the analytic head is not finished; give the command that trains the run again"
            return
        self._environment, stamp = made.body["environment"], self._run.damage.features_stamp()
        try:
            sums = Sums.over(self.reader.size, len(self._run.config.classes), self._chunks(store))
        except DamageError as error:
            self.trouble = str(error)
            self._run.damage.note_features(made.seq, stamp, self.trouble)
            if self.trouble != said:
                LOG.warning("the analytic head is left out: %s", error)
            return
        self._run.damage.note_features(made.seq, stamp, "")
        self._sums = sums
        self._solve()

    def recall(self, ids: Iterable[str]) -> list[Kept]:
        """Return what :meth:`forget` needs of records that are about to be deleted; of those that are here."""
        rows = (self._run.records.row(tag(self._run.key, name)) for name in dict.fromkeys(ids))
        try:
            there = (row for row in rows if row is not None)
            return list(_kept(self._run, self._run.records, there, self._environment))
        except DamageError:
            return []  # the sums are none, then, or will be found to be others

    def forget(self, gone: Iterable[Kept], fresh: Iterable[str], request: int) -> None:
        """Take out of the sums those of ``gone`` that the request of this number (from 1) deleted, ``fresh``.

        Where the sums are not those of the request before, the next :meth:`follow` makes them anew."""
        names = set(fresh)
        left = [one for one in gone if one.name in names]
        if self._sums is None or self._seen is None or self._seen[0] != request - 1 or len(left) != len(names):
            return
        if left:
            self._sums.remove(*_together(left))
            for one in left:
                del self._behind[one.name]
            self._solve()
        self._seen = (request, *self._seen[1:])

    def facts(self) -> NodeFacts:
        """Return what the head that serves depends on, with the ids of the records whose features were read."""
        config = self._run.config
        about = ["s3t head v1", self._head.to_json(), config.seed, config.model["digest"], self._environment]
        key = sha256(canonical_json([*about, sorted(self._behind.values())]))
        return NodeFacts(NAME, key, SHARD, (), None, frozenset(self._behind))

    def _state(self, ledger: Ledger) -> tuple[int, int, object]:
        """Return what a head follows from: the number of requests, the entry of the last head that was finished, and, where it
        has trouble, its features' file, which may be put back; not while that is being written."""
        made = ledger.last("head")
        file = self._run.damage.features_at_rest() if self.trouble else None
        return ledger.requests(), made.seq if made else 0, file

    def _solve(self) -> None:
        assert self._sums is not None
        self.linear = solve(self._sums, self._head, self._workspace) if self._sums.records else None

    def _chunks(self, store: RecordStore) -> Iterator[tuple[Features, NDArray[np.float64]]]:
        door, part = ObservedRows(store), list[Kept]()
        with door.observing():
            for one in _kept(self._run, store, door.each(self._run.config.plan.layout.slots()), self._environment):
                self._behind[one.name] = one.commitment
                part.append(one)
                if len(part) == ROWS:
                    yield _together(part)
                    part = []
        if part:
            yield _together(part)


def _kept(run: Run, store: RecordStore, rows: Iterable[StoredRow], environment: Mapping[str, object]) -> Iterator[Kept]:
    """Yield retained rows with their stored features of ``environment``. DamageError for one that has none."""
    assert run.features is not None
    for row in rows:
        found = run.features.read(store.number(tag(run.key, row.record.id)), row.commitment, environment)
        if found is None:
            raise DamageError("a retained record has no features in features.bin; run `s3t refresh` to make them anew")
        features = np.frombuffer(found, "<i2").astype(np.int16)
        yield Kept(row.record.id, row.commitment, features, float(target(row.record.label, run.config.classes)))


def _together(part: Sequence[Kept]) -> tuple[Features, NDArray[np.float64]]:
    return np.stack([one.features for one in part]), np.array([one.answer for one in part])
