"""Where the nodes of a build are trained: by processes of this machine, or on a Ray cluster; without workers, in this process.

All train the same bits: a node's tensors are a function of its assignment and of the environment in its key.
"""

from __future__ import annotations

from pathlib import Path

import torch

from s3t.backbone import Backbone
from s3t.executors.base import Executor, WorkerLost
from s3t.executors.station import Kit
from s3t.resources import Resources

__all__ = ["Executor", "WorkerLost", "hire"]


def hire(resources: Resources, backbone: Backbone, kernel: str, number: int, folder: Path) -> Executor:
    """Return ``number`` workers, not yet started. RunError if Ray is asked for and not installed.

    ``folder``: the run's own for activations that do not fit into memory; workers on other machines write none.
    """
    threads = resources.threads or max(1, torch.get_num_threads() // number)
    cache = round(resources.cache_gb * 1e9) // number

    def kit(place: int, device: str | None, where: Path | None) -> Kit:
        within = None if where is None else str(where / f"worker-{place}")
        return Kit(backbone.name, backbone.digest, kernel, device, threads, cache, within)

    if resources.executor == "ray":
        from s3t.executors.cluster import Cluster

        return Cluster([kit(place, None, None) for place in range(number)], resources.address, resources.gpus)
    from s3t.executors.processes import Processes

    return Processes([kit(place, str(backbone.device), folder) for place in range(number)])
