"""Large shapes: a ViT on images and a Llama of 7 billion weights, S3T's fast engine against the stock pipeline, cost alone.

Weights and records are random. Smoke runs tiny shapes on whatever device there is; otherwise a CUDA device is needed, and
without one a row says so.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.comparing import add_runs, ratio, rotated, seconds_of, summary
from benchmarks.flops import Peak, count_flops, matmul_peak, model_shapes
from benchmarks.workbench import Workbench
from s3t.records import Recipe

if TYPE_CHECKING:
    from benchmarks.large import Done, Lean, Usual, Work

NO_DEVICE = "no CUDA device: pytest --benchmark --profile full benchmarks/test_gpu.py"
RATIO = {"metric": "times faster than stock", "method": "s3t", "unit": "ratio", "kind": "measured"}
SHAPE = {"budget": 1, "shards": 1, "slices": 4}
TINY = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}


def test_vision(request: pytest.FixtureRequest, bench: Workbench, tmp_path: Path) -> None:
    """ViT-base at 224 pixels, images of CIFAR's size; flips on either side."""
    about = {"question": "engine", "data": "random images", "model": _model(bench, "vit-base shape"), **SHAPE}
    if _missing(bench, about):
        return
    from benchmarks.large import Lean, vision

    if bench.profile.name == "smoke":
        size = {**TINY, "image_size": 32, "patch_size": 8}
        work = vision(_device(), Recipe(epochs=2, batch_size=8), per_slice=8, slices=4, **size)
        workers: Sequence[int] = (0,)
    else:
        work = vision(_device(), Recipe(epochs=4, batch_size=128, lr=1e-3), per_slice=1024, slices=4)
        workers = (0, _cores() // 2, _cores())
    benchmark, ours = request.getfixturevalue("benchmark"), (Lean(), Lean(graphs=True))
    _compare(benchmark, bench, work, ours, workers, _rounds(bench, 5), about, tmp_path)


def test_groups(request: pytest.FixtureRequest, bench: Workbench) -> None:
    """Eight first nodes of a small ViT in one group, against one after the other with plain and with replayed steps."""
    from benchmarks.groups import SIDES, add_rows, in_turn
    from benchmarks.large import vision

    smoke = bench.profile.name == "smoke"
    size = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "patch_size": 4}
    size, name = ({**TINY, "patch_size": 8}, "vit") if smoke else (size, "vit-tiny shape")
    recipe, per_slice = Recipe(epochs=1, batch_size=8 if smoke else 32), 8 if smoke else 64
    if _device().type == "cuda" and not smoke:
        per_slice = 1024
    work, few = (
        vision(_device(), recipe, per_slice=number, slices=4, image_size=32, **size)
        for number in (per_slice, recipe.batch_size)
    )
    about = {"question": "engine", "data": "random images", "model": _model(bench, name), **SHAPE}
    benchmark, rounds = request.getfixturevalue("benchmark"), _rounds(bench, 5)
    benchmark.group = f"engine: {about['model']}"
    with bench.answering(
        metric="times faster than nodes one by one", method="s3t", unit="ratio", kind="measured", **about
    ):
        in_turn(few, SIDES, 1)  # what libraries load and make once
        runs = benchmark.pedantic(in_turn, args=(work, SIDES, rounds), rounds=1)
    add_rows(bench, runs, about | {"device": str(_device())}, per_slice)
    assert set(runs) == {side.mode for side in SIDES}


def test_language(request: pytest.FixtureRequest, bench: Workbench, tmp_path: Path) -> None:
    """Llama of the 7B shape in bfloat16, four slices of short texts, a classification head on the last token."""
    about = {"question": "engine", "data": "random words", "model": _model(bench, "llama-7b shape"), **SHAPE}
    if _missing(bench, about):
        return
    from benchmarks.large import Lean, language

    if bench.profile.name == "smoke":
        size = {**TINY, "num_key_value_heads": 1, "vocab_size": 64}
        work = language(_device(), Recipe(epochs=2, batch_size=4), per_slice=6, slices=4, tokens=(4, 24), **size)
    else:
        work = language(_device(), Recipe(epochs=3, batch_size=16, lr=3e-4), per_slice=32, slices=4, tokens=(64, 512))
    _compare(request.getfixturevalue("benchmark"), bench, work, (Lean(),), (0,), _rounds(bench, 2), about, tmp_path)


def _compare(
    benchmark: Any,
    bench: Workbench,
    work: Work,
    ours: Sequence[Lean],
    workers: Sequence[int],
    rounds: int,
    about: dict[str, Any],
    scratch: Path,
) -> None:
    from benchmarks.large import Usual, smaller

    benchmark.group = f"engine: {about['model']}"
    seeds = bench.profile.seeds[:rounds]
    few = smaller(work, work.recipe.batch_size)
    with bench.answering(**RATIO, **about):
        best = _tuned(bench, work, workers, about)
        stock = Usual(f"tuned: {best.name}", best)
        sides: tuple[Lean | Usual, ...] = (*ours, stock)
        counts = {sides[at].method: _counted(sides[at], few, scratch / "few") for at in (0, -1)}
        for other in ours[1:]:  # what was counted is the same for all of ours; this loads what they load lazily
            other.run(few, scratch / "few", 0)
        gc.collect()
        runs, peaks = benchmark.pedantic(_in_turn, args=(bench, work, sides, seeds, scratch), rounds=1)
    for side in sides:
        done = runs[side.mode]
        told = f"{few.recipe.batch_size} records per slice, per record pass"
        add_runs(bench, side, seeds, done, counts[side.method], told, peaks, about)  # type: ignore[arg-type]
        _add_nodes(bench, side, done, work, about)
    theirs = runs[stock.mode]
    for side in ours:
        extra = {"mode": side.mode, "against": stock.mode, "interval": "of the logarithms", "device": str(_device())}
        bench.add(**RATIO, extra=extra, **ratio(seconds_of(theirs), seconds_of(runs[side.mode])), **about)
        assert runs[side.mode][0].layer_passes < theirs[0].layer_passes
    assert {done.record_passes for side in runs.values() for done in side} == {theirs[0].record_passes}


def _in_turn(
    bench: Workbench, work: Work, sides: Sequence[Lean | Usual], seeds: Sequence[int], scratch: Path
) -> tuple[dict[str, list[Done]], list[Peak]]:
    """Run every side with every seed, each seed from another side on, the measured peak before each seed."""
    runs: dict[str, list[Done]] = {side.mode: [] for side in sides}
    peaks = []
    for number, seed in enumerate(seeds):
        peaks.append(_peak(bench, work))
        for side in rotated(sides, number):
            runs[side.mode].append(side.run(work, scratch / "run", seed))
    return runs, peaks


def _counted(side: Lean | Usual, work: Work, folder: Path) -> float:
    """Return the operations per record pass of ``side``, counted."""
    passes: list[int] = []

    def once() -> None:
        passes.append(side.run(work, folder, 0).record_passes)

    total = count_flops(once)
    return total / passes[0]


def _peak(bench: Workbench, work: Work) -> Peak:
    square = (256, 256, 256) if bench.profile.name == "smoke" else None
    return matmul_peak("bfloat16", _device().type, shapes=model_shapes(*work.widths), rounds=5, square=square)


def _tuned(bench: Workbench, work: Work, workers: Sequence[int], about: dict[str, Any]) -> Any:
    """Return the Trainer's best options in bfloat16, each tried on one epoch of some records; the trials are rows."""
    from baselines.stock.options import Options
    from baselines.stock.tune import tune

    grouped = (False, True) if work.base.by_length else (False,)
    wide = next(work.backbone.model.parameters()).dtype.itemsize > 2
    halves = (False, True) if wide else (False,)  # a model in bfloat16 has nothing to cast
    options = [Options("bfloat16", g, w, half_base=h) for g, w, h in product(grouped, workers, halves)]
    records = min(len(work.examples), 8 * work.recipe.batch_size)
    found = tune(
        work.base, work.plan, work.recipe, work.examples, work.classes, options=options, records=records, rounds=1
    )
    for trial in found.trials:
        extra = {"mode": trial.options.name, "taken": trial.options == found.options, "rows": records}
        value = {"value": trial.best, "n": 1, "unit": "records/s", "kind": "measured", "extra": extra}
        bench.add(metric="records per second, tuning", method="stock", **value, **about)
    return found.options


def _add_nodes(bench: Workbench, side: Lean | Usual, done: Sequence[Done], work: Work, about: dict[str, Any]) -> None:
    """Add seconds per node, over all nodes and for each, and the peak memory."""
    common = {"kind": "measured", "method": side.method, **about}
    count = len(work.plan.stages)
    parts = {"all": [sum(d.nodes) / count for d in done]} | {str(i): [d.nodes[i] for d in done] for i in range(count)}
    for stage, seconds in parts.items():
        records = sum(map(len, work.slices)) if stage == "all" else sum(map(len, work.slices[: int(stage) + 1]))
        extra = {"mode": side.mode, "stage": stage, "records": records}
        bench.add(metric="seconds per node", unit="s", extra=extra, **summary(seconds), **common)
    on_gpu = _device().type == "cuda"
    used = [(d.usage.cuda_peak_memory if on_gpu else d.usage.peak_memory) or 0 for d in done]
    extra = {"mode": side.mode, "of": "GPU" if on_gpu else "process"}
    bench.add(metric="peak memory", unit="bytes", extra=extra, **summary(used), **common)


def _missing(bench: Workbench, about: dict[str, Any]) -> bool:
    """Say whether the profile's shapes cannot be run here, and add the row that says so."""
    if bench.profile.name == "smoke" or _device().type == "cuda":
        return False
    bench.add(**RATIO, value=None, n=0, status="not-run", reason=NO_DEVICE, **about)
    return True


def _rounds(bench: Workbench, most: int) -> int:
    return 1 if bench.profile.name == "smoke" else min(most, max(1, bench.profile.engine_rounds))


def _model(bench: Workbench, name: str) -> str:
    return f"{name}, tiny" if bench.profile.name == "smoke" else name


def _device() -> Any:
    from s3t.backbone import default_device

    return default_device()


def _cores() -> int:
    import os

    return os.cpu_count() or 1
