"""The graph: nodes shared and in order, seeds from identity, batches that are repacked, keys that cover everything."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections import Counter
from typing import Any

import pytest

from s3t.graph import Node, batches, node_key, nodes, seed
from s3t.plan import s3t_plan
from s3t.records import Layout, Recipe

IDS = [f"row-{i:03d}" for i in range(37)]
LENGTHS = [3 + (i * 7) % 11 for i in range(37)]


def test_nodes_are_the_distinct_prefixes_parents_first() -> None:
    for slices, shards in itertools.product((1, 2, 3, 4), (1, 3)):
        for budget in range(1, math.factorial(slices) + 1):
            plan = s3t_plan(Layout(shards, slices, budget), Recipe(), 4)
            found = nodes(plan)
            wanted = {(s, order[:i]) for s in range(shards) for order in plan.orders for i in range(1, slices + 1)}
            assert Counter((node.shard, node.prefix) for node in found) == Counter(wanted)
            place = {node: i for i, node in enumerate(found)}
            assert all(node.parent is None or place[node.parent] < place[node] for node in found)


def test_all_orders_of_four_slices_need_64_nodes_not_96() -> None:
    assert len(nodes(s3t_plan(Layout(1, 4, 24), Recipe(), 4))) == 4 + 12 + 24 + 24


def test_node() -> None:
    node = Node(1, (2, 0, 1))
    assert node.name == "shard-01/2-0-1"
    assert node.parent == Node(1, (2, 0))
    assert Node(1, (2,)).parent is None
    assert node.touches({(1, 0)})
    assert not node.touches({(0, 0), (1, 3)})


def test_seed_by_the_document() -> None:
    text = '["s3t seed v1",7,1,[2,0],"batches"]'
    wanted = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 2**63
    assert seed(7, Node(1, (2, 0)), "batches") == wanted


def test_seeds_differ_by_run_node_and_purpose() -> None:
    everything = nodes(s3t_plan(Layout(3, 4, 24), Recipe(), 4))
    purposes = ("adapter", "head", "dropout", "batches")
    seeds = [seed(run, node, purpose) for run in (0, 1) for node in everything for purpose in purposes]
    assert len(set(seeds)) == len(seeds) == 2 * 3 * 64 * 4
    assert all(0 <= value < 2**63 for value in seeds)


def _rank(purpose: str, batch_seed: int, epoch: int, name: str) -> bytes:
    return hashlib.sha256(json.dumps([purpose, batch_seed, epoch, name], separators=(",", ":")).encode()).digest()


def _slow_batches(
    ids: list[str], lengths: list[int], epochs: float, size: int, window: int, batch_seed: int
) -> list[list[str]]:
    """docs/DERIVATION.md, "Rows and batches of a node", read aloud."""
    length = dict(zip(ids, lengths, strict=True))
    out = []
    for epoch in range(math.ceil(epochs)):
        left = sorted(ids, key=lambda i: _rank("s3t epoch v1", batch_seed, epoch, i))
        if epoch == math.floor(epochs):
            left = left[: math.floor((epochs - math.floor(epochs)) * len(ids) + 0.5)]
        formed = []
        while left:
            near, left = left[: window * size], left[window * size :]
            near.sort(key=lambda i: length[i])
            while near:
                formed.append(near[:size])
                near = near[size:]
        formed.sort(key=lambda batch: _rank("s3t batch v1", batch_seed, epoch, batch[0]))
        out += formed
    return out


@pytest.mark.parametrize("epochs", [0.01, 0.5, 1.0, 1.5, 2.0, 8 / 3])
@pytest.mark.parametrize("size", [1, 4, 37, 100])
@pytest.mark.parametrize("window", [1, 2, 16])
@pytest.mark.parametrize("count", [0, 1, 5, 37])
def test_batches_agree_with_the_document(epochs: float, size: int, window: int, count: int) -> None:
    recipe = Recipe(batch_size=size, window=window)
    found = batches(IDS[:count], LENGTHS[:count], epochs, recipe, 11)
    wanted = _slow_batches(IDS[:count], LENGTHS[:count], epochs, size, window, 11)
    assert [[IDS[i] for i in batch] for batch in found] == wanted
    assert sum(map(len, found)) == math.floor(epochs) * count + math.floor((epochs % 1) * count + 0.5)


@pytest.mark.parametrize("window", [1, 3, 16])
def test_every_row_once_per_epoch(window: int) -> None:
    recipe = Recipe(batch_size=5, window=window)
    found = batches(IDS, LENGTHS, 3.0, recipe, 11)
    per_epoch = math.ceil(len(IDS) / 5)
    assert len(found) == 3 * per_epoch
    epochs = [found[e * per_epoch : (e + 1) * per_epoch] for e in range(3)]
    for epoch in epochs:
        assert sorted(itertools.chain(*epoch)) == list(range(len(IDS)))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert batches(IDS, LENGTHS, 3.0, recipe, 12) != found


def test_a_fraction_of_an_epoch_counts_its_rows() -> None:
    recipe = Recipe(batch_size=4)
    for tenths in range(1, 31):
        found = batches(IDS, LENGTHS, tenths / 10, recipe, 3)
        whole, part = divmod(tenths, 10)
        assert sum(map(len, found)) == whole * 37 + math.floor(part / 10 * 37 + 0.5)
        assert max(Counter(itertools.chain(*found)).values()) <= math.ceil(tenths / 10)


def test_repacked_without_a_row_the_others_keep_their_order() -> None:
    """With equal lengths and one window the order inside an epoch is the batches' content: rows close up, none moves."""
    recipe = Recipe(batch_size=1, window=1)
    ranked = [[IDS[b[0]] for b in batches(IDS, LENGTHS, 1.0, recipe, s)] for s in range(5)]
    for left_out in range(len(IDS)):
        ids = IDS[:left_out] + IDS[left_out + 1 :]
        lengths = LENGTHS[:left_out] + LENGTHS[left_out + 1 :]
        for s in range(5):
            found = [ids[b[0]] for b in batches(ids, lengths, 1.0, recipe, s)]
            assert found == [name for name in ranked[s] if name != IDS[left_out]]
    whole = Recipe(batch_size=len(IDS), window=1)
    level = [4] * len(IDS)
    for epoch in range(2):
        full = [IDS[i] for i in batches(IDS, level, 2.0, whole, 9)[epoch]]
        for left_out in range(len(IDS)):
            ids = IDS[:left_out] + IDS[left_out + 1 :]
            found = [ids[i] for i in batches(ids, level[1:], 2.0, whole, 9)[epoch]]
            assert found == [name for name in full if name != IDS[left_out]]


def test_batches_hold_rows_of_similar_length_within_their_window() -> None:
    recipe = Recipe(batch_size=4, window=100)
    formed = sorted(
        ([LENGTHS[i] for i in b] for b in batches(IDS, LENGTHS, 1.0, recipe, 1)), key=lambda b: (b[0], b[-1])
    )
    assert list(itertools.chain(*formed)) == sorted(LENGTHS)


GIVEN: dict[str, Any] = {
    "node": Node(1, (2, 0)),
    "parent_key": "p",
    "commitments": ["c1", "c2"],
    "stage": s3t_plan(Layout(1, 3, 1), Recipe(), 6).stages[1],
    "recipe": Recipe(),
    "run_seed": 0,
    "base": "b",
    "kernel": "1",
    "environment": {"torch": "2", "threads": 2},
}


def test_the_key_covers_everything_that_sets_the_weights() -> None:
    stage = GIVEN["stage"]
    changes: list[dict[str, Any]] = [
        {},
        {"node": Node(0, (2, 0))},
        {"node": Node(1, (0, 2))},
        {"parent_key": None},
        {"parent_key": "q"},
        {"commitments": ["c2", "c1"]},
        {"commitments": ["c1"]},
        {"run_seed": 1},
        {"base": "other"},
        {"kernel": "2"},
        {"environment": {"torch": "2", "threads": 1}},
    ]
    changes += [
        {"stage": dataclasses.replace(stage, **change)}
        for change in ({"adapter": "x"}, {"kind": "full"}, {"layers": (1,)}, {"epochs": 0.5})
    ]
    for field in dataclasses.fields(Recipe):
        value = getattr(Recipe(), field.name)
        words = {"adapter": "ia3", "ensemble": "vote"}
        other: Any = {"bool": not value, "tuple": ("key",)}.get(type(value).__name__, words.get(field.name))
        if other is None:
            other = type(value)(0.5 if value == 0 else value / 2)
        changes.append({"recipe": dataclasses.replace(Recipe(), **{field.name: other})})
    keys = [node_key(**(GIVEN | change)) for change in changes]
    assert len(set(keys)) == len(keys)
    assert node_key(**GIVEN) == keys[0]
