"""Whose numeric code a clean room uses: the kernel that it shares with the system, or the oracle of the verifier's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from s3t.records import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from s3t.backbone import Encoded

Kernel = Literal["shared", "oracle"]
"""Whose numeric code a clean room uses: the system's (s3t.training), or the slow one of its own (verify.kernel)."""


@dataclass(frozen=True)
class Numerics:
    """A numeric kernel: its version, the records it takes, and what it does with them."""

    version: str
    row: Callable[..., Any]
    seeds: Callable[..., Any]
    state: Callable[..., Any]
    task: Callable[..., Any]
    train: Callable[..., Any]
    score: Callable[..., list[Tensor]]


def numerics(kernel: Kernel, version: str) -> Numerics:
    """Return the numeric kernel of that name: the system's own of ``version``, or the oracle, which has one version.

    S3TError if the system has no such version here.
    """
    if kernel == "oracle":
        from verify import kernel as slow

        def apart(
            backbone: Any, chains: Sequence[tuple[Any, Any]], rows: Any, recipe: Recipe, classes: int
        ) -> list[Tensor]:
            return [slow.score_slowly(backbone, *chain, rows, recipe, classes) for chain in chains]

        def row(encoded: Encoded, label: int | float, piece: int) -> slow.Row:
            return slow.Row(encoded, label, piece)

        return Numerics(slow.KERNEL, row, slow.Seeds, slow.State, slow.Task, slow.train_node_slowly, apart)
    from s3t import training
    from s3t.blocks import ModelState
    from s3t.engine.numerics import Numerics as Engine

    engine = Engine.of(version)

    def together(
        backbone: Any, chains: Sequence[tuple[Any, Any]], rows: Any, recipe: Recipe, classes: int
    ) -> list[Tensor]:
        models = {i: engine.chain(backbone, *chain, recipe, classes) for i, chain in enumerate(chains)}
        found = engine.score(models, rows)
        return [found[i] for i in range(len(chains))]

    return Numerics(version, training.Row, training.Seeds, ModelState, training.Task, engine.train, together)
