"""The table of conditions: what must keep bits does, what is known not to does not, and what cannot be tried says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from verify import conditions as c
from verify import determinism
from verify.determinism import Condition, Row, compare, main, measure
from verify.machine import on_threads

SAME, OTHER = {"x": torch.tensor([1.0, 2.0])}, {"x": torch.tensor([1.0, 2.0000002])}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with on_threads(1):
        yield


@pytest.fixture(scope="module")
def bench() -> c.Bench:
    return c.make_bench("tiny-3", CPU)


def by_name(bench: c.Bench) -> dict[tuple[str, str], Condition]:
    return {(one.name, one.what): one for one in determinism.conditions(bench, "tiny-3")}


def test_a_row_says_yes_no_or_why_it_was_not_run() -> None:
    yes = compare(Condition("x", "training", lambda: SAME, lambda: SAME), "m")
    assert (yes.same, yes.max_ulps, yes.max_relative, yes.reason) == ("yes", 0, 0, "1 tensors")
    no = compare(Condition("x", "training", lambda: SAME, lambda: OTHER), "m")
    assert (no.same, no.max_ulps, no.max_relative) == ("no", 1, 1.19e-7)
    assert "1 of 1 tensors differ; x: 1 of 2 elements differ, first at [1]" in no.reason
    odd = compare(Condition("x", "training", lambda: SAME, dict), "m")
    assert (odd.same, odd.max_ulps, odd.max_relative) == ("no", None, None)
    lacking = compare(Condition("x", "training", lambda: SAME, lambda: SAME, "no such device"), "m")
    assert lacking == Row("x", "cpu", "m", "training", "not run", None, None, "no such device")

    def fails() -> dict[str, torch.Tensor]:
        raise RuntimeError("no compiler\nlong story")

    broken = compare(Condition("x", "training", lambda: SAME, fails), "m")
    assert (broken.same, broken.reason) == ("not run", "RuntimeError: no compiler")


@pytest.mark.parametrize(
    ("name", "what", "same"),
    [
        ("run again, with dropout", "training", "yes"),
        ("run again", "inference", "yes"),
        ("last block dropped, not loading it", "inference", "yes"),
        ("saved and restored whole", "training", "yes"),
        ("restored without optimizer", "training", "no"),
        ("bf16 autocast, run again", "training", "yes"),
        ("bf16 autocast, not fp32", "training", "no"),
        ("foreach AdamW", "training", "yes"),
        ("adapters merged into the weights", "inference", "no"),
        ("16 tokens more padding", "training", "no"),
        ("fast-2:float32: run again, with dropout", "training", "yes"),
        ("fast-2:float32: activations kept in memory", "training", "yes"),
        ("fast-2:float32: activations kept in files", "training", "yes"),
        ("fast-2:float32, not the reference", "training", "no"),
        ("fast-2:float32, not the reference", "inference", "no"),
        ("fast-2:bfloat16: run again", "inference", "yes"),
        ("fast-2:bfloat16: activations kept in files", "training", "yes"),
        ("fast-2:bfloat16, not the reference", "inference", "no"),
        ("fast-2:bfloat16, not float32", "training", "no"),
    ],
)
def test_conditions_that_are_known(bench: c.Bench, name: str, what: str, same: str) -> None:
    row = compare(by_name(bench)[name, what], "tiny-3")
    assert row.same == same, row
    assert row.max_relative is not None and row.max_relative < (0.5 if "optimizer" not in name else 10)


def test_conditions_that_change_something_change_what_they_say(bench: c.Bench) -> None:
    rows = [row.encoded for row in bench.rows[:3]]
    plain, wide = bench.backbone.collate(rows), c.padded(bench.backbone).collate(rows)
    longest = max(row.length for row in rows)
    assert plain["input_ids"].shape == (3, longest) and wide["input_ids"].shape == (3, longest + 16)
    assert wide["attention_mask"].sum() == plain["attention_mask"].sum()
    with on_threads(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 1
    before = torch.get_float32_matmul_precision()
    with c.tensor_float_32():
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_fast_engine_is_near_the_reference(bench: c.Bench) -> None:
    named = by_name(bench)
    for name, training, inference in (("fast-2:float32", 1e-4, 1e-5), ("fast-2:bfloat16", 0.5, 0.05)):
        for what, most in (("training", training), ("inference", inference)):
            row = compare(named[f"{name}, not the reference", what], "tiny-3")
            assert row.max_relative is not None and 0 < row.max_relative < most, row


def test_rows_of_the_fast_engine_are_about_both_precisions(bench: c.Bench) -> None:
    names = [name for name, _ in by_name(bench) if name.startswith("fast-2")]
    assert {name.replace("bfloat16", "float32") for name in names if ", not float32" not in name} == {
        name for name in names if "bfloat16" not in name
    }
    assert len(c.kept(bench, "fast-2:float32", 0)) == len(c.nodes(bench, "2")) == 10


def test_a_step_in_parts_is_the_same_step_but_for_rounding(bench: c.Bench) -> None:
    whole, parts = c.learn(bench), c.learn(bench, c.How(split=2))
    assert all(torch.allclose(whole[name], parts[name], atol=1e-3) for name in whole)
    assert any((whole[name] != parts[name]).any() for name in whole)


def test_merging_leaves_the_original_as_it_was(bench: c.Bench) -> None:
    model = c.chain(bench, 3)
    before = c.scores(model, bench.rows)["logits"]
    merged = c.scores(c.merged(model), bench.rows)["logits"]
    assert torch.equal(c.scores(model, bench.rows)["logits"], before)
    assert torch.allclose(before, merged, atol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_cuda_its_rows_are_not_run() -> None:
    rows = [compare(one, "tiny") for one in determinism.on_cuda("tiny")]
    assert len(rows) == 31
    assert {(row.device, row.same, row.reason) for row in rows} == {("cuda", "not run", "no CUDA device")}


def test_a_fresh_process_that_fails_is_not_run(bench: c.Bench) -> None:
    row = compare(Condition("x", "training", lambda: SAME, lambda: determinism.elsewhere("--no-model", {})), "m")
    assert row.same == "not run" and "the fresh process failed" in row.reason


def test_the_command_prints_and_writes_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "table.json"
    assert main(["--model", "tiny-3", "--only", "run again", "--out", str(out)]) == 0
    told = json.loads(out.read_text())
    assert told["schema"] == 1 and told["machine"]["torch"] == torch.__version__
    assert [row["same"] for row in told["rows"] if row["device"] == "cpu"] == ["yes"] * 7
    assert len(capsys.readouterr().out.splitlines()) == len(told["rows"]) == 11


def test_tensors_of_another_process_are_read_back(tmp_path: Path, bench: c.Bench) -> None:
    from safetensors.torch import load_file

    out = tmp_path / "tensors.safetensors"
    assert main(["--model", "tiny-3", "--tensors", str(out)]) == 0
    assert compare(Condition("x", "training", lambda: c.kernel(bench), lambda: load_file(out)), "m").same == "yes"
    name = "fast-2:bfloat16"
    assert main(["--model", "tiny-3", "--tensors", str(out), "--kernel", name]) == 0
    assert compare(Condition("x", "training", lambda: c.nodes(bench, name), lambda: load_file(out)), "m").same == "yes"


def test_an_unknown_model_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "none-such"]) == 2
    assert "model 'none-such' cannot be loaded" in capsys.readouterr().err


def test_only_models_that_are_here_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3T_CACHE", str(tmp_path))
    assert determinism.models_here() == ["tiny"]
    found: Any = tmp_path / "minilm-0.0"
    found.mkdir()
    assert determinism.models_here() == ["tiny", "minilm"]


def test_the_committed_table_has_every_condition(root: Path, bench: c.Bench) -> None:
    told = json.loads((root / "results" / "verify" / "determinism-cpu.json").read_text())
    names = {(one.name, one.what) for one in (*determinism.conditions(bench, "tiny-3"), *determinism.on_cuda("tiny-3"))}
    rows = [Row(**row) for row in told["rows"]]
    assert {(row.condition, row.what) for row in rows if row.model == "tiny"} == names
    assert all(row.reason for row in rows)
    assert {row.same for row in rows if row.condition.startswith("run again")} == {"yes"}


@pytest.mark.slow
def test_the_whole_table_is_measured() -> None:
    rows = measure(["tiny-3"], ["fresh process", "instruction set", "threads", "fused", "mates", "split"])
    told = {(row.condition, row.what): row.same for row in rows}
    assert told["a fresh process", "training"] == "yes"
    assert told["batch split into 2 micro-batches", "training"] == "no"
    assert len(rows) == 13
