"""Serving: chains switched in memory, dropped tensors let go of at once, and predictions that a deletion does not disturb."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from baselines.methods import make_plan
from s3t.backbone import Backbone
from s3t.errors import OfflineError
from s3t.facts import Facts
from s3t.graph import Node
from s3t.partition import slot
from s3t.records import Inputs, Layout, Recipe, Record
from s3t.serving import Models, Serving
from s3t.store import HEAD, NodeStore
from s3t.system import System

KEY = bytes(32)
LAYOUT = Layout(2, 3, 3)
RECIPE = Recipe(rank=2, epochs=1, batch_size=8)
RECORDS = [Record(f"r-{i:02d}", {"text": f"word{i} of text{i % 5} and more{i % 7}"}, i % 3) for i in range(60)]
PROBE: list[Inputs] = [{"text": f"is word{i} of text{i}" + " too" * (i % 3)} for i in range(5)]
ENGINES = {"reference": ("reference", "float32"), "float32": ("fast", "float32"), "bfloat16": ("fast", "bfloat16")}
Make = Callable[..., System]
Answer = NDArray[np.float32]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, tiny: Backbone) -> Callable[[str, str], Path]:
    """Gives the folder of a fitted run by engine and method; each is trained once."""
    made: dict[tuple[str, str], Path] = {}

    def fit(engine: str, method: str) -> Path:
        if (engine, method) not in made:
            path = tmp_path_factory.mktemp(f"{engine}-{method}") / "run"
            layout = LAYOUT if method == "s3t" else Layout(2, 3, 1)
            plan = make_plan(method, layout, RECIPE, tiny.layers)
            kind, precision = ENGINES[engine]
            options: Any = {"model": tiny, "classes": ("a", "b", "c"), "key": KEY}
            system = System.create(path, plan, RECIPE, engine=kind, precision=precision, **options)
            system.fit(RECORDS)
            system.close()
            made[engine, method] = path
        return made[engine, method]

    return fit


@pytest.fixture
def make(fitted: Callable[[str, str], Path], tmp_path: Path, tiny: Backbone) -> Iterator[Make]:
    """Opens a copy of a fitted run; closed at the end."""
    import shutil

    opened: list[System] = []

    def open_copy(engine: str = "float32", method: str = "s3t") -> System:
        path = tmp_path / f"run-{len(opened)}"
        shutil.copytree(fitted(engine, method), path)
        opened.append(System.open(path, tiny))
        return opened[-1]

    yield open_copy
    for system in opened:
        system.close()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files of nodes that were read, in order."""
    seen: list[str] = []
    real = NodeStore.read

    def counting(self: NodeStore, key: str, name: str, digest: str) -> bytes:
        seen.append(name)
        return real(self, key, name, digest)

    monkeypatch.setattr(NodeStore, "read", counting)
    return seen


def _in(shard: int, piece: int) -> list[str]:
    return [record.id for record in RECORDS if slot(KEY, record.id, LAYOUT) == (shard, piece)]


def _lengths(models: Models) -> dict[int, int]:
    return {shard: len(chain.nodes) for shard, (chain, _) in models.items()}


def _serving(system: System) -> Serving:
    return system.served()


def _tensors(models: Models) -> Iterator[Tensor]:
    for chain, model in models.values():
        yield from model.head_tensors().values()
        for name in {f"block-{i:02d}" for i in range(len(chain.nodes))}:
            yield from model.adapter_tensors(name).values()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_deletion_switches_chains_without_a_file_being_read(make: Make, reads: list[str], engine: str) -> None:
    system = make(engine)
    system.predict(PROBE)
    assert reads, "the first prediction loads the chains"
    reads.clear()
    for piece, left in ((2, {0: 2, 1: 3}), (1, {0: 1, 1: 3}), (0, {1: 3})):
        system.delete(_in(0, piece)[:1])
        system.predict(PROBE)
        assert _lengths(_serving(system).models) == left
    assert reads == []


@pytest.mark.parametrize("engine", ENGINES)
def test_bits_do_not_depend_on_how_chains_got_into_memory(make: Make, engine: str, tiny: Backbone) -> None:
    live = make(engine)
    live.predict(PROBE)
    for shard, piece in ((1, 0), (0, 2), (1, 2)):
        live.delete(_in(shard, piece)[:1])
        answer = live.predict(PROBE)
        opened = System.open(live.path, tiny)
        assert answer.tobytes() == opened.predict(PROBE).tobytes()
        opened.close()
    again = make(engine)
    for shard, piece in ((0, 2), (1, 2), (1, 0)):
        again.delete(_in(shard, piece)[:1])
    assert again.predict(PROBE).tobytes() == answer.tobytes()


def test_the_fast_engine_switches_within_the_deletion_and_keeps_the_other_models(make: Make) -> None:
    system = make()
    before = _serving(system).models
    system.delete(_in(0, 2)[:1])
    after = system._serving.models if system._serving else {}
    assert _lengths(before) == {0: 3, 1: 3}, "a mapping that was given out is not changed"
    assert _lengths(after) == {0: 2, 1: 3}
    assert after[1] is before[1]
    assert list(after) == sorted(after)


def test_the_base_model_is_never_loaded_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3t import backbone
    from s3t import system as module

    system = make()
    system.predict(PROBE)

    def refuse(*_: Any) -> Any:
        raise AssertionError("the base model was asked for again")

    monkeypatch.setattr(backbone, "load", refuse)
    monkeypatch.setattr(module, "base_model", refuse)
    system.delete(_in(0, 1)[:1])
    system.predict(PROBE)


@pytest.mark.parametrize("engine", ENGINES)
def test_no_tensor_of_a_dropped_node_outlives_its_deletion(make: Make, engine: str) -> None:
    system = make(engine)
    system.predict(PROBE)
    serving, facts = _serving(system), system._opened()[1]
    chain, model = serving.models[0]
    gone = [n.seq for n in facts.alive.values() if n.node.touches({(0, chain.nodes[-1].node.prefix[-1])})]
    assert chain.nodes[-1].seq in gone
    watched = [weakref.ref(t) for t in model.head_tensors().values()]
    watched += [weakref.ref(t) for t in model.adapter_tensors("block-02").values()]
    held = [serving._held._nodes[seq] for seq in gone]
    watched += [weakref.ref(t) for node in held for part in (node.adapter, node.head) for t in part.values()]
    storages = {t.untyped_storage().data_ptr() for t in model.head_tensors().values()}
    assert len(watched) > 4
    last = chain.nodes[-1].node.prefix[-1]
    del model, chain, held
    gc.collect()
    if engine != "reference":  # PEFT gives views of parameters, which are fresh objects at each call
        assert all(watch() is not None for watch in watched)
    gc.disable()
    try:
        system.delete(_in(0, last)[:1])
        assert [watch() for watch in watched if watch() is not None] == []
    finally:
        gc.enable()
    reachable = {t.untyped_storage().data_ptr() for t in _tensors(serving.models)}
    assert serving._held._nodes.keys() == {fact.seq for fact in facts.alive.values()}
    assert not (storages & reachable)


def test_the_models_parameters_go_with_the_chain_in_the_reference_engine(make: Make) -> None:
    system = make("reference")
    system.predict(PROBE)
    model: Any = _serving(system).models[0][1]
    watched = [weakref.ref(p) for p in (*model.adapter_parameters("block-02"), *model.head.parameters())]
    del model
    gc.disable()
    try:
        system.delete(_in(0, 2)[:1])
        assert [watch() for watch in watched if watch() is not None] == []
    finally:
        gc.enable()


def test_what_exceeds_the_budget_is_read_when_it_is_needed(make: Make, reads: list[str]) -> None:
    system = make()
    run, facts = system._opened()
    whole = _serving(system)._held.bytes
    for budget in (0, whole // 3, whole):
        serving = Serving(run, system._loaded(), hold_bytes=budget)
        serving.sync(facts)
        assert serving._held.bytes <= budget
        assert (serving._held.bytes == whole) == (budget == whole)
        reads.clear()
        serving.sync(facts)
        assert reads == [], "what did not fit is not read again at each look"
    system._serving = Serving(run, system._loaded(), hold_bytes=0)
    wanted = system.predict(PROBE)
    system.delete(_in(0, 2)[:1])
    reads.clear()
    system.predict(PROBE)
    assert reads.count(HEAD) == 1
    assert wanted.shape == (5, 3)


def test_a_damaged_file_that_does_not_serve_is_passed_over(make: Make) -> None:
    system = make()
    run, facts = system._opened()
    facts.update()
    odd = facts.alive[Node(0, (1, 2))]
    (run.nodes.root / odd.key / HEAD).write_bytes(b"damaged")
    system.predict(PROBE)
    assert odd.seq not in _serving(system)._held._nodes
    assert list(system.status().damaged) == ["shard-00/1-2"]
    assert _lengths(_serving(system).models) == {0: 3, 1: 3}
    system.delete(_in(0, 0)[:1])
    assert _lengths(_serving(system).models) == {0: 1, 1: 3}, "orders 1-2-0 and 2-0-1 are left with one slice each"
    assert _serving(system).models[0][0].order == 1


@pytest.mark.parametrize("method", ["sequential", "sisa-full-lazy"])
def test_adapters_that_later_stages_continue_are_held_per_node(make: Make, reads: list[str], method: str) -> None:
    system = make("reference", method)
    system.predict(PROBE)
    reads.clear()
    system.delete(_in(0, 2)[:1])
    switched = system.predict(PROBE)
    assert reads == []
    system._serving = None
    assert system.predict(PROBE).tobytes() == switched.tobytes()


def test_retrained_nodes_take_the_place_of_dropped_ones(make: Make) -> None:
    system = make()
    system.predict(PROBE)
    system.delete(_in(0, 0)[:1])
    system.predict(PROBE)
    system.refresh()
    fresh = system.predict(PROBE)
    assert _lengths(_serving(system).models) == {0: 3, 1: 3}
    system._serving = None
    assert system.predict(PROBE).tobytes() == fresh.tobytes()


@pytest.mark.parametrize("whole", [False, True], ids=["serving", "system"])
@pytest.mark.parametrize("engine", ENGINES)
def test_predictions_in_other_threads_are_disturbed_by_no_deletion(make: Make, engine: str, whole: bool) -> None:
    system = make(engine)
    serving, victims = _serving(system), [i for piece in (2, 1, 0) for shard in (0, 1) for i in _in(shard, piece)][:50]
    states: list[bytes] = [system.predict(PROBE).tobytes()]
    answers: list[list[bytes]] = [[], []]
    failures: list[BaseException] = []
    ended = threading.Event()

    def ask(into: list[bytes]) -> None:
        try:
            while not ended.is_set():
                into.append(_answer(system if whole else serving))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(into,)) for into in answers]
    for thread in threads:
        thread.start()
    for victim in victims:
        seen = [len(into) for into in answers]
        system.delete([victim])
        states.append(_answer(serving))
        while not failures and any(len(into) < n + 2 for into, n in zip(answers, seen, strict=True)):
            ended.wait(0.001)
    ended.set()
    for thread in threads:
        thread.join()
    assert failures == []
    order = [state for state, _ in itertools.groupby(states)]
    assert len(order) == 6
    for into in answers:
        seen_states = [state for state, _ in itertools.groupby(into)]
        assert set(seen_states) <= set(order), "every answer is that of a state before or after a deletion"
        places = [order.index(state) for state in seen_states]
        assert places == sorted(places), "no answer falls back behind a deletion"
        assert seen_states[-1] == order[-1], "after the last deletion the last state answers"


def _answer(served: Serving | System) -> bytes:
    try:
        return served.predict(PROBE).tobytes()
    except OfflineError:
        return b"offline"


def test_a_prediction_keeps_what_it_began_with(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    system = make()
    before, serving = system.predict(PROBE), _serving(system)
    real, late = serving._numerics.score, [_in(0, 2)[0]]

    def overtaken(*given: Any) -> Any:
        if late:
            system.delete([late.pop()])
        return real(*given)

    monkeypatch.setattr(type(serving._numerics), "score", lambda _, *given: overtaken(*given))
    assert serving.predict(PROBE).tobytes() == before.tobytes()
    assert serving.predict(PROBE).tobytes() != before.tobytes()


def test_another_thread_sees_what_another_process_deleted(make: Make, tiny: Backbone) -> None:
    system, answers = make(), []
    answers.append(system.predict(PROBE))
    other = System.open(system.path, tiny)
    other.delete(_in(0, 2)[:1])
    other.close()
    thread = threading.Thread(target=lambda: answers.append(system.predict(PROBE)))
    thread.start()
    thread.join()
    assert len(answers) == 2
    assert answers[1].tobytes() != answers[0].tobytes()
    assert answers[1].tobytes() == system.predict(PROBE).tobytes()


def test_older_facts_do_not_bring_a_dropped_chain_back(make: Make) -> None:
    system = make()
    serving, (run, facts) = _serving(system), system._opened()
    late = Facts(run.ledger, run.config.plan)
    late.update()
    system.delete(_in(0, 2)[:1])
    serving.drop(late)
    serving.sync(late)
    assert _lengths(serving.models) == {0: 2, 1: 3}
    assert serving.models[0][0] == facts.chains()[0]
