"""The split of a record is a function of its id alone, with the shares that are declared."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from s3t.data.splits import carve_test, carve_validation, part_of, three_way

IDS = [f"row-{number:06d}" for number in range(20_000)]


@pytest.mark.parametrize("record_id", ["row-000001", "trec6-10017", "Ä"])
def test_a_part_is_the_declared_hash(record_id: str) -> None:
    digest = hashlib.sha256(b"s3t split v1\x00" + record_id.encode("utf-8")).hexdigest()
    assert part_of(record_id) == int(digest[:16], 16) % 100


def test_shares_are_a_tenth_each() -> None:
    counts = Counter(map(three_way, IDS))
    spread = 5 * (20_000 * 0.1 * 0.9) ** 0.5
    assert abs(counts["validation"] - 2000) < spread
    assert abs(counts["test"] - 2000) < spread
    assert counts.total() == 20_000


def test_a_carved_split_is_the_first_tenth_whatever_it_is_called() -> None:
    tenth = {name for name in IDS if three_way(name) == "validation"}
    assert {name for name in IDS if carve_validation(name) == "validation"} == tenth
    assert {name for name in IDS if carve_test(name) == "test"} == tenth
    assert {carve_validation(name) for name in IDS} == {"train", "validation"}
    assert {carve_test(name) for name in IDS} == {"train", "test"}
