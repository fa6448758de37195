"""Clean small systems, drawn at random with what happens to them, for the soak and for exhaustive histories.

This module makes systems to audit, and is therefore allowed to know them. A system depends on a seed and a number alone.
"""

from __future__ import annotations

import math
import string
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from s3t.contract import Slot, UnlearningSystem
from s3t.records import Layout, Recipe, Record
from verify import derive
from verify.case import SAME, Variant
from verify.plans import ANALYTIC, Head
from verify.trace import Kind, Step

if TYPE_CHECKING:
    from s3t.backbone import Backbone

WORDS = (
    "amber",
    "birch",
    "cedar",
    "dune",
    "ember",
    "fjord",
    "grove",
    "heath",
    "islet",
    "jetty",
    "Zürich",
    '"quoted"',
    "\\n",
)
KINDS: tuple[Kind, ...] = ("delete", "delete", "delete", "delete", "refresh", "retire", "extend", "restart", "unknown")


@dataclass(frozen=True)
class Small:
    """A small clean system as drawn, and what happens to it after the fit. ``head``: an analytic head, with its share."""

    method: str
    layout: Layout
    recipe: Recipe
    model: str
    classes: tuple[str, ...]
    seed: int
    key: bytes
    records: tuple[Record, ...]
    evaluation: tuple[tuple[Record, ...], tuple[Record, ...]]
    steps: tuple[Step, ...] = ()
    head: Head | None = None
    share: float = 0.0
    weights: str = "equal"
    pool: str = "linear"

    @property
    def nodes(self) -> int:
        """How many nodes its plan has."""
        if self.method == ANALYTIC:
            return 0
        orders = derive.cyclic(self.layout.slices, self.layout.budget)
        return self.layout.shards * len({order[:i] for order in orders for i in range(1, len(order) + 1)})

    @property
    def probes(self) -> tuple[Record, ...]:
        """Whose predictions are compared."""
        return self.evaluation[1] or self.evaluation[0] or self.records[:8]

    def slot(self, name: str) -> Slot:
        """Return the slot of an id."""
        return derive.slot(self.key, name, self.layout.shards, self.layout.slices)


@dataclass(frozen=True)
class SmallLab:
    """Makes and opens systems as ``small`` describes them."""

    small: Small

    def make(self, folder: Path, variant: Variant = SAME) -> UnlearningSystem:
        """Describe the system in ``folder``; only the seed may vary."""
        from baselines.methods import make_plan
        from s3t.analytic.head import AnalyticHead
        from s3t.system import System

        small, base = self.small, backbone(self.small.model)
        head = None if small.head is None else AnalyticHead(**asdict(small.head))
        share = None if head is None or small.method == ANALYTIC else small.share
        plan = make_plan(
            small.method, small.layout, small.recipe, base.layers, None, None, head, share, small.weights, small.pool
        )
        return System.create(
            folder,
            plan,
            small.recipe,
            model=base,
            classes=small.classes,
            seed=small.seed if variant.seed is None else variant.seed,
            key=small.key,
            evaluation=small.evaluation,
            allow_empty=True,
        )

    def open(self, folder: Path) -> UnlearningSystem:
        """Open a run of such a system."""
        from s3t.system import System

        return System.open(folder, backbone(self.small.model))

    def slot(self, name: str) -> Slot:
        """Return the slot of an id."""
        return self.small.slot(name)


@cache
def backbone(name: str) -> Backbone:
    """Return a base model on the CPU, loaded once."""
    import torch

    from s3t.backbone import load

    return load(name, torch.device("cpu"))


def draw(seed: int, number: int, *, steps: bool = True) -> Small:
    """Draw the ``number``-th small system of the soak ``seed``, with a history unless ``steps`` is false."""
    from baselines.methods import METHODS, UNDIVIDED

    rng = Random(f"s3t soak v1 {seed} {number}")
    method = rng.choice(sorted(METHODS))
    slices = rng.choice((1, 2, 2, 3))
    budget = rng.randint(1, min(4, math.factorial(slices)))
    layout = Layout(rng.choice((1, 1, 2, 2, 3)), slices, budget)
    if method in UNDIVIDED:
        layout = Layout(1, 1, 1)
    count = rng.randint(6, 40)
    recipe = Recipe(
        rank=rng.choice((1, 2, 4)),
        alpha=rng.choice((1.0, 8.0, 16.0)),
        dropout=rng.choice((0.0, 0.1, 0.5)),
        rslora=rng.random() < 0.3,
        epochs=rng.choice((0.3, 0.5, 1.0, 1.0, 1.5, 2.0)),
        batch_size=rng.choice((1, 2, 3)) + count // 4,
        lr=rng.choice((1e-3, 4e-3)),
        weight_decay=rng.choice((0.0, 0.01)),
        warmup=rng.choice((0.0, 0.06, 0.5)),
        clip=rng.choice((0.1, 1.0)),
        max_length=rng.choice((3, 16, 128)),
        window=rng.choice((1, 2, 16)),
        ensemble=rng.choice(("mean-logits", "mean-probabilities", "vote")),
    )
    classes = tuple(string.ascii_lowercase[: rng.randint(2, 4)])
    name = rng.choice(("row-{:04d}", "{}", "Zeile {}/ü", "{:08x}-c0de"))
    records = tuple(_record(name.format(number), len(classes), rng) for number in rng.sample(range(1000), count))
    kept = [_record(f"kept-{number:03d}", len(classes), rng) for number in range(rng.choice((0, 3, 6)))]
    evaluation = (tuple(kept[:1]), tuple(kept[1:]))
    depth = max(slices, rng.choice((1, 2, 3)))
    drawn = Small(
        method, layout, recipe, f"tiny-{depth}", classes, rng.getrandbits(40), rng.randbytes(32), records, evaluation
    )
    heads = Random(f"s3t soak heads v1 {seed} {number}")
    if method == ANALYTIC or heads.random() < 0.25:
        share = 1.0 if method == ANALYTIC else heads.choice((0.1, 0.3, 1.0))
        drawn = replace(drawn, head=draw_head(depth, heads), share=share)
    if method != ANALYTIC and heads.random() < 0.3:
        pool = "linear" if drawn.head is None else heads.choice(("linear", "logarithmic"))
        drawn = replace(drawn, weights=heads.choice(("length", "square")), pool=pool)
    return replace(drawn, steps=draw_steps(drawn, rng)) if steps else drawn


def draw_head(layers: int, rng: Random) -> Head:
    """Draw an analytic head for a model of ``layers`` layers."""
    return Head(
        layers=tuple(sorted(rng.sample(range(layers), rng.randrange(layers + 1)))),
        poolings=tuple(rng.sample(("mean", "first", "last", "max"), rng.choice((1, 1, 2)))),
        random=rng.choice((0, 0, 5)),
        step=2.0 ** rng.choice((-4, -8, -12)),
        form=rng.choice(("ridge", "balanced", "prototypes")),
        ridge=rng.choice((0.01, 0.1, 1.0)),
        temperature=rng.choice((1.0, 6.0)),
    )


def _record(name: str, classes: int, rng: Random) -> Record:
    return Record(name, {"text": " ".join(rng.choices(WORDS, k=rng.randint(1, 9)))}, rng.randrange(classes))


def draw_steps(small: Small, rng: Random, most: int = 5) -> tuple[Step, ...]:
    """Draw up to ``most`` steps, most of them deletions of one or several records, in slots of any kind."""
    left, gone, layout = [record.id for record in small.records], list[str](), small.layout
    steps: list[Step] = []
    budget = layout.budget
    for _ in range(rng.choice((0, *range(1, most + 1), 2, 3))):
        kind = rng.choice(KINDS)
        if kind == "delete" and left:
            ids = rng.sample(left, min(len(left), rng.choice((1, 1, 1, 2, 5))))
            left = [name for name in left if name not in ids]
            again = [rng.choice([*ids, *gone])] if rng.random() < 0.2 else []
            gone += ids
            steps.append(Step("delete", (*ids, *again)))
        elif kind == "retire":
            slots = [(rng.randrange(layout.shards), rng.randrange(layout.slices)) for _ in range(rng.choice((1, 2)))]
            steps.append(Step("retire", slots=tuple(sorted(set(slots)))))
        elif kind == "extend" and budget < math.factorial(layout.slices):
            budget += 1
            steps.append(Step("extend", budget=budget))
        elif kind == "unknown":
            steps.append(Step("unknown", (*left[:1], "never seen")))
        elif kind == "refresh" or kind == "restart":
            steps.append(Step(kind))
    return tuple(steps)
