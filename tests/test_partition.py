"""Slots, tags and commitments: known answers, independence of other records, and uniformity."""

from __future__ import annotations

import hashlib
import hmac
import random

import pytest
from scipy.stats import chisquare

from s3t.errors import DataError
from s3t.partition import commitment, slot, tag
from s3t.records import Layout, Record

KEY = bytes(range(32))
SALT = bytes(range(16))
IDS = ["r-1", "17", "Ärger", "日本", "a" * 300, "with space\nand line"]


@pytest.mark.parametrize("record_id", IDS)
def test_slot_and_tag_follow_the_derivation(record_id: str) -> None:
    layout = Layout(5, 4)
    mac = hmac.new(KEY, b"s3t slot v1\x00" + record_id.encode("utf-8"), hashlib.sha256).digest()
    assert slot(KEY, record_id, layout) == (
        int.from_bytes(mac[:8], "big") % 5,
        int.from_bytes(mac[8:16], "big") % 4,
    )
    expected = hmac.new(KEY, b"s3t tag v1\x00" + record_id.encode("utf-8"), hashlib.sha256).hexdigest()
    assert tag(KEY, record_id) == expected


@pytest.mark.parametrize(
    ("record_id", "expected_slot", "expected_tag"),
    [
        ("r-1", (2, 3), "bb0194210f47b5f3690ecca26d2c57f180fde68b7604798892406435d341e078"),
        ("日本", (1, 3), "5fef1de483cb0ed910078ddde01659bda441ffbc7756fbe478f4582205e68449"),
        ("record-12345", (0, 3), "7240ef3f02db55b4afe0fcac511fc482e561a27fde856cadbe654ca70458734b"),
    ],
)
def test_known_answers(record_id: str, expected_slot: tuple[int, int], expected_tag: str) -> None:
    assert slot(KEY, record_id, Layout(5, 4)) == expected_slot
    assert tag(KEY, record_id) == expected_tag


def test_commitment_is_the_salted_hash_of_the_content() -> None:
    record = Record("r-1", {"text": "grüß dich", "image": b"\x00\xff"}, 1)
    content = '{"id":"r-1","inputs":{"image":{"base64":"AP8="},"text":"grüß dich"},"label":1}'.encode()
    assert commitment(SALT, record) == hashlib.sha256(b"s3t row v1\x00" + SALT + content).hexdigest()
    assert commitment(SALT, record) == "a067225730cab56dcbd05e27da47026cb7ba00f109b69310cf0a06cede685ca9"


def test_a_slot_depends_on_id_and_key_alone() -> None:
    layout = Layout(7, 3)
    ids = [f"r-{i}" for i in range(500)]
    alone = {record_id: slot(KEY, record_id, layout) for record_id in ids}
    shuffled = ids[::-2]
    random.Random(0).shuffle(shuffled)
    assert {record_id: slot(KEY, record_id, layout) for record_id in shuffled} == {i: alone[i] for i in shuffled}
    other_key = bytes(31) + b"\x01"
    assert sum(slot(other_key, record_id, layout) == alone[record_id] for record_id in ids) < 50


def test_the_budget_moves_no_record() -> None:
    for i in range(200):
        assert slot(KEY, f"r-{i}", Layout(5, 4, 1)) == slot(KEY, f"r-{i}", Layout(5, 4, 24))


@pytest.mark.parametrize(("shards", "slices"), [(5, 4), (3, 7), (1, 1), (10, 6)])
def test_slots_are_roughly_uniform(shards: int, slices: int) -> None:
    counts = [0] * (shards * slices)
    for i in range(20_000):
        shard, slice_ = slot(KEY, f"record-{i}", Layout(shards, slices))
        counts[shard * slices + slice_] += 1
    assert sum(counts) == 20_000
    if len(counts) > 1:
        assert chisquare(counts).pvalue > 0.001, counts


def test_tags_and_commitments_separate_keys_salts_and_records() -> None:
    first, second = Record("a", {"text": "x"}, 0), Record("b", {"text": "x"}, 0)
    assert tag(KEY, "a") != tag(KEY, "b") and tag(KEY, "a") != tag(bytes(32), "a")
    assert commitment(SALT, first) != commitment(SALT, second)
    assert commitment(SALT, first) != commitment(bytes(16), first)


def test_unusable_keys_ids_and_salts_are_refused() -> None:
    with pytest.raises(DataError, match=r"slot key of 3 bytes is not usable: give 32 random bytes"):
        slot(b"abc", "r-1", Layout())
    with pytest.raises(DataError, match=r"slot key of 64 bytes"):
        tag(bytes(64), "r-1")
    with pytest.raises(DataError, match=r"record id '' is not usable"):
        tag(KEY, "")
    with pytest.raises(DataError, match=r"salt of 8 bytes is not usable: give 16 random bytes"):
        commitment(bytes(8), Record("a", {"text": "x"}, 0))
