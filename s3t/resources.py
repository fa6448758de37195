"""What a build may use: memory, workers and where they are. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from s3t.engine.mode import Mode
from s3t.errors import RecipeError, did_you_mean

Place = Literal["processes", "ray"]


@dataclass(frozen=True)
class Resources:
    """What a build may use (docs/EXECUTORS.md).

    ``cache_gb``: gigabytes (10^9 bytes) of the fast engine's activations in memory, of all workers together; the rest goes to
    files. ``workers``: how many train nodes at once; 1 of ``processes`` is this process itself. ``executor``: where they are.
    ``threads`` of each worker; None: its share of this process's. ``address`` of a Ray cluster; None starts one here.
    ``gpus``: share of a GPU for each of Ray's workers. ``retries``: how often a node is handed out again after its worker died.

    None can change what is trained, except that bits depend on the machine and its threads, as everywhere. Raises RecipeError
    for a value out of range, and for one that means nothing to the executor.
    """

    cache_gb: float = 2.0
    workers: int = 1
    executor: str = "processes"
    threads: int | None = None
    address: str | None = None
    gpus: float = 0.0
    retries: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.cache_gb < float("inf"):
            raise RecipeError(f"cache_gb={self.cache_gb} is not possible: give gigabytes from 0 on")
        for name, least in (("workers", 1), ("threads", 1), ("retries", 0)):
            value = getattr(self, name)
            if value is None and name == "threads":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise RecipeError(f"{name}={value!r} is not possible: give a whole number of at least {least}")
        places = get_args(Place)
        if self.executor not in places:
            hint = did_you_mean(self.executor, places)
            raise RecipeError(f"executor={self.executor!r} is unknown{hint}; choose from {', '.join(places)}")
        if not 0 <= self.gpus <= 64:
            raise RecipeError(f"gpus={self.gpus!r} is not possible: give a share of a GPU from 0 on, such as 0.25")
        if self.executor != "ray" and (self.address is not None or self.gpus):
            raise RecipeError("address and gpus are for Ray; give executor=ray, or leave them out")
        if self.threads is not None and not self.spread:
            raise RecipeError("threads are those of each worker; give more than one, or set OMP_NUM_THREADS")

    @property
    def spread(self) -> bool:
        """Whether nodes are trained by workers at all, and not in this process."""
        return self.workers > 1 or self.executor == "ray"

    def check(self, kernel: str) -> None:
        """RecipeError if nodes of this kernel are not trained by workers."""
        if self.spread and (mode := Mode.of(kernel)) and mode.form == "grouped":
            raise RecipeError("engine=grouped trains nodes together in one process; leave out workers and executor")
