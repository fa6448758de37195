"""Would nodes trained together as grouped adapters keep their bits? Conditions for :mod:`verify.determinism`.

A group shares one product with the frozen weight and has its adapters' products batched. A library chooses how to compute a
product by its shape, so a node's bits may depend on how many companions it has, on its place among them, or not at all:
measured here, forward and backward, on a layer of the base model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import TYPE_CHECKING

from verify.determinism import Condition

if TYPE_CHECKING:
    from torch import Tensor

    from verify.conditions import Bench

TOKENS, RANK = (12, 96), 4
"""Tokens in each node's batch, few and many, and the rank of its adapter."""
ALWAYS = 8
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
