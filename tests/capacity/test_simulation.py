"""The simulated request process: against closed forms, the exact Markov chain, and a plain loop over the same process."""

from __future__ import annotations

import itertools
import math
import random
import tracemalloc
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2_contingency, ks_2samp

from benchmarks.process import PlainLife, plain_requests, play
from s3t.capacity import Estimate, Simulation, deletion_rate, simulate
from s3t.capacity.demand import Demand
from s3t.capacity.firsthits import draw_first_hits
from s3t.capacity.outcomes import OrderSet, deaths
from s3t.errors import LayoutError
from s3t.orders import cyclic

# Fixed before the first run, with the rule that a miss by chance is answered by more trials, never by another seed.
SEED = 0
TRIALS = 4000
MANY = 40_000
"""First 4,000; one cell of 84 then lay 3.19 standard errors off."""
LEVEL = 1e-4
"""Level of every single test of two samples: with some 60 of them a right simulation fails one with probability 0.006."""
CELLS = [(m, slices, b) for m in (1, 2, 5, 10) for slices in range(1, 7) for b in range(1, slices + 1)]
Chain = Callable[[int, list[tuple[int, ...]], list[Fraction]], Fraction]

SKEWED = [[0.3, 0.05, 0.1], [0.02, 0.2, 0.08], [0.05, 0.05, 0.15]]
SHORT = [[0.2, 0.05, 0.1], [0.02, 0.1, 0.08], [0.05, 0.05, 0.05]]
DEMANDS = {
    "uniform": Demand.uniform(3, 3),
    "skewed": Demand.of(SKEWED),
    "partly elsewhere": Demand.of(SHORT),
    "once": Demand.once(np.full((3, 3), 4)),
    "once, one record a slot": Demand.once(np.ones((3, 3), int)),
    "once, unequal": Demand.once([[9, 1, 2], [3, 30, 4], [2, 1, 6]]),
}
ORDERS = {
    "one": [(0, 1, 2)],
    "two": cyclic(3, 2),
    "shared first": [(0, 1, 2), (0, 2, 1), (1, 0, 2)],
    "all": cyclic(3, 6),
}


def plain(demand: Demand, orders: list[tuple[int, ...]], trials: int, after: tuple[int, ...] = ()) -> list[PlainLife]:
    rng = random.Random(f"plain {SEED}")
    return [play(demand.shards, orders, plain_requests(demand, rng), after) for _ in range(trials)]


def same_law(fast: NDArray[np.float64], slow: NDArray[np.float64]) -> float:
    """The smaller p-value of a Kolmogorov-Smirnov test and a chi-square test over 8 classes of about equal size."""
    edges = np.unique(np.quantile(slow, np.linspace(0, 1, 9)[1:-1]))
    table = np.array([np.bincount(np.searchsorted(edges, part), minlength=len(edges) + 1) for part in (fast, slow)])
    table = table[:, table.sum(axis=0) > 0]
    chi = 1.0 if table.shape[1] < 2 else chi2_contingency(table).pvalue
    return min(float(chi), float(ks_2samp(fast, slow).pvalue))


def test_simulation_meets_the_closed_form_in_every_cell() -> None:
    """84 cells, all with seed 0. A right simulation has a cell beyond 3 SE with probability 0.2 or so."""
    deviations = {}
    for shards, slices, budget in CELLS:
        found = simulate(Demand.uniform(shards, slices), cyclic(slices, budget), trials=MANY, seed=SEED)
        deviations[shards, slices, budget] = abs(found.last.deviation(deletion_rate(shards, slices, budget)))
    missed = {cell: round(z, 2) for cell, z in deviations.items() if z > 3.0}
    assert not missed, f"{len(missed)} of {len(CELLS)} cells are beyond 3 standard errors: {missed}"
    beyond_two = sum(z > 2.0 for z in deviations.values())
    assert beyond_two <= 12, f"{beyond_two} of {len(CELLS)} cells are beyond 2 standard errors; 4 are to be expected"


@pytest.mark.parametrize("orders", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("after", [(), (1,)], ids=["deaths", "all"])
def test_any_orders_and_requests_meet_the_exact_chain(
    orders: list[tuple[int, ...]], after: tuple[int, ...], exact_capacity: Chain
) -> None:
    weights = [5, 1, 2, 3, 1, 8]
    for probabilities in ([Fraction(1, 6)] * 6, [Fraction(weight, sum(weights)) for weight in weights]):
        exact = float(exact_capacity(2, orders, probabilities))
        demand = Demand.of(np.array(probabilities, dtype=float).reshape(2, 3))
        found = simulate(demand, orders, trials=TRIALS, seed=SEED, after=after)
        assert abs(found.last.deviation(exact)) < 3.5


@pytest.mark.parametrize("orders", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("demand", DEMANDS.values(), ids=DEMANDS)
def test_deaths_have_the_law_of_the_plain_loop(demand: Demand, orders: list[tuple[int, ...]]) -> None:
    slow = np.array([life.deaths for life in plain(demand, orders, 1500)]).T
    for after in ((), (2,)):
        fast = simulate(demand, orders, trials=TRIALS, seed=SEED, after=after).deaths
        for name, ours, theirs in zip(("first", "half", "last"), fast, slow, strict=True):
            assert same_law(ours, theirs) > LEVEL, (name, after)
            error = math.hypot(ours.std() / math.sqrt(len(ours)), theirs.std() / math.sqrt(len(theirs)))
            assert abs(ours.mean() - theirs.mean()) <= 4.5 * error
        # The three deaths of one life belong together.
        assert same_law(fast[2] - fast[0], slow[2] - slow[0]) > LEVEL
        assert (fast[0] <= fast[1]).all() and (fast[1] <= fast[2]).all()


@pytest.mark.parametrize("demand", DEMANDS.values(), ids=DEMANDS)
def test_chains_after_some_requests_have_the_law_of_the_plain_loop(demand: Demand) -> None:
    after = (0, 1, 3, 8)
    for orders in (ORDERS["two"], ORDERS["shared first"]):
        slow = plain(demand, orders, 1500, after)
        fast = simulate(demand, orders, trials=TRIALS, seed=SEED, after=after)
        for column, _ in enumerate(after):
            lengths = np.array([life.lengths[column] for life in slow], dtype=float)
            for ours, theirs in (
                (fast.best_length[column], lengths.mean(axis=1)),
                (fast.in_service[column], lengths.mean(axis=1) / 3),
                (fast.live[column], (lengths > 0).sum(axis=1).astype(float)),
            ):
                error = math.hypot(ours.standard_error, theirs.std(ddof=1) / math.sqrt(len(theirs)))
                assert abs(ours.mean - theirs.mean()) <= 4 * error


@pytest.mark.parametrize("demand", DEMANDS.values(), ids=DEMANDS)
def test_every_first_hit_has_the_law_of_the_plain_loop(demand: Demand) -> None:
    drawn = draw_first_hits(demand, TRIALS, np.random.default_rng(SEED))
    fast = drawn.each().reshape(9, TRIALS).T
    assert np.array_equal(np.sort(drawn.rank.reshape(9, TRIALS), axis=0), np.tile(np.arange(9), (TRIALS, 1)).T)
    rng, slow = random.Random(SEED), []
    for _ in range(1500):
        hits: dict[int, int] = {}
        for number, slots in enumerate(plain_requests(demand, rng), start=1):
            for slot in slots:
                hits.setdefault(slot, number)
            if len(hits) == 9:
                break
        slow.append([hits[slot] for slot in range(9)])
    for slot, theirs in enumerate(np.array(slow, dtype=float).T):
        assert same_law(fast[:, slot], theirs) > LEVEL, slot


def test_outcomes_follow_from_first_hits_by_definition() -> None:
    """Every set of hit slices of up to 4, against the definitions taken literally; longer orders by another way."""
    for slices, budget in ((1, 1), (2, 2), (3, 4), (4, 1), (4, 7), (4, 24)):
        orders = cyclic(slices, budget)
        hit = np.array(list(itertools.product((False, True), repeat=slices))).T
        chosen = OrderSet.of(orders)
        chains = chosen.chains(hit)
        for row, found, behind in zip(hit.T, chains.T, chosen.behind(hit).T, strict=True):
            kept = [tuple(itertools.takewhile(lambda piece, row=row: not row[piece], order)) for order in orders]
            best = max(range(budget), key=lambda index: (len(kept[index]), -index))
            assert tuple(piece for piece in found if piece >= 0) == kept[best]
            assert set(np.flatnonzero(behind)) == set(kept[best])
        assert (chosen.lengths(hit) == (chains >= 0).sum(axis=0)).all()
        length, order = chosen._best(hit)
        assert (length == chosen.lengths(hit)).all() and (order == chosen.served(hit)).all()


def test_long_orders_are_looked_up_or_followed_alike() -> None:
    hit = np.random.default_rng(SEED).random((16, 3, 50)) < 0.1
    followed = OrderSet.of(cyclic(16, 20)).lengths(hit)
    for row, lengths in zip(hit.reshape(16, -1).T, followed.reshape(-1), strict=True):
        kept = [list(itertools.takewhile(lambda piece, row=row: not row[piece], order)) for order in cyclic(16, 20)]
        assert lengths == max(map(len, kept))
    shorter = hit[:12]
    chosen = OrderSet.of(cyclic(12, 13))
    assert (chosen.lengths(shorter) == chosen._best(shorter)[0]).all()


@pytest.mark.parametrize("shards", [1, 2, 3, 5, 12, 13, 40])
def test_deaths_are_order_statistics(shards: int) -> None:
    moments = np.random.default_rng(shards).random((shards, 50))
    ranked = np.sort(moments, axis=0)
    assert (deaths(moments) == ranked[[0, math.ceil(shards / 2) - 1, -1]]).all()


def test_results_depend_on_the_seed_alone() -> None:
    for demand in (Demand.uniform(50, 20), Demand.once(np.full((50, 20), 30))):
        for after in ((), (100, 1000)):
            one, two, other = (
                simulate(demand, cyclic(20, 3), trials=300, seed=seed, after=after, threads=threads)
                for seed, threads in ((7, 1), (7, 3), (8, 1))
            )
            assert (one.deaths == two.deaths).all() and one.best_length == two.best_length
            assert (one.deaths != other.deaths).any()
            assert one.deaths.min() >= 3, "a shard with 3 first slices cannot die in fewer than 3 requests"
            assert (one.deaths == np.floor(one.deaths)).all()


def test_estimates_are_means_over_trials() -> None:
    found = simulate(Demand.uniform(5, 4), cyclic(4, 2), trials=200, seed=7, after=(3,))
    assert found.trials == found.last.trials == found.live[0].trials == 200
    assert found.last.mean == found.deaths[2].mean()
    assert found.last.standard_error == pytest.approx(found.deaths[2].std(ddof=1) / math.sqrt(200))
    low, high = found.last.interval()
    assert (low + high) / 2 == pytest.approx(found.last.mean)
    assert high - low == pytest.approx(2 * 1.959964 * found.last.standard_error)
    assert found.in_service[0].mean == pytest.approx(found.best_length[0].mean / 4)
    samples = np.random.default_rng(0).random(50)
    one, other = Estimate.of(samples), Estimate.of_sums(samples.sum(), (samples**2).sum(), 50)
    assert one.mean == pytest.approx(other.mean) and one.standard_error == pytest.approx(other.standard_error)
    assert one.deviation(one.mean + one.standard_error) == pytest.approx(-1.0)
    assert Estimate(2.0, 0.0, 5).deviation(3.0) == -math.inf and Estimate(2.0, 0.0, 5).deviation(2.0) == 0.0


def test_certain_answers() -> None:
    first = simulate(Demand.uniform(1, 1), [(0,)], trials=10, seed=SEED, after=(0, 1))
    assert (first.deaths == 1).all() and [one.mean for one in first.best_length] == [1.0, 0.0]
    once = simulate(Demand.once(np.ones((1, 4), int)), cyclic(4, 4), trials=10, seed=SEED, after=(0, 4))
    assert (once.deaths == 4).all() and [one.mean for one in once.live] == [1.0, 0.0]
    assert math.isnan(simulate(Demand.uniform(1, 1), [(0,)], trials=1, seed=0).last.standard_error)


@pytest.mark.parametrize("after", [(), (2,)])
@pytest.mark.parametrize("demand", [Demand.of([[0.0, 0.4], [0.5, 0.1]]), Demand.once([[0, 4], [5, 1]])])
def test_what_is_never_hit_never_dies(demand: Demand, after: tuple[int, ...]) -> None:
    found = simulate(demand, [(0, 1)], trials=100, seed=SEED, after=after)
    assert found.last.mean == math.inf and found.last.never == 100
    assert found.first.never == 0 and math.isfinite(found.first.mean)
    if after:
        assert found.live[0].mean >= 1.0 and np.isfinite(found.best_length[0].mean)
    every = simulate(demand, [(0, 1), (1, 0)], trials=100, seed=SEED, after=after)
    assert every.last.never == 100 and every.first.never == 0


def test_ten_thousand_shards_and_a_billion_records() -> None:
    """No record is held; the mean is that of the closed form, for so few requests hardly repeat a record."""
    demand = Demand.once(np.full((10_000, 10), 10_000))
    assert demand.total == 1e9
    found = simulate(demand, cyclic(10, 3), trials=20, seed=SEED)
    assert abs(found.last.deviation(deletion_rate(10_000, 10, 3))) < 4
    assert found.first.mean < found.half.mean < found.last.mean


def test_memory_does_not_grow_with_records_or_trials() -> None:
    for demand in (Demand.once(np.full((10_000, 10), 10_000)), Demand.uniform(5, 6)):
        trials = 20 if demand.shards > 5 else 300_000
        tracemalloc.start()
        simulate(demand, cyclic(demand.slices, 3), trials=trials, seed=SEED, threads=2)
        simulate(Demand.uniform(*demand.weights.shape), cyclic(demand.slices, 3), trials=trials, seed=SEED, after=(99,))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 200e6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: simulate(Demand.uniform(2, 2), [], trials=9, seed=0), r"no orders given"),
        (
            lambda: simulate(Demand.uniform(2, 2), [(0, 1), (1,)], trials=9, seed=0),
            r"order \(1,\) is not a permutation",
        ),
        (
            lambda: simulate(Demand.uniform(2, 3), [(0, 1)], trials=9, seed=0),
            r"orders of 2 slices do not fit shards of 3",
        ),
        (lambda: simulate(Demand.uniform(2, 2), [(0, 1)], trials=0, seed=0), r"trials=0 is not possible"),
        (lambda: simulate(Demand.uniform(2, 2), [(0, 1)], trials=1, seed=-1), r"seed=-1 is not possible"),
        (
            lambda: simulate(Demand.uniform(2, 2), [(0, 1)], trials=1, seed=0, records=[[1, 2]]),
            r"records of shape \(1, 2\) do not fit",
        ),
        (
            lambda: simulate(Demand.once([[1, 2]]), [(0, 1)], trials=1, seed=0, records=[[2, 1]]),
            r"records are given twice, and differ",
        ),
        (
            lambda: simulate(Demand.of([[0.0, 0.0]]), [(0, 1)], trials=1, seed=0, after=(1,)),
            r"no slot can be requested",
        ),
        (lambda: simulate(Demand.uniform(2, 2), [(0, 1)], trials=1, seed=0, threads=0), r"threads=0 is not possible"),
        (
            lambda: simulate(Demand.uniform(2, 2), [(0, 1)], trials=1, seed=0, after=(-1,)),
            r"requests=-1 is not possible",
        ),
        (lambda: Simulation(np.ones((3, 2))).last.interval(1.0), r"confidence=1\.0 is not possible"),
    ],
)
def test_impossible_arguments_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        call()
