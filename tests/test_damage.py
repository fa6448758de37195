"""Damaged nodes: what serves without them, who says so, when they are looked at again, and how a refresh repairs them."""

from __future__ import annotations

import errno
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from command_line import call, said

from baselines.methods import make_plan
from s3t.backbone import Backbone
from s3t.contract import Provenance
from s3t.errors import OfflineError, RunError
from s3t.graph import Node
from s3t.partition import slot
from s3t.records import Inputs, Layout, Recipe, Record
from s3t.serving import Serving
from s3t.store import ADAPTER, CONFIG, HEAD, READS, NodeStore
from s3t.system import System
from verify.audit import audit
from verify.evidence import read_evidence
from verify.report import Verdict
from verify.state import derive_state, without

KEY = bytes(32)
LAYOUT = Layout(2, 3, 3)
RECIPE = Recipe(rank=2, epochs=1, batch_size=8)
RECORDS = [Record(f"r-{i:02d}", {"text": f"word{i} of text{i % 5} and more{i % 7}"}, i % 3) for i in range(60)]
PROBE: list[Inputs] = [{"text": f"is word{i} of text{i}" + " too" * (i % 3)} for i in range(5)]
FILES = (ADAPTER["lora"], HEAD, CONFIG, READS)
Open = Callable[[], System]


def _make(path: Path, tiny: Backbone, method: str = "s3t", engine: str = "fast") -> System:
    plan = make_plan(method, LAYOUT if method == "s3t" else Layout(2, 3, 1), RECIPE, tiny.layers)
    options: Any = {"model": tiny, "classes": ("a", "b", "c"), "key": KEY, "precision": "float32"}
    return System.create(path, plan, RECIPE, engine=engine, evaluation=((), RECORDS[:3]), **options)


TRAIN = RECORDS[3:]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, tiny: Backbone) -> Path:
    path = tmp_path_factory.mktemp("damage") / "run"
    with closing(_make(path, tiny)) as system:
        system.fit(TRAIN)
    return path


@pytest.fixture
def run(fitted: Path, tmp_path: Path) -> Path:
    """A copy of a fitted run."""
    return Path(shutil.copytree(fitted, tmp_path / "run"))


@pytest.fixture
def open_(run: Path, tiny: Backbone) -> Iterator[Open]:
    """Opens the run, as another process would; closed at the end."""
    opened: list[System] = []

    def one() -> System:
        opened.append(System.open(run, tiny))
        return opened[-1]

    yield one
    for system in opened:
        system.close()


def _in(shard: int, piece: int) -> list[str]:
    return [record.id for record in TRAIN if slot(KEY, record.id, LAYOUT) == (shard, piece)]


def _home(run: Path, shard: int, *prefix: int) -> Path:
    return run / "nodes" / derive_state(read_evidence(run)).survivors[shard, prefix].key


def _spoil(run: Path, shard: int, *prefix: int, name: str = HEAD, how: str = "flip") -> Path:
    """Harm a file of a node; return the file."""
    file = _home(run, shard, *prefix) / name
    content = file.read_bytes()
    if how == "gone":
        file.unlink()
    elif how == "flip":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        shutil.rmtree(file.parent)
    return file


def _without(run: Path, tiny: Backbone, lost: Sequence[Node]) -> bytes:
    """What a run answers whose ledger never had these nodes; selected by the verifier's own rule."""
    state = derive_state(read_evidence(run))
    chains = without(state, [(node.shard, node.prefix) for node in lost]).chains
    with closing(System.open(run, tiny)) as system:
        facts = system._opened()[1]
        facts.update()
        facts.alive = {node: fact for node, fact in facts.alive.items() if node not in lost}
        answer = system.predict(PROBE).tobytes()
        shown = {shard: (c.order, c.nodes[-1].node.prefix) for shard, (c, _) in system.served().models.items()}
    assert shown == {chain.shard: (chain.order, chain.prefix) for chain in chains}
    return answer


def _shown(told: Provenance) -> dict[int, tuple[int, ...]]:
    return {chain.shard: chain.nodes[-1].prefix for chain in told.chains}


@pytest.mark.parametrize("how", ["flip", "cut", "gone", "folder"])
@pytest.mark.parametrize("name", FILES)
def test_whichever_file_is_harmed_the_rest_serves_and_a_refresh_repairs_it(
    run: Path, fitted: Path, open_: Open, tiny: Backbone, name: str, how: str
) -> None:
    before = open_().predict(PROBE).tobytes()
    _spoil(run, 0, 0, 1, name=name, how=how)
    system = open_()
    degraded = system.predict(PROBE).tobytes()
    assert degraded == _without(fitted, tiny, [Node(0, (0, 1))]) != before
    told = system.provenance()
    assert (_shown(told), told.offline) == ({0: (1, 2, 0), 1: (0, 1, 2)}, ())
    status = system.status()
    assert list(status.damaged) == ["shard-00/0-1"]
    assert "run `s3t refresh`" in status.damaged["shard-00/0-1"]
    assert (status.missing_nodes, status.chain_lengths) == (1, {0: 3, 1: 3})
    assert told.claim == "non-interference"
    if how == "flip":
        assert system.refresh().nodes == 1
        assert system.predict(PROBE).tobytes() == before, "without a restart"
        assert system.status().damaged == {}
        assert (_shown(system.provenance())[0], system.provenance().claim) == ((0, 1, 2), "retrained")
        assert open_().predict(PROBE).tobytes() == before


CASES: list[list[Node]] = [
    [Node(0, (0,))],
    [Node(0, (0,)), Node(0, (1,))],
    [Node(0, (0, 1, 2)), Node(0, (1, 2, 0)), Node(0, (2, 0, 1))],
    [Node(0, (0, 1)), Node(0, (1, 2, 0)), Node(0, (2, 0, 1)), Node(1, (0,))],
    [Node(0, (0,)), Node(0, (1,)), Node(0, (2,))],
    [Node(1, (1, 2))],
]


@pytest.mark.parametrize("lost", CASES, ids=lambda lost: " ".join(node.name for node in lost))
@pytest.mark.parametrize("budget", [0, 2**28])
def test_what_serves_is_what_would_serve_if_they_were_not_there(
    run: Path, fitted: Path, open_: Open, tiny: Backbone, lost: list[Node], budget: int
) -> None:
    for node in lost:
        _spoil(run, node.shard, *node.prefix)
    system = open_()
    system._serving = Serving(system._opened()[0], tiny, hold_bytes=budget)
    assert system.predict(PROBE).tobytes() == _without(fitted, tiny, lost)
    known = set(system.status().damaged)
    assert known <= {node.name for node in lost}
    assert budget == 0 or len(known) == len(lost)
    call("refresh", run)
    assert system.predict(PROBE).tobytes() == open_().predict(PROBE).tobytes() == _without(fitted, tiny, [])


def test_with_nothing_intact_it_is_offline_and_says_why(run: Path, open_: Open) -> None:
    before = open_().predict(PROBE).tobytes()
    for shard in (0, 1):
        for piece in range(3):
            _spoil(run, shard, piece, how="folder")
    system = open_()
    with pytest.raises(
        OfflineError, match=r"shard-00/0, .* are damaged and no intact chain is left; run `s3t refresh`"
    ):
        system.predict(PROBE)
    told = system.provenance()
    assert (told.chains, told.offline, system.status().live) == ((), (0, 1), ())
    assert system.delete(_in(0, 1)[:1]).offline == (0, 1)
    system.refresh()
    assert system.predict(PROBE).tobytes() != before
    assert system.provenance().offline == ()


def test_a_damaged_node_is_read_once_until_its_files_change(
    run: Path, open_: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = open_().predict(PROBE).tobytes()
    file = _home(run, 0, 0, 1) / HEAD
    kept = file.read_bytes()
    _spoil(run, 0, 0, 1)
    reads: list[str] = []
    real = NodeStore.read
    monkeypatch.setattr(NodeStore, "read", lambda s, k, n, d: reads.append(k) or real(s, k, n, d))
    system = open_()
    degraded = system.predict(PROBE).tobytes()
    reads.clear()
    assert system.predict(PROBE).tobytes() == degraded != whole
    system.weights()
    assert reads == []
    assert [r.getMessage().split(":")[0] for r in caplog.records] == ["shard-00/0-1 is left out"]
    file.write_bytes(kept)  # an operator's copy: the ledger does not change
    assert system.predict(PROBE).tobytes() == whole
    assert system.status().damaged == {}
    assert {file.parent.name} == set(reads)
    assert len(caplog.records) == 1


def test_a_refresh_by_another_process_is_noticed(run: Path, open_: Open) -> None:
    system = open_()
    whole = system.predict(PROBE).tobytes()
    _spoil(run, 1, 0, how="folder")
    assert system.predict(PROBE).tobytes() == whole, "what is in memory was checked when it was read"
    late = open_()
    assert late.predict(PROBE).tobytes() != whole
    system.close()
    call("refresh", run)
    assert late.predict(PROBE).tobytes() == whole


def test_damage_that_is_met_only_when_a_deletion_needs_the_node(run: Path, open_: Open, tiny: Backbone) -> None:
    """With nothing held, the nodes of other chains are read when they are to serve."""
    system = open_()
    system._serving = Serving(system._opened()[0], tiny, hold_bytes=0)
    system.predict(PROBE)
    assert system.status().damaged == {}
    _spoil(run, 0, 1, 2, 0)
    _spoil(run, 0, 2, how="gone")
    receipt = system.delete(_in(0, 0)[:1])
    assert receipt.offline == ()
    assert [n.node.prefix for n in system.served().models[0][0].nodes] == [(1,), (1, 2)]
    assert set(system.status().damaged) == set(), "what the deletion dropped or nothing needs is not met"
    system.delete(_in(0, 1)[:1])
    assert sorted(system.served().models) == [1]
    assert list(system.status().damaged) == ["shard-00/2"]
    assert system.provenance().offline == (0,)


def test_a_deletion_while_degraded_drops_and_never_serves_what_it_drops(
    run: Path, fitted: Path, open_: Open, tiny: Backbone, tmp_path: Path
) -> None:
    lost = Node(0, (1,))
    _spoil(run, 0, 1, name=ADAPTER["lora"])
    system = open_()
    system.predict(PROBE)
    victim = _in(0, 0)[:1]
    receipt = system.delete(victim)
    assert receipt.deleted == tuple(victim)
    assert not {node.name for node in system._opened()[1].alive} & {"shard-00/0", "shard-00/0-1"}
    other = Path(shutil.copytree(fitted, tmp_path / "other"))
    with closing(System.open(other, tiny)) as clean:
        clean.delete(victim)
    assert system.predict(PROBE).tobytes() == _without(other, tiny, [lost])
    assert all((0, 0) not in [(n.shard, p) for p in n.prefix] for c in system.provenance().chains for n in c.nodes)
    gone = _in(0, 1)[:1]
    system.delete(gone)
    assert system.status().damaged == {}, "the damaged node was dropped"
    with closing(System.open(other, tiny)) as clean:
        clean.delete(gone)
        assert system.predict(PROBE).tobytes() == clean.predict(PROBE).tobytes()
        clean.refresh()
        system.refresh()
        assert system.predict(PROBE).tobytes() == clean.predict(PROBE).tobytes()


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_stages_that_continue_one_adapter_build_on_intact_nodes_alone(
    tmp_path: Path, tiny: Backbone, engine: str
) -> None:
    """The last node of such a chain has all tensors; it is left out all the same once what it builds on is damaged."""
    path = tmp_path / "run"
    with closing(_make(path, tiny, "sequential", engine)) as system:
        system.fit(TRAIN)
        whole = system.predict(PROBE).tobytes()
    _spoil(path, 0, 0, 1, name=CONFIG)
    for budget in (0, 2**28):
        with closing(System.open(path, tiny)) as system:
            system._serving = Serving(system._opened()[0], tiny, hold_bytes=budget)
            assert system.predict(PROBE).tobytes() != whole
            assert _shown(system.provenance()) == {0: (0,), 1: (0, 1, 2)}
    call("refresh", path)
    with closing(System.open(path, tiny)) as system:
        assert system.predict(PROBE).tobytes() == whole


def test_an_eager_deletion_mends_what_it_builds_on(tmp_path: Path, tiny: Backbone) -> None:
    answers = []
    for spoil in (False, True):
        path = tmp_path / f"run-{spoil}"
        with closing(_make(path, tiny, "sisa-lora", "reference")) as system:
            system.fit(TRAIN)
            if spoil:
                _spoil(path, 0, 0, 1)
            receipt = system.delete(_in(0, 2)[:1])
            assert (receipt.offline, receipt.cost.nodes) == ((), 2 if spoil else 1)
            answers.append(system.predict(PROBE).tobytes())
    assert answers[0] == answers[1]


def test_threads_predict_while_nodes_are_damaged_and_mended(
    run: Path, fitted: Path, open_: Open, tiny: Backbone
) -> None:
    allowed = {_without(fitted, tiny, lost) for lost in ([], [Node(0, (0,))])}
    _spoil(run, 0, 0)
    system, failures, seen, ended = open_(), list[BaseException](), set[bytes](), threading.Event()
    system.predict(PROBE)

    def ask() -> None:
        try:
            while not ended.is_set():
                seen.add(system.predict(PROBE).tobytes())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    while not seen and not failures:
        ended.wait(0.01)
    call("refresh", run)
    while len(seen) < 2 and not failures:
        ended.wait(0.01)
    ended.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert seen == allowed


def test_a_process_that_can_open_no_more_files_finds_nobody_damaged(
    run: Path, open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, real = open_(), Path.open

    def short(self: Path, *how: Any, **more: Any) -> IO[Any]:
        if self.name == HEAD:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(self, *how, **more)

    monkeypatch.setattr(Path, "open", short)
    with pytest.raises(RunError, match=r"head\.safetensors cannot be read now \(Too many open files\); try again"):
        system.predict(PROBE)
    assert system.status().damaged == {}
    monkeypatch.undo()
    system.predict(PROBE)


def test_the_command_line_warns_in_one_line(run: Path, tmp_path: Path) -> None:
    probe = tmp_path / "probe.jsonl"
    probe.write_text("".join(json.dumps(inputs) + "\n" for inputs in PROBE))
    predict = ("predict", run, "--input", probe, "--json")
    code, whole, err = said(*predict)
    assert (code, err) == (0, "")
    _spoil(run, 0, 0, 1, how="gone")
    for command in (predict, ("status", run, "--json")):
        code, out, err = said(*command)
        assert code == 0
        assert err.startswith("warning: shard-00/0-1 is left out: ") and err.count("\n") == 1
        assert "run `s3t refresh`" in err
        told = json.loads(out)
        assert command is predict or list(told["damaged"]) == ["shard-00/0-1"]
        assert command is not predict or out != whole
    assert "shard-00/0-1" in call("status", run)
    assert logging.getLogger("s3t").handlers == []
    code, _, err = said("refresh", run)
    assert (code, err) == (0, "")
    assert said(*predict) == (0, whole, "")
    assert json.loads(call("status", run, "--json"))["damaged"] == {}


@pytest.mark.parametrize("name", FILES)
def test_an_audit_of_a_degraded_run_is_undecided_and_names_the_node(run: Path, tiny: Backbone, name: str) -> None:
    with closing(System.open(run, tiny)) as system:
        system.delete(_in(1, 2)[:1])
    _spoil(run, 0, 0, name=name)
    with closing(System.open(run, tiny)) as system:
        report = audit(system, run, levels=("E0", "E1a"), isolate=False)
        assert not [f for f in report.findings if f.verdict is Verdict.VIOLATED]
        assert [report.of(level) for level in ("E0", "E1a")] == [Verdict.UNDECIDED] * 2
        first = report.findings[0]
        assert (first.check, first.node) == ("evidence", "shard 0, slices 0")
        assert f"{name} is not the file that the ledger recorded" in first.message
        assert "run `s3t refresh` and audit again" in first.message
        assert any(f.check == "E1a clean room" and f.verdict is Verdict.HOLDS for f in report.findings)
        report = audit(system, run, levels=("E1b", "E1c", "E2", "E3", "E4"), isolate=False)
        assert {f.verdict for f in report.findings} == {Verdict.UNDECIDED}
        assert sum("no other system can have its bits" in f.message for f in report.findings) == 5
        system.refresh()
        assert audit(system, run, levels=("E0", "E1a"), isolate=False).verdict is Verdict.HOLDS


@pytest.mark.parametrize("how", ["served", "sampled"])
def test_surviving_nodes_that_are_damaged_are_undecided_in_the_clean_room(run: Path, tiny: Backbone, how: str) -> None:
    _spoil(run, 0, 0, name=HEAD)
    scope: Any = {"scope": "surviving"} if how == "served" else {"sample": 10_000}
    with closing(System.open(run, tiny)) as system:
        report = audit(system, run, levels=("E1a",), isolate=False, **scope)
    assert report.verdict is Verdict.UNDECIDED
    assert not [f for f in report.findings if f.verdict is Verdict.VIOLATED]


def test_a_shorter_chain_without_damage_is_violated(run: Path, tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(System.open(run, tiny)) as system:
        facts = system._opened()[1]
        facts.update()
        fact = facts.alive[Node(0, (0, 1))]
        monkeypatch.setattr(type(system.damage), "lost", lambda *_: frozenset({fact.seq}))
        for spoilt in (None, (1, 0)):
            if spoilt:
                _spoil(run, *spoilt)
            report = audit(system, run, levels=("E0",))
            assert report.verdict is Verdict.VIOLATED
            assert "the longest surviving chain is order 0, slices [0, 1, 2]" in str(report.findings)


def test_scores_are_numbers(run: Path, open_: Open) -> None:
    _spoil(run, 0, 0)
    assert np.isfinite(open_().predict(PROBE)).all()
