"""A life under a stream: what is noted when, and that the system is asked exactly for what the stream says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.streams import chains, own_scores, play, population
from s3t import S3T
from s3t.backbone import Backbone
from s3t.partition import slot
from s3t.records import Layout, Recipe, Record
from s3t.streams import make_stream

KEY = bytes(range(32))
LAYOUT = Layout(2, 2, 2)
RECORDS = [Record(f"row-{i:02d}", {"text": f"cat {i}"}, i % 2) for i in range(30)]


@pytest.fixture
def system(tmp_path: Path, tiny: Backbone) -> Any:
    made = S3T(tmp_path / "run", LAYOUT, classes=("a", "b"), model=tiny, recipe=Recipe(rank=1, epochs=0.1), key=KEY)
    made.fit(RECORDS)
    yield made
    made.close()


def lived(system: Any, stream: str, **more: Any) -> Any:
    people = population(system, RECORDS)
    given = {"checkpoints": (0, 3), "horizon": 60, **more}
    return play(system, make_stream(stream), people, RECORDS, np.random.default_rng(1), **given)


def test_the_population_is_that_of_the_key(system: Any) -> None:
    people = population(system, RECORDS)
    assert people.ids == tuple(record.id for record in RECORDS) and people.users == 10
    numbers = [divmod(int(n), LAYOUT.slices) for n in people.slots_of(np.arange(30))]
    assert numbers == [slot(KEY, record.id, LAYOUT) for record in RECORDS]


def test_the_worst_case_takes_one_request_per_first_slice(system: Any) -> None:
    life = lived(system, "worst")
    assert life.death == 4
    before, after = life.stands
    assert (before.requests, before.share, before.live) == (0, 1.0, 2)
    assert (after.requests, after.share, after.live) == (3, 0.25, 1)
    assert chains(system) == [(), ()]


def test_a_stream_that_ends_leaves_everything_as_it_is(system: Any) -> None:
    life = lived(system, "by-user", checkpoints=(0, 1, 500), horizon=1000)
    assert system.ids() == [] and life.death is not None and life.death <= 10
    assert life.stands[-1].requests == 500 and life.stands[-1].live == 0


def test_requests_that_come_again_count_but_change_nothing(system: Any) -> None:
    life = lived(system, "zipf:3", checkpoints=(40,), horizon=40)
    assert len(system.ids()) > 30 - 40 and life.stands[0].requests == 40
    assert len(life.stands) == 1 and len(system.ids()) < 30


def test_the_horizon_ends_it(system: Any) -> None:
    life = lived(system, "uniform:once", checkpoints=(), horizon=1)
    assert (life.death, life.stands, len(system.ids())) == (None, (), 29)


def test_what_the_adaptive_attacker_sees_are_the_served_scores(system: Any) -> None:
    scores = own_scores(system, RECORDS)
    told = system.predict([record.inputs for record in RECORDS])
    assert [float(s) for s in scores] == [float(told[i][r.label]) for i, r in enumerate(RECORDS)]
    lived(system, "adaptive", checkpoints=(), horizon=1)
    gone = {record.id for record in RECORDS} - set(system.ids())
    assert gone == {RECORDS[int(np.argmax(scores))].id}


def test_accuracy_is_told_where_there_are_test_records(system: Any) -> None:
    life = lived(system, "uniform:once", test=RECORDS[:8])
    assert all(stand.accuracy is not None and 0 <= stand.accuracy <= 1 for stand in life.stands)
    assert [stand.requests for stand in life.stands] == [0, 3]
