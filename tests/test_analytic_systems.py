"""The analytic head in a system: fitted, deleted from, opened again, damaged, alone and beside chains, always the same bits."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from baselines.methods import make_plan
from s3t.analytic import making
from s3t.analytic.features import Reader
from s3t.analytic.head import AnalyticHead
from s3t.analytic.store import CHECK, FEATURES, HEADER, FeatureStore
from s3t.analytic.sums import Sums
from s3t.backbone import Backbone
from s3t.contract import UnlearningSystem
from s3t.ensembling import mixed, softmax
from s3t.errors import DamageError, LayoutError, OfflineError, RecipeError, RunError, S3TError
from s3t.plan import Plan
from s3t.records import Layout, Recipe, Record
from s3t.system import System

KEY = bytes(range(32))
RECORDS = [Record(f"row-{i:02d}", {"text": f"secret{i:02d} cat {i % 3} of {i % 5}"}, i % 3) for i in range(30)]
ASKED = [{"text": "the cat"}, {"text": "number 7 of them"}, {"text": "secret01"}]
HEAD = AnalyticHead(poolings=("mean", "max"), random=8)
RECIPE = Recipe(rank=1, epochs=1.0, batch_size=8)
LAYOUT = Layout(2, 2, 2)
NAME = "analytic head"


def plan(method: str, base: Backbone, head: AnalyticHead = HEAD, recipe: Recipe = RECIPE) -> Plan:
    share = None if method == "analytic" else 0.25
    layout = Layout(1, 1, 1) if method in ("analytic", "retrain-lora") else LAYOUT
    return make_plan(method, layout, recipe, base.layers, head=head, share=share)


def make(path: Path, method: str, base: Backbone, **how: Any) -> System:
    classes = how.pop("classes", ("a", "b", "c"))
    recipe = how.pop("recipe", RECIPE)
    declared = plan(method, base, how.pop("head", HEAD), recipe)
    return System.create(path, declared, recipe, model=base, classes=classes, key=KEY, allow_empty=True, **how)


def served(system: System) -> dict[str, Any]:
    return {name: tensor.numpy().tobytes() for name, tensor in system.weights()[NAME].items()}


@pytest.fixture(scope="module", params=["analytic", "s3t"])
def fitted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny: Backbone) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "run"
    with closing(make(path, request.param, tiny)) as system:
        assert isinstance(system, UnlearningSystem)
        system.fit(RECORDS)
    return path


@pytest.fixture
def run(fitted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fitted, tmp_path / "run"))


def test_any_history_ends_in_the_head_of_a_fresh_fit(run: Path, tiny: Backbone, tmp_path: Path) -> None:
    """Deletions by two systems on one run in turn, reopened in between, predictions or not: the sums of who is left."""
    draw, left = Random(7), [record.id for record in RECORDS]
    one, two = System.open(run, tiny), System.open(run, tiny)
    for step in range(12):
        gone = draw.sample(left, draw.choice((1, 1, 3)))
        left = [name for name in left if name not in gone]
        receipt = (one if draw.random() < 0.6 else two).delete(gone)
        assert sorted(receipt.deleted) == sorted(gone)
        if step % 4 == 3:
            one.close()
            one = System.open(run, tiny)
        if draw.random() < 0.7:
            assert served(one) == served(two)
            assert one.predict(ASKED).tobytes() == two.predict(ASKED).tobytes()
    with closing(make(tmp_path / "fresh", one.config.plan.method, tiny)) as fresh:
        fresh.fit([record for record in RECORDS if record.id in left])
        assert served(fresh) == served(one) == served(two)
        chain = next(chain for chain in one.provenance().chains if chain.shard == -1)
        assert chain.nodes[0].reads == frozenset(left)
    one.close()
    two.close()


def test_a_deletion_takes_a_record_out_of_the_sums_and_does_not_make_them_anew(
    run: Path, tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    over = Sums.over
    monkeypatch.setattr(Sums, "over", lambda *given: made.append(1) or over(*given))
    with closing(System.open(run, tiny)) as system:
        system.predict(ASKED)
        assert len(made) == 1
        for i in range(4):
            system.delete([f"row-{i:02d}", "row-00"])
            system.predict(ASKED)
        assert len(made) == 1
        with closing(System.open(run, tiny)) as other:
            other.delete(["row-20"])
            assert len(made) == 1, "deleting alone needs no head"
        system.predict(ASKED)
        assert len(made) == 2, "a deletion that it was not told of"


def test_what_is_deleted_leaves_no_feature_behind(run: Path, tiny: Backbone) -> None:
    victim = RECORDS[11]
    with closing(System.open(run, tiny)) as system:
        reader = Reader(tiny, HEAD, 0)
        features = reader.read(tiny.encode([victim.inputs], RECIPE.max_length))[0].astype("<i2").tobytes()
        assert features in (run / FEATURES).read_bytes()
        system.delete([victim.id])
        assert features not in b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
        width = 2 * reader.size + CHECK
        row = (run / FEATURES).read_bytes()[HEADER + 11 * width : HEADER + 12 * width]
        assert row == bytes(width)


def test_a_fit_that_is_interrupted_goes_on(tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, calls = Reader.read, []

    def failing(self: Reader, rows: Any) -> Any:
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return read(self, rows)

    monkeypatch.setattr(Reader, "read", failing)
    system = make(tmp_path / "run", "analytic", tiny)
    with pytest.raises(KeyboardInterrupt):
        system.fit(RECORDS)
    assert "not finished" in system.status().head
    assert system.provenance().claim == "non-interference" and not system.provenance().chains
    with pytest.raises(OfflineError, match="not finished"):
        system.predict(ASKED)
    system.close()
    again = make(tmp_path / "run", "analytic", tiny)
    assert again.fit(RECORDS).forward_passes == len(RECORDS) - 11
    assert again.fit(RECORDS).forward_passes == 0
    with closing(make(tmp_path / "whole", "analytic", tiny)) as whole:
        whole.fit(RECORDS)
        assert served(again) == served(whole)
        assert (tmp_path / "run" / FEATURES).stat().st_size == (tmp_path / "whole" / FEATURES).stat().st_size
    again.close()


def test_a_deletion_while_features_are_made_leaves_none(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process deletes a record whose features are just being computed, and one whose are not made yet."""
    read, path = Reader.read, tmp_path / "run"

    def deleting(self: Reader, rows: Any) -> Any:
        found = read(self, rows)
        monkeypatch.setattr(Reader, "read", read)
        with closing(System.open(path, tiny)) as other:
            other.delete([RECORDS[0].id, RECORDS[20].id])
        return found

    monkeypatch.setattr(Reader, "read", deleting)
    with closing(make(path, "analytic", tiny)) as system, closing(make(tmp_path / "fresh", "analytic", tiny)) as fresh:
        system.fit(RECORDS)
        fresh.fit([record for record in RECORDS if record.id not in (RECORDS[0].id, RECORDS[20].id)])
        assert served(system) == served(fresh)
        store = FeatureStore(path, HEAD.size(tiny.layers, tiny.hidden), len(RECORDS))
        assert [store.read(number, "00" * 32, {}) for number in (0, 20)] == [None, None]


@pytest.mark.parametrize("where", ["feature", "check", "row"])
def test_damaged_features_are_left_out_until_a_refresh(
    run: Path, tiny: Backbone, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(System.open(run, tiny)) as system:
        before, answers = served(system), system.predict(ASKED)
        alone = system.config.plan.method == "analytic"
    width = 2 * HEAD.size(tiny.layers, tiny.hidden) + CHECK
    content = bytearray((run / FEATURES).read_bytes())
    start = HEADER + 4 * width
    if where == "row":
        content[start : start + width] = bytes(width)
    else:
        content[start + (5 if where == "feature" else width - 1)] ^= 1
    (run / FEATURES).write_bytes(content)
    with closing(System.open(run, tiny)) as system:
        if alone:
            with pytest.raises(OfflineError, match="s3t refresh"):
                system.predict(ASKED)
        else:
            assert not np.array_equal(system.predict(ASKED), answers)
        assert NAME not in system.weights()
        assert system.provenance().claim == "non-interference"
        assert caplog.text.count("the analytic head is left out") == 1
        assert system.refresh().forward_passes == 1
        assert served(system) == before
        assert system.predict(ASKED).tobytes() == answers.tobytes()
        assert system.provenance().claim == "retrained"


def test_a_status_looks_through_the_features_and_a_file_that_is_put_back_serves_again(
    run: Path, tiny: Backbone
) -> None:
    with closing(System.open(run, tiny)) as system:
        before, good = served(system), (run / FEATURES).read_bytes()
        assert system.status(check=True).damaged == {}
        bad = bytearray(good)
        bad[HEADER + 7] ^= 1
        (run / FEATURES).write_bytes(bad)
        assert system.status().damaged == {}, "nobody has looked"
        assert list(system.status(check=True).damaged) == [NAME] == list(system.status().damaged)
        assert served(system) == before, "the sums in memory are whole"
    with closing(System.open(run, tiny)) as system:
        assert NAME not in system.weights() and list(system.status().damaged) == [NAME]
        (run / FEATURES).write_bytes(good)
        assert system.status().damaged == {}, "it is another file, which may be whole"
        assert NAME not in system.weights(), "it may be written still"
        os.utime(run / FEATURES, (0, 0))
        assert served(system) == before and system.provenance().claim == "retrained"
        assert system.status(check=True).damaged == {}


def test_features_are_not_read_again_and_again_while_they_are_written(
    run: Path, tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service whose head is left out goes on without it while a refresh makes the features anew."""
    with closing(System.open(run, tiny)) as system:
        spoil = bytearray((run / FEATURES).read_bytes())
        spoil[HEADER + 7] ^= 1
        (run / FEATURES).write_bytes(spoil)
        looked, read = [], FeatureStore.read

        def writing(self: FeatureStore, *given: Any) -> Any:
            looked.append(1)
            os.utime(run / FEATURES)
            return read(self, *given)

        monkeypatch.setattr(FeatureStore, "read", writing)
        system.served()
        once = len(looked)
        for _ in range(4):
            system.served()
        assert len(looked) == once > 0


def test_a_deletion_meanwhile_is_no_damage(run: Path, tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row whose features a deletion takes while a status looks through them."""
    with closing(System.open(run, tiny)) as system, closing(System.open(run, tiny)) as other:
        read = FeatureStore.read

        def deleting(self: FeatureStore, *given: Any) -> Any:
            monkeypatch.setattr(FeatureStore, "read", read)
            seen = os.stat(run / FEATURES)
            other.delete([record.id for record in RECORDS[:20]])
            # all within one tick of the file system's clock
            os.utime(run / FEATURES, ns=(seen.st_atime_ns, seen.st_mtime_ns))
            return read(self, *given)

        monkeypatch.setattr(FeatureStore, "read", deleting)
        assert system.status(check=True).damaged == {}


def test_an_eager_deletion_does_not_look_through_all_features(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(make(tmp_path / "run", "sisa-lora", tiny)) as system:
        system.fit(RECORDS)
        system.predict(ASKED)
        read, looked = FeatureStore.read, []
        monkeypatch.setattr(FeatureStore, "read", lambda self, *given: looked.append(1) or read(self, *given))
        assert system.delete(["row-01"]).cost.record_passes > 0
        assert len(looked) == 1, "of the record that goes"
        system.refresh()
        assert len(looked) == len(RECORDS), "a refresh looks at all that are retained"


def test_features_of_another_environment_are_not_mixed(
    run: Path, tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one row is to be made again elsewhere, all are, and an interruption leaves no mixture that serves."""
    width = 2 * HEAD.size(tiny.layers, tiny.hidden) + CHECK
    content = bytearray((run / FEATURES).read_bytes())
    content[HEADER + 3 * width] ^= 1
    (run / FEATURES).write_bytes(content)
    from s3t import building

    here = building.environment(tiny.device)
    monkeypatch.setattr(building, "environment", lambda *given: here | {"capability": "another"})
    read, calls = Reader.read, []

    def failing(self: Reader, rows: Any) -> Any:
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return read(self, rows)

    with closing(System.open(run, tiny)) as system, monkeypatch.context() as broken:
        broken.setattr(Reader, "read", failing)
        with pytest.raises(KeyboardInterrupt):
            system.refresh()
    with closing(System.open(run, tiny)) as system:
        assert "analytic head" not in system.weights()
        assert system.refresh().forward_passes == len(RECORDS) - 8, "what this environment had made is there"
        assert "analytic head" in system.weights()
        assert system._opened()[0].ledger.last("head").body["environment"]["capability"] == "another"  # type: ignore[union-attr]
        assert system.refresh().forward_passes == 0


@pytest.mark.parametrize("elsewhere", [False, True])
def test_an_interrupted_fit_is_continued_with_features_of_one_environment(
    tmp_path: Path, tiny: Backbone, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    from s3t import building

    here, read, calls = building.environment(tiny.device), Reader.read, []

    def failing(self: Reader, rows: Any) -> Any:
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return read(self, rows)

    with closing(make(tmp_path / "run", "analytic", tiny)) as system, monkeypatch.context() as broken:
        broken.setattr(Reader, "read", failing)
        with pytest.raises(KeyboardInterrupt):
            system.fit(RECORDS)
    if elsewhere:
        monkeypatch.setattr(building, "environment", lambda *given: here | {"capability": "another"})
    with closing(make(tmp_path / "run", "analytic", tiny)) as system:
        assert system.fit(RECORDS).forward_passes == len(RECORDS) - (0 if elsewhere else 8)
        assert system.refresh().forward_passes == 0


@pytest.mark.parametrize("harm", ["gone", "short", "header"])
def test_a_file_of_features_that_is_another_one_is_refused(run: Path, tiny: Backbone, harm: str) -> None:
    file = run / FEATURES
    if harm == "gone":
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(content[:-1] if harm == "short" else content[:15] + b"\x01" + content[16:])
    with pytest.raises(RunError, match=FEATURES.replace(".", r"\.")):
        System.open(run, tiny)


def test_beside_the_chains_it_serves_when_all_of_them_are_dead(tiny: Backbone, tmp_path: Path) -> None:
    with closing(make(tmp_path / "run", "s3t", tiny)) as system:
        system.fit(RECORDS)
        chains = {chain.shard: chain.weight for chain in system.provenance().chains}
        assert chains == {-1: 0.25, 0: 0.375, 1: 0.375}
        system.retire(LAYOUT.slots())
        assert system.provenance().offline == (0, 1)
        assert [(chain.shard, chain.weight) for chain in system.provenance().chains] == [(-1, 1.0)]
        alone = system.predict(ASKED)
        with closing(make(tmp_path / "alone", "analytic", tiny)) as other:
            other.fit(RECORDS)
            assert other.predict(ASKED).tobytes() == alone.tobytes()
        system.delete([record.id for record in RECORDS])
        with pytest.raises(OfflineError):
            system.predict(ASKED)


def test_without_any_record_the_head_has_no_answer(tiny: Backbone, tmp_path: Path) -> None:
    with closing(make(tmp_path / "run", "analytic", tiny)) as system:
        system.fit(RECORDS)
        system.delete([record.id for record in RECORDS[1:]])
        assert system.predict(ASKED).argmax(axis=1).tolist() == [RECORDS[0].label] * 3
        system.delete([RECORDS[0].id])
        with pytest.raises(OfflineError, match="no record is retained"):
            system.predict(ASKED)
        assert system.weights() == {}


@pytest.mark.parametrize("ensemble", ["mean-logits", "mean-probabilities", "vote"])
def test_what_is_served_are_mixed_probabilities(tiny: Backbone, tmp_path: Path, ensemble: str) -> None:
    recipe = Recipe(rank=1, epochs=1.0, batch_size=8, ensemble=ensemble)
    with (
        closing(make(tmp_path / "both", "s3t", tiny, recipe=recipe)) as both,
        closing(make(tmp_path / "head", "analytic", tiny)) as head,
        closing(System.create(tmp_path / "chains", make_plan("s3t", LAYOUT, recipe, tiny.layers), recipe, model=tiny,
                              classes=("a", "b", "c"), key=KEY)) as chains,
    ):  # fmt: skip
        for system in (both, head, chains):
            system.fit(RECORDS)
        theirs = chains.predict(ASKED).astype(np.float64)
        theirs = softmax(theirs) if ensemble == "mean-logits" else theirs
        wanted = 0.75 * theirs + 0.25 * np.exp(head.predict(ASKED).astype(np.float64))
        np.testing.assert_allclose(np.exp(both.predict(ASKED).astype(np.float64)), wanted, rtol=1e-5)
        np.testing.assert_allclose(wanted.sum(axis=1), 1, rtol=1e-6)


def test_numbers_are_mixed_as_numbers(tiny: Backbone, tmp_path: Path) -> None:
    rows = [Record(f"n{i}", {"text": f"cat {i % 4} of {i}"}, float(i % 4)) for i in range(20)]
    with closing(make(tmp_path / "run", "s3t", tiny, classes=("0.0:4.0",), head=AnalyticHead())) as system:
        system.fit(rows)
        assert system.predict(ASKED).shape == (3, 1)
        declared = system.config.plan
    chains, head = np.array([[0.5]], np.float32), np.array([[-0.5]])
    assert mixed(chains, head, declared, "mean-logits", 0.25).tolist() == [[0.25]]
    assert mixed(None, head, declared, "mean-logits", 1.0).tolist() == [[-0.5]]


def test_threads_do_not_see_one_anothers_layers(tiny: Backbone) -> None:
    reader = Reader(tiny, HEAD, 0)
    rows = tiny.encode([record.inputs for record in RECORDS], RECIPE.max_length)
    wanted = [reader.read([row]).tobytes() for row in rows]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda row: reader.read([row]).tobytes(), rows * 4)) == wanted * 4


def test_baselines_take_a_floor_too(tiny: Backbone, tmp_path: Path) -> None:
    for method in ("sequential", "sisa-lora", "retrain-lora"):
        with closing(make(tmp_path / method, method, tiny)) as system:
            system.fit(RECORDS)
            system.delete(["row-01"])
            chain = next(chain for chain in system.provenance().chains if chain.shard == -1)
            assert chain.weight == 0.25 and len(chain.nodes[0].reads or ()) == len(RECORDS) - 1


def test_a_plan_says_what_it_has(tiny: Backbone) -> None:
    for method in ("analytic", "s3t"):
        declared = plan(method, tiny)
        assert Plan.from_json(declared.to_json()) == declared
    assert "head" not in make_plan("s3t", LAYOUT, RECIPE, tiny.layers).to_json()
    bare = make_plan("s3t", LAYOUT, RECIPE, tiny.layers)
    for share in (0.0, -0.5, 1.5, float("nan")):
        with pytest.raises(LayoutError, match="share"):
            bare.with_head(HEAD, share)
    with pytest.raises(LayoutError, match="leave it out"):
        make_plan("analytic", Layout(1, 1, 1), RECIPE, tiny.layers, share=0.5)
    with pytest.raises(LayoutError, match="if its share is given"):
        make_plan("s3t", LAYOUT, RECIPE, tiny.layers, head=HEAD)
    with pytest.raises(LayoutError, match="one shard of one slice"):
        Plan("analytic", LAYOUT, ((0, 1), (1, 0)), (), head=HEAD, share=1.0)
    with pytest.raises(LayoutError, match="do not fit"):
        Plan("s3t", Layout(1, 1, 1), ((0,),), ())


@pytest.mark.parametrize(
    ("head", "classes"),
    [(AnalyticHead(layers=(6,)), ("a", "b")), (AnalyticHead(form="balanced"), ("0:1",))],
)
def test_a_head_that_does_not_fit_is_refused_before_anything_is_written(
    tiny: Backbone, tmp_path: Path, head: AnalyticHead, classes: tuple[str, ...]
) -> None:
    with pytest.raises(S3TError) as raised:
        make(tmp_path / "run", "analytic", tiny, head=head, classes=classes)
    assert isinstance(raised.value, LayoutError | RecipeError)
    assert not (tmp_path / "run").exists()


def test_a_row_that_is_not_its_records_is_no_row(tmp_path: Path) -> None:
    FeatureStore.create(tmp_path, 3, 2)
    store, here = FeatureStore(tmp_path, 3, 2), {"torch": "2.13.0", "threads": 1}
    assert store.read(1, "ab" * 32, here) is None
    store.write(1, "ab" * 32, here, b"123456")
    store.sync()
    assert store.read(1, "ab" * 32, here) == b"123456" and store.read(0, "ab" * 32, here) is None
    for commitment, environment in (("cd" * 32, here), ("ab" * 32, here | {"threads": 2})):
        with pytest.raises(DamageError, match="row 1"):
            store.read(1, commitment, environment)
    store.erase(1)
    assert store.read(1, "cd" * 32, here) is None
    store.close()
    with pytest.raises(RunError, match=FEATURES.replace(".", r"\.")):
        FeatureStore(tmp_path, 4, 2)


def test_the_environment_of_the_features_is_on_record(run: Path, tiny: Backbone) -> None:
    with closing(System.open(run, tiny)) as system:
        (entry,) = system._opened()[0].ledger.entries("head")
        assert entry.body["features"] == HEAD.size(tiny.layers, tiny.hidden)
        assert entry.body["rows"] == len(RECORDS)
        assert entry.body["environment"]["torch"] == torch.__version__
        assert making.make_features.__doc__
