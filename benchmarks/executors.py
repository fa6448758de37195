"""Where nodes are trained: the same build in this process, by processes and by Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.engines import Ours
from s3t.backbone import Backbone
from s3t.building import Builder
from s3t.executors import hire
from s3t.resources import Resources

THROUGHPUT = "times the throughput in process"
PLACES = {
    "in process": Resources(),
    "2 processes": Resources(workers=2),
    "Ray, 2 workers": Resources(workers=2, executor="ray"),
}
"""With the same threads in all: each of two workers has half of them."""


@dataclass
class Handing:
    """Seconds that nodes cost the process that hands them out: reading and encoding rows, storing what comes back."""

    seconds: float = 0.0
    nodes: int = 0

    @contextmanager
    def clocked(self) -> Iterator[None]:
        """Clock the body's builds."""
        prepare, finish = Builder.prepare, Builder.finish

        def timed(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(*given: Any, **more: Any) -> Any:
                began = time.perf_counter()
                try:
                    return call(*given, **more)
                finally:
                    self.seconds += time.perf_counter() - began
                    self.nodes += call is finish

            return wrapper

        Builder.prepare, Builder.finish = timed(prepare), timed(finish)  # type: ignore[method-assign]
        try:
            yield
        finally:
            Builder.prepare, Builder.finish = prepare, finish  # type: ignore[method-assign]


def sides(engine: str, precision: str, handing: Handing) -> list[Ours]:
    """Return a side for each of PLACES; on the one with processes ``handing`` is clocked."""
    made = [Ours(name, engine, precision, how) for name, how in PLACES.items()]
    return [replace(side, around=handing.clocked) if side.mode == "2 processes" else side for side in made]


def seconds_to_begin(resources: Resources, backbone: Backbone, kernel: str, folder: Path) -> float:
    """Return the seconds until all workers have told that they are ready."""
    began = time.perf_counter()
    with hire(resources, backbone, kernel, resources.workers, folder):
        return time.perf_counter() - began
