"""Small training and inference runs under one changed condition each; :mod:`verify.determinism` compares their bits.

Everything is a plain loop over the suite's model of a chain, for the kernel itself refuses most of these conditions.
"""

from __future__ import annotations

import copy
import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s3t.backbone import Backbone, Encoded, load
from s3t.blocks import ChainModel, ModelState, score
from s3t.engine.activations import Activations, activate
from s3t.engine.encoder import Encoder
from s3t.engine.mode import Mode
from s3t.engine.numerics import Numerics
from s3t.records import Recipe
from s3t.training import Keep, Row, Seeds, Task, reproducible, train_node
from verify.plans import Stage, documented_plan

Tensors = Mapping[str, Tensor]
CLASSES, ROWS, BATCH = 3, 24, 8
RECIPE = Recipe(rank=4, lr=4e-3, epochs=1.0, batch_size=BATCH)
SEED = 20240616
WORDS = ("amber", "birch", "cedar", "dune", "ember", "fjord", "grove", "heath", "islet", "jetty")


@dataclass(frozen=True)
class Bench:
    """A base model on its device, the stages of a chain of three blocks, and encoded rows with labels."""

    backbone: Backbone
    stages: tuple[Stage, ...]
    rows: tuple[Row, ...]


def make_bench(model: str, device: torch.device) -> Bench:
    """Load ``model`` and encode 24 rows of 4 to 12 words. ModelError if it cannot be loaded."""
    backbone = load(model, device)
    plan = documented_plan("s3t", shards=1, slices=3, budget=1, layers=backbone.layers, epochs=1.0)
    assert plan is not None
    texts = [{"text": " ".join(WORDS[(i * j + j) % 10] for j in range(1, 5 + i % 9))} for i in range(ROWS)]
    encoded = backbone.encode(texts, RECIPE.max_length)
    return Bench(backbone, plan.stages, tuple(Row(row, i % CLASSES) for i, row in enumerate(encoded)))


@dataclass(frozen=True)
class Padded(Backbone):
    """A base model whose batches are padded to 16 tokens more than their longest row."""

    def collate(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """Pad with one dummy row, which is dropped again."""
        longest = max(row.length for row in rows) + 16
        dummy = Encoded({name: [pad] * longest for name, pad in self.pad.items()}, longest)
        return {name: tensor[:-1] for name, tensor in super().collate([*rows, dummy]).items()}


def padded(backbone: Backbone) -> Backbone:
    """Return ``backbone`` with more padding."""
    return Padded(**{field.name: getattr(backbone, field.name) for field in dataclasses.fields(Backbone) if field.init})


def kernel(bench: Bench, backbone: Backbone | None = None, dropout: float = 0.0) -> Tensors:
    """Train the first block with the numeric kernel, 12 steps; return adapter and head."""
    recipe = dataclasses.replace(RECIPE, dropout=dropout)
    batches = [[(start + i) % ROWS for i in range(BATCH)] for start in range(0, 12 * BATCH, BATCH)]
    stages: Any = bench.stages[:1]
    seeds = Seeds(SEED, SEED + 1, SEED + 2)
    done = train_node(backbone or bench.backbone, Task(stages, None, bench.rows, batches, recipe, seeds, CLASSES))
    return {**done.adapter, **{f"head.{name}": tensor for name, tensor in done.head.items()}}


def nodes(bench: Bench, name: str, *, dropout: float = 0.0, keep: Keep | None = None) -> Tensors:
    """Train two nodes of a chain, 12 steps each, with the kernel called ``name``; return their adapters and the last head."""
    recipe = dataclasses.replace(RECIPE, dropout=dropout)
    batches = [[(start + i) % ROWS for i in range(BATCH)] for start in range(0, 12 * BATCH, BATCH)]
    rows = [dataclasses.replace(row, piece=i % 2) for i, row in enumerate(bench.rows)]
    state, seeds = None, Seeds(SEED, SEED + 1, SEED + 2)
    for length in (1, 2):
        stages: Any = bench.stages[:length]
        task = Task(stages, state, rows, batches, recipe, seeds, CLASSES)
        done = Numerics.of(name).train(bench.backbone, task, keep)
        state = ModelState({**(state.adapters if state else {}), stages[-1].adapter: done.adapter}, done.head)
    assert state is not None
    adapters = {tensor: value for adapter in state.adapters.values() for tensor, value in adapter.items()}
    return {**adapters, **{f"head.{tensor}": value for tensor, value in state.head.items()}}


def kept(bench: Bench, name: str, budget: int, folder: Path | None = None) -> Tensors:
    """Train as :func:`nodes` does, with activations kept in ``budget`` bytes of memory, beyond that in files in ``folder``."""
    store = Activations(budget, folder)
    depths = sorted({min(layer for stage in bench.stages[: i + 1] for layer in stage.layers) for i in range(2)})

    def keep(piece: int, depth: int, make: Any) -> Any:
        return store.get(str(piece), depth, lambda: make(depths))

    try:
        return nodes(bench, name, keep=keep)
    finally:
        store.close()


def prefix(bench: Bench, name: str, company: bool) -> Tensors:
    """Return what the frozen layers make of a row of 4 words, alone or in a batch with one of 50, padded to it."""
    mode = Mode.of(name)
    assert mode is not None
    encoder = Encoder.of(bench.backbone, mode.precision)
    texts = [{"text": " ".join(WORDS[:4])}, {"text": " ".join(WORDS * 5)}]
    rows = bench.backbone.encode(texts[: 1 + company], RECIPE.max_length)
    pieces = activate(encoder, rows, [bench.backbone.layers - 1])
    return {"hidden": pieces[bench.backbone.layers - 1].row(0)}


def ensemble(bench: Bench, name: str, together: bool) -> Tensors:
    """Return the logits of three chains of one, two and three stages with random tensors, scored together or each alone."""
    engine, chains = Numerics.of(name), {}
    for length in (1, 2, 3):
        model, stages = chain(bench, length), bench.stages[:length]
        state = ModelState({s.adapter: model.adapter_tensors(s.adapter) for s in stages}, model.head_tensors())
        given: Any = stages
        chains[length] = engine.chain(bench.backbone, given, state, RECIPE, CLASSES)
    rows = [row.encoded for row in bench.rows]
    groups = [chains] if together else [{shard: model} for shard, model in chains.items()]
    return {f"logits {shard}": found for group in groups for shard, found in engine.score(group, rows).items()}


@dataclass(frozen=True)
class How:
    """The conditions of :func:`learn`; the defaults are those of the kernel.

    ``dropout`` is 0 where a condition changes the shapes that masks are drawn for: bits are to differ by arithmetic alone.
    ``split``: micro-batches per step. ``restore``: what a checkpoint in the middle brings back ("": there is none).
    """

    fused: bool = False
    foreach: bool = False
    split: int = 1
    bf16: bool = False
    compiled: bool = False
    deterministic: bool = True
    restore: str = ""
    dropout: float = 0.0


def learn(bench: Bench, how: How | None = None, steps: int = 6) -> Tensors:
    """Train the first block and the head for ``steps`` steps of plain AdamW; return their tensors."""
    how, device = how or How(), bench.backbone.device
    with reproducible(SEED, device):
        torch.use_deterministic_algorithms(how.deterministic)
        model, optimizer = _fresh(bench, how)
        for step in range(steps):
            if how.restore and step == steps // 2:
                model, optimizer = _restored(bench, how, model, optimizer)
            forward: Any = torch.compile(model) if how.compiled else model
            chosen = [(step * BATCH + i) % ROWS for i in range(BATCH)]
            _step(bench, forward, optimizer, chosen, how)
        return {name: tensor.detach().cpu().clone() for name, tensor in _trained(model)}


def _fresh(bench: Bench, how: How) -> tuple[ChainModel, torch.optim.Optimizer]:
    stages: Any = bench.stages[:1]
    model = ChainModel(bench.backbone, stages, dataclasses.replace(RECIPE, dropout=how.dropout), CLASSES)
    model.initialise_head(SEED)
    model.initialise(stages[0].adapter, SEED)
    for dropout in model.dropouts(stages[0].adapter):
        dropout.train()
    parameters = [tensor for _, tensor in _trained(model)]
    for parameter in parameters:
        parameter.requires_grad_(True)
    torch.manual_seed(SEED)
    return model, torch.optim.AdamW(parameters, lr=RECIPE.lr, fused=how.fused, foreach=how.foreach and not how.fused)


def _trained(model: ChainModel) -> list[tuple[str, Tensor]]:
    parts = [(f"adapter.{i}", p) for i, p in enumerate(model.adapter_parameters(next(iter(model.stages))))]
    return [*parts, *((f"head.{name}", p) for name, p in model.head.named_parameters())]


def _step(bench: Bench, forward: Any, optimizer: torch.optim.Optimizer, chosen: Sequence[int], how: How) -> None:
    device, size = bench.backbone.device, len(chosen) // how.split
    mixed: Any = torch.autocast(device.type, dtype=torch.bfloat16) if how.bf16 else nullcontext()
    batch = bench.backbone.collate([bench.rows[i].encoded for i in chosen])
    labels = torch.tensor([bench.rows[i].label for i in chosen], device=device)
    for start in range(0, len(chosen), size):
        part = {name: tensor[start : start + size] for name, tensor in batch.items()}
        with mixed:
            loss = nn.functional.cross_entropy(forward(part), labels[start : start + size])
        (loss / how.split).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()


def _restored(
    bench: Bench, how: How, model: ChainModel, optimizer: torch.optim.Optimizer
) -> tuple[ChainModel, torch.optim.Optimizer]:
    """Write a checkpoint to bytes and go on from it in a model and an optimizer of its own."""
    file = io.BytesIO()
    device = bench.backbone.device
    state = {
        "tensors": dict(_trained(model)),
        "optimizer": optimizer.state_dict(),
        "rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state(),
    }
    torch.save(state, file)
    file.seek(0)
    read = torch.load(file, weights_only=True)
    model, optimizer = _fresh(bench, how)
    with torch.no_grad():
        for name, tensor in _trained(model):
            tensor.copy_(read["tensors"][name])
    if how.restore == "everything":
        optimizer.load_state_dict(read["optimizer"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(read["rng"].cpu(), device)
    else:
        torch.set_rng_state(read["rng"])
    return model, optimizer


def chain(bench: Bench, length: int, blocks: int | None = None) -> ChainModel:
    """Return the chain of the first ``blocks`` stages with random tensors, of which the first ``length`` are active."""
    stages: Any = bench.stages[: blocks or length]
    model = ChainModel(bench.backbone, stages, RECIPE, CLASSES)
    model.initialise_head(SEED)
    generator = torch.Generator().manual_seed(SEED)
    for stage in stages:
        model.initialise(stage.adapter, SEED)
        for parameter in model.adapter_parameters(stage.adapter):
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    model.body.base_model.set_adapter([stage.adapter for stage in stages[:length]], inference_mode=True)
    return model


def scores(model: ChainModel, rows: Sequence[Row], batch_size: int = 64) -> Tensors:
    """Return the logits of ``rows``, shape (len(rows), classes)."""
    return {"logits": score(model, [row.encoded for row in rows], batch_size)}


def merged(model: ChainModel) -> ChainModel:
    """Return a copy of ``model`` whose adapters are added to the weights of the base model."""
    own = copy.deepcopy(model)
    own.body.merge_adapter()
    return own


@contextmanager
def tensor_float_32() -> Iterator[None]:
    """Run the body with TF32 matrix products on CUDA."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
