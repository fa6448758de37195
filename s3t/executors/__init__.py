"""Where the nodes of a build are trained: by processes of this machine, or on a Ray cluster; without workers, in this process.

All train the same bits: a node's tensors are a function of its assignment and of the environment in its key.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from s3t.backbone import Backbone
from s3t.exchange import Exchange, erase_noted
from s3t.executors.base import Executor, WorkerLost
from s3t.executors.channels import channel
from s3t.executors.station import Kit
from s3t.resources import Resources
from s3t.runs import ACTIVATIONS

__all__ = ["Executor", "WorkerLost", "hire"]


@contextmanager
def hire(resources: Resources, backbone: Backbone, kernel: str, number: int, folder: Path) -> Iterator[Executor]:
    """Have ``number`` workers while the body works. RunError if they cannot be had, or are not alike.

    ``folder``: the run's, for activations that do not fit into memory, and the note of an exchange; workers on other machines
    write none.
    """
    threads = resources.threads or max(1, torch.get_num_threads() // number)
    cache = round(resources.cache_gb * 1e9) // number
    exchange = None if resources.exchange is None else Exchange.begin(resources.exchange, folder)

    def kit(place: int, device: str | None, where: Path | None) -> Kit:
        within = None if where is None else str(where / ACTIVATIONS / f"worker-{place}")
        url = exchange.url if exchange else None
        return Kit(backbone.name, backbone.digest, kernel, device, threads, cache, within, url)

    executor: Executor
    try:
        if resources.executor == "ray":
            from s3t.executors.cluster import Cluster

            kits = [kit(place, None, None) for place in range(number)]
            executor = Cluster(kits, channel(exchange), resources.address, resources.gpus)
        else:
            from s3t.executors.processes import Processes

            executor = Processes(
                [kit(place, str(backbone.device), folder) for place in range(number)], channel(exchange)
            )
        with executor:
            yield executor
    finally:
        if exchange:
            erase_noted(folder)
