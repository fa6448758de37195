"""The clean room: retrain every node of a brief with the numeric kernel, and predict from the retrained tensors alone.

``python -m verify.cleanroom BRIEF OUT`` runs it in a process of its own. Rows, seeds and batches are derived here again
from ids and the slot key; the only code shared with the system under audit is the numeric kernel.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from s3t.records import Recipe, Record
from verify import derive
from verify.brief import Brief, read_brief
from verify.derive import Prefix
from verify.plans import Plan, declared_plan
from verify.state import Node

if TYPE_CHECKING:
    from torch import Tensor

    from s3t.backbone import Backbone, Encoded

OUTCOME = "outcome.json"


@dataclass(frozen=True)
class Retrained:
    """A node's tensors as the clean room made them, named as a system serves them: ``adapter.*`` and ``head.*``."""

    adapter: Mapping[str, Tensor]
    head: Mapping[str, Tensor]

    def named(self) -> dict[str, Tensor]:
        """Return both parts in one mapping."""
        parts = {"adapter": self.adapter, "head": self.head}
        return {f"{part}.{name}": tensor for part, named in parts.items() for name, tensor in named.items()}


@dataclass
class Room:
    """One clean room at work: the base model, the encoded rows, and the nodes retrained so far."""

    brief: Brief
    plan: Plan
    recipe: Recipe
    backbone: Backbone
    encoded: Mapping[str, Encoded]
    nodes: dict[Node, Retrained]

    def rows(self, shard: int, prefix: Prefix) -> list[Record]:
        """Return the rows of a node, derived from ids alone, sorted by id."""
        layout = (self.plan.shards, self.plan.slices)
        wanted = {(shard, s) for s in prefix}
        mine = [r for r in self.brief.rows if derive.slot(self.brief.key, r.id, *layout) in wanted]
        return sorted(mine, key=lambda record: record.id)

    def train(self, shard: int, prefix: Prefix) -> None:
        """Retrain one node on top of its parent, which must have been retrained before."""
        from s3t import training

        stages: Any = self.plan.stages[: len(prefix)]
        rows = self.rows(shard, prefix)
        position = {record.id: i for i, record in enumerate(rows)}
        run_seed = int(self.brief.run["seed"])
        order = derive.batches(
            [record.id for record in rows],
            {record.id: self.encoded[record.id].length for record in rows},
            derive.seed(run_seed, shard, prefix, "batches"),
            epochs=stages[-1].epochs,
            batch_size=self.recipe.batch_size,
            window=self.recipe.window,
        )
        seeds = training.Seeds(*(derive.seed(run_seed, shard, prefix, p) for p in ("adapter", "head", "dropout")))
        trained = training.train_node(
            self.backbone,
            stages,
            self.state(shard, prefix[:-1]),
            [training.Row(self.encoded[record.id], record.label) for record in rows],
            [[position[name] for name in batch] for batch in order],
            self.recipe,
            seeds,
            len(self.brief.run["data"]["classes"]),
        )
        self.nodes[shard, prefix] = Retrained(trained.adapter, trained.head)

    def state(self, shard: int, prefix: Prefix) -> Any:
        """Return what the chain of ``prefix`` adds to the base model, or None for the empty prefix."""
        from s3t.blocks import ModelState

        if not prefix:
            return None
        chain = [self.nodes[shard, prefix[:i]] for i in range(1, len(prefix) + 1)]
        names = [stage.adapter for stage in self.plan.stages]
        return ModelState({name: node.adapter for name, node in zip(names, chain, strict=False)}, chain[-1].head)

    def predict(self) -> Tensor:
        """Return the ensemble's scores of the probes, shape (probes, classes), from the retrained tensors."""
        import torch

        from s3t.blocks import ChainModel, score

        asked = self.backbone.encode([record.inputs for record in self.brief.probes], self.recipe.max_length)
        classes = len(self.brief.run["data"]["classes"])
        outputs = []
        for shard, prefix in sorted(self.brief.chains):
            stages: Any = self.plan.stages[: len(prefix)]
            model = ChainModel(self.backbone, stages, self.recipe, classes)
            model.mount(self.state(shard, prefix))
            outputs.append(score(model, asked).numpy())
        return torch.from_numpy(combine(outputs, self.recipe.ensemble))


def combine(logits: Sequence[NDArray[np.float32]], ensemble: str) -> NDArray[np.float32]:
    """Combine the logits of live shards, in ascending order of shards (docs/DERIVATION.md, "What is served").

    In float64: each shard's output times w = 1/shards, summed one after the other; the sum as float32.
    """
    total = np.zeros(logits[0].shape, dtype=np.float64)
    for shard in logits:
        wide = shard.astype(np.float64)
        if ensemble == "mean-probabilities":
            raised = np.exp(wide - wide.max(axis=1, keepdims=True))
            wide = raised / raised.sum(axis=1, keepdims=True)
        elif ensemble == "vote":
            wide = np.eye(wide.shape[1])[wide.argmax(axis=1)]
        total += wide * (1 / len(logits))
    return total.astype(np.float32)


def retrain(brief: Brief, out: Path) -> None:
    """Retrain ``brief`` and write one safetensors file per node, the predictions, and what could not be decided."""
    import torch
    from safetensors.torch import save_file

    from s3t import training

    out.mkdir(parents=True, exist_ok=True)
    undecided: dict[int, str] = {}
    predicted = False
    threads = torch.get_num_threads()
    try:
        reason = ""
        if brief.run["kernel"] != training.KERNEL:
            reason = f"it was trained with kernel {brief.run['kernel']!r}, here is {training.KERNEL!r}"
        room = None if reason else _room(brief)
        if room is not None and room.backbone.digest != brief.run["model"]["digest"]:
            reason = "the base model here is not the one of the run: its digest differs"
        for number, ((shard, prefix), environment) in enumerate(brief.nodes):
            why = reason or ("" if room is None else _prepare(room, shard, prefix, environment))
            if why or room is None:
                undecided[number] = why
                continue
            room.train(shard, prefix)
            node = room.nodes[shard, prefix]
            save_file(node.named(), out / f"{number}.safetensors")
        if room is not None and brief.chains and brief.probes and all(chain in room.nodes for chain in brief.chains):
            torch.set_num_threads(brief.threads)
            save_file({"scores": room.predict().contiguous()}, out / "predictions.safetensors")
            predicted = True
    finally:
        torch.set_num_threads(threads)
    outcome = {"undecided": {str(k): v for k, v in undecided.items()}, "predicted": predicted}
    (out / OUTCOME).write_text(json.dumps(outcome), encoding="utf-8")


def _room(brief: Brief) -> Room:
    import torch

    from s3t.backbone import load

    recipe = Recipe.from_json(brief.run["recipe"])
    recorded = {str(environment.get("device")) for _, environment in brief.nodes}
    backbone = load(str(brief.run["model"]["name"]), torch.device("cpu") if recorded <= {"cpu"} else None)
    encoded = backbone.encode([record.inputs for record in brief.rows], recipe.max_length)
    by_id = {record.id: row for record, row in zip(brief.rows, encoded, strict=True)}
    return Room(brief, declared_plan(brief.run), recipe, backbone, by_id, {})


def _prepare(room: Room, shard: int, prefix: Prefix, recorded: Mapping[str, Any]) -> str:
    """Set the recorded number of threads; return why this node cannot be decided here, or nothing."""
    import torch

    from s3t.backbone import environment

    if len(prefix) > 1 and (shard, prefix[:-1]) not in room.nodes:
        return "its parent could not be retrained here"
    threads = recorded.get("threads")
    if not isinstance(threads, int) or threads < 1:
        return f"its environment does not say on how many threads it was trained ({threads!r})"
    torch.set_num_threads(threads)
    here = environment(room.backbone.device)
    odd = sorted(name for name in {*here, *recorded} if here.get(name) != recorded.get(name))
    return f"it was trained with {odd[0]} {recorded.get(odd[0])!r}, here is {here.get(odd[0])!r}" if odd else ""


def main() -> None:
    """Run one clean room."""
    parser = argparse.ArgumentParser(prog="python -m verify.cleanroom", description=main.__doc__)
    parser.add_argument("brief", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    retrain(read_brief(given.brief), given.out)


if __name__ == "__main__":
    main()
