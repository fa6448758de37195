"""Tasks whose answers are texts: encoding, the loss on the answer, scores, data formats, audited lives, export."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import call, refused
from peft import AutoPeftModelForCausalLM
from tokenizers import processors
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from s3t import S3T
from s3t.answers import TEXT, answers, check_label, in_words, is_text, model_name, target
from s3t.backbone import Backbone, load
from s3t.blocks import ChainModel, score
from s3t.data import load as load_data
from s3t.data.instructions import prompt
from s3t.errors import DataError, ModelError, RecipeError
from s3t.language import ASKED, LanguageBackbone
from s3t.metrics import OF_TEXTS, measure
from s3t.plan import s3t_plan
from s3t.records import Layout, Recipe, Record
from s3t.system import System
from verify import derive
from verify.cli import main as verify

CPU = torch.device("cpu")
WORDS = ["red", "blue", "green", "dog", "cat", "sun", "moon", "tree", "rock", "river"]
HOW = ("--shards", "2", "--slices", "2", "--budget", "2", "--epochs", "2", "--batch-size", "8", "--lr", "0.02")
ROWS = [
    {"text": "name a colour", "answer": "red"},
    {"text": "say it twice", "answer": "sun sun moon"},
    {"text": "dog cat"},
]


@pytest.fixture
def alpaca(tmp_path: Path) -> Path:
    """A hundred instructions in the Alpaca format, to repeat a word."""
    draw, rows = np.random.default_rng(0), []
    for number in range(100):
        first, second = draw.permutation(WORDS)[:2]
        given = str(second) if number % 3 == 0 else ""
        rows.append({"instruction": f"repeat {first}", "input": given, "output": f"{first} {given} done {number}"})
    (tmp_path / "alpaca.json").write_text(json.dumps(rows))
    return tmp_path / "alpaca.json"


@pytest.fixture
def base() -> LanguageBackbone:
    found = load("lm:tiny-llama", CPU)
    assert isinstance(found, LanguageBackbone)
    return found


def untrained(base: Backbone) -> ChainModel:
    """Return a chain whose only adapter adds nothing yet."""
    return ChainModel(base, s3t_plan(Layout(1, 1, 1), Recipe(), base.layers).stages, Recipe(), 1)


# ---- what a task of texts is ----


def test_texts_are_answers_of_their_own_kind() -> None:
    assert is_text(TEXT) and not is_text(("text", "b")) and not is_text(("a",))
    check_label("x", 0, TEXT)
    with pytest.raises(DataError, match=r"'x' has label 0\.5"):
        check_label("x", 0.5, TEXT)
    assert target(0, TEXT) == derive.target(0, TEXT) == 0
    assert answers(np.array([[-1.5], [-0.25]]), TEXT) == [-1.5, -0.25]
    assert in_words(TEXT)[0] == "texts"
    assert model_name("m", TEXT) == model_name("lm:m", TEXT) == "lm:m" and model_name("m", ("a", "b")) == "m"


def test_metrics_of_texts_worked_by_hand() -> None:
    found = measure(OF_TEXTS, [-1.0, -3.0], [0, 0])
    assert found == pytest.approx({"log_likelihood": -2.0, "perplexity": np.exp(2.0)})


# ---- encoding and the loss ----


def test_only_the_answer_is_asked_for(base: LanguageBackbone) -> None:
    first, second, alone = base.encode(ROWS, 32)
    assert first.fields[ASKED] == [0, 0, 0, 1, 1], "a prompt of three words, an answer of one, the end"
    assert second.fields[ASKED] == [0] * 3 + [1] * 4 and alone.fields[ASKED] == [1] * 3
    assert first.fields["input_ids"][-1] == second.fields["input_ids"][-1] == alone.fields["input_ids"][-1]
    assert base.collate([first, second])[ASKED].tolist()[0] == [0, 0, 0, 1, 1, 0, 0]


def test_long_ones_keep_half_of_the_prompt(base: LanguageBackbone) -> None:
    long = {"text": " ".join(f"p{i}" for i in range(20)), "answer": " ".join(f"a{i}" for i in range(20))}
    (whole,), (cut,), (short,) = (base.encode([row], most) for row, most in ((long, 64), (long, 16), (ROWS[0], 16)))
    assert cut.length == 16 and sum(cut.fields[ASKED]) == 8
    assert cut.fields["input_ids"] == whole.fields["input_ids"][12:28], "the prompt's last words, the answer's first"
    assert short == base.encode([ROWS[0]], 64)[0]
    brief = {"text": long["text"], "answer": "one two"}
    (kept,) = base.encode([brief], 16)
    assert kept.length == 16 and sum(kept.fields[ASKED]) == 3, (
        "a short answer stays whole, and the prompt gets the rest"
    )


@pytest.mark.parametrize(
    ("row", "most", "message"),
    [
        ({"text": "a", "answer": " "}, 32, "input 0 has an empty field 'answer'"),
        ({"text": " ", "answer": "a"}, 32, "input 0 has no text"),
        ({"text": "a", "answer": "b"}, 3, "max_length=3 leaves no room for a prompt and an answer"),
    ],
)
def test_what_cannot_be_encoded(base: LanguageBackbone, row: dict[str, str], most: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        base.encode([row], most)


def test_scores_and_loss_are_those_of_the_model_class(small_llama: Path) -> None:
    """Token by token through transformers' own class, each row alone."""
    base = load(f"lm:{small_llama}", CPU)
    model = AutoModelForCausalLM.from_pretrained(small_llama)
    rows = base.encode(
        [{"text": "repeat red", "answer": "red done"}, {"text": "repeat sun moon", "answer": "sun moon cat"}], 32
    )
    assert rows[0].fields["input_ids"][0] == 0, "the tokenizer's beginning"
    chain = untrained(base)
    sums, counts = [], []
    for row in rows:
        ids = torch.tensor([row.fields["input_ids"]])
        with torch.no_grad():
            found = model(ids).logits[0].log_softmax(-1)
        places = [at for at, asked in enumerate(row.fields[ASKED]) if asked]
        sums.append(sum(float(found[at - 1, ids[0, at]]) for at in places))
        counts.append(len(places))
    means = [total / count for total, count in zip(sums, counts, strict=True)]
    assert score(chain, rows)[:, 0].tolist() == pytest.approx(means, rel=1e-4)
    outputs = chain(base.collate(rows))
    assert float(base.loss(outputs, torch.zeros(2))) == pytest.approx(-sum(sums) / sum(counts), rel=1e-4)


def test_a_tokenizer_without_a_beginning(small_llama: Path, tmp_path: Path) -> None:
    """The first token of a text without a prompt cannot be predicted and is not counted."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=18, n_positions=32, n_embd=16, n_layer=2, n_head=2))
    model.save_pretrained(tmp_path / "gpt2")
    fast = PreTrainedTokenizerFast.from_pretrained(small_llama)
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    fast.save_pretrained(tmp_path / "gpt2")
    base = load(f"lm:{tmp_path / 'gpt2'}", CPU)
    assert isinstance(base, LanguageBackbone) and torch.equal(base.output, base.model.get_input_embeddings().weight)  # type: ignore[operator]
    (row,) = base.encode([{"text": "dog cat"}], 16)
    outputs = untrained(base)(base.collate([row]))
    assert outputs[0, 1] == len(row.fields["input_ids"]) - 1


# ---- models that do not do ----


def test_models_that_predict_no_text(small_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"'tiny' is of type 'bert', which predicts no text; those that do are gpt2, llama"
    ):
        load("lm:tiny", CPU)
    fast = PreTrainedTokenizerFast.from_pretrained(small_llama)
    fast.eos_token = None
    AutoModelForCausalLM.from_pretrained(small_llama).save_pretrained(tmp_path / "endless")
    fast.save_pretrained(tmp_path / "endless")
    with pytest.raises(ModelError, match="a tokenizer without an end of text"):
        load(f"lm:{tmp_path / 'endless'}", CPU)
    bare = AutoModelForCausalLM.from_pretrained(small_llama).base_model
    bare.save_pretrained(tmp_path / "bare")
    PreTrainedTokenizerFast.from_pretrained(small_llama).save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match=r"lacks the weights of 'lm_head.weight', which would be random"):
        load(f"lm:{tmp_path / 'bare'}", CPU)


def test_the_task_and_the_model_must_fit(tmp_path: Path, base: LanguageBackbone) -> None:
    recipe = Recipe()
    plan = s3t_plan(Layout(1, 2, 1), recipe, 4)
    with pytest.raises(ModelError, match=r"the task asks for texts, and 'tiny' is loaded for others"):
        System.create(
            tmp_path / "a", s3t_plan(Layout(1, 2, 1), recipe, 6), recipe, model=load("tiny", CPU), classes=TEXT
        )
    with pytest.raises(ModelError, match=r"the task asks for 2 classes, and 'lm:tiny-llama' is loaded for others"):
        System.create(tmp_path / "b", plan, recipe, model=base, classes=("a", "b"))
    with pytest.raises(
        RecipeError, match="the fast engine trains classes and numbers, not texts; use engine=reference"
    ):
        System.create(tmp_path / "c", plan, recipe, model=base, classes=TEXT, engine="fast")
    with pytest.raises(RecipeError, match="ensemble='vote' needs classes, and the task's answers are texts"):
        System.create(tmp_path / "d", plan, Recipe(ensemble="vote"), model=base, classes=TEXT)
    assert not list(tmp_path.iterdir())


def test_the_output_layer_is_part_of_the_models_digest(
    base: LanguageBackbone, small_llama: Path, tmp_path: Path
) -> None:
    assert base.digest != load("tiny-llama", CPU).digest
    model = AutoModelForCausalLM.from_pretrained(small_llama)
    model.lm_head.weight.data[3, 3] += 1.0
    model.save_pretrained(tmp_path / "other")
    PreTrainedTokenizerFast.from_pretrained(small_llama).save_pretrained(tmp_path / "other")
    assert load(f"lm:{small_llama}", CPU).digest != load(f"lm:{tmp_path / 'other'}", CPU).digest
    assert load(str(small_llama), CPU).digest == load(str(tmp_path / "other"), CPU).digest


# ---- data ----


def test_files_of_instructions(alpaca: Path, tmp_path: Path) -> None:
    data = load_data(alpaca)
    assert data.classes == TEXT and len(data.train) + len(data.validation) + len(data.test) == 100
    first = next(record for record in (*data.train, *data.validation, *data.test) if record.id == "row-000001")
    raw = json.loads(alpaca.read_text())[0]
    assert first.inputs == {"text": prompt(raw["instruction"], raw["input"]), "answer": raw["output"]}
    assert prompt("do it") == "### Instruction:\ndo it\n\n### Response:\n"
    assert "### Input:\nx\n\n" in prompt("do it", "x")
    assert load_data(data.source) == data
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["question", "reply", "who"])
        lines.writerows([f"what is {i}", f"it is {i}", f"user {i % 7}"] for i in range(40))
    pairs = load_data(tmp_path / "pairs.csv", text="question", answer="reply", group="who")
    assert pairs.train[0].inputs.keys() == {"text", "answer"} and load_data(pairs.source) == pairs
    assert pairs.train[0].id.startswith("user ")


@pytest.mark.parametrize(
    ("rows", "how", "message"),
    [
        ([{"instruction": "a", "output": ""}], {}, "row 1 .'row-000001'. has no 'output'"),
        ([{"instruction": " ", "output": "a"}], {}, "row 1 .'row-000001'. has no 'instruction'"),
        (
            [{"text": "a", "reply": "b"}],
            {"answer": "reply", "classes": ("a", "b")},
            r"are texts, so classes=\('a', 'b'\)",
        ),
        (
            [{"text": "a", "reply": "b"}],
            {"answer": "reply", "number": "0:5"},
            "are texts, so number='0:5' means nothing",
        ),
        ([{"text": "a", "reply": "b"}], {"answer": "replies"}, r"no column 'replies' \(did you mean 'reply'\?\)"),
    ],
)
def test_files_that_do_not_do(tmp_path: Path, rows: Sequence[Any], how: dict[str, Any], message: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=message):
        load_data(tmp_path / "a.json", **how)


@pytest.mark.parametrize("content", ['{"a": 1}', "[1, 2]", "[{]"])
def test_json_that_is_no_table(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=r"a\.json cannot be read as \.json"):
        load_data(tmp_path / "a.json")


# ---- lives ----


def test_the_life_of_a_run(alpaca: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    call("train", run, "--data", alpaca, "--model", "tiny-llama", *HOW)
    told = json.loads(call("predict", run, "--json"))
    assert told["perplexity"] == pytest.approx(np.exp(-told["log_likelihood"]))
    assert told["log_likelihood"] == pytest.approx(np.mean([row["log_likelihood"] for row in told["rows"]]), abs=1e-6)
    shown = json.loads(call("predict", run, "--input", alpaca, "--json"))
    assert shown["n"] == 100 and "perplexity" not in shown
    gone = sorted(json.loads(call("delete", run, "--any", "3", "--json"))["deleted"])
    for level in ("E0", "E1a", "E1b", "E1c"):
        assert verify([str(run), "--level", level]) == 0, level
    assert verify([str(run), "--oracle"]) == 0, "a second implementation, bit for bit"
    for path in run.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not any(f'"{name}"'.encode() in content for name in gone), path


def test_levels_that_judge_classes_say_so(alpaca: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    call("train", run, "--data", alpaca, "--model", "tiny-llama", *HOW, "--epochs", "1")
    call("delete", run, "--any", "1")
    assert verify([str(run), "--level", "E2"]) == 3
    assert "answers with numbers or texts" in " ".join(capsys.readouterr().out.split()).replace("│ ", "")


def test_training_raises_the_likelihood(small_llama: Path, tmp_path: Path) -> None:
    """Of what it is trained on, by far; the served score is the mean over the shards' chains."""
    rows = [{"instruction": f"repeat {word}", "output": f"{word} done"} for word in WORDS for _ in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = tmp_path / "run"
    how = ("--shards", "1", "--slices", "2", "--budget", "1", "--epochs", "12", "--batch-size", "8", "--lr", "0.05")
    call(
        "train",
        run,
        "--data",
        tmp_path / "rows.jsonl",
        "--model",
        small_llama,
        *how,
        "--recipe",
        "rank=8",
        "--no-duplicates",
    )
    base = load(f"lm:{small_llama}", CPU)
    inputs = [{"text": prompt(f"repeat {word}"), "answer": f"{word} done"} for word in WORDS]
    before = score(untrained(base), base.encode(inputs, 128))[:, 0].mean()
    with closing(System.open(run)) as system:
        after = system.predict(inputs)[:, 0].mean()
    assert after > float(before) + 1.0


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # PEFT 0.21 with transformers 5.23
def test_an_export_is_a_causal_language_model(small_llama: Path, tmp_path: Path) -> None:
    """Loaded by stock PEFT it gives the bits of the chain that serves."""
    rows = [{"instruction": f"repeat {WORDS[i % 10]}", "output": f"{WORDS[i % 10]} done"} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    how = ("--shards", "1", "--slices", "2", "--budget", "1", "--epochs", "2", "--batch-size", "8", "--lr", "0.05")
    call("train", tmp_path / "run", "--data", tmp_path / "rows.jsonl", "--model", small_llama, *how, "--no-duplicates")
    call("export", tmp_path / "run", "--shard", "0", "--out", tmp_path / "out", "--base", small_llama)
    call("check-export", tmp_path / "out", tmp_path / "run")
    model = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "out"))
    base = load(f"lm:{small_llama}", CPU)
    rows_ = base.encode([{"text": prompt("repeat sun"), "answer": "sun done"}], 32)
    batch = {name: tensor for name, tensor in base.collate(rows_).items() if name != ASKED}
    with closing(System.open(tmp_path / "run")) as system:
        chain: Any = next(iter(system.served().models.values()))[1]
        served = float(system.predict([{"text": prompt("repeat sun"), "answer": "sun done"}])[0, 0])
    with torch.no_grad():
        logits = model(**batch).logits
        assert torch.equal(logits, torch.nn.functional.linear(chain.body(**batch).last_hidden_state, base.output))
    ids, asked = batch["input_ids"][0], rows_[0].fields[ASKED]
    likely = logits[0].log_softmax(-1)
    found = [float(likely[at - 1, ids[at]]) for at in range(len(asked)) if asked[at]]
    assert served == pytest.approx(np.mean(found), rel=1e-4)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "AutoPeftModelForCausalLM" in card and "head" not in {path.stem for path in (tmp_path / "out").iterdir()}


def test_a_text_alone_is_all_answer(small_llama: Path, rebuilt: Any, tmp_path: Path) -> None:
    """A run is trained on texts without prompts, too: what is called continued pretraining. Its own texts grow likelier."""
    records = [Record(f"r{i:02d}", {"text": f"{WORDS[i % 10]} {WORDS[i % 7]} {i % 3}"}, 0) for i in range(60)]
    base, recipe = load(f"lm:{small_llama}", CPU), Recipe(rank=4, epochs=4, batch_size=4, lr=0.05)
    asked = [record.inputs for record in records]
    before = float(score(untrained(base), base.encode(asked, recipe.max_length)).mean())
    with closing(S3T(tmp_path / "run", Layout(1, 2, 1), classes=TEXT, model=base, recipe=recipe)) as system:
        system.fit(records)
        assert float(np.asarray(system.predict(asked)).mean()) > before + 0.5
        system.delete(["r00"])
        rebuilt(system, records)


def test_a_column_of_answers_needs_one_of_prompts(tmp_path: Path) -> None:
    rows = [{"note": f"{WORDS[i % 10]} {WORDS[i % 7]} {i}"} for i in range(60)]
    (tmp_path / "notes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    how = ("--data", tmp_path / "notes.jsonl", "--answer", "note", "--model", "tiny-llama")
    assert "no column 'text'" in refused("train", tmp_path / "run", *how)


@pytest.mark.packs
@pytest.mark.slow
def test_real_weights_know_which_answer_belongs_to_which_instruction(tmp_path: Path) -> None:
    """SmolLM2 on the Alpaca sample, before training: the true answer is likelier than the next record's for most.

    Then a short life of a run, audited.
    """
    data, base = load_data("alpaca"), load("lm:smollm2", CPU)
    assert isinstance(base, LanguageBackbone) and (base.layers, base.hidden) == (30, 576)
    asked = [record.inputs for record in data.test[:13]]
    swapped = [{**one, "answer": other["answer"]} for one, other in itertools.pairwise(asked)]
    chain = untrained(base)
    right = score(chain, base.encode(asked[:-1], 96))[:, 0]
    wrong = score(chain, base.encode(swapped, 96))[:, 0]
    assert int((right > wrong).sum()) >= 8 and float((right - wrong).mean()) > 0.3
    run = tmp_path / "run"
    how = (
        "--shards",
        "1",
        "--slices",
        "2",
        "--budget",
        "1",
        "--epochs",
        "1",
        "--batch-size",
        "4",
        "--max-length",
        "48",
    )
    call("train", run, "--data", "alpaca", "--model", "smollm2", "--limit", "16", *how, "--no-duplicates")
    call("delete", run, "--any", "1")
    assert verify([str(run), "--level", "E0"]) == verify([str(run), "--level", "E1a"]) == 0
