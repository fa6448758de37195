"""The clean room: retrain every node of a brief with the numeric kernel, and predict from the retrained tensors alone.

``python -m verify.cleanroom BRIEF OUT`` runs it in a process of its own. Rows, seeds and batches are derived here again
from ids and the slot key; the only code shared with the system under audit is the numeric kernel, and with
``--kernel oracle`` not even that: :mod:`verify.kernel` is used in its place.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from s3t.errors import S3TError
from s3t.records import Recipe, Record
from verify import derive
from verify.analytic import Reading, read_all, scores, solve
from verify.brief import Brief, read_brief
from verify.combining import among, combine, mixed, share
from verify.derive import Prefix
from verify.machine import on_threads
from verify.numerics import Kernel, Numerics, numerics
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
    """One clean room at work: the base model, the encoded rows, and the nodes retrained so far.

    ``given``: the ancestors on which nodes are retrained, where these are not themselves the room's; None otherwise.
    ``spent``: what each retraining took, in the units of the ledger's costs. ``solved``: the analytic head, once it is.
    """

    brief: Brief
    plan: Plan
    recipe: Recipe
    backbone: Backbone
    encoded: Mapping[str, Encoded]
    nodes: dict[Node, Retrained]
    kernel: Kernel = "shared"
    given: Mapping[Node, Retrained] | None = None
    spent: dict[Node, dict[str, float]] = field(default_factory=dict)
    solved: Mapping[str, Tensor] | None = None

    @property
    def numerics(self) -> Numerics:
        """The numeric kernel in use."""
        return numerics(self.kernel, str(self.brief.run["kernel"]))

    def rows(self, shard: int, prefix: Prefix) -> list[Record]:
        """Return the rows of a node, derived from ids alone, sorted by id."""
        layout = (self.plan.shards, self.plan.slices)
        wanted = {(shard, s) for s in self.plan.pieces(prefix)}
        mine = [r for r in self.brief.rows if derive.slot(self.brief.key, r.id, *layout) in wanted]
        return sorted(mine, key=lambda record: record.id)

    def train(self, shard: int, prefix: Prefix) -> None:
        """Retrain one node on top of its parent, which must have been retrained before or be given."""
        began = time.perf_counter()
        using = self.numerics
        layout, classes = (self.plan.shards, self.plan.slices), self.brief.run["data"]["classes"]
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
        task = using.task(
            stages,
            self.state(shard, prefix[:-1], self.nodes if self.given is None else self.given),
            [
                using.row(
                    self.encoded[record.id],
                    derive.target(record.label, classes),
                    derive.slot(self.brief.key, record.id, *layout)[1],
                )
                for record in rows
            ],
            [[position[name] for name in batch] for batch in order],
            self.recipe,
            using.seeds(*(derive.seed(run_seed, shard, prefix, p) for p in ("adapter", "head", "dropout"))),
            len(classes),
        )
        trained = using.train(self.backbone, task)
        self.nodes[shard, prefix] = Retrained(trained.adapter, trained.head)
        self.spent[shard, prefix] = {
            "record_passes": trained.record_passes,
            "layer_passes": trained.layer_passes,
            "seconds": time.perf_counter() - began,
        }

    def state(self, shard: int, prefix: Prefix, nodes: Mapping[Node, Retrained]) -> Any:
        """Return what the chain of ``prefix`` in ``nodes`` adds to the base model, or None for the empty prefix."""
        if not prefix:
            return None
        chain = [nodes[shard, prefix[:i]] for i in range(1, len(prefix) + 1)]
        adapters = {stage.adapter: node.adapter for stage, node in zip(self.plan.stages, chain, strict=False)}
        return self.numerics.state(adapters, chain[-1].head)

    @property
    def reading(self) -> Reading:
        """How features are made for the analytic head."""
        assert self.plan.head is not None
        return Reading(self.backbone, self.plan.head, int(self.brief.run["seed"]))

    def solve(self, threads: int) -> dict[str, str]:
        """Make the features of all retained rows and solve the analytic head; return the features' digests by id.

        It is solved on as many threads as serve: what serves is solved when it begins to serve, not when features are made.
        """
        classes = self.brief.run["data"]["classes"]
        rows = ((r.id, self.encoded[r.id], derive.target(r.label, classes)) for r in self.brief.rows)
        sums, digests = read_all(self.reading, rows, len(classes))
        with on_threads(threads):
            self.solved = solve(sums, self.reading.head)
        return digests

    def predict(self) -> Tensor:
        """Return the ensemble's scores of the probes, shape (probes, classes), from what the room itself made."""
        import torch

        asked = self.backbone.encode([record.inputs for record in self.brief.probes], self.recipe.max_length)
        classes, ensemble = len(self.brief.run["data"]["classes"]), self.recipe.ensemble
        chains = [
            (self.plan.stages[: len(prefix)], self.state(shard, prefix, self.nodes))
            for shard, prefix in sorted(self.brief.chains)
        ]
        outputs = self.numerics.score(self.backbone, chains, asked, self.recipe, classes) if chains else []
        lengths = [len(stages) for stages, _ in chains]
        weights = among(self.plan, lengths)
        combined = combine([found.numpy() for found in outputs], weights, ensemble) if chains else None
        if self.solved is not None and self.plan.head is not None:
            own = scores([self.reading.features(row) for row in asked], self.solved)
            combined = mixed(combined, own, share(self.plan, lengths), self.plan, ensemble)
        return torch.from_numpy(combined)


def retrain(brief: Brief, out: Path, kernel: Kernel = "shared") -> None:
    """Retrain ``brief`` and write one safetensors file per node and for the analytic head, the digests of features, the
    predictions, and what could not be decided."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    undecided: dict[int, str] = {}
    predicted, head = False, dict[str, Any]()
    with on_threads(None):
        reason = _unknown(kernel, str(brief.run["kernel"]))
        room = None if reason else _room(brief, kernel)
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
        if brief.head is not None:
            why = reason or ("" if room is None else _differs(room, brief.head, "its features were made"))
            head = {"undecided": why} if why or room is None else {"features": room.solve(brief.threads)}
            if room is not None and room.solved is not None:
                save_file({name: t.contiguous() for name, t in room.solved.items()}, out / "head.safetensors")
        behind = {(shard, prefix[:i]) for shard, prefix in brief.chains for i in range(1, len(prefix) + 1)}
        complete = room is not None and behind <= set(room.nodes) and "undecided" not in head
        if room is not None and complete and (behind or head) and brief.probes:
            with on_threads(brief.threads):
                scores = room.predict().contiguous()
            save_file({"scores": scores}, out / "predictions.safetensors")
            predicted = True
    spent = {number: room.spent[node] for number, (node, _) in enumerate(brief.nodes) if room and node in room.spent}
    outcome = {"undecided": undecided, "predicted": predicted, "spent": spent, "head": head}
    (out / OUTCOME).write_text(json.dumps(outcome), encoding="utf-8")


def _unknown(kernel: Kernel, trained: str) -> str:
    """Return why the numerics of a run cannot be followed here, or nothing."""
    try:
        version = numerics(kernel, trained).version
    except S3TError as error:
        return str(error)
    return "" if version == trained else f"it was trained with kernel {trained!r}, here is {version!r}"


def _room(brief: Brief, kernel: Kernel) -> Room:
    import torch
    from safetensors.torch import load as read

    from s3t.backbone import load

    recipe = Recipe.from_json(brief.run["recipe"])
    environments = [environment for _, environment in brief.nodes] + ([brief.head] if brief.head is not None else [])
    recorded = {str(environment.get("device")) for environment in environments}
    backbone = load(str(brief.run["model"]["name"]), torch.device("cpu") if recorded <= {"cpu"} else None)
    encoded = backbone.encode([record.inputs for record in brief.rows], recipe.max_length)
    by_id = {record.id: row for record, row in zip(brief.rows, encoded, strict=True)}
    given = None
    if brief.ancestors is not None:
        given = {node: Retrained(*map(read, files)) for node, files in brief.ancestors.items()}
    return Room(brief, declared_plan(brief.run), recipe, backbone, by_id, {}, kernel, given)


def _prepare(room: Room, shard: int, prefix: Prefix, recorded: Mapping[str, Any]) -> str:
    """Set the recorded number of threads; return why this node cannot be decided here, or nothing."""
    if room.given is None and len(prefix) > 1 and (shard, prefix[:-1]) not in room.nodes:
        return "its parent could not be retrained here"
    return _differs(room, recorded, "it was trained")


def _differs(room: Room, recorded: Mapping[str, Any], what: str) -> str:
    """Set the recorded number of threads; return in what ``recorded`` differs from the environment here, or nothing."""
    import torch

    from s3t.backbone import environment
    from s3t.engine.mode import Mode

    threads = recorded.get("threads")
    if not isinstance(threads, int) or threads < 1:
        return f"its environment does not say on how many threads {what} ({threads!r})"
    torch.set_num_threads(threads)
    here = environment(room.backbone.device, Mode.of(str(room.brief.run["kernel"])))
    odd = sorted(name for name in {*here, *recorded} if here.get(name) != recorded.get(name))
    return f"{what} with {odd[0]} {recorded.get(odd[0])!r}, here is {here.get(odd[0])!r}" if odd else ""


def main() -> None:
    """Run one clean room."""
    parser = argparse.ArgumentParser(prog="python -m verify.cleanroom", description=main.__doc__)
    parser.add_argument("brief", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--kernel", choices=get_args(Kernel), default="shared", help="whose numeric code (default: shared)"
    )
    given = parser.parse_args()
    retrain(read_brief(given.brief), given.out, given.kernel)


if __name__ == "__main__":
    main()
