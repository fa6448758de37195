"""What packing saves, by counting: tokens of an epoch, with padding, when records lie alone in their rows and when they share.

``python -m benchmarks.packing --data alpaca --model smollm2``: nothing is trained and nothing is timed.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from s3t.graph import Node, batches, seed
from s3t.packing import packs
from s3t.partition import slot
from s3t.records import Dataset, Layout, Recipe

KEY = bytes(32)
"""The slot key of the count: any will do, and another gives slightly other numbers."""


@dataclass(frozen=True)
class Tokens:
    """Tokens of one epoch: the records' own, and those that the model reads without and with packing, padding included."""

    own: int
    alone: int
    packed: int

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.own + other.own, self.alone + other.alone, self.packed + other.packed)


def tokens(
    ids: Sequence[str], lengths: Sequence[int], pieces: Sequence[int], recipe: Recipe, batch_seed: int
) -> Tokens:
    """Return the tokens of a node's first epoch; ``lengths`` in tokens and ``pieces``, the slices, are those of ``ids``."""
    total = Tokens(0, 0, 0)
    for batch in batches(ids, lengths, 1.0, recipe, batch_seed):
        mine, where = [lengths[i] for i in batch], [pieces[i] for i in batch]
        rows = packs(mine, where, recipe.max_length)
        packed = len(rows) * max(sum(mine[i] for i in row) for row in rows)
        total += Tokens(sum(mine), len(mine) * max(mine), packed)
    return total


def whole_epoch(data: Dataset, lengths: Sequence[int], layout: Layout, recipe: Recipe) -> Tokens:
    """Return the tokens of an epoch of the last stage of one order, over all shards: every training record once."""
    homes = [slot(KEY, record.id, layout) for record in data.train]
    total = Tokens(0, 0, 0)
    for shard in range(layout.shards):
        mine = sorted((i for i, home in enumerate(homes) if home[0] == shard), key=lambda i: data.train[i].id)
        of_batches = seed(0, Node(shard, tuple(range(layout.slices))), "batches")
        given = [data.train[i].id for i in mine], [lengths[i] for i in mine], [homes[i][1] for i in mine]
        total += tokens(*given, recipe, of_batches)
    return total


def main() -> None:
    """Print the count for the default recipe and layout, for batches not sorted by length, and for undivided data."""
    from s3t.backbone import load as load_model
    from s3t.data import load

    parser = argparse.ArgumentParser(prog="python -m benchmarks.packing", description=main.__doc__)
    parser.add_argument("--data", default="alpaca")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--max-length", type=int, default=Recipe().max_length)
    given = parser.parse_args()
    data, recipe = load(given.data), Recipe(max_length=given.max_length)
    backbone = load_model(f"lm:{given.model}")
    lengths = [row.length for row in backbone.encode([record.inputs for record in data.train], recipe.max_length)]
    print(
        f"{len(lengths)} records of {data.name}, {given.model}, max_length={recipe.max_length}, batch_size={recipe.batch_size}"
    )
    for layout in (Layout(), Layout(1, 1, 1)):
        for window in (recipe.window, 1):
            found = whole_epoch(data, lengths, layout, dataclasses.replace(recipe, window=window))
            print(
                f"{layout.shards} x {layout.slices}, window={window}: {found.own:,} tokens of records, {found.alone:,} with "
                f"padding, {found.packed:,} packed ({100 * (1 - found.packed / found.alone):.1f}% fewer)"
            )


if __name__ == "__main__":
    main()
