"""The one place where everything composes into an unlearning system, for any plan; S3T's own is in :mod:`s3t.method`.

Nothing heavy is imported before it is needed: deleting and asking for the status load neither torch nor the model.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from s3t import requests, runs
from s3t.contract import Claim, Cost, Progress, Provenance, Receipt, Slot
from s3t.damage import Damage
from s3t.describing import base_model, check_model, check_records, check_slots, describe, open_same
from s3t.engine.mode import choose
from s3t.errors import RunError
from s3t.facts import Facts
from s3t.partition import KEY_BYTES
from s3t.plan import Plan
from s3t.records import Inputs, Recipe, Record
from s3t.resources import Resources
from s3t.runs import Evaluation, Run, RunConfig
from s3t.status import Status, describe_status, offline

if TYPE_CHECKING:
    from torch import Tensor

    from s3t.backbone import Backbone
    from s3t.building import Builder
    from s3t.serving import Serving


class System:
    """An unlearning system in a run folder; implements :class:`s3t.contract.UnlearningSystem` for any plan."""

    def __init__(
        self,
        path: Path | str,
        config: RunConfig,
        *,
        key: bytes | None = None,
        evaluation: Evaluation = ((), ()),
        backbone: Backbone | None = None,
        allow_empty: bool = False,
        resources: Resources | None = None,
    ) -> None:
        self.path = Path(path)
        self.config = config
        self._key = key
        self._evaluation = evaluation
        self._backbone = backbone
        self._allow_empty = allow_empty
        self._resources = resources or Resources()
        self._resources.check(config.kernel)
        self._run: Run | None = None
        self._facts: Facts | None = None
        self._serving: Serving | None = None
        self._forward_passes = 0

    @staticmethod
    def create(
        run: Path | str,
        plan: Plan,
        recipe: Recipe,
        *,
        model: str | Backbone,
        classes: Sequence[str],
        seed: int = 0,
        key: bytes | None = None,
        data: str = "",
        source: str = "",
        digest: str = "",
        evaluation: Evaluation = ((), ()),
        allow_empty: bool = False,
        engine: str = "reference",
        precision: str = "auto",
        resources: Resources | None = None,
    ) -> System:
        """Describe a system with ``plan``; nothing is written before :meth:`fit`.

        ``key``: the secret slot key (32 bytes), random by default. ``evaluation``: never-deletable validation and test
        records kept with the run. ModelError for a model unknown or unfit for the engine, LayoutError for a plan unfit for it.
        """
        backbone = base_model(model, classes)
        about = {"name": data, "source": source, "digest": digest, "classes": list(classes)}
        config = describe(plan, recipe, backbone, about, seed, choose(engine, precision))
        options: Any = {"key": key, "evaluation": evaluation, "allow_empty": allow_empty, "backbone": backbone}
        return System(run, config, resources=resources, **options)

    @staticmethod
    def open(
        run: Path | str,
        backbone: Backbone | None = None,
        resources: Resources | None = None,
        damage: Damage | None = None,
    ) -> System:
        """Open a trained run and complete what a crash cut short. RunError if it cannot be used.

        ``damage``: the :attr:`damage` of another system of this run, to share what is known of it."""
        opened = runs.open_run(Path(run), damage)
        system = System(run, opened.config, backbone=backbone, resources=resources)
        system._attach(opened)
        return system

    def close(self) -> None:
        """Close the run's files."""
        if self._run:
            self._run.close()
        self._run = self._facts = self._serving = None

    # ---- the contract ----

    def fit(self, records: Sequence[Record], progress: Progress | None = None) -> Cost:
        """Train on ``records``; given a run that exists with the same configuration, continue it.

        Raises DataError for duplicate ids, a label outside the classes, or a slot without records (unless allowed),
        RunError if the run was made otherwise; nothing is changed then.
        """
        check_records(records, self.config.classes, self._evaluation)
        if self._run is None and self.path.exists():
            self._attach(open_same(self.path, self.config, self._key))
        elif self._run is None:
            self._start(records)
        requests.check_holds(self._opened()[0], records)
        return self._build(progress)

    def delete(self, ids: Sequence[str]) -> Receipt:
        """Delete all ``ids`` as one atomic request: durable in the ledger, rows and nodes erased, before it returns.

        No training and no forward pass happens, unless the plan is eager. RecordError for an unknown id or one of a
        never-deletable split; nothing has changed then. Ids that are deleted already are reported as such.
        """
        started = time.perf_counter()
        run, facts = self._current()
        before, kept = facts.live_keys(), self._serving.recall(ids) if self._serving else []
        request = requests.delete(run, ids)
        if not request.fresh:
            requests.recover(run, facts)  # an earlier request that was cut short is completed now
            cost = self._made_good()
            return Receipt("", (), request.already, (), (), offline(*self._opened()), cost)
        if self._serving:
            self._serving.forget(kept, request.fresh, request.number)
        dropped = self._drop(before)
        cost = Cost(seconds=time.perf_counter() - started) + self._made_good()
        return Receipt(
            request.name, request.fresh, request.already, request.slots, dropped, offline(*self._opened()), cost
        )

    def predict(self, inputs: Sequence[Inputs]) -> NDArray[np.float32]:
        """Return scores of shape (len(inputs), classes) from intact chains of live shards. OfflineError without any."""
        serving = self.served()
        scores = serving.predict(inputs)
        self._forward_passes += len(inputs) * serving.passes
        return scores

    def refresh(self, progress: Progress | None = None) -> Cost:
        """Train the missing nodes on the retained records, and those whose files are lost or damaged; swap them in."""
        return self._build(progress, mend=True)

    def provenance(self) -> Provenance:
        """Say what is served now, from the models in memory and the reads observed when their nodes were trained."""
        run, facts = self._opened()
        serving = self.served()
        chains = serving.told(facts)
        stray = frozenset(t for entry in run.ledger.entries("stray") for t in entry.body["tags"])
        lacking = facts.missing(run.damage.nodes(facts)) or not facts.has_head or serving.trouble
        claim: Claim = "non-interference" if lacking else "retrained"
        return Provenance(self.config.plan.method, claim, chains, offline(*self._opened()), stray)

    def weights(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Return the tensors that serve now, by node name and tensor name."""
        return self.served().weights(self._opened()[1])

    def cost(self) -> Cost:
        """Return everything spent on this run so far."""
        return self._current()[1].cost + Cost(forward_passes=self._forward_passes)

    # ---- beyond the contract ----

    def retire(self, slots: Iterable[Slot]) -> Receipt:
        """Drop whole slots without deleting a record, as an operator may; durable like a deletion."""
        run, facts = self._current()
        before = facts.live_keys()
        request = requests.retire(run, slots)
        return Receipt(request.name, (), (), request.slots, self._drop(before), offline(*self._opened()), Cost())

    def extend(self, budget: int, progress: Progress | None = None) -> Cost:
        """Raise the number of orders to ``budget`` and train only the nodes that this adds."""
        run, facts = self._current()
        if budget < facts.plan.layout.budget:
            raise RunError(f"budget={budget} is below the {facts.plan.layout.budget} orders that the run has already")
        if budget > facts.plan.layout.budget:
            facts.plan.with_budget(budget)
            run.ledger.append("extend", {"budget": budget})
        return self._build(progress)

    def status(self, *, check: bool = False) -> Status:
        """Return how the run stands, from the ledger and the damage met so far; ``check`` reads all nodes' files to meet it."""
        return describe_status(*self._opened(), check=check)

    def served(self) -> Serving:
        """Return the chains of the live shards in memory, in line with the ledger as of now."""
        run, facts = self._opened()
        self._serving = self._serving or self._serving_for(run)
        self._serving.sync(facts)
        return self._serving

    @property
    def damage(self) -> Damage:
        """What is known of damaged nodes."""
        return self._opened()[0].damage

    @property
    def classes(self) -> tuple[str, ...]:
        """The declared classes, in the order of the columns of :meth:`predict`."""
        return self.config.classes

    @property
    def key(self) -> bytes:
        """The secret slot key; whoever holds it can aim deletions at slots."""
        return self._opened()[0].key

    def ids(self) -> list[str]:
        """Return the ids of the retained training records, sorted."""
        return self._opened()[0].records.ids("train")

    def each_id(self) -> Iterator[str]:
        """Yield the ids of the retained training records as they were ingested, one in memory at a time."""
        return self._opened()[0].records.each_id("train")

    def members(self, group: str) -> list[str]:
        """Return the ids of a group's retained training records (:func:`s3t.records.grouped`). RecordError without any."""
        return requests.members(self._opened()[0], group)

    def evaluation(self, split: str) -> list[Record]:
        """Return the run's validation or test records, sorted by id."""
        return self._opened()[0].records.evaluation(split)

    # ---- inside ----

    def _opened(self) -> tuple[Run, Facts]:
        if self._run is None or self._facts is None:
            raise RunError(f"{self.path} is not fitted yet; call fit first")
        return self._run, self._facts

    def _current(self) -> tuple[Run, Facts]:
        run, facts = self._opened()
        facts.update()
        return run, facts

    def _attach(self, run: Run) -> None:
        self._run, self._facts = run, Facts(run.ledger, run.config.plan)
        requests.recover(run, self._facts)

    def _start(self, records: Sequence[Record]) -> None:
        key = self._key or secrets.token_bytes(KEY_BYTES)
        if not self._allow_empty:
            check_slots(key, records, self.config.plan.layout)
        runs.create(self.path, self.config, key, records, self._evaluation)
        self._attach(runs.open_run(self.path))

    def _drop(self, before: set[str]) -> tuple[str, ...]:
        run, facts = self._current()
        dropped = before - facts.live_keys()
        if self._serving:
            self._serving.drop(facts)
        requests.erase(run, dropped)
        requests.erase_leftovers(run, facts)
        return tuple(sorted(dropped))

    def _made_good(self) -> Cost:
        """An eager plan trains what is missing within the deletion; a lazy one serves what is left, and so does an eager
        one whose last request was an operator's, to retire slots: to repeat an older deletion does not undo that."""
        run, facts = self._opened()
        due = self.config.plan.eager and not requests.ends_retired(run) and facts.missing()
        return self._build(None, down=True) if due else Cost()

    def _loaded(self) -> Backbone:
        self._backbone = self._backbone or base_model(self.config.model["name"])
        check_model(self.config, self._backbone)
        return self._backbone

    def _builder(self, run: Run, facts: Facts) -> Builder:
        from s3t.building import Builder

        return Builder(run, self._loaded(), facts, self._resources)

    def _build(self, progress: Progress | None, *, down: bool = False, mend: bool = False) -> Cost:
        return self._builder(*self._opened()).build(progress, down=down, mend=mend)

    def _serving_for(self, run: Run) -> Serving:
        from s3t.serving import Serving

        return Serving(run, self._loaded())
