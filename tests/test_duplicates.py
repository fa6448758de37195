"""Exact and near duplicates: what counts as one, groups, closures, and what happens before anything is written."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3t import duplicates, requests, runs
from s3t.duplicates import PERMUTATIONS, Shingles, bands, closure, cut, find, jaccard, retained
from s3t.errors import DataError
from s3t.partition import slot
from s3t.plan import s3t_plan
from s3t.records import Layout, Recipe, Record
from s3t.runs import RunConfig
from s3t.system import System

KEY = bytes(range(32))


def _texts(*texts: str, labels: Sequence[int] = ()) -> list[Record]:
    return [Record(f"r{i:02}", {"text": text}, labels[i] if labels else 0) for i, text in enumerate(texts)]


def _ids(records: Sequence[Record], threshold: float = 0.8, shingles: Shingles = "characters") -> list[tuple[str, ...]]:
    return [group.ids for group in find(records, threshold=threshold, shingles=shingles).groups]


def _sets(records: Sequence[Record], shingles: Shingles) -> list[frozenset[str]]:
    return [cut(duplicates._normalised(record), shingles) for record in records]


def _slow_groups(records: Sequence[Record], threshold: float, shingles: Shingles) -> list[tuple[str, ...]]:
    """All pairs compared, groups merged until nothing changes."""
    sets = _sets(records, shingles)
    groups = [{record.id} for record in records]
    for one, other in itertools.combinations(range(len(records)), 2):
        if jaccard(sets[one], sets[other]) >= threshold:
            hit = [group for group in groups if group & {records[one].id, records[other].id}]
            groups = [group for group in groups if group not in hit] + [set().union(*hit)]
    found = [tuple(sorted(group)) for group in groups if len(group) > 1]
    return sorted(found, key=lambda ids: (-len(ids), ids))


def _mutated(count: int, seed: int) -> list[Record]:
    """Sentences of made-up words, some of them copies with one or more words changed."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijk", k=rng.randint(2, 8))) for _ in range(200)]
    texts = [" ".join(rng.choices(words, k=rng.randint(3, 25))) for _ in range(count)]
    for number in range(0, count, 2):
        changed = rng.choice(texts).split(" ")
        for _ in range(rng.randint(0, 3)):
            changed[rng.randrange(len(changed))] = rng.choice(words)
        texts[number] = " ".join(changed)
    return _texts(*texts)


# ---- what counts as a copy ----


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is a Caret?", "what is a caret?"),
        ("what  is\ta caret?\n", " what is a caret?"),
        ("\ufb01ne caf\u00e9", "fine cafe\u0301"),  # ligature; composed and decomposed accent
        ("\uff21\uff22\uff23", "abc"),  # full width
        ("Stra\u00dfe", "STRASSE"),
        ("\u0390\u03b9", "\u0399\u0308\u0301\u0399"),  # casefolding that takes characters apart again
        ("", "  \n"),
    ],
)
def test_normalised_texts_are_exact_copies(one: str, other: str) -> None:
    (group,) = find(_texts(one, other)).groups
    assert group == duplicates.Group(("r00", "r01"), exact=True, labels_differ=False)


def test_labels_may_differ_and_are_reported() -> None:
    (group,) = find(_texts("the same", "The same", labels=(0, 1))).groups
    assert group.exact and group.labels_differ


def test_bytes_are_compared_by_digest() -> None:
    images = [Record(name, {"image": content}, 0) for name, content in (("a", b"x"), ("b", b"x"), ("c", b"y"))]
    assert _ids(images) == [("a", "b")]
    assert _ids(images, threshold=0.01) == [("a", "b")]


def test_fields_are_told_apart() -> None:
    records = [
        Record("a", {"premise": "it rains today", "hypothesis": "the street is wet"}, 0),
        Record("b", {"premise": "the street is wet", "hypothesis": "it rains today"}, 0),
        Record("c", {"hypothesis": "The street is wet", "premise": "It rains today"}, 0),
        Record("d", {"premise": b"it rains today", "hypothesis": "the street is wet"}, 0),
    ]
    assert _ids(records) == [("a", "c")]


def test_shingles_by_hand() -> None:
    assert cut(("t text\x00abcdef",), "characters") == {"t text\x00abcde", "t text\x00bcdef"}
    assert cut(("t text\x00abc",), "characters") == {"t text\x00abc"}
    assert cut(("t text\x00a b c d",), "words") == {"t text\x00a b c", "t text\x00b c d"}
    assert cut(("t text\x00a b",), "words") == {"t text\x00a b"}
    assert jaccard(frozenset("abc"), frozenset("bcd")) == 0.5


def test_the_threshold_is_inclusive_and_confirmed_exactly() -> None:
    records = _texts("abcdefghi", "abcdefghij")  # 5 shingles of 5 characters, and 6: similarity 5/6
    assert _ids(records, threshold=5 / 6) == [("r00", "r01")]
    assert _ids(records, threshold=5 / 6 + 1e-9) == []
    assert closure(records, ["r00"], threshold=5 / 6) == ("r00", "r01")
    assert closure(records, ["r00"], threshold=5 / 6 + 1e-9) == ("r00",)


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.0001, float("nan")])
def test_a_threshold_that_cannot_be(threshold: float) -> None:
    with pytest.raises(DataError, match=r"threshold=.* is not possible: give a Jaccard similarity above 0"):
        find([], threshold=threshold)
    with pytest.raises(DataError, match="threshold="):
        closure([], [], threshold=threshold)


# ---- groups ----


def test_a_chain_is_one_group() -> None:
    base = "abcdefghijklmnopqrstuvwxyz"
    records = _texts(*(base[start : start + 20] for start in range(6)))
    ends = _sets(records, "characters")
    assert jaccard(ends[0], ends[5]) < 0.6
    assert _ids(records) == [tuple(record.id for record in records)]
    assert closure(records, ["r05"]) == tuple(record.id for record in records)


@pytest.mark.parametrize("shingles", ["characters", "words"])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 1.0])
def test_groups_are_those_of_all_pairs(threshold: float, shingles: Shingles) -> None:
    records = _mutated(150, seed=int(threshold * 10))
    expected = _slow_groups(records, threshold, shingles)
    assert len(expected) > 5
    assert _ids(records, threshold, shingles) == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab ", max_size=12), max_size=14), st.sampled_from([0.4, 0.8, 1.0]), st.randoms())
def test_closures_are_the_groups_of_all_pairs(texts: list[str], threshold: float, rng: random.Random) -> None:
    records = _texts(*texts)
    groups = {name: ids for ids in _slow_groups(records, threshold, "characters") for name in ids}
    for record in records:
        assert closure(records, [record.id], threshold=threshold) == groups.get(record.id, (record.id,))
    some = [record.id for record in records if rng.random() < 0.3]
    union = sorted({name for chosen in some for name in groups.get(chosen, (chosen,))})
    assert closure(records, some, threshold=threshold) == tuple(union)


def test_the_order_of_records_does_not_matter() -> None:
    records = _mutated(120, seed=3)
    shuffled = random.Random(1).sample(records, len(records))
    assert find(records) == find(shuffled)
    assert len(find(records).groups) > 5


def test_ids_that_are_not_there_are_left_out_of_a_closure() -> None:
    assert closure(_texts("one text", "One text"), ["r01", "gone"]) == ("r00", "r01")
    assert closure(_texts("one text"), ["gone"]) == ()


def test_counts_name_no_record() -> None:
    records = _texts(
        "one text", "One text", "another one", "two texts here now", "two texts here now!", labels=(0, 1, 0, 0, 0)
    )
    places = {"r00": (0, 0), "r01": (1, 0), "r03": (0, 1), "r04": (0, 2), "r02": (0, 0)}
    found = find(records, place=places.__getitem__)
    assert [group.slots for group in found.groups] == [((0, 0), (1, 0)), ((0, 1), (0, 2))]
    assert found.counts() == {
        "compared": 5,
        "threshold": 0.8,
        "shingles": "characters",
        "groups": 2,
        "records": 4,
        "exact_groups": 1,
        "largest": 2,
        "labels_differ": 1,
        "across_slots": 2,
        "across_shards": 1,
    }
    assert find(records).counts()["across_slots"] is None
    assert find([]).counts()["groups"] == 0


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.8, 0.9, 1.0])
def test_bands_overlook_little_and_are_as_strict_as_that_allows(threshold: float) -> None:
    def missed(rows: int) -> float:
        return float((1 - threshold**rows) ** (PERMUTATIONS // rows))

    count, rows = bands(threshold)
    assert count * rows <= PERMUTATIONS and count > 1
    assert rows == 1 or missed(rows) <= duplicates.MISS
    assert all(missed(more) > duplicates.MISS for more in range(rows + 1, PERMUTATIONS // 2 + 1))


# ---- runs ----

LAYOUT, RECIPE = Layout(2, 2, 1), Recipe(rank=1, epochs=1, batch_size=8)


def test_a_run_gives_its_retained_records_and_keeps_no_trace_of_it(tmp_path: Path) -> None:
    records = [Record(f"q{i}", {"text": f"how many cats are there, {i // 2}"}, i % 2) for i in range(8)]
    model = {"name": "tiny", "digest": "", "layers": 6, "hidden": 32}
    about = {"name": "", "source": "", "digest": "", "classes": ["a", "b"]}
    config = RunConfig(s3t_plan(LAYOUT, RECIPE, 6), RECIPE, model, about, 0, "kernel", "0")
    runs.create(tmp_path / "run", config, KEY, records, ([Record("v", {"text": "how many cats are there, 0"}, 0)], []))
    with closing(runs.open_run(tmp_path / "run")) as run:
        requests.delete(run, ["q3"])
        requests.erase(run, set())
        before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
        held = retained(run)
        assert held == [record for record in records if record.id != "q3"]
        found = find(held, place=lambda name: slot(run.key, name, run.config.plan.layout))
    assert found.groups[0].slots == tuple(sorted({slot(KEY, record.id, LAYOUT) for record in held}))
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("validation", "test", "message"),
    [
        (["q3", "v"], ["t"], "record id 'q3' occurs among the training and the evaluation records"),
        (["v"], ["t", "q5"], "record id 'q5' occurs among the training and the evaluation records"),
        (["v"], ["v"], "record id 'v' occurs twice"),
        (["v", "v"], [], "record id 'v' occurs twice"),
    ],
)
def test_an_id_in_two_splits_is_refused_before_anything_is_written(
    tmp_path: Path, validation: list[str], test: list[str], message: str
) -> None:
    def make(names: Sequence[str]) -> list[Record]:
        return [Record(name, {"text": f"text {name}"}, 0) for name in names]

    plan = s3t_plan(LAYOUT, RECIPE, 6)
    splits = (make(validation), make(test))
    system = System.create(tmp_path / "run", plan, RECIPE, model="tiny", classes=["a", "b"], evaluation=splits)
    with pytest.raises(DataError, match=message):
        system.fit(make([f"q{i}" for i in range(40)]))
    assert not list(tmp_path.iterdir())
