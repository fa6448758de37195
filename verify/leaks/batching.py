"""Faults in how batches are formed: their size and their members depend on rows of other slots."""

from __future__ import annotations

import dataclasses

from s3t.building import Builder
from s3t.graph import Node
from s3t.graph import batches as form_batches
from s3t.graph import seed as derive_seed
from s3t.plan import Plan
from s3t.records import Record
from verify.leaks.leak import BY_LENGTH, CLEANROOM, LOUD, NEVER, OF_TEXTS, Leak, planted


class OutOfMemory(Builder):
    """`find_executable_batch_size` halves the batch until it fits, and the rest of the process keeps the smaller one."""

    memory = 200
    """Tokens that the simulated device holds: rows times the longest of them."""

    halvings = 0

    def batches(self, plan: Plan, node: Node, ids: list[str], lengths: list[int]) -> list[list[int]]:
        """Form batches; at the first that does not fit, begin again with half their size."""
        recipe, seed = self.run.config.recipe, derive_seed(self.run.config.seed, node, "batches")
        while True:
            smaller = dataclasses.replace(recipe, batch_size=max(1, recipe.batch_size >> self.halvings))
            formed = form_batches(ids, lengths, self.stage(plan, node).epochs, smaller, seed)
            if all(len(batch) * max(lengths[i] for i in batch) <= self.memory for batch in formed):
                return formed
            self.halvings += 1


class GroupedByLength(Builder):
    """A sampler groups the whole corpus by length (`group_by_length`); a node takes its own rows out of each group."""

    def batches(self, plan: Plan, node: Node, ids: list[str], lengths: list[int]) -> list[list[int]]:
        """Form groups of a window's size from the lengths column of all rows, then batches inside each group."""
        recipe, seed = self.run.config.recipe, derive_seed(self.run.config.seed, node, "batches")
        records = [Record.from_content(content) for content in self.run.records.contents("train")]
        encoded = self.backbone.encode([record.inputs for record in records], recipe.max_length)
        size = recipe.batch_size
        groups = form_batches(
            [record.id for record in records],
            [row.length for row in encoded],
            self.stage(plan, node).epochs,
            dataclasses.replace(recipe, batch_size=2 * size),
            seed,
        )
        position = {name: i for i, name in enumerate(ids)}
        own = [[position[records[i].id] for i in group if records[i].id in position] for group in groups]
        return [group[i : i + size] for group in own for i in range(0, len(group), size)]


LEAKS = (
    Leak(
        34, "batch size from out-of-memory retries", "memory", planted(OutOfMemory), (CLEANROOM, NEVER, LOUD),
        story=("delete", "refresh"), blind="E0: no row is read but its own; the recipe says another size",
        absent=OF_TEXTS,
    ),
    Leak(
        35, "batches grouped by length across slices", "statistics", planted(GroupedByLength), (CLEANROOM, NEVER, LOUD),
        blind="E0: lengths are no observed read", hidden=BY_LENGTH,
    ),
)  # fmt: skip
