"""Workers on a Ray cluster (the optional extra ``s3t[ray]``): one actor per place, on whichever machine Ray finds for it.

Rows, parents and tensors travel through Ray's memory, so workers need no disk in common with the run, and write nothing of
it. Ray's own traffic and memory are as personal as the rows: docs/EXECUTORS.md says what to close.
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any

from s3t.errors import RunError
from s3t.executors.base import Executor
from s3t.executors.channels import Channel
from s3t.executors.station import Kit, Station

STORE_BYTES = 256 * 2**20
"""Memory for what travels, on a cluster that is started here: an assignment of LoRA blocks takes a few megabytes."""

SECONDS = 10.0
"""How long to wait for a cluster's head node to be reached at all."""


class Cluster(Executor):
    """``address``: of a running cluster (``auto``, ``HOST:PORT``), None to start one on this machine and to stop it at the end.

    ``gpus``: share of a GPU that each worker asks for, so 0.25 puts four on one; on another machine a worker asks for as many
    CPUs as it has threads. Raises RunError if Ray is not installed, the cluster cannot be reached, or has less than all workers
    ask for.
    """

    def __init__(self, kits: Sequence[Kit], by: Channel, address: str | None, gpus: float) -> None:
        super().__init__(kits, by)
        try:
            import ray
        except ImportError as error:
            raise RunError(f"executor=ray needs Ray ({error}): pip install 's3t[ray]'") from error
        self._ray: Any = ray
        self._address = address
        self._gpus = gpus
        self._actors: dict[int, Any] = {}
        self._leaving = ExitStack()
        gone = ray.exceptions
        self.losses = (gone.RayActorError, gone.NodeDiedError, gone.OutOfMemoryError, gone.ObjectLostError)

    def close(self) -> None:
        for place in list(self._actors):
            self._dismiss(place)
        self._leaving.close()

    def _open(self) -> None:
        how: dict[str, Any] = {"configure_logging": False, "log_to_driver": False}
        if self._ray.is_initialized():
            raise RunError("this process uses Ray already; call ray.shutdown() first")
        if self._address is None:
            scratch = self._leaving.enter_context(tempfile.TemporaryDirectory(prefix="s3t-ray-"))
            # A new one, not one that happens to run here; and nothing that travels reaches a disk.
            how |= {"address": "local", "include_dashboard": False, "_temp_dir": scratch}
            how |= {"_system_config": {"automatic_object_spilling_enabled": False, "worker_niceness": 0}}
            how |= {"num_cpus": sum(kit.threads for kit in self._kits), "object_store_memory": STORE_BYTES}
        else:
            how["address"] = _reached(self._address)
        self._leaving.enter_context(_quiet())
        try:
            self._ray.init(**how)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise RunError(f"Ray cannot be reached at {self._address or 'this machine'} ({error})") from error
        self._leaving.callback(self._ray.shutdown)
        has, threads = self._ray.cluster_resources(), sum(kit.threads for kit in self._kits)
        for what, wanted in (("CPU", threads), ("GPU", self._gpus * self.number)):
            if has.get(what, 0) < wanted:
                raise RunError(
                    f"the cluster has {has.get(what, 0):g} {what}, {self.number} workers ask for {wanted:g}; give fewer "
                    "workers or threads, or a smaller share of a GPU"
                )

    def _hire(self, place: int) -> None:
        how = {"num_cpus": self._kits[place].threads, "num_gpus": self._gpus, "max_restarts": 0, "max_task_retries": 0}
        self._actors[place] = self._ray.remote(Station).options(**how).remote(self._kits[place])

    def _dismiss(self, place: int) -> None:
        self._ray.kill(self._actors.pop(place), no_restart=True)

    def _call(self, place: int, method: str, *given: Any) -> Future[Any]:
        with self._told():
            theirs: Future[Any] = getattr(self._actors[place], method).remote(*given).future()
        ours: Future[Any] = Future()
        theirs.add_done_callback(lambda done: self._settle(ours, done))
        return ours

    def _settle(self, ours: Future[Any], done: Future[Any]) -> None:
        """Hand a result on, or what the worker raised: Ray wraps that, with the worker's traceback in its text."""
        error = done.exception()
        if error is None:
            ours.set_result(done.result())
        else:
            ours.set_exception(error.cause if isinstance(error, self._ray.exceptions.RayTaskError) else error)


def _reached(address: str) -> str:
    """Return the address of a cluster. RunError if it is none, or nobody listens there: Ray itself would try for minutes."""
    if address == "auto":
        return address
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise RunError(f"address {address!r} is none of a Ray cluster; give auto, or HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS).close()
    except (OSError, OverflowError) as error:
        raise RunError(f"Ray cannot be reached at {address} ({error}); is its head node running?") from error
    return address


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray from reporting its usage over the network and from keeping the handler of SIGTERM that it puts in."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its present default warns that it will change
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
