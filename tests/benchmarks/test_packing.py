"""Counting what packing saves."""

from __future__ import annotations

from benchmarks.packing import Tokens, tokens, whole_epoch
from s3t.records import Dataset, Layout, Recipe, Record


def test_tokens_counted_by_hand() -> None:
    """One batch: four rows of 4 without packing; the two of 2 share a row with it."""
    recipe = Recipe(batch_size=4, max_length=4)
    assert tokens(["a", "b", "c", "d"], [4, 2, 2, 3], [0, 0, 0, 0], recipe, 0) == Tokens(11, 16, 12)
    assert tokens(["a", "b", "c", "d"], [4, 2, 2, 3], [0, 0, 1, 0], recipe, 0) == Tokens(11, 16, 16)


def test_an_epoch_reads_every_record_once() -> None:
    """Whatever the layout; the more slices, the fewer records may share a row."""
    records = tuple(Record(f"row-{i:03d}", {"text": "a"}, 0) for i in range(90))
    data, lengths = Dataset("made", ("text",), records, (), ()), [1 + i % 17 for i in range(90)]
    recipe = Recipe(batch_size=8, window=1, max_length=20)
    found = [
        whole_epoch(data, lengths, layout, recipe) for layout in (Layout(1, 1, 1), Layout(1, 6, 1), Layout(3, 2, 1))
    ]
    assert {one.own for one in found} == {sum(lengths)}
    assert all(one.own <= one.packed <= one.alone for one in found)
    assert found[0].packed < found[1].packed
