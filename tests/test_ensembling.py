"""What serves becomes one answer: weights, combinations, and the plans that declare them."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baselines.methods import make_plan
from s3t.analytic.head import AnalyticHead
from s3t.backbone import Backbone
from s3t.ensembling import Outputs, among, answer, combine, head_share, mixed, softmax
from s3t.errors import LayoutError, OfflineError
from s3t.plan import WEIGHTS, Plan
from s3t.records import Layout, Recipe, Record
from s3t.system import System

LAYOUT, RECIPE = Layout(2, 2, 2), Recipe(rank=1, epochs=0.5, batch_size=8)
RECORDS = [Record(f"row-{i:02d}", {"text": f"amber birch {i}"}, i % 3) for i in range(24)]
ASKED = [{"text": "amber"}, {"text": "birch 3"}]


def plan(layout: Layout = LAYOUT, method: str = "s3t", **rules: Any) -> Plan:
    return make_plan(method, layout, RECIPE, 6, **rules)


def test_weights_sum_to_one_and_follow_lengths() -> None:
    equal, by_length = plan(Layout(3, 2, 1)), plan(Layout(3, 2, 1), weights="length")
    assert among(equal, {0: 2, 2: 1}) == {0: 0.5, 2: 0.5}
    assert among(by_length, {0: 2, 2: 1}) == {0: 2 / 3, 2: 1 / 3}
    squared = plan(Layout(3, 2, 1), weights="square")
    assert among(squared, {0: 2, 2: 1}) == {0: 4 / 5, 2: 1 / 5}
    assert (
        among(by_length, {1: 2}) == among(squared, {1: 2}) == {1: 1.0}
        and among(by_length, {}) == among(equal, {}) == {}
    )


def test_a_head_takes_over_what_is_off() -> None:
    for weights, shares in (
        ("equal", (0.25, 0.25, 0.25)),
        ("length", (0.25, 0.625, 0.875)),
        ("square", (0.25, 0.6875, 0.9375)),
    ):
        declared = plan(Layout(3, 2, 1), head=AnalyticHead(), share=0.25, weights=weights)
        lengths: tuple[dict[int, int], ...] = ({0: 2, 1: 2, 2: 2}, {0: 2, 2: 1}, {1: 1})
        assert [head_share(declared, some) for some in lengths] == list(shares)
        assert head_share(declared, {}) == 1.0


def test_an_answer_is_of_what_serves() -> None:
    declared = plan(head=AnalyticHead(temperature=2.0), share=0.25)
    chains = {0: np.array([[1.0, 0.0, -1.0]], np.float32), 1: np.array([[0.0, 2.0, 0.0]], np.float32)}
    head = np.array([[0.5, 0.0, 0.25]])
    both = Outputs(chains, {0: 2, 1: 2}, head)
    weights = among(declared, both.lengths)
    ensemble = combine(chains, weights, "mean-logits")
    assert answer(Outputs(chains, both.lengths, None), declared, "mean-logits", weights).tobytes() == ensemble.tobytes()
    wanted = mixed(ensemble, head, declared, "mean-logits", 0.25)
    assert answer(both, declared, "mean-logits", weights).tobytes() == wanted.tobytes()
    alone = np.exp(answer(Outputs({}, {}, head), declared, "mean-logits", {}).astype(np.float64))
    np.testing.assert_allclose(alone, softmax(2 * head), rtol=1e-6)
    with pytest.raises(OfflineError):
        answer(Outputs({}, {}, None), declared, "mean-logits", {})


def test_pools_give_probabilities_and_differ() -> None:
    head, chains = np.array([[3.0, 0.0, 0.0]]), np.array([[0.0, 4.0, 0.0]], np.float32)
    given = {"head": AnalyticHead(temperature=1.0), "share": 0.5}
    found = {pool: np.exp(mixed(chains, head, plan(pool=pool, **given), "mean-logits", 0.5).astype(np.float64))
             for pool in ("linear", "logarithmic")}  # fmt: skip
    theirs, own = softmax(chains.astype(np.float64)), softmax(head)
    np.testing.assert_allclose(found["linear"], (theirs + own) / 2, rtol=1e-6)
    product = np.sqrt(theirs * own)
    np.testing.assert_allclose(found["logarithmic"], product / product.sum(), rtol=1e-6)


def test_a_certain_part_leaves_a_product_finite() -> None:
    declared = plan(head=AnalyticHead(temperature=1.0), share=0.5, pool="logarithmic")
    votes = np.array([[1.0, 0.0, 0.0]], np.float32)
    found = mixed(votes, np.array([[0.0, 1e9, 0.0]]), declared, "vote", 0.5)
    assert np.isfinite(found).all()


REFUSED = [
    ({"weights": "lenth"}, "weights='lenth' is unknown (did you mean 'length'?); choose from equal, length, square"),
    ({"pool": "mean"}, "pool='mean' is unknown; choose from linear, logarithmic"),
    (
        {"pool": "logarithmic"},
        "pool='logarithmic' is for chains with an analytic head beside them; leave it out, or give one",
    ),
    (
        {"method": "analytic", "weights": "length"},
        "weights='length' is for chains, and an analytic head alone has none; leave it out",
    ),
    (
        {"method": "analytic", "pool": "logarithmic"},
        "pool='logarithmic' is for chains with an analytic head beside them; leave it out, or give one",
    ),
]


@pytest.mark.parametrize(("given", "message"), REFUSED)
def test_rules_that_mean_nothing_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(LayoutError, match=re.escape(message)):
        plan(**given)


def test_a_plan_says_its_rules_and_only_those_that_are_not_the_usual_ones() -> None:
    assert not {"weights", "pool"} & set(plan().to_json())
    declared = plan(weights="length", pool="logarithmic", head=AnalyticHead(), share=0.5)
    raw = declared.to_json()
    assert (raw["weights"], raw["pool"]) == ("length", "logarithmic") and Plan.from_json(raw) == declared


def test_a_served_run_follows_its_plan(tiny: Backbone, tmp_path: Path) -> None:
    """Chains weigh by their length after a deletion; the nodes are the same bits whatever the rule."""
    tensors = {}
    for weights in WEIGHTS:
        declared = make_plan("s3t", LAYOUT, RECIPE, tiny.layers, weights=weights)
        given: dict[str, Any] = {"model": tiny, "classes": ("a", "b", "c"), "key": bytes(32)}
        with closing(System.create(tmp_path / weights, declared, RECIPE, **given)) as system:
            system.fit(RECORDS)
            served = system.weights()
            tensors[weights] = {
                f"{node} {name}": t.numpy().tobytes() for node in served for name, t in served[node].items()
            }
            system.delete(["row-01"])
            chains = system.provenance().chains
            lengths = {chain.shard: len(chain.nodes) for chain in chains}
            assert sorted(lengths.values()) == [1, 2]
            assert {chain.shard: chain.weight for chain in chains} == among(declared, lengths)
            outputs, weighed = system.served().outputs(ASKED)
            assert outputs.lengths == lengths and outputs.head is None
            wanted = combine(outputs.chains, among(declared, lengths), RECIPE.ensemble)
            assert np.asarray(system.predict(ASKED)).tobytes() == wanted.tobytes() and weighed == among(
                declared, lengths
            )
    assert tensors["equal"] and tensors["equal"] == tensors["length"] == tensors["square"]


def test_known_features_give_the_same_bits(tiny: Backbone, tmp_path: Path) -> None:
    declared = make_plan("s3t", LAYOUT, RECIPE, tiny.layers, head=AnalyticHead(), share=0.5)
    with closing(System.create(tmp_path / "run", declared, RECIPE, model=tiny, classes=("a", "b", "c"))) as system:
        system.fit(RECORDS)
        features = system.served().features(ASKED)
        system.delete(["row-01"])
        plain, known = (system.served().outputs(ASKED, given)[0].head for given in (None, features))
        assert plain is not None and known is not None and plain.tobytes() == known.tobytes()
    bare = make_plan("s3t", LAYOUT, RECIPE, tiny.layers)
    with closing(System.create(tmp_path / "bare", bare, RECIPE, model=tiny, classes=("a", "b", "c"))) as system:
        system.fit(RECORDS)
        assert system.served().features(ASKED) is None
