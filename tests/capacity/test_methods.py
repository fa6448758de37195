"""Every method's own plan goes into the same functions of capacity."""

from __future__ import annotations

import pytest

from baselines.methods import METHODS, make_plan
from s3t.capacity import Demand, deletion_rate, requests_to_dead
from s3t.records import Layout, Recipe


def test_every_method_in_the_same_functions() -> None:
    rates = {}
    for method in METHODS:
        plan = make_plan(method, Layout(5, 6, 3), Recipe(), 6)
        demand = Demand.uniform(plan.layout.shards, plan.layout.slices)
        rates[method] = requests_to_dead(demand, plan.orders)
    assert rates["s3t"] == rates["sequential"] == rates["sisa-full-lazy"] == pytest.approx(deletion_rate(5, 6, 3))
    assert rates["retrain-lora"] == pytest.approx(1.0), "one model of all data bears no request"
