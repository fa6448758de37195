"""Serving: the chain of every live shard in memory, an analytic head if the plan has one, and the ensemble over them.

Outputs are combined in float64 in ascending order of shards and returned in float32, so that the combination has one
defined value (docs/DERIVATION.md, "What is served").
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from s3t.analytic.head import NAME
from s3t.analytic.solving import Linear
from s3t.analytic.standing import SHARD, Kept, StandingHead
from s3t.analytic.sums import Features
from s3t.backbone import Backbone, Encoded
from s3t.building import load_state
from s3t.contract import NodeFacts, ServedChain
from s3t.engine.numerics import Numerics, Served
from s3t.ensembling import Outputs, among, answer, head_share
from s3t.errors import DamageError, OfflineError
from s3t.facts import Facts
from s3t.graph import Node
from s3t.holding import Held
from s3t.ledger import Ledger
from s3t.records import Inputs
from s3t.runs import LEDGER, Run
from s3t.selection import Chain, TrainedNode
from s3t.store import READS

HOLD_BYTES = 2**28
"""Most bytes of trained tensors that are held to switch chains without a file being read."""

Models = dict[int, tuple[Chain, Served]]
"""The chain of each live shard and its model, in ascending order of shards; replaced as a whole, never changed."""


class Serving:
    """The served models of one run. :meth:`sync` must be called before use; it loads what changed and drops the rest.

    Tensors of surviving nodes, shortest chains first, are held in memory (``hold_bytes``), so that the chains left by a
    deletion are there at once and the base model is never loaded again. Any thread may call :meth:`sync` and
    :meth:`predict`; each prediction is made by the models that served when it began.
    """

    def __init__(self, run: Run, backbone: Backbone, hold_bytes: int = HOLD_BYTES) -> None:
        self._run = run
        self._backbone = backbone
        self._numerics = Numerics.of(run.config.kernel)
        self._switching = threading.RLock()
        self._encoding = threading.Lock()
        self._views = threading.local()
        self._held = Held(run, hold_bytes)
        self._due: dict[int, tuple[Facts, Chain]] = {}
        self._head = StandingHead(run, backbone) if run.config.plan.head else None
        self.models: Models = {}

    def sync(self, facts: Facts) -> None:
        """Bring the models in memory in line with ``facts``, as of now.

        A deletion by another process may erase a node while it is being read: then the newer facts are followed. A node
        that is damaged or missing without such a reason is left out, and what serves is what it would be without it.
        """
        with self._switching:
            facts = self._here(facts)
            self.drop(facts)
            if self._held.fill(facts):
                self.drop(facts)
            self._settle()
            if self._head:
                self._head.follow()

    def recall(self, ids: Sequence[str]) -> list[Kept]:
        """Return what :meth:`forget` needs of records that are about to be deleted, where there is an analytic head."""
        with self._switching:
            return self._head.recall(ids) if self._head else []

    def forget(self, gone: Sequence[Kept], fresh: Sequence[str], request: int) -> None:
        """Take the records that a request of this number deleted, ``fresh``, out of an analytic head."""
        with self._switching:
            if self._head:
                self._head.forget(gone, fresh, request)

    @property
    def passes(self) -> int:
        """How often a predicted record passes the base model: once for each chain, and for an analytic head."""
        return len(self.models) + (self._head is not None)

    @property
    def trouble(self) -> str:
        """What an analytic head lacks, or nothing."""
        return self._head.trouble if self._head else ""

    def _here(self, facts: Facts) -> Facts:
        """Return ``facts``, or in another thread than theirs a view of its own: SQLite's connections keep to their thread."""
        own: Facts | None = getattr(self._views, "facts", None)
        if own is None:
            try:
                facts.update()
            except sqlite3.ProgrammingError:
                own = self._views.facts = Facts(Ledger(self._run.path / LEDGER), self._run.config.plan)
        return own or facts

    def drop(self, facts: Facts) -> None:
        """Let go of every tensor of a node that does not survive, and of models that are not their shard's chain.

        A shard's chain is the longest without the nodes that are known to be damaged (:mod:`s3t.damage`).
        What serves instead is made here if that takes no file and no copy of the base model's structure; else by the
        next :meth:`sync` or :meth:`predict`. A prediction under way keeps what it began with until it ends.
        """
        with self._switching:
            facts.update()
            alive, lost = {fact.seq for fact in facts.alive.values()}, self._run.damage.lost(facts)
            chains = {s: c for s, c in facts.chains(lost).items() if not any(fact.seq in lost for fact in c.nodes)}
            self._held.keep(alive - lost)
            self._run.damage.keep(alive)
            models = {shard: pair for shard, pair in self.models.items() if chains.get(shard) == pair[0]}
            self._due = {shard: (facts, chain) for shard, chain in chains.items() if shard not in models}
            if self._numerics.mode.engine == "fast":
                for shard, (_, chain) in list(self._due.items()):
                    if self._run.damage.whole(chain.nodes) and self._held.state(facts.plan, chain) is not None:
                        models[shard] = (chain, self.load(facts, chain))
                        del self._due[shard]
            self.models = dict(sorted(models.items()))

    def load(self, facts: Facts, chain: Chain) -> Served:
        """Return the chain as a model, from the tensors held in memory or else from the store."""
        config = self._run.config
        stages = facts.plan.stages[: len(chain.nodes)]
        state = self._held.state(facts.plan, chain) or load_state(self._run, facts.plan, chain)
        return self._numerics.chain(self._backbone, stages, state, config.recipe, len(config.classes))

    def snapshot(self) -> tuple[Models, dict[int, float]]:
        """Return the chains that serve at this moment: the models and their weights among one another."""
        with self._switching:
            self._settle()
            return self.models, self.shard_weights()

    def _settle(self) -> None:
        """Load the chains that are due; where a node turns out to be damaged, what is left without it."""
        while self._due:
            shard, (facts, chain) = min(self._due.items())
            try:
                self._run.damage.check(chain.nodes)
                model = self.load(facts, chain)
            except DamageError:
                facts = self._here(facts)
                self._run.damage.survey(facts, chain.nodes)
                self.drop(facts)
                continue
            self.models = dict(sorted((self.models | {shard: (chain, model)}).items()))
            del self._due[shard]

    def shard_weights(self) -> dict[int, float]:
        """Return the weight of each live shard among the chains, whatever its data: equal, or by length as the plan says."""
        return among(self._run.config.plan, _lengths(self.models))

    def live(self) -> tuple[Models, dict[int, float]]:
        """As :meth:`snapshot`. OfflineError without any live shard."""
        models, weights = self.snapshot()
        if not models:
            raise OfflineError(self._why())
        return models, weights

    def _serving(self) -> tuple[Models, dict[int, float], Linear | None]:
        """Return what serves at this moment: chains, their weights, and the analytic head's map. OfflineError without any."""
        with self._switching:
            models, weights = self.snapshot()
            linear = self._head.linear if self._head else None
        if not models and linear is None:
            raise OfflineError(self._why())
        return models, weights, linear

    def _why(self) -> str:
        """Say why nothing serves."""
        if self.trouble:
            return f"nothing is left to serve: {self.trouble}"
        if self._head and not self._run.config.plan.stages:
            return "no record is retained, so the analytic head has nothing to answer from; train another run"
        lost = ", ".join(self._run.damage.names)
        if lost:
            return f"every shard is offline: {lost} are damaged and no intact chain is left; run `s3t refresh`"
        return "every shard is offline: deletions hit all first slices; run a refresh to serve again"

    def predict(self, inputs: Sequence[Inputs]) -> NDArray[np.float32]:
        """Return scores of shape (len(inputs), classes). OfflineError without any live shard, or analytic head."""
        outputs, weights = self.outputs(inputs)
        return answer(outputs, self._run.config.plan, self._run.config.recipe.ensemble, weights)

    def outputs(self, inputs: Sequence[Inputs], features: Features | None = None) -> tuple[Outputs, dict[int, float]]:
        """Return what each part that serves says, and the weights of the chains among one another.

        ``features``: those of the inputs, (len(inputs), d), if :meth:`features` was asked before. OfflineError where nothing
        serves.
        """
        models, weights, linear = self._serving()
        rows = self._encoded(inputs)
        logits = self._numerics.score({shard: model for shard, (_, model) in models.items()}, rows) if models else {}
        said, head = {shard: found.numpy() for shard, found in logits.items()}, None
        if self._head and linear:
            head = linear.scores(self._head.reader.read(rows) if features is None else features)
        return Outputs(said, _lengths(models), head), weights

    def features(self, inputs: Sequence[Inputs]) -> Features | None:
        """Return what an analytic head reads of inputs, (len(inputs), d), whatever was deleted; None if the plan has none."""
        return self._head.reader.read(self._encoded(inputs)) if self._head else None

    def _encoded(self, inputs: Sequence[Inputs]) -> list[Encoded]:
        with self._encoding:  # tokenizers set their truncation at each call
            return self._backbone.encode(inputs, self._run.config.recipe.max_length)

    def told(self, facts: Facts) -> tuple[ServedChain, ...]:
        """Return what serves, with the reads observed when its nodes were trained."""
        while True:
            with self._switching:
                models, weights = self.snapshot()
                head = self._head.facts() if self._head and self._head.linear else None
            share = 0.0 if head is None else head_share(self._run.config.plan, _lengths(models))
            beside = () if head is None else (ServedChain(SHARD, 0, share, (head,)),)
            try:
                return beside + tuple(
                    ServedChain(
                        shard, chain.order, (1 - share) * weights[shard], tuple(map(self._facts_of, chain.nodes))
                    )
                    for shard, (chain, _) in models.items()
                )
            except DamageError:
                self._run.damage.survey(facts, [fact for chain, _ in models.values() for fact in chain.nodes])
                self.sync(facts)

    def _facts_of(self, fact: TrainedNode) -> NodeFacts:
        node, reads = fact.node, json.loads(self._run.nodes.read(fact.key, READS, fact.files[READS]))
        return NodeFacts(node.name, fact.key, node.shard, node.prefix, fact.parent, frozenset(reads))

    def weights(self, facts: Facts) -> dict[str, Mapping[str, Tensor]]:
        """Return the tensors that serve, by node name: ``adapter.<name>`` and, for a chain's last node, ``head.<name>``."""
        out: dict[str, Mapping[str, Tensor]] = {}
        if self._head and self._head.linear:
            out[NAME] = self._head.linear.tensors()
        for chain, model in self.models.values():
            owner: dict[str, Node] = {}
            for stage, fact in zip(facts.plan.stages, chain.nodes, strict=False):
                owner[stage.adapter] = fact.node
            for adapter, node in owner.items():
                tensors = {f"adapter.{name}": value for name, value in model.adapter_tensors(adapter).items()}
                if node == chain.nodes[-1].node:
                    tensors |= {f"head.{name}": value for name, value in model.head_tensors().items()}
                out[node.name] = tensors
        return out


def _lengths(models: Models) -> dict[int, int]:
    return {shard: len(chain.nodes) for shard, (chain, _) in models.items()}
