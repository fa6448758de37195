"""How S3T's blocks lie in the model and what a stage begins with: the choices that SPEC leaves open, and an ablation turns.

The paper adapts equal blocks from the output side, cumulatively, with one head that continues (arXiv 2406.16257, section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from s3t.errors import LayoutError


@dataclass(frozen=True)
class Design:
    """Choices within S3T. ``block_layers``: layers per block, one number for all or one per stage; None: layers // slices.

    ``bottom_up``: the same layers, but the first block is the lowest of them. ``cumulative``: a stage reads all slices of its
    prefix, else its last slice alone. ``fresh_head``: every stage begins with a head of its own seed, else with that of the
    stage before. ``stacked``: every block is on all layers, beside the frozen ones, instead of on some of its own. Raises
    LayoutError for a block without a layer, and for stacked blocks with layers or a direction of their own.
    """

    block_layers: int | tuple[int, ...] | None = None
    bottom_up: bool = False
    cumulative: bool = True
    fresh_head: bool = False
    stacked: bool = False

    def __post_init__(self) -> None:
        given = self.block_layers
        if self.stacked and (given is not None or self.bottom_up):
            raise LayoutError("stacked blocks are on all layers, so they have no numbers of layers and no direction")
        sizes = given if isinstance(given, tuple) else () if given is None else (given,)
        if given == () or any(size < 1 for size in sizes):
            raise LayoutError(f"block_layers={given!r} leaves a block without a layer; give at least 1 for each")

    def over(self, slices: int) -> Design:
        """Return the design with one number of layers per stage. LayoutError for as many numbers as there are no slices."""
        given = self.block_layers
        if given is None:
            return self
        sizes = (given,) * slices if isinstance(given, int) else given
        if len(sizes) != slices:
            raise LayoutError(f"{len(sizes)} numbers of block layers for {slices} slices; give one, or one per slice")
        return replace(self, block_layers=sizes)

    def blocks(self, layers: int, slices: int) -> list[tuple[int, ...]]:
        """Return each stage's layers (indices from the input side, ascending) in a model of so many ``layers``.

        Adapted are the layers at the top, whatever the direction; those left over at the bottom stay without adapters.
        Raises LayoutError for more slices than layers, blocks that do not fit, and as :meth:`over`.
        """
        if self.stacked:
            return [tuple(range(layers))] * slices
        if slices > layers:
            raise LayoutError(
                f"slices={slices} exceeds the model's {layers} layers; a block needs a layer, so give 1..{layers}"
            )
        sizes = self.over(slices).block_layers
        if not isinstance(sizes, tuple):
            sizes = (layers // slices,) * slices
        if sum(sizes) > layers:
            told = " + ".join(map(str, sizes))
            raise LayoutError(f"blocks of {told} layers exceed the model's {layers}; give smaller ones")
        lowest = layers - sum(sizes)
        below = [sum(sizes[:i] if self.bottom_up else sizes[i + 1 :]) for i in range(slices)]
        return [tuple(range(lowest + start, lowest + start + size)) for start, size in zip(below, sizes, strict=True)]

    def __str__(self) -> str:
        """Return what differs from the paper, in words; nothing if nothing does."""
        given = self.block_layers
        words = (
            []
            if given is None
            else [f"blocks of {', '.join(map(str, given if isinstance(given, tuple) else [given]))}"]
        )
        words += (
            ["stacked"] * self.stacked + ["bottom-up"] * self.bottom_up + ["not cumulative"] * (not self.cumulative)
        )
        return ", ".join(words + ["fresh heads"] * self.fresh_head)

    def to_json(self) -> dict[str, Any]:
        """Return what differs from the paper as JSON values, ``cumulative`` aside: the plan states it in any case."""
        given = self.block_layers
        raw: dict[str, Any] = (
            {} if given is None else {"block_layers": list(given) if isinstance(given, tuple) else given}
        )
        return raw | {name: True for name in ("bottom_up", "fresh_head", "stacked") if getattr(self, name)}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], *, cumulative: bool = True) -> Design:
        """Rebuild a design from :meth:`to_json`."""
        given = raw.get("block_layers")
        sizes = tuple(given) if isinstance(given, list) else given
        bottom_up, fresh, stacked = (raw.get(name, False) for name in ("bottom_up", "fresh_head", "stacked"))
        return cls(sizes, bottom_up, cumulative, fresh, stacked)


PAPER = Design()
"""Where nothing is said: the paper's."""
