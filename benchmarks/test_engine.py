"""Training: S3T's engines against the stock pipeline, on the same schedule and records, both in this process, in turn.

A ratio is of seconds, stock over ours, per seed; its interval is Student's t of the logarithms, so the value is the geometric
mean. Accuracy is compared in pairs, per seed, for one order per shard: all that serves at full health.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.comparing import add_accuracy, add_ratios, add_runs, name_of, ratio, rotated, seconds_of, slope, summary
from benchmarks.engines import Job, Ours, Outcome, Side, Stock, ablation, counted, ours, together, top_operations
from benchmarks.flops import Peak, matmul_peak, model_shapes
from benchmarks.profiles import PROFILES, Comparison
from benchmarks.workbench import Workbench
from s3t.records import Dataset, Layout


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One comparison per data set of the profile, and the engine's parts as often as it says."""
    profile = PROFILES[metafunc.config.getoption("--profile")]
    if "rounds" in metafunc.fixturenames:
        metafunc.parametrize("rounds", [profile.engine_rounds] if profile.engine_rounds else [])
    if "case" in metafunc.fixturenames:
        chosen = profile.engine_data
        chosen = tuple(case for case in chosen if case.every_order or metafunc.function is not test_every_order)
        metafunc.parametrize("case", chosen, ids=[case.data for case in chosen])


@pytest.fixture(scope="session")
def tuned() -> dict[str, Any]:
    """The stock pipeline's best options by data set, found once."""
    return {}


@pytest.fixture(scope="session")
def rates() -> dict[tuple[str, int, str], float]:
    """Operations per record pass by data set, budget and side, counted once."""
    return {}


def test_engine(benchmark: Any, bench: Workbench, tuned: Any, rates: Any, case: Comparison, tmp_path: Path) -> None:
    """One order per shard, every seed, every side; sides take turns, and start one place later with each seed."""
    benchmark.group = f"engine: {case.data}"
    dataset, layout = _dataset(bench, case), bench.layout("s3t", 1)
    sides = _sides(bench, tuned, case)
    about = _about(bench, dataset, layout)
    seeds = _seeds(bench, case.seeds)
    job = _job(bench, dataset, layout, seeds[0], tmp_path / "run")
    with bench.answering(metric="times faster than stock", method="s3t", **about):
        _warm_up(bench, sides, dataset, tmp_path / "warm")
        _count(rates, sides, case.data, job)
        jobs = [dataclasses.replace(job, seed=seed) for seed in seeds]
        runs, peaks = benchmark.pedantic(_in_turn, args=(bench, sides, jobs), rounds=1, iterations=1)
    for side in sides:
        name = name_of(side)
        add_runs(bench, side, seeds, runs[name], rates[case.data, 1, name], _told(job), peaks[name], about)
    add_ratios(bench, sides, runs, about)
    add_accuracy(bench, sides, runs, about, len(dataset.test))
    passes = {name: [outcome.record_passes for outcome in outcomes] for name, outcomes in runs.items()}
    assert len(set(map(tuple, passes.values()))) == 1, f"the sides did not do the same work: {passes}"


def test_every_order(
    benchmark: Any, bench: Workbench, tuned: Any, rates: Any, case: Comparison, tmp_path: Path
) -> None:
    """As many orders as slices, one seed: what the budget costs in full."""
    benchmark.group = f"engine: {case.data}, every order"
    dataset, layout = _dataset(bench, case), bench.layout("s3t", bench.profile.slices)
    sides = _sides(bench, tuned, case)
    about, seed = _about(bench, dataset, layout), bench.profile.seeds[0]
    job = _job(bench, dataset, layout, seed, tmp_path / "run")
    with bench.answering(metric="times faster than stock", method="s3t", **about):
        _warm_up(bench, sides, dataset, tmp_path / "warm")
        _count(rates, sides, case.data, job)
        runs, peaks = benchmark.pedantic(_in_turn, args=(bench, sides, [job]), rounds=1, iterations=1)
    for side in sides:
        name = name_of(side)
        add_runs(
            bench, side, (seed,), runs[name], rates[case.data, layout.budget, name], _told(job), peaks[name], about
        )
    add_ratios(bench, sides, runs, about)
    assert len({outcomes[0].record_passes for outcomes in runs.values()}) == 1


def test_ablation(benchmark: Any, bench: Workbench, rounds: int, tmp_path: Path) -> None:
    """Each mode of the ablation table against the first, one order per shard, as many rounds as seeds."""
    benchmark.group = "engine: ablation"
    dataset, layout = _dataset(bench, bench.profile.engine_data[0]), bench.layout("s3t", 1)
    modes, about = ablation(small=bench.profile.name != "full"), _about(bench, dataset, layout)
    seeds = _seeds(bench, rounds)
    jobs = [_job(bench, _untested(dataset), layout, seed, tmp_path / "run") for seed in seeds]
    with bench.answering(metric="times the whole engine's seconds", method="s3t", **about):
        _warm_up(bench, modes, dataset, tmp_path / "warm")
        runs, _ = benchmark.pedantic(_in_turn, args=(bench, modes, jobs), rounds=1, iterations=1)
    for mode in modes:
        value = ratio(*(seconds_of(runs[name_of(m)]) for m in (mode, modes[0])))
        extra = {"mode": mode.mode, "against": modes[0].mode, "interval": "of the logarithms"}
        metric = "times the whole engine's seconds"
        bench.add(metric=metric, unit="ratio", kind="measured", method="s3t", extra=extra, **value, **about)
    assert len({outcomes[0].record_passes for outcomes in runs.values()}) == 1


def test_growth(benchmark: Any, bench: Workbench, rounds: int, tmp_path: Path) -> None:
    """Seconds per node at several numbers of records, one shard: the slope of log seconds over log records."""
    benchmark.group = "engine: growth"
    whole, layout = _dataset(bench, bench.profile.engine_data[0]), Layout(1, bench.profile.slices, 1)
    sizes = [size for size in bench.profile.engine_growth if size <= len(whole.train)]
    about = _about(bench, whole, layout)
    seeds = _seeds(bench, rounds)
    jobs = [_job(bench, whole.subset(size, 0, 0), layout, seed, tmp_path / "run") for seed in seeds for size in sizes]
    with bench.answering(metric="growth exponent of seconds per node", method="s3t", **about):
        _warm_up(bench, ours(), whole, tmp_path / "warm")
        runs, _ = benchmark.pedantic(_in_turn, args=(bench, ours(), jobs), rounds=1, iterations=1)
    for side in ours():
        seconds = [outcome.usage.seconds / layout.slices for outcome in runs[name_of(side)]]
        by_seed = [seconds[at : at + len(sizes)] for at in range(0, len(seconds), len(sizes))]
        for place, size in enumerate(sizes):
            value = summary([line[place] for line in by_seed])
            extra = {"mode": side.mode, "records": size}
            bench.add(metric="seconds per node", unit="s", kind="measured", method="s3t", extra=extra, **value, **about)
        value = summary([slope(sizes, line) for line in by_seed])
        extra = {"mode": side.mode, "records": sizes}
        metric = "growth exponent of seconds per node"
        bench.add(metric=metric, unit="exponent", kind="measured", method="s3t", extra=extra, **value, **about)
    counts = [outcome.record_passes for outcome in runs[name_of(ours()[0])][: len(sizes)]]
    assert [count * sizes[0] for count in counts] == pytest.approx([counts[0] * size for size in sizes], rel=0.25)


def test_profile(benchmark: Any, bench: Workbench, rounds: int, tuned: Any, tmp_path: Path) -> None:
    """Where the time goes: operations by their own time, for every side, under torch's profiler."""
    benchmark.group = "engine: profile"
    case = bench.profile.engine_data[0]
    dataset, layout = _dataset(bench, case), Layout(1, bench.profile.slices, 1)
    small, about = dataset.subset(min(120, len(dataset.train)), 0, 0), _about(bench, dataset, layout)
    sides: list[Side] = [*_stock(bench, tuned, case), *ours()]

    def work() -> dict[str, list[dict[str, Any]]]:
        job = _job(bench, small, layout, bench.profile.seeds[0], tmp_path / "run")
        return {name_of(side): top_operations(side, job) for side in sides}

    with bench.answering(metric="share of time", method="s3t", **about):
        _warm_up(bench, sides, dataset, tmp_path / "warm")
        found = benchmark.pedantic(work, rounds=1, iterations=1)
    about |= {"unit": "share", "kind": "measured", "n": 1}
    for side in sides:
        for place, operation in enumerate(found[name_of(side)]):
            extra = {"mode": side.mode, "place": place, **operation}
            bench.add(metric="share of time", method=side.method, value=operation["share"], extra=extra, **about)
        assert sum(operation["share"] for operation in found[name_of(side)]) > 0.5


def _sides(bench: Workbench, tuned: dict[str, Any], case: Comparison) -> list[Side]:
    """Return the stock pipeline and S3T's modes; with workers only where their start, many seconds, is not most of a run."""
    pooled = [together()] if bench.profile.name in ("health", "full") else []
    return [*_stock(bench, tuned, case), *ours(), *pooled]


def _stock(bench: Workbench, tuned: dict[str, Any], case: Comparison) -> list[Stock]:
    """Return the stock pipeline as the Trainer comes, and tuned for the data; the trials of tuning are rows."""
    from baselines.stock.options import Options
    from baselines.stock.text import text_base, text_examples
    from baselines.stock.tune import grid, tune
    from s3t.plan import s3t_plan

    if case.data not in tuned:
        dataset, recipe, layout = _dataset(bench, case), bench.profile.recipe("s3t"), bench.layout("s3t", 1)
        plan = s3t_plan(layout, recipe, bench.backbone.layers)
        examples = text_examples(bench.backbone, dataset.train, recipe)
        records, few = bench.profile.engine_tuning, [Options(), Options("bfloat16", True)]
        few += [Options("bfloat16", True, half_base=True, attention=attention) for attention in ("sdpa", "eager")]
        rounds, options = (2, grid(recipe)) if bench.profile.engine_grid else (1, few)
        base, classes = text_base(bench.backbone), len(dataset.classes)
        found = tune(base, plan, recipe, examples, classes, options=options, records=records, rounds=rounds)
        for trial in found.trials:
            extra = {
                "mode": trial.options.name,
                "rounds": trial.records_per_second,
                "taken": trial.options == found.options,
            }
            extra |= {"same_schedule": trial.same_schedule, "rows": min(records, len(examples))}
            about = {**_about(bench, dataset, layout), "unit": "records/s", "kind": "measured", "extra": extra}
            bench.add(metric="records per second, tuning", method="stock", value=trial.best, n=rounds, **about)
        tuned[case.data] = found.options
    best = tuned[case.data]
    return [Stock("default", Options()), Stock(f"tuned: {best.name}", best)]


def _in_turn(
    bench: Workbench, sides: Sequence[Side], jobs: Sequence[Job]
) -> tuple[dict[str, list[Outcome]], dict[str, list[Peak]]]:
    """Run every side on every job, each job from another side on; the peak of its precision is measured before each run."""
    runs: dict[str, list[Outcome]] = {name_of(side): [] for side in sides}
    peaks: dict[str, list[Peak]] = {name_of(side): [] for side in sides}
    for number, job in enumerate(jobs):
        for side in rotated(sides, number):
            peaks[name_of(side)].append(_peak(bench, side.precision, job))
            runs[name_of(side)].append(side.run(job))
    return runs, peaks


def _peak(bench: Workbench, precision: str, job: Job) -> Peak:
    config: Any = bench.backbone.model.config
    tokens = job.recipe.batch_size * 16
    shapes = model_shapes(tokens, bench.backbone.hidden, int(config.intermediate_size))
    square = (256, 256, 256) if bench.profile.name == "smoke" else None
    return matmul_peak(precision, bench.backbone.device.type, shapes=shapes, rounds=5, square=square)


def _count(rates: dict[tuple[str, int, str], float], sides: Sequence[Side], data: str, job: Job) -> None:
    """Count what is not counted yet. Only the fast engine shares work between orders; others cost the same for each.

    Workers do what one process does, and what they compute cannot be counted from here.
    """
    for side in sides:
        once = (data, 1, name_of(side))
        if isinstance(side, Ours) and side.resources.workers > 1:
            alone = next(s for s in ours() if (s.engine, s.precision) == (side.engine, side.precision))
            rates[data, job.layout.budget, name_of(side)] = rates[data, job.layout.budget, name_of(alone)]
            continue
        shares = isinstance(side, Ours) and side.engine == "fast"
        if not shares and once in rates:
            rates[data, job.layout.budget, name_of(side)] = rates[once]
        else:
            rates[data, job.layout.budget, name_of(side)] = counted(side, job)


def _warm_up(bench: Workbench, sides: Sequence[Side], dataset: Dataset, folder: Path) -> None:
    """Let every side load what it loads lazily, on a few records, before anything is timed.

    What is loaded then is taken from the garbage collector, which the Trainer calls after each stage.
    """
    recipe = dataclasses.replace(bench.profile.recipe("s3t"), epochs=1.0)
    for side in sides:
        side.run(Job(dataset.subset(24, 0, 4), Layout(1, 2, 1), recipe, 0, bench.backbone, folder))
        gc.collect()
        gc.freeze()


def _about(bench: Workbench, dataset: Dataset, layout: Layout) -> dict[str, Any]:
    shape = {"budget": layout.budget, "shards": layout.shards, "slices": layout.slices}
    return {"question": "engine", "data": dataset.name, "model": bench.profile.model, **shape}


def _job(bench: Workbench, dataset: Dataset, layout: Layout, seed: int, folder: Path) -> Job:
    return Job(dataset, layout, bench.profile.recipe("s3t"), seed, bench.backbone, folder)


def _dataset(bench: Workbench, case: Comparison) -> Dataset:
    dataset = bench.dataset(case.data)
    return dataset.subset(*case.limits) if case.limits else dataset


def _seeds(bench: Workbench, count: int) -> tuple[int, ...]:
    """Return the profile's seeds, and as many more as are wanted."""
    most = count if bench.most_seeds is None else min(count, bench.most_seeds)
    return (*bench.profile.seeds, *range(max(bench.profile.seeds) + 1, 100))[:most]


def _untested(dataset: Dataset) -> Dataset:
    return Dataset(dataset.name, dataset.classes, dataset.train, (), (), dataset.source)


def _told(job: Job) -> str:
    return (
        f"seed {job.seed}, budget {job.layout.budget}, per record pass; budget 1 where no work is shared between orders"
    )
