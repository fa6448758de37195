"""The analytic head by its core alone: accuracy as records go, one deletion, bits against scratch, sums over a long stream.

No run and no system. Features of a data set are read once; ridge and temperature are chosen on the validation split alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from benchmarks.analytic import Deletion, Featured, deletions, featured, histories
from benchmarks.apart import Step, apart
from benchmarks.profiles import PROFILES
from benchmarks.timings import bounds
from benchmarks.workbench import Workbench
from s3t.analytic.choosing import FOLDS, RIDGES, TEMPERATURES, accuracy, choose, cross_entropy
from s3t.analytic.head import AnalyticHead, Form, Pooling
from s3t.analytic.solving import solve

FORMS: tuple[Form, ...] = get_args(Form)
ABOUT: dict[str, Any] = {"question": "analytic", "method": "analytic", "budget": 1, "shards": 1, "slices": 1}
MEAN: tuple[Pooling, ...] = ("mean",)
THREE: tuple[Pooling, ...] = ("mean", "first", "max")
MANY = (0.125, 0.25, 0.375, 0.5)


Add = Callable[..., None]
"""Adds a row."""


@dataclass(frozen=True)
class Size:
    """``poolings``: of the heads that are compared, the widest last. ``random``: whether one with so many random features is
    among them. ``ridges``: to choose from. ``deletions``: timed, by place among the poolings. ``histories``: how many, of
    ``most`` records each. ``shares``: of the training records, deleted when accuracy is measured.
    ``streams``: numbers of made-up records, of ``wide`` features, that are summed."""

    poolings: tuple[tuple[Pooling, ...], ...] = (MEAN,)
    random: int = 0
    ridges: tuple[float, ...] = RIDGES[::2]
    deletions: tuple[int, ...] = (40,)
    histories: int = 10
    shares: tuple[float, ...] = (0.25, 0.5)
    most: int = 200
    streams: tuple[int, ...] = ()
    wide: int = 2304


SIZES: Mapping[str, Size] = {
    "smoke": Size((MEAN, THREE), 16, deletions=(6, 3), histories=20, most=60, streams=(5_000, 20_000), wide=192),
    "quick": Size(),
    "pairs": Size(),
    "vision": Size(),
    "health": Size((MEAN, THREE), 1024, deletions=(20, 6), histories=1000, shares=MANY, streams=(20_000, 100_000)),
    "full": Size((MEAN, THREE), 1024, RIDGES, (50, 10), 1000, shares=MANY, streams=(10**5, 10**6)),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The data sets of a profile that asks this; the stream, once, where it has one."""
    name = metafunc.config.getoption("--profile")
    assert set(SIZES) <= set(PROFILES)
    if "data" in metafunc.fixturenames:
        metafunc.parametrize("data", PROFILES[name].data if name in SIZES else ())
    else:
        metafunc.parametrize("records", SIZES[name].streams if name in SIZES else ())


@pytest.fixture(scope="module")
def features() -> dict[str, list[Featured]]:
    """What each head reads of each data set, once it was read."""
    return {}


Read = Callable[[], list[Featured]]
"""Returns what each head reads of the data set."""


@pytest.fixture
def reading(bench: Workbench, data: str, features: dict[str, list[Featured]]) -> Read:
    """Read the data set's features when they are first asked for, and add rows of what that took."""

    def read() -> list[Featured]:
        if data not in features:
            add = partial(bench.add, **_about(bench, data))
            features[data] = list(_features(bench, data, SIZES[bench.profile.name], add))
        return features[data]

    return read


def _about(bench: Workbench, data: str) -> dict[str, Any]:
    return {**ABOUT, "data": bench.dataset(data).name, "model": bench.profile.model, "kind": "measured"}


def test_accuracy(benchmark: Any, bench: Workbench, data: str, reading: Read) -> None:
    """Every form on every choice of features, before and after deletions."""
    benchmark.group = f"analytic head: {data}"
    size, about = SIZES[bench.profile.name], _about(bench, data)

    def measure() -> None:
        for read in reading():
            _accuracies(bench, read, size, partial(bench.add, **about))

    with bench.answering(metric="test accuracy", **about):
        benchmark.pedantic(measure, rounds=1, iterations=1)


def test_one_deletion(benchmark: Any, bench: Workbench, data: str, reading: Read) -> None:
    """Single records leave the sums one after the other, and the map is solved each time."""
    benchmark.group = f"analytic head: {data}"
    size, about = SIZES[bench.profile.name], _about(bench, data)
    drawn = [read for read in reading() if not read.head.random]

    def timed() -> list[list[Deletion]]:
        found = []
        for read, many in zip(drawn, size.deletions, strict=True):
            victims = np.random.default_rng([11, many]).permutation(len(read.train.rows))[: many + 1].tolist()
            found.append(deletions(read.train, read.classes, read.head, victims))
        return found

    with bench.answering(metric="one deletion p50", **about):
        found = benchmark.pedantic(timed, rounds=1, iterations=1)
    for read, times in zip(drawn, found, strict=True):
        for what, seconds in (
            ("one deletion", [one.update + one.solution for one in times]),
            ("one deletion, out of the sums", [one.update for one in times]),
            ("one deletion, the solution", [one.solution for one in times]),
        ):
            low, high = bounds(seconds)
            extra = {"head": read.head.to_json(), "features": read.train.rows.shape[1], "records": len(read.train.rows)}
            bench.add(
                metric=f"{what} p50", unit="s", value=statistics.median(seconds), low=low, high=high, n=len(seconds),
                confidence=None if low is None else 0.95,
                extra={**extra, "fastest": min(seconds), "slowest": max(seconds)}, **about,
            )  # fmt: skip


def test_histories(benchmark: Any, bench: Workbench, data: str, reading: Read) -> None:
    """Random histories of additions and removals end with the bits of scratch, for each form in turn."""
    benchmark.group = f"analytic head: {data}"
    size, about = SIZES[bench.profile.name], _about(bench, data)
    read = next(read for read in reading() if not read.head.random)
    heads = [replace(read.head, form=form) for form in FORMS]

    def played() -> int:
        draw = np.random.default_rng([11, 0])
        return histories(
            read.train.rows, read.train.answers, read.classes, heads, size.histories, draw, size.most
        )  # fmt: skip

    with bench.answering(metric="histories that end as scratch", **about):
        equal = benchmark.pedantic(played, rounds=1, iterations=1)
    extra = {"head": _told(read.head), "features": read.train.rows.shape[1], "records": size.most, "forms": FORMS}
    bench.add(
        metric="histories that end as scratch", unit="share", value=equal / size.histories, n=size.histories,
        extra=extra, **about,
    )  # fmt: skip
    assert equal == size.histories


def _features(bench: Workbench, data: str, size: Size, add: Add) -> Iterator[Featured]:
    """Yield what each head reads: the poolings out of one reading of all records, random features from one of their own."""
    recipe, seed = bench.profile.recipe("s3t"), bench.profile.seeds[0]
    read = partial(featured, bench.backbone, bench.dataset(data), max_length=recipe.max_length, seed=seed)
    heads = [AnalyticHead(poolings=size.poolings[-1])]
    heads += [AnalyticHead(poolings=size.poolings[0], random=size.random)] * (size.random > 0)
    for head in heads:
        whole = read(head)
        extra = {"head": _told(head), "features": whole.train.rows.shape[1], "max_length": recipe.max_length}
        add(metric="features of a record", unit="s", value=whole.seconds, n=whole.records, extra=extra)
        if head.random:
            yield whole
        else:
            yield from (whole.narrowed(poolings, bench.backbone) for poolings in size.poolings)


def _told(head: AnalyticHead) -> dict[str, Any]:
    return {name: value for name, value in head.to_json().items() if name not in ("form", "ridge", "temperature")}


def _accuracies(bench: Workbench, read: Featured, size: Size, add: Add) -> None:
    """Delete in random orders, by seed; at each checkpoint the sums must be those of the retained records alone."""
    count, whole = len(read.train.rows), read.train.sums(read.classes)
    choices = [
        choose(replace(read.head, form=form), read.validation, read.classes, size.ridges).carried(count)
        for form in FORMS
    ]
    best = max(choices, key=lambda choice: choice.score)
    ends = [0, *(int(share * count) for share in size.shares)]
    for seed in bench.profile.seeds:
        order, sums = np.random.default_rng([13, seed]).permutation(count), whole.copy()
        for before, after in pairwise([0, *ends]):
            gone = order[before:after]
            sums.remove(read.train.rows[gone], read.train.answers[gone])
            if seed == bench.profile.seeds[0]:
                assert sums.same(read.train.sums(read.classes, order[after:]))
            elif not after:
                continue  # nothing is deleted yet, so all seeds are the same
            for choice in choices:
                scores, answers = solve(sums, choice.head).scores(read.test.rows), read.test.answers
                losses = [cross_entropy(scores, answers, t) for t in (choice.head.temperature, 1.0)]
                extra = {
                    "head": choice.head.to_json(),
                    "features": read.train.rows.shape[1],
                    "records": count,
                    "chosen_on": f"validation, {len(read.validation.rows)} records, {FOLDS} folds",
                    "ridge_on_validation": choice.ridge,
                    "records_of_a_fold": choice.records,
                    "validation_accuracy": choice.score,
                    "validation_cross_entropy": choice.cross_entropy,
                    "validation_accuracy_by_ridge": {str(ridge): value for ridge, value in choice.scores.items()},
                    "ridges": list(choice.scores),
                    "temperatures": TEMPERATURES,
                    "best_form_on_validation": choice is best,
                    "test_cross_entropy": losses[0],
                    "test_cross_entropy_at_1": losses[1],
                }
                add(
                    metric="test accuracy", unit="share", value=accuracy(scores, answers), n=len(answers), seed=seed,
                    deletions=after, extra=extra,
                )  # fmt: skip


STREAMED: dict[int, Step] = {}
"""By number of records."""


def test_stream(benchmark: Any, bench: Workbench, records: int, tmp_path: Path) -> None:
    """Made-up features in chunks, in a process of its own: the peak must not depend on how many there are."""
    benchmark.group = "analytic head: sums"
    wide, classes = SIZES[bench.profile.name].wide, 6
    about = {**ABOUT, "kind": "measured", "data": "made"}
    with bench.answering(metric="sums over a stream", **about):
        STREAMED[records] = benchmark.pedantic(
            apart, args=("sum", tmp_path, (records, wide, classes)), rounds=1, iterations=1
        )
    step = STREAMED[records]
    extra = {"records": records, "features": wide, "classes": classes, "before": step.before}
    bench.add(metric="sums over a stream", unit="s", value=step.seconds[0], n=1, extra=extra, **about)
    bench.add(metric="sums over a stream, peak memory", unit="bytes", value=step.peak, n=1, extra=extra, **about)
    assert step.peak <= 1.05 * min(one.peak for one in STREAMED.values())
