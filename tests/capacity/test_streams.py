"""Request streams: each against its own definition, and played one by one against played in blocks."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare, ks_2samp

from benchmarks.process import play
from s3t.capacity import simulate_stream
from s3t.errors import DataError, LayoutError, RecordError, S3TError
from s3t.orders import cyclic
from s3t.records import Layout
from s3t.streams import (
    STREAMS,
    Adaptive,
    Bursty,
    ByUser,
    Drift,
    Exponential,
    FromFile,
    Pareto,
    Population,
    Request,
    Stream,
    Uniform,
    View,
    WorstCase,
    Zipf,
    distinct,
    make_stream,
    named,
    read_requests,
)

SEED = 0
LEVEL = 1e-4
COUNTS = [[5, 2, 9], [1, 7, 4], [6, 6, 3]]
PLAIN = Population.synthetic(COUNTS)
OWNED = Population.synthetic(COUNTS, records_per_user=4, seed=1)
LAYOUT = Layout(3, 3)
IDS = [f"r{i:02d}" for i in range(40)]
REAL = Population.of(IDS, lambda name: (int(name[1:]) % 3, int(name[1:]) // 3 % 3), LAYOUT, lambda name: name[:2])

OBLIVIOUS = {
    "uniform": (Uniform(), PLAIN),
    "uniform once": (Uniform(once=True), PLAIN),
    "uniform once, real": (Uniform(once=True), REAL),
    "exponential": (Exponential(), PLAIN),
    "exponential, users": (Exponential(seed=3), OWNED),
    "exponential once": (Exponential(once=True), OWNED),
    "pareto": (Pareto(shape=1.16), PLAIN),
    "pareto, real": (Pareto(shape=0.8, seed=2), REAL),
    "zipf": (Zipf(exponent=1.2), PLAIN),
    "zipf once": (Zipf(exponent=1.2, once=True), PLAIN),
    "bursty": (Bursty(5), PLAIN),
    "bursty, users": (Bursty(3), OWNED),
    "by user": (ByUser(), Population.synthetic(COUNTS, records_per_user=2, seed=1)),
    "by user, real": (ByUser(), REAL),
    "drift": (Drift(30), PLAIN),
    "drift, users": (Drift(10, Uniform(), Pareto()), OWNED),
}


def rng(seed: int = SEED) -> np.random.Generator:
    return np.random.default_rng(seed)


def first(stream: Stream, population: Population, count: int, seed: int = SEED) -> list[Request]:
    return list(itertools.islice(stream.requests(population, rng(seed)), count))


def in_slots(requests: Iterator[Request], population: Population) -> Iterator[list[int]]:
    return (population.slots_of(np.array(request)).tolist() for request in requests)


@pytest.mark.parametrize(("stream", "population"), OBLIVIOUS.values(), ids=OBLIVIOUS)
def test_played_in_blocks_as_one_by_one(stream: Stream, population: Population) -> None:
    """Deaths and chains of simulated plays have the law of a plain loop over the very requests that systems get."""
    orders, after = cyclic(3, 2), (1, 4, 12)
    source = rng()
    slow = [play(3, orders, in_slots(stream.requests(population, source), population), after) for _ in range(600)]
    fast = simulate_stream(stream, population, orders, trials=3000, seed=SEED, after=after)
    for ours, theirs in zip(fast.deaths, np.array([life.deaths for life in slow]).T, strict=True):
        assert ks_2samp(ours, theirs).pvalue > LEVEL
    for column, best in enumerate(fast.best_length):
        lengths = np.array([np.mean(life.lengths[column]) for life in slow])
        error = np.hypot(best.standard_error, lengths.std(ddof=1) / np.sqrt(len(lengths)))
        assert abs(best.mean - lengths.mean()) <= 4 * error


@pytest.mark.parametrize(("stream", "population"), OBLIVIOUS.values(), ids=OBLIVIOUS)
def test_streams_are_functions_of_their_seed(stream: Stream, population: Population) -> None:
    one, two, other = (first(stream, population, 30, seed) for seed in (1, 1, 2))
    assert one == two != other
    assert all(0 <= record < population.size for request in one for record in request)
    runs = [simulate_stream(stream, population, [(0, 1, 2)], trials=300, seed=4, threads=n).deaths for n in (1, 2)]
    assert (runs[0] == runs[1]).all()


@pytest.mark.parametrize("name", ["uniform", "exponential", "exponential, users", "pareto, real", "zipf"])
def test_demand_is_the_share_of_requests_per_slot(name: str) -> None:
    stream, population = OBLIVIOUS[name]
    demand = stream.demand(population)
    assert demand is not None and demand.replacement and demand.total == pytest.approx(1.0)
    slots = [slot for hit in in_slots(iter(first(stream, population, 20_000)), population) for slot in hit]
    seen = np.bincount(slots, minlength=9)
    assert chisquare(seen, 20_000 * demand.weights.reshape(-1) / demand.total).pvalue > LEVEL


def test_users_have_weights_and_records_share_them() -> None:
    weights = Exponential(seed=3).record_weights(OWNED)
    drawn = np.random.default_rng(3).standard_exponential(OWNED.users)
    for user in range(OWNED.users):
        records = list(OWNED.all_of_user(user))
        assert len(records) <= 4
        assert weights[records].sum() == pytest.approx(drawn[user] / drawn.sum())
        assert np.ptp(weights[records]) == 0.0
    ranked = np.sort(Zipf(exponent=2.0).record_weights(PLAIN))[::-1]
    assert ranked == pytest.approx(np.arange(1, 44) ** -2.0 / (np.arange(1, 44) ** -2.0).sum())
    assert Pareto(shape=2.0).user_weights(PLAIN).min() >= 1.0


def test_slot_weights_need_no_records() -> None:
    for stream in (Exponential(seed=5), Pareto(seed=5), Zipf(seed=5)):
        held = np.bincount(PLAIN.slots_of(np.arange(PLAIN.size)), stream.record_weights(PLAIN), minlength=9)
        assert stream.slot_weights(PLAIN).reshape(-1) == pytest.approx(held)
    large = Population.synthetic(np.full((100, 10), 20_000))
    weights = Exponential().slot_weights(large)
    assert weights.sum() == pytest.approx(1.0)
    assert weights.std() * 1000 == pytest.approx(20_000**-0.5, rel=0.2), "sums of 20,000 exponentials"
    with pytest.raises(LayoutError, match=r"20,000,000 records are too many to hold for their weights"):
        Zipf().slot_weights(large)


def test_once_asks_for_every_record_once() -> None:
    for stream in (Uniform(once=True), Exponential(once=True), Zipf(once=True)):
        assert sorted(first(stream, PLAIN, 99)) == [(record,) for record in range(43)]
    places = Counter(first(Uniform(once=True), Population.synthetic([[3]]), 3, seed)[1] for seed in range(3000))
    assert chisquare([places[(record,)] for record in range(3)]).pvalue > LEVEL
    billion = Population.synthetic(np.full((10_000, 10), 10_000))
    assert len({record for (record,) in first(Uniform(once=True), billion, 1000)}) == 1000


def test_repeats_can_be_left_out() -> None:
    requests = list(distinct(Bursty(10).requests(OWNED, rng()), OWNED))
    assert sorted(requests) == [(record,) for record in range(43)]
    assert list(distinct(iter([(1, 2, 2), (2,), (2, 3)]), PLAIN)) == [(1, 2), (3,)]


def test_bursts_stay_in_their_group() -> None:
    for population, groups in ((PLAIN, lambda record: int(PLAIN.slots_of(np.array([record]))[0])), (OWNED, None)):
        owner = population.user
        of = groups or (lambda record, owner=owner: int(owner[record]))
        runs = [len(list(run)) for _, run in itertools.groupby(of(r) for (r,) in first(Bursty(50), population, 20_000))]
        # Now and then a burst goes on with the same group, which joins two.
        assert 50 < np.mean(runs) < 70
    assert {
        len(list(run)) for _, run in itertools.groupby(first(Bursty(1), Population.synthetic([[1] * 500]), 99))
    } == {1}


def test_users_leave_with_all_their_records() -> None:
    requests = first(ByUser(), OWNED, 99)
    assert sorted(record for request in requests for record in request) == list(range(43))
    assert {len(request) for request in requests} == {4, 3}
    assert sorted(named(ByUser().requests(REAL, rng()), REAL)) == [
        tuple(name for name in IDS if name[:2] == user) for user in ("r0", "r1", "r2", "r3")
    ]


def test_drift_goes_from_one_law_to_the_other() -> None:
    start, end = Zipf(exponent=3.0, seed=1), Zipf(exponent=3.0, seed=2)
    top = [int(np.argmax(stream.record_weights(PLAIN))) for stream in (start, end)]
    lives = [first(Drift(100, start, end), PLAIN, 300, seed) for seed in range(200)]
    share = [[np.mean([life[at] == (record,) for life in lives]) for at in (0, 50, 250)] for record in top]
    heaviest = start.record_weights(PLAIN).max()
    assert share[0][0] == pytest.approx(heaviest, abs=0.12) == share[1][2]
    assert share[0][2] < 0.1 and share[1][0] < 0.1
    assert share[0][1] == pytest.approx(heaviest / 2, abs=0.15)


class Room:
    """A system of chains alone: what an attacker may see of it, by the definitions."""

    def __init__(self, orders: Sequence[tuple[int, ...]], population: Population) -> None:
        self.orders, self.population = orders, population
        self.hit = np.zeros(population.counts.shape, bool)
        self.asked: list[int] = []

    def chains(self) -> list[tuple[int, ...]]:
        def served(shard: int) -> tuple[int, ...]:
            kept = [tuple(itertools.takewhile(lambda piece: not self.hit[shard, piece], o)) for o in self.orders]
            return max(kept, key=len)

        return [served(shard) for shard in range(self.population.shards)]

    def scores(self) -> np.ndarray:
        """Records behind a chain score more, later ones too."""
        slots = self.population.slots_of(np.arange(self.population.size))
        chains = self.chains()
        behind = np.array([slot % 3 in chains[slot // 3] for slot in slots])
        return behind + np.arange(self.population.size) / 1000

    def live_through(self, stream: Stream, view: View, seed: int) -> list[int]:
        for (record,) in stream.requests(self.population, rng(seed), view):
            self.asked.append(record)
            self.hit.reshape(-1)[self.population.slots_of(np.array([record]))] = True
        return self.asked


@pytest.mark.parametrize("population", [PLAIN, REAL], ids=["synthetic", "real"])
def test_worst_case_kills_as_cheaply_as_possible(population: Population) -> None:
    for budget in (1, 2, 3, 6):
        orders, firsts = cyclic(3, budget), min(3, budget)
        found = simulate_stream(WorstCase(), population, orders, trials=20, seed=SEED, after=(1,))
        assert ([firsts, 2 * firsts, 3 * firsts] == found.deaths.T).all()
        room = Room(orders, population)
        assert len(room.live_through(WorstCase(), View(room.chains), SEED)) == 3 * firsts
        assert not any(room.chains())


def test_adaptive_requests_follow_the_longest_chain() -> None:
    orders = cyclic(3, 2)
    slow = []
    for seed in range(500):
        room = Room(orders, PLAIN)
        slow.append(len(room.live_through(Adaptive(), View(room.chains), seed)))
    fast = simulate_stream(Adaptive(), PLAIN, orders, trials=3000, seed=SEED)
    ours, theirs = fast.deaths[2], np.array(slow)
    assert abs(ours.mean() - theirs.mean()) < 4 * np.hypot(ours.std() / 3000**0.5, theirs.std() / 500**0.5)
    counts = np.array([[np.mean(x == k) for k in range(6, 10)] for x in (ours, theirs)])
    assert np.abs(counts[0] - counts[1]).max() < 0.1


def test_adaptive_requests_follow_the_highest_score() -> None:
    room = Room(cyclic(3, 2), PLAIN)
    expected, twin = [], Room(cyclic(3, 2), PLAIN)
    while any(twin.chains()):
        ranked = [record for record in np.argsort(-twin.scores()).tolist() if record not in expected]
        expected.append(ranked[0])
        twin.hit.reshape(-1)[PLAIN.slots_of(np.array(ranked[:1]))] = True
    assert room.live_through(Adaptive(), View(room.chains, room.scores), SEED) == expected


def test_requests_from_files(tmp_path: Path) -> None:
    contents = {
        "a.txt": "r01 r02\n\n r05\nr01\n",
        "b.csv": 'ids\nr01,"r02"\n\nr05\nr01\n',
        "c.jsonl": '["r01", "r02"]\n\n{"id": "r05"}\n{"ids": ["r01"]}\n',
    }
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
        stream = FromFile(str(tmp_path / name))
        assert [ids for _, ids in read_requests(tmp_path / name)] == [("r01", "r02"), ("r05",), ("r01",)]
        assert list(stream.requests(REAL, rng())) == [(1, 2), (5,), (1,)]
        assert list(named(stream.requests(REAL, rng()), REAL)) == [("r01", "r02"), ("r05",), ("r01",)]
        found = simulate_stream(stream, REAL, [(0, 1, 2)], trials=3, seed=0, after=(1, 3))
        # r01 and r02 lie in slice 0 of shards 1 and 2, r05 in slice 1 of shard 2.
        assert (found.deaths[:2] == 1).all() and found.last.never == 3
        assert [one.mean for one in found.live] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", r"a\.txt holds no requests"),
        ("b.csv", "r01\nr01,,r02\n", r"b\.csv, line 2: an id is empty"),
        ("b.csv", 'r01\n"r02', r"b\.csv, line 2: unexpected end of data"),
        ("c.jsonl", '"r01"\n{"id": 3}\n', r"c\.jsonl, line 2: expected an id"),
        ("c.jsonl", '"r01"\n\n{"name": "r02"}\n', r'c\.jsonl, line 3: an object needs exactly one of "id" and "ids"'),
        ("c.jsonl", "r01\n", r"c\.jsonl, line 1: no JSON"),
        ("c.jsonl", "[]\n", r"c\.jsonl, line 1: expected an id"),
        ("d.txt", "r01\nr02 r99\n", r"d\.txt, line 2: record 'r99' is unknown \(did you mean"),
    ],
)
def test_faults_of_a_file_are_told_with_their_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises((DataError, RecordError), match=message):
        list(FromFile(str(tmp_path / name)).requests(REAL, rng()))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt cannot be read"):
        read_requests(tmp_path / "none.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"bytes\.txt cannot be read as text in UTF-8"):
        read_requests(tmp_path / "bytes.txt")


@pytest.mark.parametrize(
    ("text", "stream"),
    [
        ("uniform", Uniform()),
        ("uniform:once", Uniform(once=True)),
        ("zipf:1.2", Zipf(exponent=1.2)),
        ("pareto:shape=1.5, seed=3, once", Pareto(shape=1.5, seed=3, once=True)),
        ("exponential:seed=2,once=false", Exponential(seed=2)),
        ("bursty:50", Bursty(50.0)),
        ("by-user", ByUser()),
        ("drift:2000,start=zipf:1.2,end=exponential", Drift(2000.0, Zipf(exponent=1.2), Exponential())),
        ("worst", WorstCase()),
        ("adaptive", Adaptive()),
        ("file:some, odd=name.csv", FromFile("some, odd=name.csv")),
    ],
)
def test_streams_from_text(text: str, stream: Stream) -> None:
    assert make_stream(text) == stream


def test_every_stream_has_a_name() -> None:
    for name, kind in STREAMS.items():
        assert type(make_stream(name + (":requests.txt" if name == "file" else ""))) is kind
        assert dataclasses.is_dataclass(kind) and kind.__doc__


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_stream("zip"), r"stream 'zip' is unknown \(did you mean 'zipf'\?\); choose from uniform, "),
        (lambda: make_stream("zipf:exponnt=2"), r"'exponnt=2' does not fit stream 'zipf' \(did you mean 'exponent'"),
        (lambda: make_stream("worst:3"), r"'3' does not fit stream 'worst'; its values: none"),
        (lambda: make_stream("zipf:many"), r"'many' in stream 'zipf:many' is no float"),
        (lambda: make_stream("zipf:-1"), r"stream 'zipf:-1' is not possible: exponent=-1\.0 is no Zipf exponent"),
        (lambda: make_stream("zipf:nan"), r"exponent=nan is no Zipf exponent"),
        (lambda: make_stream("zipf:seed=-1"), r"seed=-1 is not possible"),
        (lambda: make_stream("pareto:0"), r"shape=0\.0 is no Pareto exponent"),
        (lambda: make_stream("bursty:0.5"), r"length=0\.5 is no mean length"),
        (lambda: make_stream("drift:0"), r"over=0\.0 is no number of requests"),
        (lambda: make_stream("zipf:1,2"), r"'exponent' is given twice"),
        (lambda: make_stream("uniform:once=maybe"), r"'once=maybe' in stream 'uniform:once=maybe' is no bool"),
        (lambda: make_stream("file"), r"stream 'file' lacks path: give file:PATH"),
        (lambda: next(ByUser().requests(PLAIN, rng())), r"requests by user need users"),
        (
            lambda: next(Drift(9, WorstCase()).requests(PLAIN, rng())),
            r"a drift goes between two streams of independent",
        ),
        (lambda: next(WorstCase().requests(PLAIN, rng())), r"give a view of the system"),
        (lambda: next(FromFile("x").requests(PLAIN, rng())), r"give a population of real ids"),
        (lambda: next(named(iter([(1,)]), PLAIN)), r"a synthetic population has no record ids"),
        (lambda: Population.synthetic([[0, 0]]), r"records per slot must be integers"),
        (lambda: Population.synthetic([[1, -2]]), r"records per slot must be integers"),
        (lambda: Population.synthetic([[1.5]]), r"records per slot must be integers"),
        (lambda: Population.synthetic([[5]], records_per_user=0), r"records_per_user=0 is not possible"),
        (lambda: Population.of([], lambda _: (0, 0), LAYOUT), r"0 ids, 0 of them distinct"),
        (lambda: Population.of(["a", "a"], lambda _: (0, 0), LAYOUT), r"2 ids, 1 of them distinct"),
        (lambda: Population.of(["a"], lambda _: (3, 0), LAYOUT), r"record 'a' lies in slot \(3, 0\), outside"),
        (lambda: simulate_stream(Bursty(), PLAIN, [(0, 1)], trials=1, seed=0), r"orders of 2 slices do not fit"),
        (
            lambda: simulate_stream(Bursty(), PLAIN, cyclic(3, 1), trials=1, seed=0, after=(9,), horizon=5),
            r"horizon=5 is too short: give at least 9",
        ),
        (
            lambda: next(Adaptive().requests(PLAIN, rng(), View(lambda: [(0,)] * 3, lambda: np.ones(2)))),
            r"scores of shape \(2,\) do not fit 43 records",
        ),
    ],
)
def test_impossible_arguments_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(S3TError, match=message):
        call()


def test_what_has_not_died_by_the_horizon_never_does() -> None:
    found = simulate_stream(Bursty(1e6), PLAIN, cyclic(3, 1), trials=50, seed=SEED, horizon=1000)
    assert found.last.never == 50 and found.deaths[np.isfinite(found.deaths)].max(initial=0) <= 1000
