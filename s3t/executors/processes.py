"""Worker processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.util import Finalize
from typing import Any

from s3t.executors.base import Executor
from s3t.executors.station import Kit, Station


class Processes(Executor):
    """A process per place, started afresh (not forked), on its share of the threads."""

    losses = (BrokenProcessPool,)

    def __init__(self, kits: Sequence[Kit]) -> None:
        super().__init__(kits)
        self._pools: dict[int, ProcessPoolExecutor] = {}

    def close(self) -> None:
        for pool in self._pools.values():
            pool.shutdown(wait=True, cancel_futures=True)

    def _hire(self, place: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pools[place] = ProcessPoolExecutor(1, context, _begin, (self._kits[place],))

    def _dismiss(self, place: int) -> None:
        self._pools.pop(place).shutdown(wait=True, cancel_futures=True)

    def _call(self, place: int, method: str, *given: Any) -> Future[Any]:
        return self._pools[place].submit(_call, method, *given)


_here: list[Station] = []


def _begin(kit: Kit) -> None:
    Finalize(None, os._exit, (0,), exitpriority=0)  # taking all modules apart would take two seconds, and give nothing
    _here[:] = [Station(kit)]


def _call(method: str, *given: Any) -> Any:
    return getattr(_here[0], method)(*given)
