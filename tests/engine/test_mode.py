"""Modes by name: what a run states is what is computed, and every wrong word is one clear error."""

from __future__ import annotations

import pytest
import torch

from s3t.backbone import environment
from s3t.engine import mode
from s3t.engine.mode import FOR_IMAGES, FORMS, MODES, Form, Mode, choose
from s3t.errors import RecipeError


def test_a_kernels_name_gives_its_mode_back() -> None:
    assert [m.kernel for m in MODES] == ["2", "fast-2:float32", "fast-2:bfloat16"]
    names = [f"fast-2:{precision}:{form}" for form in ("graphs", "grouped") for precision in ("float32", "bfloat16")]
    assert [m.kernel for m in FOR_IMAGES] == names
    assert [Mode.of(m.kernel) for m in (*MODES, *FOR_IMAGES)] == [*MODES, *FOR_IMAGES]
    assert Mode.of("3") is None


def test_an_environment_names_its_mode() -> None:
    for m in (*MODES, *FOR_IMAGES):
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
    assert choose("graphs", "auto") == Mode("fast", precision, "graphs")  # type: ignore[arg-type]
    assert choose("grouped", "float32") == Mode("fast", "float32", "grouped")


@pytest.mark.parametrize("form", FORMS)
def test_forms_are_of_the_fast_engine(form: Form) -> None:
    with pytest.raises(RecipeError, match=f"reference engine takes steps one by one; choose engine={form}"):
        Mode("reference", "float32", form)


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
