"""The numeric kernel: exactly the intended tensors change, the same bits each time, and a slow plain oracle agrees."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from s3t import training
from s3t.backbone import Backbone
from s3t.blocks import ChainModel, ModelState
from s3t.digests import tensors_digest
from s3t.errors import IsolationError, S3TError
from s3t.plan import Stage, s3t_plan
from s3t.records import Layout, Recipe
from s3t.training import Row, Seeds, Task, Trained, train_node

RECIPE = Recipe(rank=2, batch_size=4, lr=5e-3, dropout=0.1)
STAGES = s3t_plan(Layout(1, 3, 1), RECIPE, 6).stages
FULL = (Stage("full", "full", tuple(range(6)), 1.0),)
SEEDS = [Seeds(11, 12, 13), Seeds(21, 22, 23), Seeds(31, 32, 33)]
BATCHES = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [9, 0, 5, 2], [1]]


@pytest.fixture(scope="module")
def rows(tiny: Backbone) -> list[Row]:
    texts = [{"text": f"the cat {'sat ' * (i % 3)}on number {i}"} for i in range(10)]
    return [Row(encoded, i % 3) for i, encoded in enumerate(tiny.encode(texts, 32))]


def _train(tiny: Backbone, rows: list[Row], depth: int, state: ModelState | None, **changes: Any) -> Trained:
    given: dict[str, Any] = {"batches": BATCHES, "recipe": RECIPE, "seeds": SEEDS[depth - 1], "stages": STAGES[:depth]}
    given |= changes
    return train_node(tiny, Task(given["stages"], state, rows, given["batches"], given["recipe"], given["seeds"], 3))


def _state(trained: Trained, before: ModelState | None, stage: Stage) -> ModelState:
    return ModelState({**(before.adapters if before else {}), stage.adapter: trained.adapter}, trained.head)


@pytest.fixture(scope="module")
def chain(tiny: Backbone, rows: list[Row]) -> list[tuple[ModelState | None, Trained]]:
    """Three stages, each with the state it started from."""
    out, state = [], None
    for depth in (1, 2, 3):
        trained = _train(tiny, rows, depth, state)
        out.append((state, trained))
        state = _state(trained, state, STAGES[depth - 1])
    return out


def _bits(trained: Trained) -> str:
    return tensors_digest({**trained.adapter, **trained.head})


def _oracle(
    tiny: Backbone, rows: list[Row], depth: int, before: ModelState | None, recipe: Recipe, seeds: Seeds
) -> dict[str, Tensor]:
    """One stage in plain PyTorch and PEFT, written from docs/DERIVATION.md and the recipe's docstring alone."""
    torch.manual_seed(seeds.dropout)
    model: Any = copy.deepcopy(tiny.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, stage in enumerate(STAGES[:depth]):
            config = LoraConfig(
                r=recipe.rank,
                lora_alpha=int(recipe.alpha),
                lora_dropout=recipe.dropout,
                target_modules=["query", "value"],
                layers_to_transform=list(stage.layers),
                layers_pattern="layer",
            )
            model = get_peft_model(model, config, stage.adapter) if number == 0 else model
            if number:
                model.add_adapter(stage.adapter, config)
    model.base_model.set_adapter([stage.adapter for stage in STAGES[:depth]])
    model.eval()
    head = nn.Linear(32, 3)
    name = STAGES[depth - 1].adapter
    if before is None:
        draw = torch.Generator().manual_seed(seeds.head)
        head.weight.data = torch.randn(3, 32, generator=draw) * 0.02
        head.bias.data.zero_()
    else:
        head.load_state_dict(dict(before.head))
        for adapter, tensors in before.adapters.items():
            set_peft_model_state_dict(model, dict(tensors), adapter_name=adapter)
    model.requires_grad_(False)
    draw, body = torch.Generator().manual_seed(seeds.adapter), []
    for layer in STAGES[depth - 1].layers:
        attention = model.base_model.model.encoder.layer[layer].attention.self
        for module in (attention.query, attention.value):
            first, second = module.lora_A[name].weight, module.lora_B[name].weight
            first.data = (torch.rand(first.shape, generator=draw) * 2 - 1) * 32**-0.5
            second.data = torch.zeros_like(second)
            module.lora_dropout[name].train()
            body += [first.requires_grad_(True), second.requires_grad_(True)]
    torch.manual_seed(seeds.dropout)
    groups = [{"params": body, "lr": recipe.lr}, {"params": [head.weight, head.bias], "lr": recipe.head_lr}]
    optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    rising = math.ceil(recipe.warmup * len(BATCHES))
    for step, batch in enumerate(BATCHES):
        share = (step + 1) / rising if step < rising else (len(BATCHES) - step) / (len(BATCHES) - rising)
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = recipe.lr * share, recipe.head_lr * share
        longest = max(rows[i].encoded.length for i in batch)
        padded = [rows[i].encoded.fields["input_ids"] for i in batch]
        ids = torch.tensor([words + [0] * (longest - len(words)) for words in padded])
        mask = torch.tensor([[1] * len(words) + [0] * (longest - len(words)) for words in padded])
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        real = mask[:, :, None].float()
        logits = head((hidden * real).sum(1) / real.sum(1))
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, torch.tensor([rows[i].label for i in batch])).backward()
        nn.utils.clip_grad_norm_([*body, head.weight, head.bias], recipe.clip)
        optimizer.step()
    tensors = get_peft_model_state_dict(model, adapter_name=name)
    return {k: v.detach().clone() for k, v in {**tensors, **head.state_dict()}.items()}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_slow_plain_oracle_gives_the_same_bits(
    tiny: Backbone, rows: list[Row], chain: list[tuple[ModelState | None, Trained]], depth: int, dropout: float
) -> None:
    before, recipe = chain[depth - 1][0], dataclasses.replace(RECIPE, dropout=dropout)
    found = _train(tiny, rows, depth, before, recipe=recipe)
    with torch.random.fork_rng(devices=[]):
        wanted = _oracle(tiny, rows, depth, before, recipe, SEEDS[depth - 1])
    assert {**found.adapter, **found.head}.keys() == wanted.keys()
    for name, tensor in {**found.adapter, **found.head}.items():
        assert torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_exactly_the_intended_tensors_change(
    tiny: Backbone,
    rows: list[Row],
    chain: list[tuple[ModelState | None, Trained]],
    depth: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = tensors_digest(tiny.model.state_dict())
    models: list[ChainModel] = []
    snapshots: list[dict[str, Tensor]] = []
    run = training._run

    def watched(model: ChainModel, *args: Any) -> None:
        models.append(model)
        snapshots.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        run(model, *args)

    monkeypatch.setattr(training, "_run", watched)
    _train(tiny, rows, depth, chain[depth - 1][0])
    after = models[0].state_dict()
    changed = {name for name, tensor in snapshots[0].items() if not torch.equal(tensor, after[name])}
    own = {name for name in after if f".{STAGES[depth - 1].adapter}." in name or name.startswith("head.")}
    assert changed == own
    assert len(own) == 2 * 2 * 2 + 2
    assert tensors_digest(tiny.model.state_dict()) == base
    assert not any(parameter.requires_grad for parameter in tiny.model.parameters())


@pytest.mark.parametrize("fault", ["everything", "an earlier block", "nothing of the head", "twice"])
def test_a_wrong_optimizer_is_refused(
    tiny: Backbone,
    rows: list[Row],
    chain: list[tuple[ModelState | None, Trained]],
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models: list[ChainModel] = []
    real, run = torch.optim.AdamW, training._run

    def watched(model: ChainModel, *args: Any) -> None:
        models.append(model)
        run(model, *args)

    def planted(groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
        if fault == "everything":
            groups[0]["params"] = list(models[0].body.parameters())
        elif fault == "an earlier block":
            groups[0]["params"] = [*groups[0]["params"], *models[0].adapter_parameters("block-00")]
        elif fault == "nothing of the head":
            groups = groups[:1]
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return real(
                    [{**groups[0], "params": [*groups[0]["params"], groups[0]["params"][0]]}, groups[1]], **options
                )
        return real(groups, **options)

    monkeypatch.setattr(training, "_run", watched)
    monkeypatch.setattr(training.torch.optim, "AdamW", planted)
    with pytest.raises(IsolationError, match=r"the optimizer holds \d+ tensors and \d+ require gradients"):
        _train(tiny, rows, 2, chain[1][0])


def test_a_tensor_left_learning_is_refused(
    tiny: Backbone, rows: list[Row], chain: list[tuple[ModelState | None, Trained]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = training._run

    def planted(model: ChainModel, *args: Any) -> None:
        model.adapter_parameters("block-00")[0].requires_grad_(True)
        run(model, *args)

    monkeypatch.setattr(training, "_run", planted)
    with pytest.raises(IsolationError, match="require gradients; the stage owns 10"):
        _train(tiny, rows, 2, chain[1][0])


def test_a_change_past_the_optimizer_is_found(
    tiny: Backbone, rows: list[Row], chain: list[tuple[ModelState | None, Trained]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = training._run

    def planted(model: ChainModel, *args: Any) -> None:
        run(model, *args)
        model.adapter_parameters("block-00")[0].data[0, 0] += 1e-7

    monkeypatch.setattr(training, "_run", planted)
    with pytest.raises(IsolationError, match="training adapter 'block-01' changed a tensor outside it"):
        _train(tiny, rows, 2, chain[1][0])


def test_the_same_bits_each_time_and_amid_others(
    tiny: Backbone, rows: list[Row], chain: list[tuple[ModelState | None, Trained]]
) -> None:
    """Alone, after others, in another order, with other global state: the node is a function of its inputs."""
    wanted = [_bits(trained) for _, trained in chain]
    threads_of_others = torch.random.get_rng_state()
    for depth in (3, 1, 2, 3):
        torch.manual_seed(depth * 1000)
        _train(tiny, rows[:6], 1, None, batches=[[0, 1], [2]], seeds=Seeds(7, 8, 9))
        assert _bits(_train(tiny, rows, depth, chain[depth - 1][0])) == wanted[depth - 1]
    torch.random.set_rng_state(threads_of_others)


def test_global_state_is_left_alone(tiny: Backbone, rows: list[Row]) -> None:
    before = torch.random.get_rng_state()
    _train(tiny, rows, 1, None)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("purpose", ["adapter", "head", "dropout"])
def test_each_seed_matters(tiny: Backbone, rows: list[Row], purpose: str) -> None:
    first = _train(tiny, rows, 1, None)
    other = _train(tiny, rows, 1, None, seeds=dataclasses.replace(SEEDS[0], **{purpose: 99}))
    assert _bits(first) != _bits(other)


def test_without_rows_no_step_is_taken(tiny: Backbone, chain: list[tuple[ModelState | None, Trained]]) -> None:
    first = _train(tiny, [], 1, None, batches=[])
    assert (first.optimizer_steps, first.record_passes, first.layer_passes) == (0, 0, 0)
    assert not any(tensor.any() for name, tensor in first.adapter.items() if "lora_B" in name)
    before = chain[1][0]
    assert before is not None
    second = _train(tiny, [], 2, before, batches=[])
    assert tensors_digest(second.head) == tensors_digest(before.head)


def test_work_is_counted_as_documented(
    tiny: Backbone, chain: list[tuple[ModelState | None, Trained]], rows: list[Row]
) -> None:
    """SPEC section 4: stage i costs a forward through n layers and a backward through i k."""
    passes = sum(map(len, BATCHES))
    for depth, (_, trained) in enumerate(chain, start=1):
        assert trained.optimizer_steps == len(BATCHES)
        assert trained.record_passes == passes
        assert trained.layer_passes == passes * (6 + 2 * depth)
    full = _train(tiny, rows, 1, None, stages=FULL)
    assert full.layer_passes == passes * 12


def test_full_fine_tuning_moves_its_copy_alone(tiny: Backbone, rows: list[Row]) -> None:
    base = tensors_digest(tiny.model.state_dict())
    trained = _train(tiny, rows, 1, None, stages=FULL)
    assert tensors_digest(tiny.model.state_dict()) == base
    still = [n for n, t in trained.adapter.items() if torch.equal(t, tiny.model.state_dict()[n])]
    assert all("position_ids" in name or "token_type_ids" in name for name in still)


def test_an_adapter_of_the_same_name_continues(tiny: Backbone, rows: list[Row]) -> None:
    stages = (Stage("all", "lora", tuple(range(6)), 1.0),) * 2
    first = _train(tiny, rows, 1, None, stages=stages[:1])
    second = _train(tiny, [], 2, ModelState({"all": first.adapter}, first.head), stages=stages, batches=[])
    assert _bits(second) == _bits(first)
    third = _train(tiny, rows, 2, ModelState({"all": first.adapter}, first.head), stages=stages)
    assert _bits(third) != _bits(first)


def test_divergence_is_an_error(tiny: Backbone, rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    real = nn.functional.cross_entropy
    monkeypatch.setattr(training.nn.functional, "cross_entropy", lambda *args: real(*args) * float("nan"))
    with pytest.raises(S3TError, match=r"training diverged at step 0 \(gradient norm nan\); lower lr=0.005"):
        _train(tiny, rows, 1, None)


def test_learning_rates_rise_and_fall_linearly() -> None:
    shares = [training.schedule(step, 10, 0.3) for step in range(10)]
    assert shares == pytest.approx([1 / 3, 2 / 3, 1, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7])
    assert training.schedule(0, 1, 0.0) == training.schedule(0, 1, 1.0) == 1.0


def test_reproducible_restores_after_an_error() -> None:
    before = torch.random.get_rng_state()

    def fail() -> None:
        with training.reproducible(1, torch.device("cpu")):
            assert torch.are_deterministic_algorithms_enabled()
            torch.rand(3)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()
