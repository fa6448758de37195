"""What both ports share: a LoRA adapter per layer with a head, trained in plain PyTorch; tensors in and out by layer."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from s3t.backbone import Backbone, Encoded
from s3t.blocks import ChainModel, score
from s3t.contract import Cost
from s3t.records import Recipe, Record
from s3t.training import reproducible
from verify.plans import Stage

Named = dict[str, Tensor]
RECIPE = Recipe(rank=2, epochs=2, batch_size=4, lr=2e-2, head_lr=5e-2, max_length=48)


@dataclass(frozen=True)
class Setting:
    """What a port is made with. ``key`` decides slots, ``tokens`` is the largest padded batch that fits in "memory"."""

    shards: int = 2
    slices: int = 3
    budget: int = 4
    classes: int = 2
    seed: int = 0
    recipe: Recipe = field(default=RECIPE)
    key: bytes = b"ports"
    tokens: int = 96

    def slot(self, name: str) -> tuple[int, int]:
        """Return the slot of an id, from the id alone."""
        raw = hashlib.sha256(self.key + name.encode()).digest()
        return raw[0] % self.shards, raw[1] % self.slices


@dataclass
class Work:
    """What training has cost so far."""

    nodes: int = 0
    passes: int = 0
    steps: int = 0

    def cost(self) -> Cost:
        """Return it as the contract counts."""
        return Cost(nodes=self.nodes, record_passes=self.passes, optimizer_steps=self.steps)


class Net:
    """The base model with one adapter per layer, all active, and a head. An adapter whose B is zero changes nothing."""

    def __init__(self, backbone: Backbone, setting: Setting) -> None:
        recipe = setting.recipe
        stages = [Stage(f"layer-{i:02d}", "lora", (i,), recipe.epochs) for i in range(backbone.layers)]
        with torch.random.fork_rng(devices=[]):
            self.model = ChainModel(backbone, cast(Any, stages), recipe, setting.classes)
        self.recipe = recipe
        self.layers: list[list[nn.Parameter]] = [self.model.adapter_parameters(stage.adapter) for stage in stages]
        self.head: dict[str, nn.Parameter] = dict(self.model.head.named_parameters())

    def clear(self) -> None:
        """Set every adapter and the head to zero."""
        for parameter in (*(p for pair in self.layers for p in pair), *self.head.values()):
            parameter.data.zero_()

    def fresh(self, layers: Iterable[int], head: bool, seed: int | None) -> None:
        """Initialise adapters of ``layers`` (A uniform, B zero) and the head; without a seed from the system's entropy."""
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        for index in layers:
            for position, parameter in enumerate(self.layers[index]):
                drawn = torch.rand(parameter.shape, generator=generator) * 2 - 1
                parameter.data.copy_(drawn * parameter.shape[1] ** -0.5 * (position % 2 == 0))
        if head:
            self.head["weight"].data.copy_(torch.randn(self.head["weight"].shape, generator=generator) * 0.02)
            self.head["bias"].data.zero_()

    def layer(self, index: int) -> Named:
        """Return the live tensors of a layer's adapter, A and B of each adapted module in turn."""
        return {f"{number}": parameter for number, parameter in enumerate(self.layers[index])}

    def put(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors of a layer's adapter in."""
        for name, parameter in self.layer(index).items():
            parameter.data.copy_(tensors[name])

    def put_head(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the head's tensors in."""
        for name, parameter in self.head.items():
            parameter.data.copy_(tensors[name])

    def train(
        self,
        layers: Sequence[int],
        rows: Sequence[Record],
        batches: Callable[[Sequence[Encoded], int], Iterator[Sequence[int]]],
        work: Work,
        after_epoch: Callable[[], None] = lambda: None,
    ) -> None:
        """Train the adapters of ``layers`` and the head; ``batches(encoded, epoch)`` yields indices into ``rows``."""
        trained = [p for index in layers for p in self.layers[index]] + list(self.head.values())
        encoded = self.model.backbone.encode([row.inputs for row in rows], self.recipe.max_length)
        with reproducible(0, self.model.backbone.device):
            for parameter in trained:
                parameter.requires_grad_(True)
            groups = [
                {"params": trained[:-2], "lr": self.recipe.lr},
                {"params": trained[-2:], "lr": self.recipe.head_lr},
            ]
            optimizer = torch.optim.AdamW(groups, weight_decay=self.recipe.weight_decay)
            for epoch in range(int(self.recipe.epochs)):
                for batch in batches(encoded, epoch):
                    logits = self.model(self.model.backbone.collate([encoded[i] for i in batch]))
                    labels = torch.tensor([rows[i].label for i in batch])
                    nn.functional.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    optimizer.zero_grad()
                    work.steps, work.passes = work.steps + 1, work.passes + len(batch)
                after_epoch()
            for parameter in trained:
                parameter.requires_grad_(False)
        work.nodes += 1

    def scores(self, inputs: Sequence[Any]) -> Tensor:
        """Return logits of shape (len(inputs), classes)."""
        return score(self.model, self.model.backbone.encode(list(inputs), self.recipe.max_length))


class Best:
    """Keeps the epoch with the lowest loss on ``test``; without a call, the last one."""

    def __init__(self, net: Net, layers: Sequence[int], test: Sequence[Record]) -> None:
        self._net, self._test, self._loss = net, test, float("inf")
        self._parameters = [*(p for layer in layers for p in net.layers[layer]), *net.head.values()]
        self._kept: list[Tensor] | None = None

    def __call__(self) -> None:
        labels = torch.tensor([record.label for record in self._test])
        scores = self._net.scores([record.inputs for record in self._test])
        loss = float(torch.nn.functional.cross_entropy(scores, labels))
        if self._kept is None or loss < self._loss:
            self._loss, self._kept = loss, [p.detach().clone() for p in self._parameters]

    def restore(self) -> None:
        """Put the kept epoch back."""
        for parameter, kept in zip(self._parameters, self._kept or self._parameters, strict=True):
            parameter.data.copy_(kept)


def shuffled(count: int, *identity: Any) -> list[int]:
    """Return 0..count-1 in an order that depends on ``identity`` alone."""
    order = list(range(count))
    Random(repr(identity)).shuffle(order)
    return order


def number(*identity: Any) -> int:
    """Return a seed that depends on ``identity`` alone."""
    return int.from_bytes(hashlib.sha256(repr(identity).encode()).digest()[:7], "big")


def hashed(salt: str, name: str) -> str:
    """Return what stands for a deleted id."""
    return hashlib.sha256(f"{salt} {name}".encode()).hexdigest()


def save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, replacing the file in one step."""
    partial = path.with_suffix(".partial")
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, partial)
    os.replace(partial, path)


def load(path: Path) -> Named:
    """Read tensors."""
    found: Named = load_file(path)
    return found


def write_json(path: Path, value: Any) -> None:
    """Write JSON, replacing the file in one step."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    os.replace(partial, path)


def read_json(path: Path) -> Any:
    """Read JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write records, one a line, replacing the file in one step."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(b"".join(record.content() + b"\n" for record in records))
    os.replace(partial, path)


def read_records(path: Path) -> list[Record]:
    """Read records, in the order of their ids."""
    rows = [Record.from_content(line) for line in path.read_bytes().splitlines()]
    return sorted(rows, key=lambda record: record.id)
