"""Modes by name: what a run states is what is computed, and every wrong word is one clear error."""

from __future__ import annotations

import pytest
import torch

from s3t.backbone import environment
from s3t.engine import mode
from s3t.engine.mode import GRAPHS, MODES, Mode, Resources, choose
from s3t.errors import RecipeError


def test_a_kernels_name_gives_its_mode_back() -> None:
    assert [m.kernel for m in MODES] == ["2", "fast-2:float32", "fast-2:bfloat16"]
    assert [m.kernel for m in GRAPHS] == ["fast-2:float32:graphs", "fast-2:bfloat16:graphs"]
    assert [Mode.of(m.kernel) for m in (*MODES, *GRAPHS)] == [*MODES, *GRAPHS]
    assert Mode.of("3") is None


def test_an_environment_names_its_mode() -> None:
    for m in (*MODES, *GRAPHS):
        assert Mode.recorded(environment(torch.device("cpu"), m)) == m
    assert Mode.recorded({}) == Mode()


@pytest.mark.parametrize(("has", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_auto_takes_bfloat16_where_the_machine_has_it(
    monkeypatch: pytest.MonkeyPatch, has: bool, precision: str
) -> None:
    monkeypatch.setattr(mode, "_has_bfloat16", lambda: has)
    assert choose("fast", "auto") == Mode("fast", precision)  # type: ignore[arg-type]
    assert choose("reference", "auto") == Mode()
    assert choose("fast", "float32") == Mode("fast", "float32")
    assert choose("graphs", "auto") == Mode("fast", precision, True)  # type: ignore[arg-type]


def test_graphs_are_of_the_fast_engine() -> None:
    with pytest.raises(RecipeError, match="reference engine has no steps to replay as graphs; choose engine=graphs"):
        Mode("reference", "float32", True)


@pytest.mark.parametrize(
    ("engine", "precision", "message"),
    [
        ("fats", "auto", "engine='fats' is unknown.*fast"),
        ("fast", "bf16", "precision='bf16' is unknown"),
        ("reference", "bfloat16", "reference engine computes in float32, not bfloat16"),
    ],
)
def test_wrong_words(engine: str, precision: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        choose(engine, precision)


@pytest.mark.parametrize(
    ("cache_gb", "workers", "message"),
    [(-1.0, 1, "cache_gb=-1.0"), (float("nan"), 1, "cache_gb=nan"), (1.0, 0, "workers=0"), (1.0, 1.5, "workers=1.5")],
)
def test_impossible_resources(cache_gb: float, workers: int, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Resources(cache_gb, workers)
