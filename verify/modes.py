"""Conditions of the fast engine for :mod:`verify.determinism`: what keeps its bits, and how far it is from the reference."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from s3t.engine.mode import MODES, REFERENCE
from verify.determinism import Condition, elsewhere
from verify.machine import on_threads

if TYPE_CHECKING:
    from torch import Tensor

    from verify.conditions import Bench

    Run = Callable[[], Mapping[str, Tensor]]
FAST = tuple(mode.kernel for mode in MODES if mode.engine == "fast")
"""The kernels of the fast engine; the first is that in float32."""


def in_fast_engine(bench: Bench, model: str, few: str) -> Iterator[Condition]:
    """Yield the fast engine's conditions on the CPU; ``few`` says why two threads cannot be tried here, or nothing."""
    from verify import conditions as c

    def trained(name: str, dropout: float = 0.0) -> Run:
        return lambda: c.nodes(bench, name, dropout=dropout)

    def kept(name: str, budget: int) -> Run:
        def run() -> Mapping[str, Tensor]:
            with tempfile.TemporaryDirectory(prefix="s3t-determinism-") as folder:
                return c.kept(bench, name, budget, Path(folder) / "kept")

        return run

    def scored(name: str, together: bool = True) -> Run:
        return lambda: c.ensemble(bench, name, together)

    def prefix(name: str, company: bool) -> Run:
        return lambda: c.prefix(bench, name, company)

    def elsewhere_trained(name: str) -> Run:
        return lambda: elsewhere(model, {}, name)

    for name in FAST:
        yield Condition(f"{name}: run again, with dropout", "training", trained(name, 0.1), trained(name, 0.1))
        yield Condition(f"{name}: run again", "inference", scored(name), scored(name))
        yield Condition(f"{name}: a fresh process", "training", trained(name), elsewhere_trained(name))
        for what, run in (("training", trained(name)), ("inference", scored(name))):
            one, two = _on(1, run), _on(2, run)
            yield Condition(f"{name}: 2 threads instead of 1", what, one, two, few)  # type: ignore[arg-type]
        yield Condition(f"{name}: activations kept in memory", "training", trained(name), kept(name, 1 << 30))
        yield Condition(f"{name}: activations kept in files", "training", trained(name), kept(name, 0))
        yield Condition(
            f"{name}: prefix of a row beside a long one", "inference", prefix(name, False), prefix(name, True)
        )
        yield Condition(f"{name}: chains scored apart", "inference", scored(name), scored(name, False))
        yield Condition(f"{name}, not the reference", "training", trained(REFERENCE), trained(name))
        yield Condition(f"{name}, not the reference", "inference", scored(REFERENCE), scored(name))
    yield Condition(f"{FAST[1]}, not float32", "training", trained(FAST[0]), trained(FAST[1]))
    yield Condition(f"{FAST[1]}, not float32", "inference", scored(FAST[0]), scored(FAST[1]))


def on_cuda(model: str, lacking: str) -> Iterator[Condition]:
    """Yield the fast engine's conditions that need a CUDA device; ``lacking`` says why there is none, or nothing."""
    import torch

    from verify import conditions as c

    made: dict[str, Bench] = {}

    def trained(name: str, device: str = "cuda") -> Run:
        return lambda: c.nodes(made.setdefault(device, c.make_bench(model, torch.device(device))), name)

    for name in FAST:
        yield Condition(f"{name}: same GPU, run again", "training", trained(name), trained(name), lacking, "cuda")
        usual = trained(name, "cpu")
        yield Condition(f"{name}: CUDA, not the CPU", "training", usual, trained(name), lacking, "cuda")


def _on(number: int, run: Run) -> Run:
    def inside() -> Mapping[str, Tensor]:
        with on_threads(number):
            return run()

    return inside
