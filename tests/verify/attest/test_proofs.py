"""Proofs over ledgers agree with pymerkle and reject everything else; ledgers of any length are read and verified."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pymerkle
import pytest

from verify.attest import AttestError
from verify.attest.chain import BrokenError, read_chain, survivors
from verify.attest.merkle import extends, includes, prove_consistency, prove_inclusion
from verify.derive import merkle_root
from verify.evidence import entry_digest, read_evidence
from verify.report import Verdict
from verify.state import derive_state, longest

from .conftest import Certified, report_on, statement_of

LEAVES = [hashlib.sha256(bytes([i])).digest() for i in range(20)]
SIZES = [*range(1, 10), 15, 16, 17, 20]


def grown(size: int) -> Any:
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    tree.append_entries(LEAVES[:size])
    return tree


@pytest.mark.parametrize("size", SIZES)
def test_inclusion_proofs_are_those_of_pymerkle(size: int) -> None:
    tree, root = grown(size), merkle_root(LEAVES[:size])
    for index in range(size):
        path = prove_inclusion(LEAVES[:size], index)
        assert path == [step.hex() for step in tree.prove_inclusion(index + 1).path[1:]]
        assert includes(LEAVES[index], index, size, path, root)
        assert not any(
            includes(LEAVES[index], other, size, path, root) for other in range(-1, size + 2) if other != index
        )
        assert not includes(LEAVES[index - 1], index, size, path, root) or size == 1
        assert not includes(LEAVES[index], index, size, [*path, "00" * 32], root)
        assert not path or not includes(LEAVES[index], index, size, path[:-1], root)
        assert not includes(LEAVES[index], index, size, path, "00" * 32)


@pytest.mark.parametrize("size", SIZES)
def test_consistency_proofs_hold_for_their_sizes_alone(size: int) -> None:
    tree, new = grown(size), merkle_root(LEAVES[:size])
    assert tree.get_root().hex() == new
    for first in range(1, size + 1):
        old, path = merkle_root(LEAVES[:first]), prove_consistency(LEAVES[:size], first)
        pymerkle.verify_consistency(bytes.fromhex(old), bytes.fromhex(new), tree.prove_consistency(first, size))
        assert extends(first, size, path, old, new)
        assert not extends(first, size, path, "00" * 32, new)
        assert not extends(first, size, path, old, "00" * 32)
        assert not extends(first, size, [*path, "00" * 32], old, new)
        assert not path or not extends(first, size, path[:-1], old, new)
        assert not path or not extends(first, size, ["00" * 32, *path[1:]], old, new)
    assert not extends(0, size, [], "", new)
    assert not extends(size + 1, size, [], new, new)


def test_a_ledger_is_read_as_the_audit_reads_it(certified: Certified) -> None:
    certified.append("extend", {"budget": 4})
    certified.append("stray", {"tags": ["ü", 'q"uoted\\', "\u2028\x7f"]})
    chain, evidence = read_chain(certified.run / "ledger.sqlite"), read_evidence(certified.run)
    assert evidence.problems == ()
    assert [leaf.hex() for leaf in chain.leaves] == [entry.digest for entry in evidence.entries]
    state = derive_state(evidence)
    plan = state.plan
    found = survivors(chain, len(chain.leaves), [list(o) for o in plan.orders], plan.slices)
    assert (found.orders, found.tombstones) == (state.orders, 2)
    assert {node: one.key for node, one in found.nodes.items()} == {n: s.key for n, s in state.survivors.items()}
    for shard in range(plan.shards):
        for order in state.orders:
            keys = [node.key for node in longest(shard, order, state.survivors)]
            assert [node.key for node in found.longest(shard, order)] == keys
    for (shard, prefix), node in found.nodes.items():
        assert node.rows == len(state.rows(shard, prefix))


def test_entries_are_asked_for_by_kind(certified: Certified) -> None:
    chain = read_chain(certified.run / "ledger.sqlite")
    assert chain.body(1, "create")["rows"] == 60
    for seq, kind in ((2, "create"), (0, "create"), (99, "train")):
        with pytest.raises(BrokenError, match=f"entry {seq} of the ledger is no {kind} entry"):
            chain.body(seq, kind)


@pytest.mark.parametrize("column", ["kind", "body", "previous", "digest"])
def test_values_of_another_type_break_the_chain(certified: Certified, column: str) -> None:
    certified.sql(f"UPDATE entries SET {column}=x'00' WHERE seq=2")
    with pytest.raises(BrokenError, match="breaks at entry 2"):
        read_chain(certified.run / "ledger.sqlite")


def long_ledger(certified: Certified, entries: int) -> None:
    """Grow the ledger to ``entries`` by requests that drop nothing, and certify the last."""
    have = len(read_evidence(certified.run).entries)
    body: dict[str, Any] = {"tags": [], "slots": []}
    certified.append("request", *[body | {"request": f"r{i:06d}"} for i in range(2, entries - have + 2)])
    certified.raw = certified.certify(report_on(certified.run), request=f"r{entries - have + 1:06d}")


def queries(path: Path, do: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many SQL statements ``do`` gives."""
    count, connect = [], sqlite3.connect

    def counted(*args: Any, **options: Any) -> sqlite3.Connection:
        made = connect(*args, **options)
        made.set_trace_callback(count.append)
        return made

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", counted)
        do()
    return len(count)


def test_a_ledger_is_read_with_one_query(certified: Certified, monkeypatch: pytest.MonkeyPatch) -> None:
    long_ledger(certified, 500)
    assert queries(certified.run, lambda: certified.check(), monkeypatch) == 1
    assert certified.check().verdict is Verdict.HOLDS
    assert len(statement_of(certified.raw)["predicate"]["request"]["inclusion"]) == 7  # 500 is 256+128+64+32+16+4


@pytest.mark.slow
def test_a_ledger_of_100_000_entries(certified: Certified) -> None:
    long_ledger(certified, 100_000)
    assert certified.check().verdict is Verdict.HOLDS
    certified.sql("UPDATE entries SET body=replace(body,'r050000','r050001') WHERE body LIKE '%r050000%'")
    assert certified.check().verdict is Verdict.VIOLATED


def test_a_missing_ledger(tmp_path: Path) -> None:
    with pytest.raises(AttestError, match=r"ledger\.sqlite is missing"):
        read_chain(tmp_path / "ledger.sqlite")


def test_the_digest_of_an_entry_is_the_documented_one() -> None:
    assert entry_digest(1, "k", "b", "") == hashlib.sha256(b'[1,"k","b",""]').hexdigest()
