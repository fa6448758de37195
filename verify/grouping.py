"""Do nodes trained together as grouped adapters keep their bits? Conditions for :mod:`verify.determinism`.

A library chooses how to compute a product by its shape, so a node's bits may depend on how many companions it has, on its place
among them, or not at all. Measured twice: on one layer of the base model whose frozen product a group shares, which is why
the engine ``grouped`` shares none and has groups of one size; and on that engine itself, with images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any

from s3t.engine.mode import GROUP
from verify.determinism import Condition
from verify.plans import documented_plan

if TYPE_CHECKING:
    from torch import Tensor

    from s3t.images import ImageBackbone
    from s3t.training import Row
    from verify.conditions import Bench

SHAPE = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 384}
"""The vision transformer whose nodes are trained, of 32 pixels in patches of 4: 65 tokens."""
BATCHES = ((32, 32, 7), (20,), (1, 32, 32, 5))
"""Sizes of a node's batches, by its number: companions have others, and end earlier or later."""
TOKENS, RANK = (12, 96), 4
"""Tokens in each node's batch, few and many, and the rank of its adapter."""
ALWAYS = GROUP
"""Nodes in a group of a fixed size."""


def grouped(
    bench: Bench, precision: str, tokens: int, size: int, place: int = 0, company: int = 0, device: str = "cpu"
) -> Mapping[str, Tensor]:
    """Return what a layer's first projection with an adapter makes of a node's ``tokens``, and the adapter's gradients.

    The node stands at ``place`` in a group of ``size``; the others' batches and adapters are random, drawn from ``company``.
    """
    import torch

    from s3t.training import reproducible

    dtype = getattr(torch, precision)
    module = bench.backbone.layer_modules(bench.backbone.model)[0]
    weight = next(m.weight for m in module.modules() if isinstance(m, torch.nn.Linear)).detach().to(device, dtype)
    outputs, inputs = weight.shape
    own, others = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2 + company)

    def stacked(*shape: int) -> Tensor:
        parts = [torch.randn(shape, generator=own if at == place else others) for at in range(size)]
        return torch.stack(parts).to(device, dtype)

    with reproducible(0, torch.device(device)):
        x, a, b, wanted = (
            stacked(*shape) for shape in ((tokens, inputs), (RANK, inputs), (outputs, RANK), (tokens, outputs))
        )
        a.requires_grad_(True), b.requires_grad_(True)
        frozen = (x.reshape(-1, inputs) @ weight.t()).view(size, tokens, outputs)
        out = frozen + torch.bmm(torch.bmm(x, a.transpose(1, 2)), b.transpose(1, 2))
        grads = torch.autograd.grad((out * wanted).sum(), [a, b])
    found = {"output": out, "gradient of A": grads[0], "gradient of B": grads[1]}
    return {name: tensor[place].detach().float().cpu() for name, tensor in found.items()}


@cache
def images(device: str) -> tuple[ImageBackbone, tuple[Row, ...]]:
    """Return a vision transformer of ``SHAPE``, random weights, and 40 images of random bytes in three classes."""
    import torch
    from transformers import ViTConfig, ViTModel

    from s3t.images import image_backbone
    from s3t.training import Row

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViTModel(ViTConfig(**SHAPE, image_size=32, patch_size=4), add_pooling_layer=False)  # type: ignore[arg-type]
    backbone = image_backbone(model, "vit, random weights", torch.device(device))
    given = torch.randint(256, (40, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return backbone, tuple(Row(image, i % 3, i % 2) for i, image in enumerate(backbone.resident(given)))


def engine(precision: str, size: int, place: int, company: int, device: str) -> Mapping[str, Tensor]:
    """Return what the engine ``grouped`` trains of a node at ``place`` in a group of ``size``, in two stages, with dropout.

    ``company``: which other nodes there are; each has rows, batches, seeds and a parent of its own.
    """
    import torch

    from s3t.blocks import ModelState
    from s3t.engine.grouped import train_group
    from s3t.records import Recipe
    from s3t.training import Seeds, Task, Trained

    backbone, rows = images(device)
    recipe = Recipe(rank=RANK, batch_size=32, dropout=0.1)
    plan = documented_plan("s3t", shards=1, slices=2, budget=1, layers=backbone.layers, epochs=4.0)
    assert plan is not None
    stages: Any = plan.stages
    parents: list[ModelState | None] = [None] * size
    for stage in (1, 2):
        tasks = []
        for at, parent in enumerate(parents):
            number = 0 if at == place else 1 + at + size * company
            draw = torch.Generator().manual_seed(number)
            batches = [torch.randperm(len(rows), generator=draw)[:n].tolist() for n in BATCHES[number % len(BATCHES)]]
            tasks.append(Task(stages[:stage], parent, rows, batches, recipe, Seeds(number, number, number), 3))
        found = train_group(backbone, tasks, precision=precision, keeps=[None] * size)  # type: ignore[arg-type]
        parents = []
        for task, done in zip(tasks, found, strict=True):
            assert isinstance(done, Trained)
            before = task.parent.adapters if task.parent else {}
            parents.append(ModelState({**before, task.stage.adapter: done.adapter}, done.head))
    mine = parents[place]
    assert mine is not None
    tensors = {f"{stage}.{name}": t for stage, named in mine.adapters.items() for name, t in named.items()}
    return {**tensors, **{f"head.{name}": t for name, t in mine.head.items()}}


def conditions(bench: Bench, device: str = "cpu", lacking: str = "") -> Iterator[Condition]:
    """Yield the conditions on ``device``; ``lacking`` says why they cannot be tried, or nothing."""
    for precision, tokens in product(("float32", "bfloat16"), TOKENS):
        fixed = (bench, precision, tokens)

        def run(
            size: int, place: int = 0, company: int = 0, fixed: tuple[Bench, str, int] = fixed
        ) -> Callable[[], Mapping[str, Tensor]]:
            return lambda: grouped(*fixed, size, place, company, device)

        for name, usual, changed in (
            ("2 nodes, not 1", run(1), run(2)),
            (f"{ALWAYS} nodes, not 2", run(2), run(ALWAYS)),
            (f"always {ALWAYS}, other companions", run(ALWAYS), run(ALWAYS, company=1)),
            (f"always {ALWAYS}, another place", run(ALWAYS), run(ALWAYS, place=ALWAYS - 1)),
        ):
            about = f"grouped adapters, {precision}, {tokens} tokens: {name}"
            yield Condition(about, "training", usual, changed, lacking, device)
    for precision in ("float32", "bfloat16"):

        def trained(
            size: int, place: int = 0, company: int = 0, precision: str = precision
        ) -> Callable[[], Mapping[str, Tensor]]:
            return lambda: engine(precision, size, place, company, device)

        for name, changed in (
            (f"{ALWAYS} nodes, not alone", trained(ALWAYS)),
            (f"{ALWAYS} nodes, the last place", trained(ALWAYS, ALWAYS - 1)),
            ("3 other nodes, the second place", trained(4, 1, 1)),
        ):
            yield Condition(f"engine grouped, {precision}: {name}", "training", trained(1), changed, lacking, device)
