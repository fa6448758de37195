"""The build: train whatever the plan misses, each node from its own rows and its parent alone.

A finished node is on disk and in the ledger before those that follow it start; an interrupted build goes on there.
A deletion that arrives while a node trains wins: the node is thrown away and trained again without the record.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from s3t.answers import target
from s3t.assignments import Assignment, perform, perform_together
from s3t.backbone import Backbone, environment
from s3t.blocks import ModelState, config_bytes
from s3t.contract import Cost, Progress
from s3t.digests import tensors_digest
from s3t.engine.activations import Activations
from s3t.engine.numerics import Numerics
from s3t.errors import DamageError, DivergedError
from s3t.facts import Facts
from s3t.graph import Node, batches, node_key, seed
from s3t.ledger import Superseded
from s3t.observing import ObservedRows
from s3t.partition import slot, tag
from s3t.plan import Plan, Stage
from s3t.records import canonical_json, sha256
from s3t.requests import sweep
from s3t.resources import Resources
from s3t.rows import StoredRow
from s3t.runs import ACTIVATIONS, Run
from s3t.selection import Chain, TrainedNode
from s3t.store import ADAPTER, CONFIG, HEAD, READS, tensor_bytes
from s3t.training import Row, Seeds, Task, Trained


@dataclass(frozen=True)
class Job:
    """A node on its way: its parent, its rows, the reads observed, the ledger's head before them, when it began."""

    node: Node
    parent: TrainedNode | None
    stored: list[StoredRow]
    reads: set[str]
    since: int
    started: float


class Builder:
    """Trains missing nodes of one run. Its small steps are methods, so that planted leaks can replace one at a time."""

    def __init__(self, run: Run, backbone: Backbone, facts: Facts, resources: Resources | None = None) -> None:
        self.run = run
        self.backbone = backbone
        self.facts = facts
        self.rows = ObservedRows(run.records)
        self.numerics = Numerics.of(run.config.kernel)
        self.environment = environment(backbone.device, self.numerics.mode)
        self.threads = self.environment["threads"]
        self.finite = True
        self.resources = resources or Resources()
        self.activations = Activations(round(self.resources.cache_gb * 1e9), run.path / ACTIVATIONS)

    def build(self, progress: Progress | None = None, *, down: bool = False, mend: bool = False) -> Cost:
        """Train all missing nodes and return what it cost; ``down`` books the seconds as down time too.

        ``mend``: first check the files of every surviving node, and train again those that are lost or damaged, and make anew
        what is damaged of an analytic head's features. Without it nodes' files are checked when they are needed.
        """
        from s3t.scheduling import train_missing

        with self.run.building():
            sweep(self.run, self.facts)
            try:
                lost, before = damaged(self.run, self.facts) if mend else set(), self.facts.cost
                try:
                    return train_missing(self, lost, progress, down=down) + self._features(progress, mend)
                except DamageError:  # what is missing builds on files that are lost, so these are made anew as well
                    train_missing(self, damaged(self.run, self.facts), progress, down=down)
                    self._features(progress, mend)
                    return self.facts.cost - before
            finally:
                self.activations.close()
                self._note_strays()

    def _features(self, progress: Progress | None, mend: bool) -> Cost:
        """Make what an analytic head lacks; once it was finished, only to ``mend``, for to look through all takes long."""
        if self.run.features is None or (self.facts.has_head and not mend):
            return Cost()
        from s3t.analytic.making import make_features

        cost = make_features(self.run, self.backbone, self.rows, self.environment, progress)
        self.facts.update()
        return cost

    def _note_strays(self) -> None:
        """Put reads outside any node on record, also when the build fails."""
        if self.rows.stray:
            self.run.ledger.append("stray", {"tags": sorted(tag(self.run.key, i) for i in self.rows.stray)})
            self.rows.stray.clear()

    def train(self, node: Node, *, down: bool) -> Cost:
        """Train and record one node in this process. Superseded if a deletion hit its slots meanwhile."""
        job = self.take(node)
        with self.rows.observing() as reads:
            trained = self.run_kernel(self.facts.plan, node, job.stored)
        job.reads.update(reads)
        return self.finish(job, trained, down=down)

    def prepare(self, node: Node) -> tuple[Job, Assignment]:
        """Read what a node is trained from and write it out; another process may then train it."""
        job = self.take(node)
        with self.rows.observing() as reads:
            given = self.assignment(self.facts.plan, node, job.stored)
        job.reads.update(reads)
        return job, given

    def take(self, node: Node) -> Job:
        """Read what a node is trained from. Superseded if a deletion took its parent after the node was found to be missing."""
        parent = self.facts.alive.get(node.parent) if node.parent else None
        if node.parent and parent is None:
            raise Superseded
        since, started = self.run.ledger.head(), time.perf_counter()
        with self.rows.observing() as reads:
            stored = self.node_rows(self.facts.plan, node)
        return Job(node, parent, stored, set(reads), since, started)

    def finish(self, job: Job, trained: Trained, *, down: bool) -> Cost:
        """Record a trained node. Superseded if a deletion hit its slots since it began.

        Its seconds run from its beginning, so those of nodes trained at the same time overlap.
        """
        elapsed = time.perf_counter() - job.started
        config, node, parent, stored = self.run.config, job.node, job.parent, job.stored
        stage = self.stage(self.facts.plan, node)
        key = node_key(
            node,
            parent.key if parent else None,
            [row.commitment for row in stored],
            stage,
            config.recipe,
            config.seed,
            config.model["digest"],
            config.kernel,
            self.environment,
        )
        files = self.files(stage, trained, sorted(job.reads))
        cost = Cost(
            nodes=1,
            record_passes=trained.record_passes,
            layer_passes=trained.layer_passes,
            optimizer_steps=trained.optimizer_steps,
            bytes=sum(map(len, files.values())),
            seconds=elapsed,
            down_seconds=elapsed if down else 0.0,
        )
        body: dict[str, Any] = {
            "key": key,
            "shard": node.shard,
            "prefix": list(node.prefix),
            "parent": parent.key if parent else None,
            "rows": len(stored),
            "tensors": tensors_digest(trained.adapter),
            "head": tensors_digest(trained.head),
            "reads": sha256(files[READS]),
            "files": {name: sha256(content) for name, content in files.items()},
            "environment": self.environment,
            "cost": asdict(cost),
        }
        self.run.nodes.write(key, files, lambda: self._record(body, job.since))
        return cost

    def _record(self, body: dict[str, Any], since: int) -> None:
        self.run.ledger.append_trained(body, since)

    def stage(self, plan: Plan, node: Node) -> Stage:
        """Return what this node trains."""
        return plan.stages[len(node.prefix) - 1]

    def node_rows(self, plan: Plan, node: Node) -> list[StoredRow]:
        """Read the node's retained rows: those of all slices of its prefix, or of its last slice alone."""
        return self.rows.read([(node.shard, piece) for piece in plan.pieces(node.prefix)])

    def seeds(self, node: Node) -> Seeds:
        """Return the node's seeds, from its identity."""
        of = self.run.config.seed
        return Seeds(seed(of, node, "adapter"), seed(of, node, "head"), seed(of, node, "dropout"))

    def parent_state(self, plan: Plan, node: Node) -> ModelState | None:
        """Load what the stages before left: all their adapters, and the head of the last of them.

        Superseded if a deletion took one of them.
        """
        if node.parent is None:
            return None
        ancestors = [self.facts.alive.get(Node(node.shard, node.prefix[:i])) for i in range(1, len(node.prefix))]
        there = tuple(fact for fact in ancestors if fact is not None)
        if len(there) < len(ancestors):
            raise Superseded
        return load_state(self.run, plan, Chain(node.shard, 0, there))

    def batches(self, plan: Plan, node: Node, ids: list[str], lengths: list[int]) -> list[list[int]]:
        """Return the node's batches in training order."""
        recipe, config = self.run.config.recipe, self.run.config
        return batches(ids, lengths, self.stage(plan, node).epochs, recipe, seed(config.seed, node, "batches"))

    def run_kernel(self, plan: Plan, node: Node, stored: list[StoredRow]) -> Trained:
        """Encode the rows and hand everything to the numeric kernel."""
        return perform(self.assignment(plan, node, stored), self.backbone, self.activations)

    def train_group(self, jobs: Sequence[Job]) -> list[Trained | DivergedError]:
        """Train the nodes of several jobs together; what is read meanwhile, and nothing should be, is on record for all."""
        with self.rows.observing() as reads:
            results = self.run_kernels(self.facts.plan, jobs)
        for job in jobs:
            job.reads.update(reads)
        return results

    def run_kernels(self, plan: Plan, jobs: Sequence[Job]) -> list[Trained | DivergedError]:
        """Train the nodes of several jobs, of one stage, as a group; for engines that have groups."""
        given = [self.assignment(plan, job.node, job.stored) for job in jobs]
        return perform_together(given, self.backbone, self.activations)

    def assignment(self, plan: Plan, node: Node, stored: list[StoredRow]) -> Assignment:
        """Return all that the numeric kernel needs for a node, rows encoded."""
        config, classes = self.run.config, self.run.config.classes
        encoded = self.backbone.encode([row.record.inputs for row in stored], config.recipe.max_length)
        home = [slot(self.run.key, row.record.id, plan.layout)[1] for row in stored]
        depths = prefix_depths(plan.stages)
        task = Task(
            stages=plan.stages[: len(node.prefix)],
            parent=self.parent_state(plan, node),
            rows=[
                Row(e, target(row.record.label, classes), piece)
                for e, row, piece in zip(encoded, stored, home, strict=True)
            ],
            batches=self.batches(plan, node, [row.record.id for row in stored], [e.length for e in encoded]),
            recipe=config.recipe,
            seeds=self.seeds(node),
            classes=len(classes),
            finite=self.finite,
        )
        keys = {piece: self.activations_key(node.shard, piece, stored, home, depths) for piece in set(home)}
        return Assignment(config.kernel, task, depths, keys)

    def activations_key(
        self, shard: int, piece: int, stored: Sequence[StoredRow], home: Sequence[int], depths: Sequence[int]
    ) -> str:
        """Return the key of a slice's activations: it covers its retained rows and all that the frozen prefix depends on."""
        config = self.run.config
        rows = [row.commitment for row, where in zip(stored, home, strict=True) if where == piece]
        about = [config.kernel, config.model["digest"], config.recipe.max_length, list(depths), self.environment]
        return sha256(canonical_json(["s3t activations v1", shard, piece, about, rows]))

    def files(self, stage: Stage, trained: Trained, reads: list[str]) -> dict[str, bytes]:
        """Return the node's folder as bytes by file name: a standard PEFT adapter, the head, and the observed reads."""
        out = {
            ADAPTER[stage.kind]: tensor_bytes(trained.adapter),
            HEAD: tensor_bytes(trained.head),
            READS: canonical_json(reads),
        }
        if stage.kind == "lora":
            out[CONFIG] = config_bytes(stage, self.backbone.family, self.run.config.recipe, self.backbone.name)
        return out


def prefix_depths(stages: Sequence[Stage]) -> list[int]:
    """Return at which layers activations are taken up: below them no chain of 1, 2, ... stages has an adapter."""
    return sorted({min(layer for stage in stages[: i + 1] for layer in stage.layers) for i in range(len(stages))})


def load_state(run: Run, plan: Plan, chain: Chain) -> ModelState:
    """Load a chain from the store, every file checked by digest: the last tensors of each adapter, the last head."""
    adapters = {}
    for stage, fact in zip(plan.stages, chain.nodes, strict=False):
        adapters[stage.adapter] = (fact, ADAPTER[stage.kind])
    tensors = {a: run.nodes.tensors(fact.key, file, fact.files[file]) for a, (fact, file) in adapters.items()}
    last = chain.nodes[-1]
    return ModelState(tensors, run.nodes.tensors(last.key, HEAD, last.files[HEAD]))


def damaged(run: Run, facts: Facts) -> set[Node]:
    """Return the surviving nodes with a file that is missing or not what the ledger says."""
    found = set()
    for node, fact in facts.alive.items():
        try:
            run.nodes.check(fact.key, fact.files)
        except DamageError:
            found.add(node)
    return found
