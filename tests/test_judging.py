"""Judging by lm-evaluation-harness: its own model class on the exported adapter is the reference."""

from __future__ import annotations

import json
import re
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from command_line import call, said
from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from s3t import judging
from s3t.backbone import load
from s3t.blocks import ChainModel
from s3t.data.instructions import prompt
from s3t.errors import DataError
from s3t.judging import Ensemble, judge
from s3t.language import LanguageBackbone
from s3t.plan import s3t_plan
from s3t.records import Layout, Recipe
from s3t.system import System

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),  # PEFT 0.21 with transformers 5.23
]

CPU = torch.device("cpu")
WORDS = ["red", "blue", "green", "dog", "cat", "sun", "moon", "tree", "rock", "river"]
PAIRS = [
    (prompt("repeat red"), "red done"),  # as in training
    ("repeat red ### Response:", " red done"),
    ("repeat red ### Response:", " red cat"),  # differs in its last token alone
    ("repeat red ### Response:", " red"),  # a beginning of others
    ("repeat sun moon ", "sun"),  # the context ends in a space
    ("", "dog cat"),
    ("<s> tree", " rock river"),  # begins with the tokenizer's own beginning
    ("dog " * 90, " cat sun"),
    ("tree", " rock" * 40),
]
TEXTS = ["repeat red red done", "dog", "sun moon " * 70, ""]
HOW = ("--slices", "2", "--budget", "1", "--epochs", "6", "--batch-size", "8", "--lr", "0.05", "--no-duplicates")


def refused(*args: object) -> str:
    """Call ``s3t``, which refuses; return the line that says so (the harness may have written others)."""
    code, _, err = said(*args)
    assert code == 2, err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    return line


def asked(method: str, *arguments: tuple[str, ...]) -> list[Instance]:
    kind: Any = method
    return [Instance(kind, {}, given, at, ("none", at, 1)) for at, given in enumerate(arguments)]


def same(ours: Ensemble, stock: HFLM) -> list[tuple[float, bool]]:
    """Compare a model of ours with the harness's own in everything it is asked for; return the scores of PAIRS."""
    found, wanted = (model.loglikelihood(asked("loglikelihood", *PAIRS)) for model in (ours, stock))
    assert [total for total, _ in found] == pytest.approx([total for total, _ in wanted], rel=1e-4, abs=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    rolled, wanted = (
        model.loglikelihood_rolling(asked("loglikelihood_rolling", *[(text,) for text in TEXTS]))
        for model in (ours, stock)
    )
    assert rolled == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    return list(found)


def untrained(base: LanguageBackbone) -> ChainModel:
    """Return a chain that adds nothing to the base model yet: LoRA's B is zero."""
    return ChainModel(base, s3t_plan(Layout(1, 1, 1), Recipe(), base.layers).stages, Recipe(), 1)


def stock(path: Path, **how: Any) -> HFLM:
    return HFLM(pretrained=str(path), device="cpu", dtype="float32", batch_size=3, **how)


def train(run: Path, model: Path | str, shards: int) -> Path:
    rows = [{"instruction": f"repeat {WORDS[i % 10]}", "output": f"{WORDS[i % 10]} done"} for i in range(60)]
    (run.parent / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    call("train", run, "--data", run.parent / "rows.jsonl", "--model", model, "--shards", str(shards), *HOW)
    return run


@pytest.fixture(scope="module")
def run(small_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one shard; nothing changes it."""
    return train(tmp_path_factory.mktemp("one") / "run", small_llama, 1)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks of the harness on files: to choose the word that was asked for, to predict texts, and what cannot be judged."""
    folder = tmp_path_factory.mktemp("tasks")
    draw = np.random.default_rng(0)
    rows = [
        {
            "question": prompt(f"repeat {word}"),
            "choices": [" ".join([*draw.choice(WORDS, draw.integers(0, 3)), word]) for word in draw.permutation(WORDS)],
            "label": int(draw.integers(10)),
        }
        for word in WORDS * 3
    ]
    (folder / "words.json").write_text(json.dumps(rows))
    part = {"dataset_path": "json", "test_split": "test", "metadata": {"version": 1.0}}
    part["dataset_kwargs"] = {"data_files": {"test": str(folder / "words.json")}, "cache_dir": str(folder / "cache")}
    choose = part | {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [{"metric": name} for name in ("acc", "acc_norm")],
    }
    rolled = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{choices[label]}}"}
    rolled["metric_list"] = [{"metric": "word_perplexity"}]  # type: ignore[assignment]
    lost = {"data_files": {"test": str(folder / "lost.json")}}
    for name, config in {
        "choose": choose,
        "rolled": part | rolled,
        "write": part | {"output_type": "generate_until", "doc_to_text": "question", "doc_to_target": "label"},
        "lost": choose | {"dataset_kwargs": lost},
        "bare": choose | {"doc_to_choice": [" ", "red"]},
        "both": {"group": "both", "task": ["choose", "rolled"], "metadata": {"version": 1}},
    }.items():
        content = config if "group" in config else {"task": name, **config}
        (folder / f"{name}.yaml").write_text(json.dumps(content))  # JSON is YAML
    return folder


# ---- the same numbers as the harness's own model class ----


def test_a_run_of_one_shard_scores_as_its_export(run: Path, small_llama: Path, tasks: Path, tmp_path: Path) -> None:
    """Log-likelihoods, greediness, rolled texts, and the metrics of whole tasks."""
    call("export", run, "--shard", "0", "--out", tmp_path / "out", "--base", small_llama)
    reference = stock(small_llama, peft=str(tmp_path / "out"))
    with closing(System.open(run)) as system:
        ((_, chain),) = system.served().models.values()
        found = same(Ensemble([(chain, 1.0)]), reference)  # type: ignore[list-item]
    base = load(f"lm:{small_llama}", CPU)
    assert isinstance(base, LanguageBackbone)
    (plain,) = Ensemble([(untrained(base), 1.0)]).loglikelihood(asked("loglikelihood", PAIRS[0]))
    assert found[0][0] > plain[0] + 1.0, "what is compared is trained"
    told = json.loads(call("judge", run, "--tasks", "choose,rolled", "--include", tasks, "--json"))
    known = TaskManager(include_path=str(tasks), include_defaults=False)
    wanted = simple_evaluate(reference, tasks=["choose", "rolled"], task_manager=known)["results"]
    ours = {(row["task"], row["metric"]): row for row in told["scores"]}
    assert set(ours) == {("choose", "acc"), ("choose", "acc_norm"), ("rolled", "word_perplexity")}
    for (task, metric), row in ours.items():
        assert row["value"] == pytest.approx(wanted[task][f"{metric},none"], rel=1e-4)
        assert row["n"] == 30 and row["shots"] == 0
    assert ours["choose", "acc"]["stderr"] == pytest.approx(wanted["choose"]["acc_stderr,none"])
    assert ours["rolled", "word_perplexity"]["stderr"] is None
    assert 0 < ours["choose", "acc"]["value"] < 1 and told["shards"] == [0]


def test_the_base_model_scores_as_in_the_harness(small_llama: Path) -> None:
    base = load(f"lm:{small_llama}", CPU)
    assert isinstance(base, LanguageBackbone)
    same(Ensemble([(untrained(base), 1.0)]), stock(small_llama))


def test_byte_pairs_no_beginning_and_few_positions(tmp_path: Path) -> None:
    """A GPT-2 with merges across words, tied embeddings, and less room than the longest pairs take."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    words.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet)  # type: ignore[call-arg]
    words.train_from_iterator([" ".join(WORDS), "repeat red red done"] * 20, trainer)
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(tmp_path)
    torch.manual_seed(0)
    size: dict[str, int] = {"n_positions": 48, "n_embd": 16, "n_layer": 2, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(words.get_vocab()), **size, initializer_range=0.3)).save_pretrained(
        tmp_path
    )
    base = load(f"lm:{tmp_path}", CPU)
    assert isinstance(base, LanguageBackbone) and not base.words.begin
    ours = Ensemble([(untrained(base), 1.0)])
    assert len(ours.tok_encode(PAIRS[7][0])) > ours.max_length == 48
    same(ours, stock(tmp_path))


# ---- what is served ----


def test_an_ensemble_is_the_mean_of_its_live_chains(small_llama: Path, tmp_path: Path) -> None:
    """As System.predict has it; a shard that a deletion has ended is not asked any more."""
    run = train(tmp_path / "run", small_llama, 2)
    with closing(System.open(run)) as system:
        models, weights = system.served().live()
        chains: list[Any] = [(model, weights[shard]) for shard, (_, model) in models.items()]
        ours, alone = Ensemble(chains), [Ensemble([(chain, 1.0)]) for chain, _ in chains]
        totals = [[total for total, _ in each.loglikelihood(asked("loglikelihood", *PAIRS))] for each in (ours, *alone)]
        assert totals[0] == pytest.approx(np.mean(totals[1:], axis=0), rel=1e-5)
        assert not np.allclose(totals[1], totals[2], rtol=1e-3)
        row = {"text": prompt("repeat sun"), "answer": "sun done"}
        words = ours.backbone.words
        answer = [*words.ids(row["answer"]), words.end]
        ((total, _),) = ours.likelihoods([([*words.begin, *words.ids(row["text"])], answer)])
        assert total / len(answer) == pytest.approx(float(system.predict([row])[0, 0]), rel=1e-5)
        system.retire([(0, 0), (0, 1)])
        assert [shard for shard, _ in enumerate(alone) if shard in system.served().live()[0]] == [1]


def test_greedy_is_what_the_ensemble_finds_likeliest(small_llama: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", small_llama, 2)
    with closing(System.open(run)) as system:
        models, weights = system.served().live()
        ours = Ensemble([(model, weights[shard]) for shard, (_, model) in models.items()])  # type: ignore[misc]
    context = ours.tok_encode(prompt("repeat sun"))
    found = ours.likelihoods([(context, [token]) for token in range(18)])
    best = max(range(18), key=lambda token: found[token][0])
    assert [token for token, (_, greedy) in enumerate(found) if greedy] == [best]
    assert sum(np.exp(total) for total, _ in found) < 1.0, "a geometric mean of two distributions that differ"


def test_judging_follows_deletions(small_llama: Path, tasks: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", small_llama, 2)
    ask = ("judge", run, "--tasks", "choose", "--include", tasks, "--json")
    before = json.loads(call(*ask))
    with closing(System.open(run)) as system:
        system.retire([(0, 0), (0, 1)])
    after = json.loads(call(*ask))
    assert (before["shards"], after["shards"]) == ([0, 1], [1])
    with closing(System.open(run)) as system:
        system.retire([(1, 0), (1, 1)])
    assert "every shard is offline" in refused(*ask)


# ---- the command ----


def alone(names: object, include: Path) -> judging._Tasks:
    """Return a folder's tasks without the harness's own, whose index takes long to read."""
    return judging._Tasks(include_path=str(include), include_defaults=False)


def test_the_table_and_its_limits(run: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "_known", alone)
    seen: list[tuple[int, int, str]] = []
    with closing(System.open(run)) as system:
        found = judge(system, ["both"], limit=5, include=tasks, shots=2, progress=lambda *told: seen.append(told))
    rows = {(row.task, row.metric): row for row in found.scores}
    assert {row.n for row in rows.values()} == {5} and rows["choose", "acc"].shots == 2
    assert seen[-1][0] == seen[-1][1] and "judging" in seen[-1]
    lines = call("judge", run, "--tasks", "choose", "--include", tasks, "--limit", "5").splitlines()
    assert lines[0].split() == ["task", "metric", "value", "stderr", "n"]
    assert [line.split()[:2] for line in lines[1:3]] == [["choose", "acc"], ["choose", "acc_norm"]]
    assert lines[1].split()[-1] == "5" and "the first 5 documents" in lines[3]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (" , ", "names no task"),
        ("lost", r"task 'lost' or its data cannot be loaded: .*lost\.json"),
        ("choose,write", "writes none, which tasks write ask for; leave them out"),
        ("choose,choose", "task 'choose' is asked for twice"),
        ("bare", r"the continuation ' ' of .* has 0 tokens; this model scores 1\.\.2048"),
    ],
)
def test_tasks_that_cannot_be_judged(run: Path, tasks: Path, names: str, message: str) -> None:
    assert re.search(message, refused("judge", run, "--tasks", names, "--include", tasks))


def test_what_else_cannot_be_judged(run: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is no folder" in refused("judge", run, "--tasks", "choose", "--include", tmp_path / "none")
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(json.dumps({"text": f"a {i}", "label": "xy"[i % 2]}) for i in range(40))
    )
    classes = ("--data", tmp_path / "rows.jsonl", "--text", "text", "--label", "label", "--model", "tiny-2")
    call("train", tmp_path / "run", *classes, "--shards", "1", *HOW)
    said = refused("judge", tmp_path / "run", "--tasks", "choose", "--include", tasks)
    assert "answers with 2 classes; only runs of language models can be judged" in said
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.delitem(sys.modules, "s3t.judging")
    assert 'pip install "s3t[judge]"' in refused("judge", run, "--tasks", "choose", "--include", tasks)


def test_generation_is_refused_before_anything_is_computed(run: Path, tasks: Path) -> None:
    """Also for a task that does not say beforehand that it asks for it."""
    seen: list[object] = []
    with closing(System.open(run)) as system:
        with pytest.raises(DataError, match="which tasks write ask for"):
            judge(system, ["choose", "write"], include=tasks, progress=lambda *told: seen.append(told))
        assert not seen
        ((_, chain),) = system.served().models.values()
    with pytest.raises(DataError, match="which tasks some ask for"):
        Ensemble([(chain, 1.0)]).generate_until([SimpleNamespace(task_name="some")])  # type: ignore[list-item]


@pytest.mark.slow
def test_the_harness_has_tasks_of_its_own(run: Path, tasks: Path) -> None:
    """Its index knows the paper's judges, whose data are not here, and a folder's group finds its tasks beside them."""
    assert "task 'helaswag' is not known (did you mean 'hellaswag'?)" in refused("judge", run, "--tasks", "helaswag")
    known = judging._known(["hellaswag", "piqa", "arc_easy", "mmlu"], None)
    for name in ("hellaswag", "piqa", "arc_easy", "mmlu"):
        with pytest.raises(DataError, match=f"task '{name}' or its data cannot be loaded: Couldn't reach"):
            known.load([name])
    told = json.loads(call("judge", run, "--tasks", "both", "--include", tasks, "--limit", "2", "--json"))
    assert {row["task"] for row in told["scores"]} == {"choose", "rolled"}
