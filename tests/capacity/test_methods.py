"""Methods as capacity sees them are the methods that the suite trains."""

from __future__ import annotations

import pytest

from baselines.methods import METHODS, make_plan
from s3t.capacity import Demand, deletion_rate, requests_to_dead, view_of
from s3t.errors import LayoutError
from s3t.records import Layout, Recipe


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [1, 3])
def test_views_agree_with_the_plans(method: str, budget: int) -> None:
    layout = Layout(2, 3, budget)
    plan, seen = make_plan(method, layout, Recipe(), 6), view_of(method, layout)
    assert (seen.method, seen.layout, seen.orders, seen.eager) == (plan.method, plan.layout, plan.orders, plan.eager)


def test_every_method_in_the_same_functions() -> None:
    rates = {}
    for method in METHODS:
        seen = view_of(method, Layout(5, 6, 3))
        demand = Demand.uniform(seen.layout.shards, seen.layout.slices)
        rates[method] = requests_to_dead(demand, seen.orders)
    assert rates["s3t"] == rates["sequential"] == rates["sisa-full-lazy"] == pytest.approx(deletion_rate(5, 6, 3))
    assert rates["retrain-lora"] == pytest.approx(1.0), "one model of all data bears no request"


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(LayoutError, match=r"method 'sisa-lor' is unknown \(did you mean 'sisa-lora'\?\)"):
        view_of("sisa-lor", Layout())
