"""The system end to end on the tiny model: what a deletion does and does not do, refresh, two processes, bad input."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from s3t import S3T, building, store
from s3t.backbone import Backbone
from s3t.contract import Cost, UnlearningSystem
from s3t.digests import tensors_digest
from s3t.engine.numerics import Numerics
from s3t.errors import BusyError, DataError, LayoutError, OfflineError, RecordError, RunError
from s3t.partition import slot
from s3t.records import Layout, Recipe, Record
from s3t.system import System

KEY = bytes(range(32))
LAYOUT = Layout(2, 2, 2)
RECIPE = Recipe(rank=1, epochs=1.0, batch_size=8, dropout=0.1)
RECORDS = [Record(f"row-{i:02d}", {"text": f"cat number {i} is {'very ' * (i % 3)}big"}, i % 3) for i in range(24)]
VALID = [Record("valid", {"text": "a dog"}, 0)]
PROBE = [{"text": "the cat"}, {"text": "number 7 is big"}]


def _in(shard: int, piece: int) -> list[str]:
    return [record.id for record in RECORDS if slot(KEY, record.id, LAYOUT) == (shard, piece)]


def _bits(system: System) -> dict[str, str]:
    return {name: tensors_digest(tensors) for name, tensors in system.weights().items()}


def _folders(path: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (path / "nodes").iterdir()}


def _make(path: Path, tiny: Backbone, layout: Layout = LAYOUT, **changes: Any) -> S3T:
    given: dict[str, Any] = {"classes": ("a", "b", "c"), "model": tiny, "recipe": RECIPE, "key": KEY}
    return S3T(path, layout, **(given | {"evaluation": (VALID, ())} | changes))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, tiny: Backbone) -> Path:
    system = _make(tmp_path_factory.mktemp("system") / "run", tiny)
    system.fit(RECORDS)
    system.close()
    return system.path


@pytest.fixture
def system(fitted: Path, tmp_path: Path, tiny: Backbone) -> Iterator[System]:
    shutil.copytree(fitted, tmp_path / "run")
    opened = System.open(tmp_path / "run", tiny)
    yield opened
    opened.close()


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes every forward pass of any module and every call of the kernel."""
    calls: list[str] = []
    forward, train = nn.Module.__call__, Numerics.train
    monkeypatch.setattr(nn.Module, "__call__", lambda m, *a, **k: calls.append("forward") or forward(m, *a, **k))
    monkeypatch.setattr(Numerics, "train", lambda *a, **k: calls.append("train") or train(*a, **k))
    return calls


def test_it_is_an_unlearning_system(system: System) -> None:
    assert isinstance(system, UnlearningSystem)


def test_a_deletion_trains_nothing_forwards_nothing_and_touches_its_own_shard(system: System, idle: list[str]) -> None:
    system.predict(PROBE)
    assert "forward" in idle
    idle.clear()
    before, name = _folders(system.path), _in(1, 0)[0]
    models = {shard: id(model) for shard, (_, model) in system.served().models.items()}
    receipt = system.delete([name])
    after = _folders(system.path)
    assert idle == []
    assert (receipt.deleted, receipt.slots, receipt.already) == ((name,), ((1, 0),), ())
    assert receipt.cost == Cost(seconds=receipt.cost.seconds)
    assert set(before) - set(after) == set(receipt.nodes_dropped)
    assert all(before[key] == mtime for key, mtime in after.items())
    own = {fact.key for node, fact in system._opened()[1].alive.items() if node.shard == 0}
    assert len(own) == 4
    assert own <= set(after)
    assert id(system.served().models[0][1]) == models[0]


@pytest.mark.parametrize(
    "hit", [h for n in range(5) for h in itertools.combinations(itertools.product((0, 1), (0, 1)), n)]
)
def test_every_set_of_hits_is_served_as_the_spec_says(system: System, hit: tuple[tuple[int, int], ...]) -> None:
    """Two slices, both rotations: without a hit length 2, after one hit the other first slice, after both nothing."""
    for shard, piece in hit:
        system.delete(_in(shard, piece)[:1])
    left = {shard: 2 - sum(s == shard for s, _ in hit) for shard in (0, 1)}
    assert system.status().chain_lengths == {shard: length for shard, length in left.items() if length}
    chains = system.provenance().chains
    assert not {(n.shard, p) for c in chains for n in c.nodes for p in n.prefix} & set(hit)
    assert all(chain.weight == 1 / len(chains) for chain in chains)
    if chains:
        assert system.predict(PROBE).shape == (2, 3)
    else:
        with pytest.raises(OfflineError, match="every shard is offline"):
            system.predict(PROBE)


def test_dead_is_offline_until_a_refresh_that_equals_scratch(system: System, tiny: Backbone, tmp_path: Path) -> None:
    ids = [_in(shard, piece)[0] for shard in (0, 1) for piece in (0, 1)]
    receipt = system.delete(ids)
    assert (receipt.offline, len(receipt.nodes_dropped)) == ((0, 1), 8)
    assert _folders(system.path) == {}
    with pytest.raises(OfflineError):
        system.predict(PROBE)
    assert system.provenance().chains == ()
    assert system.refresh().nodes == 8
    scratch = _make(tmp_path / "scratch", tiny)
    scratch.fit([record for record in RECORDS if record.id not in ids])
    assert _bits(system) == _bits(scratch)
    assert np.array_equal(system.predict(PROBE), scratch.predict(PROBE))
    assert system.provenance().claim == "retrained"
    assert not {r for c in system.provenance().chains for n in c.nodes for r in n.reads or ()} & set(ids)
    scratch.close()


def test_refresh_trains_the_missing_nodes_alone(system: System, idle: list[str]) -> None:
    before = _folders(system.path)
    system.delete(_in(0, 1)[:1])
    assert system.provenance().claim == "non-interference"
    cost = system.refresh()
    assert cost.nodes == idle.count("train") == 3  # (1), (0, 1), (1, 0): all but (0)
    kept = {key for key in before if key in _folders(system.path)}
    assert len(kept) == 5
    assert all(_folders(system.path)[key] == before[key] for key in kept)
    assert system.refresh() == Cost()


def test_requests(system: System) -> None:
    one, two = _in(0, 0)[:2]
    head = system._opened()[0].ledger.head()
    for bad, message in (
        ("nobody", "'nobody' is not in this system, so nothing"),
        ("valid", "belongs to the validation"),
    ):
        with pytest.raises(RecordError, match=message):
            system.delete([one, bad])
    assert system._opened()[0].ledger.head() == head
    assert one in system.ids()
    assert system.delete([one, one]).deleted == (one,)
    again = system.delete([one])
    assert (again.request, again.deleted, again.already, again.nodes_dropped) == ("", (), (one,), ())
    both = system.delete([two, one])
    assert (both.request, both.deleted, both.already) == ("r000002", (two,), (one,))
    assert system.status().requests == 2


def test_another_process_deletion_is_seen_by_the_next_predict(system: System, tiny: Backbone) -> None:
    other = System.open(system.path, tiny)
    before = system.predict(PROBE)
    other.delete(_in(0, 0)[:1])
    after = system.predict(PROBE)
    assert not np.array_equal(before, after)
    assert np.array_equal(after, other.predict(PROBE))
    assert system.status().chain_lengths == {0: 1, 1: 2}
    other.refresh()
    assert np.array_equal(system.predict(PROBE), other.predict(PROBE))
    other.close()


def test_one_builder_at_a_time(system: System, tiny: Backbone) -> None:
    other = System.open(system.path, tiny)
    with other._opened()[0].building():
        with pytest.raises(BusyError, match="is being trained or refreshed by another process"):
            system.refresh()
        system.delete(_in(0, 0)[:1])  # a deletion does not wait
    assert system.refresh().nodes == 3
    other.close()


@pytest.mark.parametrize("step", ["node_rows", "run_kernel"])
def test_reads_are_on_record_whenever_they_happen(system: System, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """A node that looks at another slot's rows, before it trains or while it does, cannot hide it."""
    system.delete(_in(0, 0)[:1])
    real = getattr(building.Builder, step)

    def looking(self: building.Builder, plan: Any, node: Any, *args: Any) -> Any:
        self.rows.read([(1, 1)])
        return real(self, plan, node, *args)

    monkeypatch.setattr(building.Builder, step, looking)
    assert system.refresh().nodes
    (mine,) = (chain for chain in system.provenance().chains if chain.nodes[0].shard == 0)
    again = [node for node in mine.nodes if 0 in node.prefix]
    assert again and all(set(_in(1, 1)) <= set(node.reads or ()) for node in again)


@pytest.mark.parametrize("moment", ["before the parent is read", "after training"])
def test_a_deletion_that_arrives_while_a_node_trains_wins(
    system: System, tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    first, second = _in(0, 0)[:2]
    system.delete([first])
    other, late = System.open(system.path, tiny), [second]
    step = "parent_state" if moment == "before the parent is read" else "run_kernel"
    real = getattr(building.Builder, step)

    def overtaken(self: building.Builder, plan: Any, node: Any, *args: Any) -> Any:
        out = real(self, plan, node, *args) if step == "run_kernel" else None
        if late and node.shard == 0 and node.prefix == (0, 1):
            other.delete([late.pop()])
        return out if step == "run_kernel" else real(self, plan, node, *args)

    monkeypatch.setattr(building.Builder, step, overtaken)
    system.refresh()
    assert not late
    monkeypatch.undo()
    scratch = _make(tmp_path / "scratch", tiny)
    scratch.fit([record for record in RECORDS if record.id not in (first, second)])
    assert _bits(system) == _bits(scratch)
    assert set(_folders(system.path)) == system._opened()[1].live_keys()
    assert not {r for c in system.provenance().chains for n in c.nodes for r in n.reads or ()} & {first, second}
    scratch.close()
    other.close()


def test_a_run_can_be_moved_and_copied(system: System, tiny: Backbone, tmp_path: Path) -> None:
    wanted = system.predict(PROBE)
    shutil.copytree(system.path, tmp_path / "copy")
    system.close()
    (tmp_path / "run").rename(tmp_path / "moved")
    for name in ("moved", "copy"):
        opened = System.open(tmp_path / name, tiny)
        assert np.array_equal(opened.predict(PROBE), wanted)
        opened.delete(_in(0, 0)[:1])
        opened.close()


def test_extend_trains_what_is_added_and_equals_a_fresh_fit(tmp_path: Path, tiny: Backbone) -> None:
    small, large = _make(tmp_path / "small", tiny, Layout(2, 2, 1)), _make(tmp_path / "large", tiny)
    first, whole = small.fit(RECORDS), large.fit(RECORDS)
    assert (first.nodes, whole.nodes) == (4, 8)
    assert small.extend(2).nodes == 4
    assert small.extend(2) == Cost()
    for one, two in zip(_facts(small), _facts(large), strict=True):
        assert one == two
    assert _bits(small) == _bits(large)
    with pytest.raises(RunError, match="budget=1 is below the 2 orders"):
        small.extend(1)
    with pytest.raises(LayoutError, match="budget=3 exceeds the 2 orders"):
        small.extend(3)
    assert small.status().layout.budget == 2
    small.close()
    large.close()


def _facts(system: System) -> list[tuple[str, str, str]]:
    bodies = [e.body for e in system._opened()[0].ledger.entries("train")]
    return sorted((f"{b['shard']}/{b['prefix']}", b["tensors"], b["head"]) for b in bodies)


def test_cost_adds_up(system: System) -> None:
    """S3T, k = 3 of 6 layers per block: stage i passes 6 layers forward and 3 i backward for each row of i slices."""
    sizes = {(s, p): len(_in(s, p)) for s in (0, 1) for p in (0, 1)}
    rows = sum(2 * sizes[s, p] + sizes[s, 1 - p] for s in (0, 1) for p in (0, 1))
    layers = sum(sizes[s, p] * 9 + (sizes[s, p] + sizes[s, 1 - p]) * 12 for s in (0, 1) for p in (0, 1))
    spent = system.cost()
    assert (spent.nodes, spent.record_passes, spent.layer_passes) == (8, rows, layers)
    assert spent.bytes == system.status().bytes
    system.delete(_in(1, 1)[:1])
    more = system.refresh()
    system.predict(PROBE)
    total = system.cost()
    assert total.nodes == 8 + more.nodes
    assert total.record_passes == spent.record_passes + more.record_passes
    assert total.forward_passes == len(PROBE) * 2
    assert total.down_seconds == 0


def test_empty_slots(tmp_path: Path, tiny: Backbone) -> None:
    few = [record for record in RECORDS if slot(KEY, record.id, LAYOUT) not in ((0, 0), (1, 0), (1, 1))]
    with pytest.raises(DataError, match=r"3 of 4 slots have no record, slot \(0, 0\) first"):
        _make(tmp_path / "run", tiny).fit(few)
    assert not (tmp_path / "run").exists()
    system = _make(tmp_path / "run", tiny, allow_empty=True)
    system.fit(few)
    assert system.status().chain_lengths == {0: 2}
    assert system.predict(PROBE).shape == (2, 3)
    assert system.delete([few[0].id]).offline == (0, 1)  # what is left has read nothing
    system.refresh()
    assert system.status().live == (0,)
    system.close()


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([*RECORDS, RECORDS[0]], "record id 'row-00' occurs twice"),
        ([*RECORDS, Record("new", {"text": "x"}, 3)], "record 'new' has label 3, but the declared classes are"),
    ],
)
def test_bad_data_changes_nothing(tmp_path: Path, tiny: Backbone, records: list[Record], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _make(tmp_path / "run", tiny).fit(records)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_continued_only_as_it_was_made(system: System, tiny: Backbone) -> None:
    system.close()
    for changes, message in (
        ({"seed": 1}, "made with another seed"),
        ({"recipe": Recipe(rank=2)}, "made with another plan, recipe"),
        ({"key": bytes(32)}, "made with another slot key"),
    ):
        with pytest.raises(RunError, match=message):
            _make(system.path, tiny, **changes).fit(RECORDS)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="made with 24 training records, not 23"):
        _make(system.path, tiny).fit(RECORDS[1:])
    with pytest.raises(RunError, match="it never held record 'other'"):
        _make(system.path, tiny).fit([*RECORDS[1:], Record("other", {"text": "x"}, 0)])
    assert _make(system.path, tiny).fit(RECORDS) == Cost()
    with pytest.raises(RunError, match="is not fitted yet; call fit first"):
        _make(system.path / "new", tiny).predict(PROBE)


def test_a_full_disk_stops_the_fit_which_continues_later(
    tmp_path: Path, tiny: Backbone, fitted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = store.write_synced, [10]

    def full(path: Path, content: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, content)

    system = _make(tmp_path / "run", tiny)
    with monkeypatch.context() as patch:
        patch.setattr(store, "write_synced", full)
        with pytest.raises(RunError, match="no space left for the run"):
            system.fit(RECORDS)
    done = system.cost().nodes
    assert 0 < done < 8
    assert len(_folders(system.path)) == done
    assert system.fit(RECORDS).nodes == 8 - done
    whole = System.open(fitted, tiny)
    assert _bits(system) == _bits(whole)
    whole.close()
    system.close()


@pytest.mark.parametrize("damage", ["lost", "damaged"])
def test_refresh_mends_lost_and_damaged_nodes(system: System, damage: str) -> None:
    wanted = _bits(system)
    fact = system.provenance().chains[0].nodes[0]
    file = system.path / "nodes" / fact.key / "adapter_model.safetensors"
    if damage == "lost":
        shutil.rmtree(file.parent)
    else:
        file.write_bytes(file.read_bytes()[:-1] + b"\x99")
    fresh = System.open(system.path, system._backbone)
    assert _bits(fresh) != wanted
    assert list(fresh.status().damaged) == [fact.name]
    assert fresh.refresh().nodes == 1
    assert fresh.status().damaged == {}
    assert _bits(fresh) == wanted
    fresh.close()


def test_serving_follows_a_deletion_that_overtakes_it(
    system: System, tiny: Backbone, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other, late, real = System.open(system.path, tiny), _in(0, 0)[:1], store.NodeStore.read

    def overtaken(*args: Any) -> Any:
        if late:
            other.delete([late.pop()])
        return real(*args)

    monkeypatch.setattr(store.NodeStore, "read", overtaken)
    system.predict(PROBE)
    assert not late
    assert system.status().chain_lengths == {0: 1, 1: 2}
    assert caplog.records == [], "what a deletion erased is not damaged"
    other.close()


def test_retiring_slots_deletes_no_record(system: System) -> None:
    receipt = system.retire([(0, 0), (0, 0)])
    assert (receipt.slots, receipt.deleted, len(receipt.nodes_dropped)) == (((0, 0),), (), 3)
    assert system.status().retained == 24
    with pytest.raises(RecordError, match=r"slot \(2, 0\) does not exist; shards run 0..1"):
        system.retire([(2, 0)])


@pytest.mark.parametrize("name", ["run.json", "secret.key", "ledger.sqlite", "records.sqlite", "records.bin", "nodes"])
def test_half_a_run_is_refused(system: System, name: str) -> None:
    system.close()
    path = system.path / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(RunError, match=f"is not a whole run: {name} is missing"):
        System.open(system.path)
