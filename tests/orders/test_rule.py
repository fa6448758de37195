"""Rules as plans state them: what each needs, its orders, its stored form; plans that are ordered by one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from baselines.methods import METHODS, UNDIVIDED, make_plan
from s3t import S3T
from s3t.backbone import Backbone
from s3t.errors import LayoutError
from s3t.orders import RULES, Rule, best, conditional, cyclic, matching, random
from s3t.plan import Plan, s3t_plan
from s3t.records import Layout, Recipe

PRIOR = (0.6, 0.1, 0.3)
EVERY = {
    "cyclic": Rule(),
    "matching": Rule("matching", PRIOR, 20, score="paper"),
    "conditional": Rule("conditional", PRIOR, seed=4),
    "random": Rule("random", seed=4),
    "best": Rule("best", PRIOR, 20, 4),
}


def test_every_rule_gives_the_orders_of_its_function() -> None:
    assert set(EVERY) == set(RULES)
    expected = {
        "cyclic": cyclic(3, 4),
        "matching": matching(PRIOR, 20, "paper", 4),
        "conditional": conditional(PRIOR, 4, 4),
        "random": random(3, 4, 4),
        "best": best(PRIOR, 4, 20, 4),
    }
    assert {name: list(rule.orders(3, 4)) for name, rule in EVERY.items()} == expected


@pytest.mark.parametrize("name", EVERY)
def test_rules_and_plans_are_stored_whole(name: str) -> None:
    rule = EVERY[name]
    assert Rule.from_json(json.loads(json.dumps(rule.to_json()))) == rule
    plan = s3t_plan(Layout(2, 3, 4), Recipe(), 6).ordered_by(rule)
    raw = json.loads(json.dumps(plan.to_json()))
    assert Plan.from_json(raw) == plan
    assert ("rule" in raw) == (name != "cyclic")
    assert plan.orders == rule.orders(3, 4)


def test_defaults_are_filled_in() -> None:
    assert Rule.of("matching", prior=PRIOR, horizon=None, seed=3) == Rule(
        "matching", PRIOR, 100, None, "expected_length"
    )
    assert Rule.of("random", prior=None, horizon=None, seed=3) == Rule("random", seed=3)
    assert Rule.of("best", prior=PRIOR, horizon=7, seed=3) == Rule("best", PRIOR, 7, 3)
    assert str(Rule()) == "cyclic"
    assert str(EVERY["matching"]) == "matching (horizon 20, score paper, prior 0.6 0.1 0.3)"


@pytest.mark.parametrize("method", [name for name in METHODS if name not in UNDIVIDED])
def test_every_divided_method_takes_a_rule(method: str) -> None:
    plan = make_plan(method, Layout(2, 3, 3), Recipe(), 6, EVERY["matching"])
    assert list(plan.orders) == matching(PRIOR, 20, "paper", 3)
    assert plan.stages == make_plan(method, Layout(2, 3, 3), Recipe(), 6).stages


@pytest.mark.parametrize("name", [name for name in EVERY if name != "cyclic"])
def test_no_rule_but_cyclic_is_extended(name: str) -> None:
    plan = s3t_plan(Layout(2, 3, 2), Recipe(), 6).ordered_by(EVERY[name])
    with pytest.raises(LayoutError, match=f"{name} orders cannot be extended to budget 3, only cyclic orders can"):
        plan.with_budget(3)
    assert s3t_plan(Layout(2, 3, 2), Recipe(), 6).ordered_by(Rule()).with_budget(3).orders == tuple(cyclic(3, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rule("matchin"), r"orders 'matchin' are unknown \(did you mean 'matching'\?\); known"),
        (lambda: Rule("random", PRIOR, seed=1), "random orders use no prior: leave it out"),
        (lambda: Rule("cyclic", horizon=3), "cyclic orders use no horizon"),
        (lambda: Rule.of("conditional", prior=PRIOR, horizon=4, seed=1), "conditional orders use no horizon"),
        (lambda: Rule.of("best", prior=None, horizon=None, seed=1), "best orders need a prior: give one"),
        (lambda: Rule("matching", PRIOR, 3, score="papr"), "score 'papr' is unknown"),
        (lambda: EVERY["best"].orders(4, 2), "the prior has 3 numbers for 4 slices; give one per slice"),
        (lambda: dataclasses.replace(EVERY["best"], prior=(0.9, 0.9)).orders(2, 1), "sum to 1.8"),
    ],
)
def test_refuses(make, message) -> None:
    with pytest.raises(LayoutError, match=message):
        make()


def test_the_system_in_python_takes_a_rule(tmp_path: Path, tiny: Backbone) -> None:
    rule = Rule.of("matching", prior=PRIOR, horizon=9, seed=0)
    layout = Layout(1, len(PRIOR), 2)
    system = S3T(tmp_path / "run", layout, classes=("a", "b"), model=tiny, rule=rule)
    assert system.config.plan.orders == rule.orders(len(PRIOR), 2) and system.config.plan.rule == rule
    with pytest.raises(LayoutError, match="numbers for 2 slices"):
        S3T(tmp_path / "other", Layout(1, 2, 1), classes=("a", "b"), model=tiny, rule=rule)
