"""SISA as a simple system, with the known mistakes of its reference implementation as switches.

Every shard trains one model over its slices in turn, on all rows of the slices so far (arXiv 1912.03817, section IV). Models
lie in a cache under a key; a link per shard says which one serves. A deletion retrains the shard from its slice on, at once.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s3t.backbone import Backbone, Encoded
from s3t.contract import Cost, NodeFacts, Progress, Provenance, Receipt, ServedChain
from s3t.errors import RecordError
from s3t.records import Inputs, Record, canonical_json, sha256
from s3t.unique import check_unique
from verify.ports import engine
from verify.ports.engine import Net, Setting, Work
from verify.ports.mistakes import SISAMistakes


class SISAReference:
    """The system in ``folder``; implements :class:`s3t.contract.UnlearningSystem`."""

    def __init__(self, folder: Path, setting: Setting, mistakes: SISAMistakes, backbone: Backbone) -> None:
        self.folder, self.setting, self.mistakes, self.backbone = folder, setting, mistakes, backbone
        self._work = Work()
        self._state: dict[str, Any] = {}
        self._rows: dict[str, Record] = {}
        self._trainer: Net | None = None
        self._served: dict[int, tuple[str, Net]] | None = None

    @classmethod
    def open(cls, *args: Any, **kwargs: Any) -> SISAReference:
        """Open what a system left in its folder; a retraining that was cut short is finished."""
        system = cls(*args, **kwargs)
        system._state = engine.read_json(system.folder / "state.json")
        system._rows = {record.id: record for record in engine.read_records(system.folder / "records.jsonl")}
        system._build()
        return system

    def fit(self, records: Sequence[Record], progress: Progress | None = None) -> Cost:
        """Train all shards; models that the cache has already are taken from there."""
        check_unique(records)
        for name in ("cache", "serving"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._rows = {record.id: record for record in sorted(records, key=lambda record: record.id)}
        self._state = {"salt": secrets.token_hex(16), "gone": []}
        self._save()
        return self._build()

    def delete(self, ids: Sequence[str]) -> Receipt:
        """Delete ``ids`` and retrain. RecordError for an unknown id; nothing has changed then."""
        fresh, already = [], []
        for name in dict.fromkeys(ids):
            if name in self._rows:
                fresh.append(name)
            elif engine.hashed(self._state["salt"], name) in self._state["gone"]:
                already.append(name)
            else:
                raise RecordError(f"record {name!r} is not in this system, so nothing was deleted")
        requests = fresh
        if self.mistakes.requests_overwritten:
            requests = Random(self.setting.seed).sample(sorted(self._rows), len(fresh))
        for name in requests:
            del self._rows[name]
        self._state["gone"] += [engine.hashed(self._state["salt"], name) for name in requests]
        self._save()
        slots = sorted({self.setting.slot(name) for name in fresh})
        return Receipt("", tuple(fresh), tuple(already), tuple(slots), (), (), self._build())

    def refresh(self, progress: Progress | None = None) -> Cost:
        """Train what is missing: nothing, unless a retraining was cut short."""
        return self._build()

    def predict(self, inputs: Sequence[Inputs]) -> NDArray[np.float32]:
        """Return the mean of the shards' logits."""
        nets = [net for _, net in self._serving().values()]
        scores: NDArray[np.float32] = torch.stack([net.scores(inputs) for net in nets]).mean(0).numpy()
        return scores

    def provenance(self) -> Provenance:
        """Say what is served, with the reads that were observed while each model and its parents trained."""
        chains = []
        for shard, (key, _) in sorted(self._serving().items()):
            reads = frozenset(engine.read_json(self._file(key, "json"))["reads"])
            node = NodeFacts(f"shard {shard}", key, shard, tuple(range(self.setting.slices)), None, reads)
            chains.append(ServedChain(shard, 0, 1.0, (node,)))
        return Provenance("SISA reference", "retrained", tuple(chains), ())

    def weights(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Return the live tensors that serve."""
        return {f"shard {shard}": _tensors(net) for shard, (_, net) in self._serving().items()}

    def cost(self) -> Cost:
        """Return what this process has spent."""
        return self._work.cost()

    # ---- inside ----

    def _build(self) -> Cost:
        before, needed = self._work.cost(), set()
        for shard in range(self.setting.shards):
            rows: list[Record] = []
            key = ""
            for piece in range(self.setting.slices):
                rows += [row for row in self._rows.values() if self.setting.slot(row.id) == (shard, piece)]
                parent, key = key, self._key(shard, piece, key, rows)
                if not self._file(key, "safetensors").exists():
                    self._train(shard, piece, parent, key, rows)
                needed.add(key)
            self._link(shard, key)
        needed |= {self._linked(shard) for shard in range(self.setting.shards)}
        for path in (self.folder / "cache").iterdir():
            if path.stem not in needed:
                path.unlink()
        self._served = None
        return self._work.cost() - before

    def _key(self, shard: int, piece: int, parent: str, rows: Sequence[Record]) -> str:
        covered = len(rows)
        if self.mistakes.key_without_last_rows:
            covered -= covered % self.setting.recipe.batch_size
        about: list[Any] = [shard, piece, parent, [sha256(row.content()) for row in rows[:covered]]]
        about += [] if self.mistakes.key_without_seed else [self.setting.seed]
        about += [] if self.mistakes.key_without_recipe else [self.setting.recipe.to_json()]
        return sha256(canonical_json(about))

    def _train(self, shard: int, piece: int, parent: str, key: str, rows: Sequence[Record]) -> None:
        self._trainer = self._trainer or Net(self.backbone, self.setting)
        net, layers, size = self._trainer, range(self.backbone.layers), self.setting.recipe.batch_size
        if parent:
            _mount(net, engine.load(self._file(parent, "safetensors")))
        else:
            net.fresh(layers, True, engine.number(self.setting.seed, shard))
        reads = set(engine.read_json(self._file(parent, "json"))["reads"]) if parent else set()

        def batches(encoded: Sequence[Encoded], epoch: int) -> Iterator[Sequence[int]]:
            order = engine.shuffled(len(encoded), self.setting.seed, shard, piece, epoch)
            yield from (order[start : start + size] for start in range(0, len(order), size))

        net.train(layers, rows, batches, self._work)
        engine.write_json(self._file(key, "json"), {"reads": sorted(reads | {row.id for row in rows})})
        engine.save(self._file(key, "safetensors"), _tensors(net))

    def _link(self, shard: int, key: str) -> None:
        link, target = self.folder / "serving" / str(shard), Path("..") / "cache" / f"{key}.safetensors"
        if self.mistakes.link_kept:
            try:
                link.symlink_to(target)
            except FileExistsError:
                return
        else:
            partial = link.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            partial.symlink_to(target)
            os.replace(partial, link)

    def _linked(self, shard: int) -> str:
        """Return the key of the model that serves; a copy of the folder may hold the model in the place of the link."""
        link = self.folder / "serving" / str(shard)
        if link.is_symlink():
            return Path(os.readlink(link)).stem
        served = link.read_bytes()
        return next(p.stem for p in (self.folder / "cache").glob("*.safetensors") if p.read_bytes() == served)

    def _serving(self) -> dict[int, tuple[str, Net]]:
        if self._served is None:
            self._served = {}
            for shard in range(self.setting.shards):
                key, net = self._linked(shard), Net(self.backbone, self.setting)
                _mount(net, engine.load(self._file(key, "safetensors")))
                self._served[shard] = key, net
        return self._served

    def _file(self, key: str, ending: str) -> Path:
        return self.folder / "cache" / f"{key}.{ending}"

    def _save(self) -> None:
        engine.write_json(self.folder / "state.json", self._state)
        engine.write_records(self.folder / "records.jsonl", self._rows.values())


def _tensors(net: Net) -> dict[str, Tensor]:
    layers = {f"layer.{i}.{name}": p for i in range(len(net.layers)) for name, p in net.layer(i).items()}
    return {**layers, **{f"head.{name}": parameter for name, parameter in net.head.items()}}


def _mount(net: Net, tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in _tensors(net).items():
        parameter.data.copy_(tensors[name])
