"""What an analytic head may declare: every value that cannot be is refused by one error, from Python and from JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3t.analytic.head import LEVELS, MOST_RANDOM, AnalyticHead
from s3t.errors import RecipeError

HUGE = 10**400
BAD: tuple[tuple[str, Any, str], ...] = (
    ("layers", [0, 1], r"layers=\[0, 1\] is no tuple"),
    ("layers", (1, 1), r"layers=\(1, 1\) is no tuple of different values"),
    ("layers", (-1,), "-1 is no layer"),
    ("layers", (True,), "True is no layer"),
    ("layers", (1.0,), "1.0 is no layer"),
    ("layers", ("1",), "'1' is no layer"),
    ("layers", ([0],), r"\[0\] is no layer"),
    ("layers", None, "layers=None is no tuple"),
    ("poolings", (), "poolings are empty; choose from mean, first, last, max"),
    ("poolings", "mean", "poolings='mean' is no tuple"),
    ("poolings", ("mean", "mean"), "is no tuple of different values"),
    (
        "poolings",
        ("maen",),
        r"poolings='maen' is unknown \(did you mean 'mean'\?\); choose from mean, first, last, max",
    ),
    ("poolings", (["mean"],), r"poolings=\['mean'\] is unknown"),
    ("poolings", (None,), "poolings=None is unknown"),
    ("random", -1, "-1 is no layer and no number of random features"),
    ("random", 2.0, "2.0 is no layer and no number of random features"),
    ("random", False, "False is no layer"),
    ("random", "8", "'8' is no layer"),
    ("random", MOST_RANDOM + 1, "is too many random features; give at most 32768"),
    ("random", HUGE, "is too many random features"),
    ("step", 0.1, r"step=0.1 is no power of two, so dividing by it would round; give one, as 2\*\*-8"),
    ("step", 3, "step=3 is no power of two"),
    *((name, value, f"{name}=") for name in ("step", "ridge", "temperature") for value in (0, 0.0, -1.0, -HUGE)),
    *((name, value, f"{name}=") for name in ("step", "ridge", "temperature") for value in (math.nan, math.inf, HUGE)),
    *((name, value, f"{name}=") for name in ("step", "ridge", "temperature") for value in ("1", None, True, [1], 1j)),
    ("form", "ridges", r"form='ridges' is unknown \(did you mean 'ridge'\?\); choose from ridge, balanced, prototypes"),
    ("form", [], r"form=\[\] is unknown"),
    ("form", None, "form=None is unknown"),
)


@pytest.mark.parametrize(("name", "value", "said"), BAD, ids=[f"{name}-{i}" for i, (name, _, _) in enumerate(BAD)])
def test_a_value_that_cannot_be_is_refused_by_name_and_value(name: str, value: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        AnalyticHead(**{name: value})


def test_the_least_and_the_most_that_can_be() -> None:
    AnalyticHead(step=5e-324, ridge=5e-324, temperature=5e-324, random=MOST_RANDOM)
    AnalyticHead(step=2.0**1023, ridge=1e308, temperature=1e308, layers=(HUGE, 0), random=0)
    assert AnalyticHead(step=1).step == 1
    assert LEVELS == 32767


def test_sizes() -> None:
    assert AnalyticHead().size(6, 384) == 2304
    assert AnalyticHead(poolings=("mean", "first", "max")).size(6, 384) == 6912
    assert AnalyticHead(layers=(5, 2), poolings=("mean", "last"), random=7).size(6, 10) == 47


def test_a_head_is_the_same_after_json() -> None:
    head = AnalyticHead((3, 0), ("first", "max"), 5, 0.25, "balanced", 0.3, 2.0)
    assert AnalyticHead.from_json(json.loads(json.dumps(head.to_json()))) == head
    assert head.to_json()["layers"] == [3, 0] and head.to_json()["poolings"] == ["first", "max"]
    assert AnalyticHead.from_json({}) == AnalyticHead()
    assert set(AnalyticHead().to_json()) == {"layers", "poolings", "random", "step", "form", "ridge", "temperature"}


def test_unknown_fields_and_what_is_no_object_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"has no 'rigde' \(did you mean 'ridge'\?\); known are layers, poolings"):
        AnalyticHead.from_json({"rigde": 1.0})
    for raw in (None, 3, "ridge", ["ridge"], []):
        with pytest.raises(RecipeError, match="an analytic head is an object, not"):
            AnalyticHead.from_json(raw)  # type: ignore[arg-type]
    for name in ("layers", "poolings"):
        with pytest.raises(RecipeError, match=f"{name}={{'mean': 1}} is no tuple"):
            AnalyticHead.from_json({name: {"mean": 1}})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(HUGE) | st.floats() | st.sampled_from(("mean", "ridge", "first", "")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from([*AnalyticHead().to_json(), "other"]), VALUES, max_size=4) | VALUES)
def test_any_json_is_a_head_or_one_error(raw: Any) -> None:
    try:
        head = AnalyticHead.from_json(raw)
    except RecipeError:
        return
    assert AnalyticHead.from_json(head.to_json()) == head
