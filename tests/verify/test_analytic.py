"""The analytic head as the verifier works it out: against closed forms, against the system's own, and on real systems."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from s3t.analytic.features import Reader
from s3t.analytic.head import AnalyticHead
from s3t.analytic.solving import Linear
from s3t.analytic.solving import solve as system_solve
from s3t.analytic.sums import Sums as SystemSums
from s3t.backbone import load
from s3t.ensembling import among as system_among
from s3t.ensembling import combine as system_combine
from s3t.ensembling import head_share
from s3t.ensembling import mixed as system_mixed
from s3t.errors import DataError
from s3t.records import Layout, Recipe, Record
from s3t.system import System
from verify import replay
from verify.analytic import LARGEST, Reading, drawn, scores, solve, sums
from verify.audit import audit
from verify.combining import among, combine, mixed, share, softmax
from verify.effort import Effort
from verify.evidence import read_evidence
from verify.histories import E4Plan
from verify.laboratory import RunLab, dropped_slots, run_case
from verify.plans import ENSEMBLING, Head
from verify.reference import elsewhere
from verify.report import Finding, Report, Verdict
from verify.state import HEAD, HEAD_NAME, derive_state

BASE = Head((), ("mean",), 0, 2.0**-8, "ridge", 0.1, 6.0)
FORMS = ("ridge", "balanced", "prototypes")
TEXTS = [{"text": "amber birch"}, {"text": "cedar " * 30}, {"text": "x"}]


def declared(head: Head) -> AnalyticHead:
    return AnalyticHead(**dataclasses.asdict(head))


def reading(head: Head, model: str = "tiny", seed: int = 7) -> Reading:
    return Reading(load(model, torch.device("cpu")), head, seed)


def test_features_are_what_leaves_the_layers_pooled_token_by_token() -> None:
    head = dataclasses.replace(BASE, layers=(2, 0), poolings=("mean", "first", "last", "max"))
    read = reading(head)
    for row in read.backbone.encode(TEXTS, 64):
        ids = torch.tensor([row.fields["input_ids"]])
        with torch.no_grad():
            states = read.backbone.model(input_ids=ids, output_hidden_states=True).hidden_states
        plain = []
        for layer in (2, 0):
            tokens = states[layer + 1][0]
            plain += [tokens.mean(0), tokens[0], tokens[-1], tokens.amax(0)]
        wide = (torch.cat(plain).double() * 256).tolist()
        assert read.features(row).tolist() == [round(value) for value in wide], "Python rounds halves to even, too"


@pytest.mark.parametrize("model", ["tiny", "tiny-vit-2"])
@pytest.mark.parametrize("step", [2.0**-8, 2.0**-18])
def test_features_are_those_of_the_system(model: str, step: float) -> None:
    head = dataclasses.replace(BASE, poolings=("last", "mean"), random=9, step=step)
    read = reading(head, model)
    inputs: list[Any] = TEXTS
    if read.backbone.family.reads == "image":
        from verify.leaks.settings import painted

        inputs = [{"image": painted(str(text["text"]))} for text in TEXTS]
    rows = read.backbone.encode(inputs, 64)
    theirs = Reader(read.backbone, declared(head), 7).read(rows)
    ours = [read.features(row) for row in rows]
    assert np.array_equal(np.stack(ours), theirs) and ours[0].dtype == np.int16
    assert (np.abs(theirs) == LARGEST).any() == (step < 2.0**-8), "some are cut"
    assert len(ours[0]) == head.features(read.backbone.layers, read.backbone.hidden)


def test_random_features_are_rectified_products_with_a_seeded_matrix() -> None:
    few, more = (reading(dataclasses.replace(BASE, random=r, step=2.0**-12)) for r in (0, 6))
    (row,) = few.backbone.encode(TEXTS[:1], 64)
    plain = few.features(row)
    assert (more.features(row)[: len(plain)] == plain).all()
    matrix = drawn(len(plain), 6, 7)
    expected = np.maximum(plain.astype(np.float64) / 4096 @ matrix.double().numpy(), 0)
    np.testing.assert_allclose(more.features(row)[len(plain) :] / 4096, expected, atol=2e-3)
    assert 0.8 < float(matrix.std()) * len(plain) ** 0.5 < 1.2
    assert not torch.equal(matrix, drawn(len(plain), 6, 8))


def test_halves_go_to_the_even_integer_and_large_features_are_cut() -> None:
    class Given(Reading):
        def _outputs(self, row: Any) -> list[torch.Tensor]:
            return [torch.tensor([[0.25, 0.75, 1.25, -0.25, -0.75, -1.25, 0.26, 1e6, -1e6]])]

    backbone: Any = None
    row: Any = None
    head = dataclasses.replace(BASE, layers=(0,), step=0.5)
    assert Given(backbone, head, 7).features(row).tolist() == [0, 2, 2, 0, -2, -2, 1, LARGEST, -LARGEST]


def test_features_that_are_not_finite_are_refused() -> None:
    from verify.laboratory import poison

    read = reading(BASE)
    (row,) = read.backbone.encode([{"text": "amber"}], 64)
    with pytest.raises(DataError, match="a feature is not finite"):
        Reading(poison(read.backbone, ["amber"]), BASE, 7).features(row)


def made_up(count: int, size: int, answers: int, seed: int = 1) -> list[tuple[Any, int | float]]:
    rng = Random(seed)
    rows = []
    for _ in range(count):
        features = np.array([rng.choice((rng.randint(-99, 99), rng.choice((-LARGEST, LARGEST)))) for _ in range(size)])
        target: int | float = rng.uniform(-1, 1) if answers == 1 else rng.randrange(max(2, answers - 1))
        rows.append((features.astype(np.int16), target))
    return rows


@pytest.mark.parametrize("answers", [1, 4])
def test_sums_are_those_of_whole_numbers(answers: int) -> None:
    rows = made_up(9, 5, answers)
    found = sums(iter(rows), 5, answers)
    whole = [[int(value) for value in features] for features, _ in rows]
    wanted = [
        [round(float(target) * 2**15)] if answers == 1 else [int(k == target) for k in range(answers)]
        for _, target in rows
    ]
    assert found.S.tolist() == [[sum(q[i] * q[j] for q in whole) for j in range(5)] for i in range(5)]
    assert found.X.tolist() == [
        [sum(q[i] * t[k] for q, t in zip(whole, wanted, strict=True)) for k in range(answers)] for i in range(5)
    ]
    assert found.l.tolist() == [sum(q[i] for q in whole) for i in range(5)]
    assert found.t.tolist() == [sum(t[k] for t in wanted) for k in range(answers)]
    assert found.c.tolist() == ([9] if answers == 1 else found.t.tolist())


@pytest.mark.parametrize(("form", "answers"), [("ridge", 1), *((form, 4) for form in FORMS)])
def test_sums_and_map_are_those_of_the_system_bit_for_bit(form: Any, answers: int) -> None:
    for count in (1, 2, 40):
        rows = made_up(count, 12, answers, seed=count)
        head = dataclasses.replace(BASE, form=form)
        theirs = SystemSums.empty(12, answers)
        theirs.add(np.stack([row for row, _ in rows]), np.array([float(target) for _, target in rows]))
        ours = sums(iter(rows), 12, answers)
        pairs = [(ours.c, theirs.counts), (ours.t, theirs.targets), (ours.l, theirs.linear), (ours.X, theirs.cross)]
        assert all(np.array_equal(a, b) for a, b in [*pairs, (ours.S, theirs.square)])
        mine, other = solve(ours, head), system_solve(theirs, declared(head))
        assert all(torch.equal(mine[name], tensor) for name, tensor in other.tensors().items())
        asked = [row for row, _ in made_up(6, 12, answers, seed=99)]
        same = Linear(mine["weights"], mine["bias"]).scores(np.stack(asked))
        assert scores(asked, mine).tobytes() == same.tobytes()


def exact_ridge(
    rows: list[tuple[Any, int | float]], ridge: float, classes: int
) -> tuple[list[list[float]], list[float]]:
    """Solve centred ridge regression on one-hot targets in fractions, by Gauss's elimination."""
    x = [[Fraction(int(value)) for value in features] for features, _ in rows]
    size, n = len(x[0]), len(rows)
    mean = [sum(q[i] for q in x) / n for i in range(size)]
    centred = [[q[i] - mean[i] for i in range(size)] for q in x]
    share = [Fraction(sum(t == k for _, t in rows), n) for k in range(classes)]
    scatter = [[sum(q[i] * q[j] for q in centred) for j in range(size)] for i in range(size)]
    shrink = Fraction(ridge) * sum(scatter[i][i] for i in range(size)) / size
    matrix = [
        [scatter[i][j] + (shrink if i == j else 0) for j in range(size)]
        + [sum(q[i] * ((t == k) - share[k]) for q, (_, t) in zip(centred, rows, strict=True)) for k in range(classes)]
        for i in range(size)
    ]
    for i in range(size):
        matrix[i] = [value / matrix[i][i] for value in matrix[i]]
        for j in range(size):
            if j != i:
                matrix[j] = [b - matrix[j][i] * a for a, b in zip(matrix[i], matrix[j], strict=True)]
    weights = [row[size:] for row in matrix]
    bias = [share[k] - sum(mean[i] * weights[i][k] for i in range(size)) for k in range(classes)]
    return [[float(value) for value in row] for row in weights], [float(value) for value in bias]


def test_the_ridge_is_that_of_fractions() -> None:
    rows = made_up(20, 4, 3)
    found = solve(sums(iter(rows), 4, 3), BASE)
    weights, bias = exact_ridge(rows, 0.1, 3)
    np.testing.assert_allclose(found["weights"].numpy(), weights, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(found["bias"].numpy(), bias, rtol=1e-9)


def test_prototypes_score_by_the_distance_to_class_means() -> None:
    rows = made_up(30, 5, 4)
    at = sums(iter(rows), 5, 4)
    assert at.c.tolist()[3] == 0
    found = solve(at, dataclasses.replace(BASE, form="prototypes"))
    x, y = np.stack([row for row, _ in rows]).astype(np.float64), np.array([target for _, target in rows])
    means = np.stack([x[y == k].mean(0) for k in range(3)])
    within = sum(((x[y == k] - means[k]) ** 2).sum() for k in range(3)) / x.size
    query = x[:1]
    distance = ((query - means) ** 2).sum(1) / within
    given = scores([rows[0][0]], found)[0]
    np.testing.assert_allclose(given[:3] - given[0], -0.5 * (distance - distance[0]), rtol=1e-9)
    assert given[3] == -1e6


def test_balanced_is_a_discriminant_with_one_scatter() -> None:
    rows = made_up(30, 5, 4)
    found = solve(sums(iter(rows), 5, 4), dataclasses.replace(BASE, form="balanced"))
    x, y = np.stack([row for row, _ in rows]).astype(np.float64), np.array([target for _, target in rows])
    means = np.stack([x[y == k].mean(0) for k in range(3)])
    within = sum((x[y == k] - means[k]).T @ (x[y == k] - means[k]) for k in range(3))
    within = within + 0.1 * within.diagonal().mean() * np.eye(5)
    weights = np.linalg.solve(within, means.T * 30)
    np.testing.assert_allclose(found["weights"].numpy()[:, :3], weights, rtol=1e-8)
    np.testing.assert_allclose(found["bias"].numpy()[:3], -0.5 * (means.T * weights).sum(0), rtol=1e-8)
    assert found["bias"][3] == -1e6


ENSEMBLED = [
    (ensemble, pool) for ensemble in ("mean-logits", "mean-probabilities", "vote") for pool in ENSEMBLING["pool"]
]


@pytest.mark.parametrize(("ensemble", "pool"), ENSEMBLED)
def test_how_head_and_chains_are_mixed(ensemble: str, pool: str) -> None:
    from baselines.methods import make_plan
    from verify.plans import declared_plan

    head, chains = np.array([[1.0, 2.0, 0.0]]), np.array([[0.2, 0.5, 0.3]], dtype=np.float32)
    system = make_plan(
        "s3t", Layout(1, 1, 1), Recipe(), 1, head=AnalyticHead(temperature=2.0), share=0.25, pool=pool
    )  # fmt: skip
    plan = declared_plan({"plan": system.to_json(), "model": {"layers": 1, "hidden": 4}})
    assert (plan.pool, plan.weights) == (pool, "equal")
    theirs = softmax(chains.astype(np.float64)) if ensemble == "mean-logits" else chains.astype(np.float64)
    own = np.exp(2 * head) / np.exp(2 * head).sum()
    found = mixed(chains, head, 0.25, plan, ensemble)
    product = theirs**0.75 * own**0.25
    wanted = 0.75 * theirs + 0.25 * own if pool == "linear" else product / product.sum()
    np.testing.assert_allclose(found, np.log(wanted), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mixed(None, head, 1.0, plan, ensemble), np.log(own), rtol=1e-6)
    far = mixed(None, np.array([[0.0, 1e6, 0.0]]), 1.0, plan, ensemble)
    assert far.dtype == np.float32 and far.tolist() == [[np.float32(np.log(1e-300)), 0.0, np.float32(np.log(1e-300))]]
    number = np.array([[3.0]])
    assert mixed(chains[:, :1], number, 0.25, plan, ensemble) == np.float32(0.75 * np.float64(chains[0, 0]) + 0.75)
    assert mixed(None, number, 1.0, plan, ensemble).tolist() == [[3.0]]
    sure = np.array([[0.0, 1.0, 0.0]], dtype=np.float32)
    for one in (chains, sure, None):
        for scores_of_head in (head, np.array([[0.0, 1e6, 0.0]])):
            part = 1.0 if one is None else 0.25
            same = system_mixed(one, scores_of_head, system, ensemble, part)
            assert mixed(one, scores_of_head, part, plan, ensemble).tobytes() == same.tobytes()


def test_both_sides_weigh_the_same() -> None:
    from baselines.methods import make_plan
    from verify.plans import declared_plan

    for weights in ENSEMBLING["weights"]:
        system = make_plan("s3t", Layout(7, 3, 1), Recipe(), 3, head=AnalyticHead(), share=0.3, weights=weights)
        plan = declared_plan({"plan": system.to_json(), "model": {"layers": 3, "hidden": 4}})
        for lengths in ({}, {2: 1}, {0: 3, 4: 1}, dict.fromkeys(range(7), 3), {0: 1, 1: 2, 2: 3, 6: 1}):
            assert share(plan, list(lengths.values())) == head_share(system, lengths)
            if lengths:
                assert among(plan, list(lengths.values())) == list(system_among(system, lengths).values())


@pytest.mark.parametrize("ensemble", ["mean-logits", "mean-probabilities", "vote"])
def test_both_sides_combine_chains_to_the_same_bits(ensemble: str) -> None:
    logits = {s: np.random.default_rng(s).standard_normal((5, 3)).astype(np.float32) for s in range(4)}
    for weights in ([0.25] * 4, [1 / 7, 3 / 7, 2 / 7, 1 / 7]):
        mine = combine(list(logits.values()), weights, ensemble)
        assert mine.tobytes() == system_combine(logits, dict(enumerate(weights)), ensemble).tobytes()


# ---- real systems ----

WORDS = ["amber", "birch", "cedar", "dune", "ember", "fjord", "grove", "heath", "islet", "jetty"]
RECORDS = [
    Record(
        f"row-{i:03d}", {"text": " ".join(WORDS[(i * j + j) % 10] for j in range(1, 3 + i % 6)) + f" item{i}"}, i % 3
    )
    for i in range(36)
]
PROBES = [Record(f"probe-{i}", {"text": f"{WORDS[i]} {WORDS[i + 1]}"}, i % 3) for i in range(5)]
RECIPE = Recipe(epochs=1.0, batch_size=8, window=2, rank=2, dropout=0.1)


def make(folder: Path, method: str, head: AnalyticHead, **how: Any) -> System:
    from baselines.methods import make_plan

    layout = Layout(1, 1, 1) if method == "analytic" else Layout(2, 2, 2)
    recipe, classes = how.get("recipe", RECIPE), how.get("classes", ("a", "b", "c"))
    rules = how.get("rules", {})
    plan = make_plan(method, layout, recipe, 6, head=head, share=None if method == "analytic" else 0.3, **rules)
    options: dict[str, Any] = {"model": "tiny", "seed": 3, "key": bytes(32), "evaluation": ((), PROBES)}
    return System.create(folder, plan, recipe, classes=classes, **options)


@pytest.fixture(scope="module", params=["analytic", "s3t"])
def fitted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / "run"
    with closing(make(folder, request.param, AnalyticHead(poolings=("mean", "last"), random=7))) as system:
        system.fit(RECORDS)
    return folder


@pytest.fixture
def run(fitted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fitted, tmp_path / "run"))


@pytest.fixture
def live(run: Path) -> Iterator[System]:
    with closing(System.open(run)) as system:
        system.predict([record.inputs for record in PROBES])
        yield system


def audited(system: System, *levels: str, **options: Any) -> Report:
    given = {"isolate": False, "lab": RunLab(read_evidence(system.path)), "records": RECORDS, "scope": "surviving"}
    return audit(system, system.path, levels=levels or ("E0", "E1a", "E1b"), **(given | options))


def faults(report: Report) -> list[tuple[str, str, str]]:
    return [(f.check, f.verdict.value, f.node) for f in report.findings if f.verdict is not Verdict.HOLDS]


def of(report: Report, check: str) -> Finding:
    return next(finding for finding in report.findings if finding.check == check)


def test_clean_systems_hold_before_and_after_deletions(live: System) -> None:
    assert faults(audited(live)) == []
    live.delete(["row-003"])
    report = audited(live, isolate=True)
    assert faults(report) == []
    room = of(report, "E1a clean room")
    assert room.details["features"] == len(RECORDS) - 1 and room.details["ulps"] == 0
    assert " and the analytic head (" in room.message
    alone = not live.config.plan.stages
    assert room.details["nodes"] == 0 if alone else room.details["nodes"] > 0
    assert report.claim == ("retrained" if alone else "non-interference")
    live.delete(["row-007", "row-021", "row-000"])
    live.refresh()
    assert faults(audited(live)) == []


@pytest.mark.parametrize(
    "rules",
    [
        {"weights": "length"},
        {"weights": "square"},
        {"weights": "square", "pool": "logarithmic"},
        {"pool": "logarithmic"},
    ],
)
def test_other_rules_of_ensembling_hold_as_chains_get_shorter(tmp_path: Path, rules: dict[str, str]) -> None:
    with closing(make(tmp_path / "run", "s3t", AnalyticHead(), rules=rules)) as system:
        system.fit(RECORDS)
        lengths = set()
        for gone in (["row-003"], ["row-007"], ["row-000", "row-021"]):
            system.delete(gone)
            assert faults(audited(system)) == []
            lengths.add(tuple(len(chain.nodes) for chain in system.provenance().chains if chain.shard >= 0))
        assert len({length for some in lengths for length in some} | {0}) > 1 and len(lengths) > 1
        assert sum(chain.weight for chain in system.provenance().chains) == pytest.approx(1, abs=1e-12)


def test_a_restart_holds_and_so_does_a_system_without_records(run: Path) -> None:
    with closing(System.open(run)) as system:
        system.delete([record.id for record in RECORDS[1:]])
        assert faults(audited(system)) == []
    with closing(System.open(run)) as system:
        assert faults(audited(system)) == []
        system.delete(["row-000"])
        assert faults(audited(system, "E0", "E1a")) == []
        assert of(audited(system, "E1a"), "E1a clean room").message == "no chain survives and nothing is served"


def test_black_box_levels_hold(live: System) -> None:
    live.delete(["row-004"])
    effort = Effort(histories=E4Plan(histories=3, crashes=False))
    assert faults(audited(live, "E1c", "E4", effort=effort)) == []


def test_what_is_dropped_with_a_slot_is_still_in_the_head(live: System) -> None:
    live.delete(["row-004"])
    evidence = read_evidence(live.path)
    state, lab = derive_state(evidence), RunLab(evidence)
    assert state.hits and dropped_slots(state) == frozenset()
    case = run_case(live, evidence, state, lab, RECORDS, PROBES)
    assert not isinstance(case, str) and lab.quiet_word(RECORDS) is None
    bare = dataclasses.replace(state, plan=dataclasses.replace(state.plan, head=None))
    assert dropped_slots(bare) == frozenset(state.hits) - {(s, p) for s, prefix in state.survivors for p in prefix}


def test_a_sample_has_the_head_in_full(live: System) -> None:
    live.delete(["row-003"])
    report = audited(live, "E1a", sample=1, scope="served")
    assert faults(report) == []
    found = of(report, "E1a clean room")
    nodes = 0 if not live.config.plan.stages else 1
    assert (found.details["sampled"], found.details["features"]) == (nodes, len(RECORDS) - 1)


def spoil(run: Path, offset: int = 40) -> None:
    with (run / "features.bin").open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def test_damaged_features_decide_nothing_and_a_refresh_mends_them(run: Path) -> None:
    spoil(run)
    with closing(System.open(run)) as system:
        report = audited(system)
        assert report.verdict is Verdict.UNDECIDED
        assert ("evidence", "UNDECIDED", HEAD_NAME) in faults(report)
        assert ("E0 scan", "UNDECIDED", HEAD_NAME) in faults(report)
        system.refresh()
        assert faults(audited(system)) == []


def test_features_damaged_while_the_head_serves_are_told_by_the_scan_alone(live: System) -> None:
    spoil(live.path)
    assert faults(audited(live, "E0", "E1a")) == [("E0 scan", "UNDECIDED", HEAD_NAME)]


def test_stored_features_that_are_not_the_models_are_found(live: System) -> None:
    from s3t.partition import tag

    run, _ = live._opened()
    row = run.records.row(tag(run.key, "row-005"))
    assert row is not None and run.features is not None
    other, made = run.records.row(tag(run.key, "row-006")), run.ledger.last("head")
    assert other is not None and made is not None
    here = made.body["environment"]
    wrong = run.features.read(run.records.number(tag(run.key, "row-006")), other.commitment, here)
    assert wrong is not None
    run.features.write(run.records.number(tag(run.key, "row-005")), row.commitment, here, wrong)
    report = audited(live, "E0", "E1a")
    assert faults(report) == [("E1a clean room", "VIOLATED", HEAD_NAME)]
    assert of(report, "E1a clean room").message == (
        "stored features of 1 records are not those that the frozen model makes of them, first 'row-005'"
    )


def test_a_served_tensor_that_differs_in_one_bit_is_found(live: System) -> None:
    live.delete(["row-003"])
    weights = live.weights()[HEAD_NAME]["weights"]
    weights[3, 1] = torch.nextafter(weights[3, 1], weights[3, 1] + 1)
    report = audited(live, "E0", "E1a", "E1b")
    found = [f for f in report.findings if f.verdict is Verdict.VIOLATED]
    assert {(f.check, f.node, f.tensor) for f in found if f.tensor == "weights"} == {
        ("E1a clean room", HEAD_NAME, "weights"),
        ("E1b never ingested", HEAD_NAME, "weights"),
    }
    assert all(f.details["max_ulps"] == 1 for f in found if f.tensor == "weights")
    assert {f.check for f in found} == {"E1a clean room", "E1b never ingested"}


def test_outputs_that_are_mixed_otherwise_are_found_in_predictions(
    live: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = live.config.plan
    assert plan.head is not None
    other = {"share": 0.31} if plan.stages else {"head": dataclasses.replace(plan.head, temperature=6.5)}
    config = dataclasses.replace(live.config, plan=dataclasses.replace(plan, **other))
    serving = live.served()
    monkeypatch.setattr(serving, "_run", dataclasses.replace(serving._run, config=config))
    found = faults(audited(live, "E0", "E1a"))
    assert ("E1a clean room", "VIOLATED", "predictions") in found
    assert (("E0 lineage", "VIOLATED", HEAD_NAME) in found) == bool(plan.stages)


@pytest.mark.parametrize(
    ("recorded", "why"),
    [
        ({"torch": "0"}, "its features were made with torch '0', here is"),
        ({"threads": 0}, "its environment does not say on how many threads its features were made (0)"),
    ],
)
def test_another_environment_is_undecided(
    live: System, monkeypatch: pytest.MonkeyPatch, recorded: dict[str, Any], why: str
) -> None:
    made = replay.make_brief

    def elsewhere_made(*given: Any, **how: Any) -> Any:
        brief = made(*given, **how)
        return dataclasses.replace(brief, head={**(brief.head or {}), **recorded})

    monkeypatch.setattr(replay, "make_brief", elsewhere_made)
    report = audited(live, "E1a")
    assert faults(report) == [("E1a clean room", "UNDECIDED", HEAD_NAME)]
    assert of(report, "E1a clean room").message.startswith(why)
    state = derive_state(read_evidence(live.path))
    assert state.head is not None and elsewhere(state) == ""
    moved = dataclasses.replace(state.head, environment={**state.head.environment, "torch": "0"})
    here = elsewhere(dataclasses.replace(state, head=moved))
    assert here.startswith(f"{HEAD_NAME} was trained with torch '0', references are with")


def test_numbers_hold(tmp_path: Path) -> None:
    records = [dataclasses.replace(record, label=i % 7 - 1.5) for i, record in enumerate(RECORDS)]
    with closing(make(tmp_path / "run", "analytic", AnalyticHead(), classes=("-2:6",))) as system:
        system.fit(records)
        system.delete(["row-003"])
        assert faults(audited(system, records=records)) == []


@pytest.mark.parametrize("form", ["balanced", "prototypes"])
@pytest.mark.parametrize("ensemble", ["vote", "mean-probabilities"])
def test_every_form_in_every_ensemble_holds(tmp_path: Path, form: Any, ensemble: Any) -> None:
    recipe = dataclasses.replace(RECIPE, ensemble=ensemble, epochs=0.5)
    with closing(make(tmp_path / "run", "s3t", AnalyticHead(form=form, layers=(5, 1)), recipe=recipe)) as system:
        system.fit([record for record in RECORDS if record.label != 2])
        system.delete(["row-003"])
        assert faults(audited(system, "E0", "E1a", records=[r for r in RECORDS if r.label != 2])) == []


def test_the_head_stands_apart_from_nodes(live: System) -> None:
    names = {node.name: (chain.shard, tuple(node.prefix)) for chain in live.provenance().chains for node in chain.nodes}
    assert names[HEAD_NAME] == HEAD
    made: Callable[..., Any] = replay.served_differences
    state = derive_state(read_evidence(live.path))
    other = {HEAD: {"weights": torch.zeros(1).double(), "bias": torch.zeros(1).double()}}
    found = list(made(live, live.provenance(), state, other, "check"))
    assert [(f.node, f.tensor, f.details["reason"]) for f in found] == [(HEAD_NAME, "bias", "shape")]
