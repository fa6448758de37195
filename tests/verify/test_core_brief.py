"""The brief: which nodes, in which order, which rows and probes; and how it is written and read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s3t.records import Record
from verify.brief import make_brief, probes, read_brief, rooted, served, write_brief


def test_a_brief_field_by_field(forge: Callable[..., Any]) -> None:
    run = forge(shards=2, slices=2, budget=2)
    run.delete("row-000")
    evidence, state = run.read()
    brief = make_brief(evidence, state, 3, "surviving")
    assert brief.run == evidence.run
    assert brief.key == bytes(range(32))
    assert brief.threads == 3
    assert brief.ancestors is None
    assert [record.id for record in brief.rows] == sorted(r.id for r in run.records if r.id != "row-000")
    assert [record.id for record in brief.probes] == ["probe-000", "probe-001", "probe-002"]
    assert brief.chains == tuple((chain.shard, chain.prefix) for chain in state.chains)
    assert {node for node, _ in brief.nodes} == set(state.survivors)
    assert all(environment == {"threads": 1, "torch": "0"} for _, environment in brief.nodes)


def test_nodes_come_by_shard_and_parents_first(forge: Callable[..., Any]) -> None:
    read = forge(shards=2, slices=2, budget=2).read()
    one = [(0,), (1,), (0, 1), (1, 0)]
    assert [node for node, _ in make_brief(*read, 1, "surviving").nodes] == [(s, p) for s in (0, 1) for p in one]
    assert [node for node, _ in make_brief(*read, 1, "served").nodes] == [
        (0, (0,)),
        (0, (0, 1)),
        (1, (0,)),
        (1, (0, 1)),
    ]


def test_sampled_nodes_take_the_place_of_the_scope(forge: Callable[..., Any]) -> None:
    read = forge(shards=2, slices=2, budget=2).read()
    ancestors = {(1, (1,)): (b"a", b"b")}
    brief = make_brief(*read, 1, "served", sampled=[(1, (1, 0)), (0, (1,))], ancestors=ancestors)
    assert [node for node, _ in brief.nodes] == [(0, (1,)), (1, (1, 0))]
    assert brief.ancestors == ancestors
    assert make_brief(*read, 1, "served", ancestors={}).nodes == ()
    assert len(make_brief(*read, 1, "served", sampled=[(0, (1,))]).nodes) == 4


def test_rooted_nodes_are_of_the_plan_and_all_their_ancestors_survive(forge: Callable[..., Any]) -> None:
    _, state = forge(shards=1, slices=3, budget=1).read()
    assert rooted(state) == served(state) == {(0, (0,)), (0, (0, 1)), (0, (0, 1, 2))}
    alive = dict(state.survivors)
    stranger = alive[0, (0,)]
    more = dataclasses.replace(state, survivors=alive | {(0, (2,)): stranger})
    assert rooted(more) == rooted(state)
    for gone, left in (((0,), set()), ((0, 1), {(0, (0,))})):
        less = {node: survivor for node, survivor in alive.items() if node[1] != gone}
        assert rooted(dataclasses.replace(state, survivors=less)) == left


def test_probes_are_test_rows_else_validation_rows_else_retained_ones(forge: Callable[..., Any]) -> None:
    run = forge(test=[Record(f"t-{i:03d}", {"text": f"probe {i}"}, 0) for i in range(70)])
    evidence, state = run.read()
    assert [record.id for record in probes(evidence, [])] == [f"t-{i:03d}" for i in range(64)]
    names = [f"t-{i:03d}" for i in range(70)]
    run.update("split='validation'", *names[:5])
    assert probes(run.read()[0], [])[0].id == "t-005"
    run.unlink(*names[5:])
    assert [record.id for record in probes(run.read()[0], [])] == [f"t-{i:03d}" for i in range(5)]
    run.unlink(*names[:5])
    evidence, state = run.read()
    brief = make_brief(evidence, state, 1, "served")
    assert [record.id for record in brief.probes] == [record.id for record in run.records]


@pytest.mark.parametrize("ancestors", [None, {}, {(0, (0,)): (b"\x00a", b"b\n"), (1, (0, 1)): (b"", b"c")}])
def test_what_is_written_is_read(forge: Callable[..., Any], tmp_path: Path, ancestors: Any) -> None:
    evidence, state = forge().read()
    brief = make_brief(evidence, state, 2, "served", sampled=[(0, (1,))], ancestors=ancestors)
    odd = (Record("é", {"text": "Zürich\n\x85", "raw": b"\n\x00"}, 1),)
    brief = dataclasses.replace(brief, rows=odd, probes=odd + odd)
    write_brief(brief, tmp_path / "brief")
    assert read_brief(tmp_path / "brief") == brief
    assert (tmp_path / "brief").stat().st_mode & 0o777 == 0o700
    names = {path.name for path in (tmp_path / "brief").iterdir()}
    files = {f"{i}.{part}.safetensors" for i in range(len(ancestors or {})) for part in ("adapter", "head")}
    assert names == {"brief.json", "rows.jsonl", "probes.jsonl"} | files
    facts = json.loads((tmp_path / "brief" / "brief.json").read_text())
    assert set(facts) == {"run", "key", "nodes", "chains", "threads", "ancestors", "head"}


def test_an_ancestor_has_an_adapter_and_a_head(forge: Callable[..., Any], tmp_path: Path) -> None:
    wrong: Any = {(0, (0,)): (b"a",)}
    brief = make_brief(*forge().read(), 1, "served", sampled=[], ancestors=wrong)
    with pytest.raises(ValueError, match="shorter"):
        write_brief(brief, tmp_path / "brief")
