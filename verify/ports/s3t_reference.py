"""S3T as a simple system, with the known mistakes of its reference implementation as switches.

Every shard trains one chain per order: stage k trains the LoRA adapters of one block of layers, from the top down, and
the head, on the k-th slice of the order (arXiv 2406.16257, section 3.2). A deletion drops, in every chain, the stage of the
hit slice and all later ones; of each shard the longest chain left serves; a refresh trains what is missing.
"""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s3t.backbone import Backbone, Encoded
from s3t.contract import Cost, NodeFacts, Progress, Provenance, Receipt, ServedChain, Slot
from s3t.errors import OfflineError, RecordError
from s3t.records import Inputs, Record
from s3t.unique import check_unique
from verify.ports import engine
from verify.ports.engine import Best, Net, Setting, Work
from verify.ports.mistakes import S3TMistakes

Order = tuple[int, ...]
Listing = Callable[[Path], list[str]]


def orders(slices: int, budget: int) -> list[Order]:
    """Return the first ``budget`` orders: the rotations, then the other permutations."""
    rotations = [tuple((start + i) % slices for i in range(slices)) for start in range(slices)]
    others = [order for order in itertools.permutations(range(slices)) if order not in rotations]
    return [*rotations, *others][:budget]


class S3TReference:
    """The system in ``folder``; implements :class:`s3t.contract.UnlearningSystem` and ``retire``."""

    def __init__(
        self,
        folder: Path,
        setting: Setting,
        mistakes: S3TMistakes,
        backbone: Backbone,
        test: Sequence[Record],
        listing: Listing = os.listdir,
    ) -> None:
        self.folder, self.setting, self.mistakes, self.backbone = folder, setting, mistakes, backbone
        self._test, self._listing, self._work = list(test), listing, Work()
        budget = min(setting.budget, setting.slices) if mistakes.capped_budget else setting.budget
        self.orders = orders(setting.slices, budget)
        size = backbone.layers // setting.slices
        self.blocks = [
            range(backbone.layers - size * (k + 1), backbone.layers - size * k) for k in range(setting.slices)
        ]
        self._state: dict[str, Any] = {}
        self._rows: dict[str, Record] = {}
        self._trainer: Net | None = None
        self._served: dict[int, tuple[int, int, Net]] | None = None

    @classmethod
    def open(cls, *args: Any, **kwargs: Any) -> S3TReference:
        """Open what a system left in its folder."""
        system = cls(*args, **kwargs)
        system._state = engine.read_json(system.folder / "state.json")
        system._rows = {record.id: record for record in engine.read_records(system.folder / "records.jsonl")}
        system._sweep()
        return system

    # ---- the contract ----

    def fit(self, records: Sequence[Record], progress: Progress | None = None) -> Cost:
        """Train all chains."""
        check_unique(records)
        self.folder.mkdir(parents=True)
        self._rows = {record.id: record for record in sorted(records, key=lambda record: record.id)}
        engine.write_records(self.folder / "records.jsonl", self._rows.values())
        size = self.setting.recipe.batch_size
        self._state = {"salt": secrets.token_hex(16), "gone": [], "hits": [], "batch_size": size}
        return self._build()

    def delete(self, ids: Sequence[str]) -> Receipt:
        """Delete ``ids`` at once. RecordError for an unknown id; nothing has changed then."""
        fresh, already = [], []
        for name in dict.fromkeys(ids):
            if self._is_gone(name):
                already.append(name)
            elif name in self._rows:
                fresh.append(name)
            else:
                raise RecordError(f"record {name!r} is not in this system, so nothing was deleted")
        slots = sorted({self.setting.slot(name) for name in fresh})
        self._state["gone"] += [name if self.mistakes.listed_only else self._mark(name) for name in fresh]
        self._drop(slots)
        live = {shard for shard, *_ in self._chains()}
        offline = tuple(shard for shard in range(self.setting.shards) if shard not in live)
        return Receipt("", tuple(fresh), tuple(already), tuple(slots), (), offline, Cost())

    def retire(self, slots: Iterable[Slot]) -> None:
        """Drop whole slots without deleting a record."""
        self._drop(slots)

    def refresh(self, progress: Progress | None = None) -> Cost:
        """Train the missing stages on the retained records."""
        return self._build()

    def predict(self, inputs: Sequence[Inputs]) -> NDArray[np.float32]:
        """Return the mean of the shards' logits. OfflineError if no chain is left."""
        nets = [net for _, _, net in self._serving().values()]
        if not nets:
            raise OfflineError("no chain is left; refresh first")
        scores: NDArray[np.float32] = torch.stack([net.scores(inputs) for net in nets]).mean(0).numpy()
        return scores

    def provenance(self) -> Provenance:
        """Say what is served, with the reads that were observed while each stage trained."""
        chains = []
        for shard, (number, depth, _) in sorted(self._serving().items()):
            nodes = []
            for k in range(depth):
                reads = engine.read_json(self._chain(shard, number) / f"reads-{k}.json")
                parent = self._name(shard, number, k - 1) if k else None
                name = self._name(shard, number, k)
                nodes.append(NodeFacts(name, name, shard, self.orders[number][: k + 1], parent, frozenset(reads)))
            chains.append(ServedChain(shard, number, 1.0, tuple(nodes)))
        live = {chain.shard for chain in chains}
        offline = tuple(shard for shard in range(self.setting.shards) if shard not in live)
        whole = all(
            self._depth(shard, number) == self.setting.slices
            for shard in range(self.setting.shards)
            for number in range(len(self.orders))
        )
        return Provenance("S3T reference", "retrained" if whole else "non-interference", tuple(chains), offline)

    def weights(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Return the live tensors of the served chains by stage; the head with the last one."""
        found: dict[str, dict[str, Tensor]] = {}
        for shard, (number, depth, net) in self._serving().items():
            for k in range(depth):
                found[self._name(shard, number, k)] = {
                    f"layer.{layer}.{name}": tensor
                    for layer in self.blocks[k]
                    for name, tensor in net.layer(layer).items()
                }
            found[self._name(shard, number, depth - 1)] |= {f"head.{name}": p for name, p in net.head.items()}
        return found

    def cost(self) -> Cost:
        """Return what this process has spent."""
        return self._work.cost()

    # ---- stages ----

    def _build(self) -> Cost:
        before = self._work.cost()
        for shard in range(self.setting.shards):
            for number in range(len(self.orders)):
                for depth in range(self._depth(shard, number), self.setting.slices):
                    self._train(shard, number, depth)
        self._state["hits"] = []
        self._save_state()
        self._served = None
        return self._work.cost() - before

    def _train(self, shard: int, number: int, depth: int) -> None:
        chain, recipe = self._chain(shard, number), self.setting.recipe
        chain.mkdir(parents=True, exist_ok=True)
        self._trainer = self._trainer or Net(self.backbone, self.setting)
        net, block = self._trainer, self.blocks[depth]
        self._mount(net, shard, number, depth)
        identity = (self.setting.seed, shard, self.orders[number][: depth + 1])
        trained = self._matched(block)
        net.fresh(block, depth == 0, None if self.mistakes.unseeded else engine.number(*identity))
        earlier = [layer for before in self.blocks[:depth] for layer in before]
        if self.mistakes.rewrapped:
            for layer in earlier:
                net.put(layer, {name: torch.zeros_like(tensor) for name, tensor in net.layer(layer).items()})
        slot = (shard, self.orders[number][depth])
        rows = [r for r in self._rows.values() if self.setting.slot(r.id) == slot and not self._is_gone(r.id)]

        def batches(encoded: Sequence[Encoded], epoch: int) -> Iterator[Sequence[int]]:
            left = engine.shuffled(len(encoded), *identity, epoch)
            while left:
                size = self._state["batch_size"] if self.mistakes.retried_batches else recipe.batch_size
                batch = left[:size]
                tokens = len(batch) * max(encoded[i].length for i in batch)
                if self.mistakes.retried_batches and tokens > self.setting.tokens and size > 1:
                    self._state["batch_size"] = size // 2
                    continue
                left = left[size:]
                yield batch

        best = Best(net, trained, self._test)
        net.train(trained, rows, batches, self._work, best if self.mistakes.best_on_test else lambda: None)
        best.restore()
        for layer in sorted({*trained, *(earlier if self.mistakes.rewrapped else ())}):
            engine.save(chain / f"layer-{layer:02d}.safetensors", net.layer(layer))
        engine.write_json(chain / f"reads-{depth}.json", sorted(row.id for row in rows))
        engine.save(chain / f"head-{depth}.safetensors", net.head)

    def _matched(self, block: Iterable[int]) -> list[int]:
        if not self.mistakes.substring_layers:
            return list(block)
        names = [f"layer.{layer}" for layer in range(self.backbone.layers)]
        return [i for i, name in enumerate(names) if any(names[layer] in name for layer in block)]

    def _mount(self, net: Net, shard: int, number: int, depth: int) -> Net:
        """Give ``net`` the first ``depth`` stages of a chain and nothing else; return it."""
        chain = self._chain(shard, number)
        net.clear()
        for block in self.blocks[:depth]:
            for layer in block:
                net.put(layer, engine.load(chain / f"layer-{layer:02d}.safetensors"))
        if depth:
            net.put_head(engine.load(chain / f"head-{depth - 1}.safetensors"))
        return net

    # ---- what is left ----

    def _drop(self, slots: Iterable[Slot]) -> None:
        self._state["hits"] = sorted({*map(tuple, self._state["hits"]), *slots})
        self._save_state()
        self._sweep()
        self._served = None

    def _sweep(self) -> None:
        """Erase what was deleted or dropped."""
        if self.mistakes.listed_only:
            return
        kept = {name: record for name, record in self._rows.items() if not self._is_gone(name)}
        if len(kept) < len(self._rows):
            self._rows = kept
            engine.write_records(self.folder / "records.jsonl", kept.values())
        for shard in range(self.setting.shards):
            for number in range(len(self.orders)):
                for k in range(self._listed(shard, number), self.setting.slices):
                    layers = [f"layer-{layer:02d}.safetensors" for layer in self.blocks[k]]
                    for name in (f"head-{k}.safetensors", f"reads-{k}.json", *layers):
                        (self._chain(shard, number) / name).unlink(missing_ok=True)

    def _listed(self, shard: int, number: int) -> int:
        """Return how many stages of a chain no dropped slot hits."""
        hits = {tuple(slot) for slot in self._state["hits"]}
        order = self.orders[number]
        return next((k for k, piece in enumerate(order) if (shard, piece) in hits), len(order))

    def _stored(self, shard: int, number: int) -> int:
        """Return how many stages of a chain are on disk."""
        chain = self._chain(shard, number)
        stored = (k for k in range(self.setting.slices) if not (chain / f"head-{k}.safetensors").exists())
        return next(stored, self.setting.slices)

    def _depth(self, shard: int, number: int) -> int:
        return min(self._listed(shard, number), self._stored(shard, number))

    def _chains(self) -> Iterator[tuple[int, int, int]]:
        """Yield (shard, number of the order, stages) of what is to serve."""
        for shard in range(self.setting.shards):
            if self.mistakes.first_listed:
                folder = self.folder / "chains" / str(shard)
                names = [int(name) for name in self._listing(folder) if self._stored(shard, int(name))]
                chosen = [(number, self._stored(shard, number)) for number in names[:1]]
            else:
                depths = [(number, self._depth(shard, number)) for number in range(len(self.orders))]
                chosen = sorted((pair for pair in depths if pair[1]), key=lambda pair: -pair[1])[:1]
            yield from ((shard, number, depth) for number, depth in chosen)

    def _serving(self) -> dict[int, tuple[int, int, Net]]:
        if self._served is None:
            self._served = {
                shard: (number, depth, self._mount(Net(self.backbone, self.setting), shard, number, depth))
                for shard, number, depth in self._chains()
            }
        return self._served

    def _is_gone(self, name: str) -> bool:
        return (name if self.mistakes.listed_only else self._mark(name)) in self._state["gone"]

    def _mark(self, name: str) -> str:
        return engine.hashed(self._state["salt"], name)

    def _chain(self, shard: int, number: int) -> Path:
        return self.folder / "chains" / str(shard) / str(number)

    @staticmethod
    def _name(shard: int, number: int, k: int) -> str:
        return f"shard {shard}, order {number}, stage {k}"

    def _save_state(self) -> None:
        engine.write_json(self.folder / "state.json", self._state)
