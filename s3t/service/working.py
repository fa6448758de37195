"""A run that is served: a thread that deletes, threads that predict, and one that looks how things stand.

SQLite's connections keep to their thread, so everything that writes happens in the one thread that opened the system; that
is also why deletions come one after the other. Predictions follow the ledger by connections of their own
(:mod:`s3t.serving`): each first reads how far the ledger has got, so that it sees every request acknowledged before it began,
by this process or another. Refreshes are made by a process of their own (:mod:`s3t.service.refresher`).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3t.replies import acknowledged, answered
from s3t.service.bodies import Wanted, read_records, read_wanted
from s3t.service.refresher import Refresher, Refreshing
from s3t.system import System

if TYPE_CHECKING:
    from s3t.backbone import Backbone

Reply = dict[str, Any]


class Service:
    """An open run. Raises what ``System.open`` raises, and RunError or ModelError if what serves cannot be loaded.

    ``workers``: predictions at a time. ``most``: records per prediction. ``backbone``: as in ``System.open``.
    ``refreshing``: when the run is refreshed, never by default; ServiceError if that does not fit the run.
    """

    def __init__(
        self,
        run: Path,
        *,
        workers: int = 2,
        most: int = 256,
        backbone: Backbone | None = None,
        refreshing: Refreshing | None = None,
    ) -> None:
        self.run = run
        self._most = most
        self._reading = ThreadPoolExecutor(workers, "predict")
        self._writing = ThreadPoolExecutor(1, "delete")
        self._watching = ThreadPoolExecutor(1, "status")
        opened: list[tuple[ThreadPoolExecutor, System]] = []
        self._opened = opened
        self._refresher: Refresher | None = None
        try:
            self._system = self._writing.submit(System.open, run, backbone).result()
            opened.append((self._writing, self._system))
            how = refreshing or Refreshing()
            self._refresher = Refresher(run, self._system.config.plan, how, damage=self._system.damage)
            self._writing.submit(self._system.weights).result()
            self._watched = self._watching.submit(System.open, run, damage=self._system.damage).result()
            opened.append((self._watching, self._watched))
            self._refresher.start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Finish what was begun, in every thread, and close the run; a refresh is cut short, and goes on another time."""
        if self._refresher:
            self._refresher.close()
        self._reading.shutdown()
        for pool, system in self._opened:
            pool.submit(system.close).result()
        self._opened.clear()
        self._writing.shutdown()
        self._watching.shutdown()

    def predict(self, body: bytes) -> Future[Reply]:
        """Answer a body (:func:`s3t.service.bodies.read_records`) as ``s3t predict --json`` does.

        The future raises DataError for a body that is not as it should be, OfflineError without any live shard.
        """
        return self._reading.submit(self._predict, body)

    def delete(self, body: bytes) -> Future[Reply]:
        """Delete what a body names (:func:`s3t.service.bodies.read_wanted`), as ``s3t delete --json`` does, in one request.

        When the future has a result, the request is durable in the ledger, and rows and nodes are erased
        (``System.delete``). DataError, at once, for a body that is not as it should be; the future raises RecordError for an
        id or a group that is not here. Nothing has changed then. After any other error repeat the request: what is on record
        is then completed, and named as deleted before.
        """
        return self._writing.submit(self._delete, read_wanted(body))

    def status(self) -> Future[Reply]:
        """Say how the run stands, as ``s3t status --json`` does, and of its refreshes; no deletion under way delays it."""
        return self._watching.submit(self._status)

    def dead(self) -> Future[list[int]]:
        """Return the shards that are offline if that is all of them, else none; what is due to serve is loaded for it.

        The future raises RunError if that cannot be.
        """
        return self._watching.submit(self._dead)

    def _predict(self, body: bytes) -> Reply:
        records = read_records(body, self._system.classes, self._most)
        scores = self._system.predict([record.inputs for record in records])
        return answered(scores, records, self._system.classes)

    def _delete(self, wanted: Wanted) -> Reply:
        members = [name for group in wanted.groups for name in self._system.members(group)]
        receipt = self._system.delete([*wanted.ids, *members])
        return {**asdict(receipt), "said": acknowledged(receipt)}

    def _status(self) -> Reply:
        assert self._refresher is not None
        return {**asdict(self._watched.status()), "refresh": self._refresher.status()}

    def _dead(self) -> list[int]:
        return [] if self._system.weights() else list(range(self._system.config.plan.layout.shards))


Work = Callable[[bytes], Future[Reply]]
