"""Derivations against vectors worked out by hand from docs/DERIVATION.md, and exhaustively where the space is small."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import math

import pytest

from s3t.records import Record
from verify import derive

KEY = bytes(range(32))


@pytest.mark.parametrize(("shards", "slices"), [(5, 4), (7, 3), (1, 1), (64, 11)])
def test_tag_and_slot_are_keyed_hashes_of_the_id(shards: int, slices: int) -> None:
    for name in ("größe-1", *(f"row-{i}" for i in range(20))):
        mac = hmac.new(KEY, b"s3t slot v1\x00" + name.encode(), hashlib.sha256).digest()
        shard = int.from_bytes(mac[0:8], "big") % shards
        slice_ = int.from_bytes(mac[8:16], "big") % slices
        assert derive.slot(KEY, name, shards, slices) == (shard, slice_)
    assert derive.tag(KEY, "a") == hmac.new(KEY, b"s3t tag v1\x00a", "sha256").hexdigest()


def test_slot_of_another_key_differs() -> None:
    ids = [f"r{i}" for i in range(200)]
    ours = [derive.slot(KEY, name, 4, 4) for name in ids]
    assert ours != [derive.slot(bytes(32), name, 4, 4) for name in ids]
    assert set(ours) == set(itertools.product(range(4), range(4)))


@pytest.mark.parametrize(("label", "wanted"), [(0.0, -1.0), (2.5, 0.0), (3.0, 0.2), (5.0, 1.0)])
def test_target_of_a_number_is_its_place_in_the_range(label: float, wanted: float) -> None:
    assert derive.target(label, ["0.0:5.0"]) == pytest.approx(wanted, abs=1e-15)
    assert derive.target(2, ["a", "b", "c"]) == 2


def test_commitment_and_root() -> None:
    content = Record("a", {"text": "x"}, 1).content()
    assert content == b'{"id":"a","inputs":{"text":"x"},"label":1}'
    expected = hashlib.sha256(b"s3t row v1\x00" + b"s" * 16 + content).hexdigest()
    assert derive.commitment(b"s" * 16, content) == expected
    a, b = (hashlib.sha256(b"\x00" + bytes.fromhex(leaf)).digest() for leaf in ("0a", "0b"))
    assert derive.root(["0b", "0a"]) == hashlib.sha256(b"\x01" + a + b).hexdigest()
    assert derive.root([]) == hashlib.sha256(b"").hexdigest()


def slow_branch(items: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The definition, word for word."""
    if not items:
        return [()]
    rotations = [items[f:] + items[:f] for f in range(len(items))]
    below = [slow_branch(rotation[1:]) for rotation in rotations]
    return [(rotations[f][0], *below[f][j]) for j in range(len(below[0])) for f in range(len(items))]


@pytest.mark.parametrize("slices", range(1, 7))
def test_cyclic_is_the_definition_for_every_budget(slices: int) -> None:
    everything = slow_branch(tuple(range(slices)))
    assert derive.cyclic(slices, math.factorial(slices)) == tuple(everything)
    assert sorted(everything) == sorted(itertools.permutations(range(slices)))


def test_cyclic_by_hand() -> None:
    assert derive.cyclic(3, 3) == ((0, 1, 2), (1, 2, 0), (2, 0, 1))
    assert derive.cyclic(3, 6)[3:] == ((0, 2, 1), (1, 0, 2), (2, 1, 0))
    assert derive.cyclic(20, 2)[1][:3] == (1, 2, 3)


def test_seed_is_the_first_eight_bytes_below_two_to_the_63() -> None:
    raw = hashlib.sha256(b'["s3t seed v1",3,1,[2,0],"head"]').digest()
    assert derive.seed(3, 1, (2, 0), "head") == int.from_bytes(raw[:8], "big") % 2**63
    values = {derive.seed(3, 1, (2, 0), p) for p in ("adapter", "head", "dropout", "batches")}
    assert len(values) == 4
    assert all(0 <= v < 2**63 for v in values)


def test_json_is_utf8_without_spaces() -> None:
    assert derive.encode({"b": [1, None], "a": "é"}) == '{"a":"é","b":[1,null]}'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        derive.encode([math.nan])


def slow_batches(
    ids: list[str], lengths: dict[str, int], seed: int, epochs: float, size: int, window: int
) -> list[list[str]]:
    """Steps 1 to 4, one at a time."""

    def sha(*parts: object) -> bytes:
        return hashlib.sha256(json.dumps(parts, separators=(",", ":"), ensure_ascii=False).encode()).digest()

    out = []
    for e in range(math.ceil(epochs)):
        rows = [name for _, name in sorted((sha("s3t epoch v1", seed, e, name), name) for name in ids)]
        fraction = epochs - math.floor(epochs)
        if e == math.ceil(epochs) - 1 and fraction > 0:
            rows = rows[: math.floor(fraction * len(ids) + 0.5)]
        batches = []
        while rows:
            head, rows = rows[: window * size], rows[window * size :]
            ranked = sorted(range(len(head)), key=lambda i: (lengths[head[i]], i))
            head = [head[i] for i in ranked]
            while head:
                batches.append(head[:size])
                head = head[size:]
        out += sorted(batches, key=lambda b: sha("s3t batch v1", seed, e, b[0]))
    return out


@pytest.mark.parametrize("count", range(10))
@pytest.mark.parametrize("epochs", [0.3, 1.0, 1.6, 2.0])
def test_batches_are_the_four_steps(count: int, epochs: float) -> None:
    ids = sorted(f"é{i}" for i in range(count))
    lengths = {name: 2 + i % 3 for i, name in enumerate(ids)}
    for size, window in itertools.product((1, 2, 3), (1, 2)):
        found = derive.batches(ids, lengths, 5, epochs=epochs, batch_size=size, window=window)
        assert found == slow_batches(ids, lengths, 5, epochs, size, window)
        flat = [name for batch in found for name in batch]
        last = math.floor((epochs % 1) * count + 0.5) if epochs % 1 else 0
        assert len(flat) == math.floor(epochs) * count + last
        assert derive.visited(ids, 5, epochs) == set(flat)


def test_batches_do_not_depend_on_other_rows_lengths_alone() -> None:
    ids = [f"r{i}" for i in range(12)]
    flat = dict.fromkeys(ids, 5)
    one = derive.batches(ids, flat, 1, epochs=1.0, batch_size=4, window=1)
    two = derive.batches(list(reversed(ids)), flat, 1, epochs=1.0, batch_size=4, window=1)
    assert one == two


def test_node_key_covers_every_part() -> None:
    run = {
        "kernel": "1",
        "plan": {"stages": [{"adapter": "x"}, {"adapter": "y"}]},
        "recipe": {"lr": 1.0},
        "seed": 0,
        "model": {"digest": "d"},
    }
    base = {"shard": 0, "prefix": (1, 0), "parent": "p", "commitments": ["a", "b"], "environment": {"threads": 1}}
    text = (
        b'{"base":"d","environment":{"threads":1},"format":4,"kernel":"1","parent":"p","prefix":[1,0],'
        b'"recipe":{"lr":1.0},"rows":["a","b"],"seed":0,"shard":0,"stage":{"adapter":"y"}}'
    )
    assert derive.node_key(run, **base) == hashlib.sha256(text).hexdigest()
    changes = [
        {"shard": 1},
        {"prefix": (0, 1)},
        {"prefix": (1,)},
        {"parent": None},
        {"commitments": ["b", "a"]},
        {"environment": {"threads": 2}},
    ]
    keys = {derive.node_key(run, **(base | change)) for change in changes}
    keys |= {derive.node_key(run | change, **base) for change in ({"kernel": "2"}, {"seed": 1}, {"recipe": {}})}
    assert len(keys) == len(changes) + 3
    assert derive.node_key(run, **base) not in keys


def test_tensors_digest_by_hand() -> None:
    import torch

    tensors = {"b": torch.tensor([1.0, -2.0]), "a": torch.tensor([[1, 2]], dtype=torch.int16)}
    raw = b'["a","int16",[1,2]]\x00\x01\x00\x02\x00' + b'["b","float32",[2]]\x00\x00\x00\x80\x3f\x00\x00\x00\xc0'
    assert derive.tensors_digest(tensors) == hashlib.sha256(raw).hexdigest()
    assert derive.tensors_digest({"a": torch.tensor(0.0)}) != derive.tensors_digest({"a": torch.tensor(-0.0)})
    empty = derive.tensors_digest({"a": torch.zeros(0, 2, dtype=torch.bfloat16)})
    assert empty == hashlib.sha256(b'["a","bfloat16",[0,2]]\x00').hexdigest()


def test_the_tree_splits_as_rfc_6962_says() -> None:
    def slow(leaves: list[bytes]) -> bytes:
        if len(leaves) < 2:
            return hashlib.sha256(b"\x00" + leaves[0] if leaves else b"").digest()
        half = 1
        while 2 * half < len(leaves):
            half *= 2
        return hashlib.sha256(b"\x01" + slow(leaves[:half]) + slow(leaves[half:])).digest()

    for count in range(20):
        leaves = [bytes([number]) * 32 for number in range(count)]
        assert derive.merkle_root(leaves) == slow(leaves).hex()
    assert derive.key_commitment(KEY) == hashlib.sha256(b"s3t slot key v1\x00" + KEY).hexdigest()
