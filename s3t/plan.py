"""Plans: what a method trains, stage by stage, over the one graph of nodes (shard, prefix).

S3T, SISA, sequential LoRA and full retraining differ only in the plan; the engine is the same. docs/DERIVATION.md, "Plans".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from s3t.analytic.head import AnalyticHead
from s3t.design import PAPER, Design
from s3t.errors import LayoutError, RecipeError, did_you_mean
from s3t.orders import Rule, cyclic
from s3t.orders.rule import CYCLIC
from s3t.records import Layout, Order, Recipe

WEIGHTS = ("equal", "length", "square")
POOLS = ("linear", "logarithmic")
ENSEMBLING = {"weights": WEIGHTS, "pool": POOLS}
"""Fields of a plan that say how what serves becomes one answer; the first of each is so where nothing is said."""


@dataclass(frozen=True)
class Stage:
    """What one stage trains: an adapter ``kind`` on ``layers`` (indices from the input side), for ``epochs``.

    Two stages with the same ``adapter`` name continue the same tensors; a new name adds a block beside the frozen ones.
    ``fresh_head``: the stage does not continue the head of the stage before, it begins with one of its own seed.
    """

    adapter: str
    kind: Literal["lora", "full"]
    layers: tuple[int, ...]
    epochs: float
    fresh_head: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the stage as JSON values; ``fresh_head`` only if it is so."""
        raw = {**asdict(self), "layers": list(self.layers)}
        if not self.fresh_head:
            del raw["fresh_head"]
        return raw


@dataclass(frozen=True)
class Plan:
    """A method as data: layout, orders (the same for every shard), one stage per slice, and when deletions retrain.

    ``rule`` says how the orders were chosen, ``design`` how S3T's stages were; orders and stages themselves are what counts.

    ``eager`` systems refresh within the deletion; lazy ones keep serving what survives. ``head``: an analytic head that serves
    beside the chains with the weight ``share``, or alone where there are no stages. ``weights``: live chains weigh the same
    (``equal``), by their stages (``length``), or by the square of these (``square``); with these two an analytic head takes
    over what whole chains would weigh more. ``pool``: its probabilities and theirs are averaged (``linear``) or multiplied
    (``logarithmic``).

    Raises LayoutError if an order is not a permutation of the slices, if orders repeat, if stages do not match the slices, if
    the share is none, or if weights or pool are unknown or mean nothing here.
    """

    method: str
    layout: Layout
    orders: tuple[Order, ...]
    stages: tuple[Stage, ...]
    eager: bool = False
    rule: Rule = CYCLIC
    design: Design = PAPER
    head: AnalyticHead | None = None
    share: float = 0.0
    weights: str = "equal"
    pool: str = "linear"

    def __post_init__(self) -> None:
        for name, known in ENSEMBLING.items():
            value = getattr(self, name)
            if value not in known:
                raise LayoutError(
                    f"{name}={value!r} is unknown{did_you_mean(value, known)}; choose from {', '.join(known)}"
                )
        alone = self.head is not None and not self.stages
        if (self.head is None and self.share) or (self.head is not None and not 0 < self.share <= 1):
            raise LayoutError(f"share={self.share!r} is no weight of an analytic head; give one above 0, at most 1")
        if self.pool != "linear" and (self.head is None or alone):
            raise LayoutError(
                f"pool={self.pool!r} is for chains with an analytic head beside them; leave it out, or give one"
            )
        if alone and self.weights != "equal":
            raise LayoutError(
                f"weights={self.weights!r} is for chains, and an analytic head alone has none; leave it out"
            )
        if alone and (self.layout != Layout(1, 1, 1) or self.share != 1):
            raise LayoutError("an analytic head alone has one shard of one slice, and share 1")
        if not alone and len(self.stages) != self.layout.slices:
            raise LayoutError(f"{len(self.stages)} stages do not fit {self.layout.slices} slices; give one per slice")
        if len(set(self.orders)) != len(self.orders) or len(self.orders) != self.layout.budget:
            raise LayoutError(
                f"{len(self.orders)} orders for budget {self.layout.budget}; give that many distinct orders"
            )
        for order in self.orders:
            if sorted(order) != list(range(self.layout.slices)):
                raise LayoutError(f"order {order} is not a permutation of the slices 0..{self.layout.slices - 1}")

    @property
    def cumulative(self) -> bool:
        """Whether a node reads all slices of its prefix, or its last slice alone."""
        return self.design.cumulative

    def pieces(self, prefix: Order) -> Order:
        """Return the slices whose records the node of ``prefix`` reads."""
        return prefix if self.cumulative else prefix[-1:]

    def with_head(self, head: AnalyticHead, share: float) -> Plan:
        """Return the plan with an analytic head beside its chains. LayoutError for a share not above 0 and at most 1."""
        return replace(self, head=head, share=share)

    def ordered_by(self, rule: Rule) -> Plan:
        """Return the plan with the orders that ``rule`` chooses. LayoutError if it cannot choose as many."""
        return replace(self, orders=rule.orders(self.layout.slices, self.layout.budget), rule=rule)

    def with_budget(self, budget: int) -> Plan:
        """Return the plan with cyclic orders for another budget; earlier orders stay a prefix of the new ones.

        LayoutError if the plan's own orders are not cyclic: the ledger of a run says only to which budget it was extended.
        """
        if self.rule != CYCLIC:
            raise LayoutError(
                f"a plan with {self.rule.name} orders cannot be extended to budget {budget}, only cyclic orders can; "
                "train another run with that budget"
            )
        layout = replace(self.layout, budget=budget)
        orders = tuple(cyclic(layout.slices, budget))
        if orders[: len(self.orders)] != self.orders and self.orders[:budget] != orders:
            raise LayoutError(
                f"a plan with its own orders cannot be extended to budget {budget}; only cyclic orders can"
            )
        return replace(self, layout=layout, orders=orders)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON values (docs/DERIVATION.md, "Run folder")."""
        raw = asdict(self)
        raw["orders"] = [list(order) for order in self.orders]
        for name in ("rule", "design", "head", "share", *ENSEMBLING):
            del raw[name]
        raw["cumulative"] = self.cumulative
        if self.rule != CYCLIC:
            raw["rule"] = self.rule.to_json()
        if design := self.design.to_json():
            raw["design"] = design
        if self.head is not None:
            raw |= {"head": self.head.to_json(), "share": self.share}
        raw |= {name: getattr(self, name) for name in ENSEMBLING if getattr(self, name) != ENSEMBLING[name][0]}
        raw["stages"] = [stage.to_json() for stage in self.stages]
        return raw

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Plan:
        """Rebuild a plan from :meth:`to_json`."""
        stages = tuple(Stage(**{**stage, "layers": tuple(stage["layers"])}) for stage in raw["stages"])
        orders = tuple(tuple(order) for order in raw["orders"])
        rule = Rule.from_json(raw["rule"]) if "rule" in raw else CYCLIC
        design = Design.from_json(raw.get("design", {}), cumulative=raw["cumulative"])
        head = {"head": AnalyticHead.from_json(raw["head"]), "share": raw["share"]} if "head" in raw else {}
        head |= {name: raw[name] for name in ENSEMBLING if name in raw}
        return cls(raw["method"], Layout(**raw["layout"]), orders, stages, raw["eager"], rule, design, **head)


def top_down_blocks(layers: int, slices: int) -> list[tuple[int, ...]]:
    """Group ``layers`` transformer layers from the output side into ``slices`` blocks of ``layers // slices``.

    Block 0 holds the top layers (the paper's block 1); layers left over at the bottom stay without adapters.
    Raises LayoutError if there are more slices than layers. Source: arXiv 2406.16257, section 3.2.
    """
    return PAPER.blocks(layers, slices)


MakePlan = Callable[[Layout, Recipe, int], Plan]
"""Makes a method's plan for a model of so many layers."""


def s3t_plan(layout: Layout, recipe: Recipe, layers: int, design: Design = PAPER) -> Plan:
    """Return S3T's plan: a block of layers per stage, earlier blocks frozen (arXiv 2406.16257, Algorithm 1).

    LayoutError if the blocks of ``design`` do not fit the model's ``layers``.
    """
    blocks = design.blocks(layers, layout.slices)
    stages = tuple(
        Stage(f"block-{i:02d}", "lora", block, float(recipe.epochs), fresh_head=design.fresh_head and i > 0)
        for i, block in enumerate(blocks)
    )
    orders = tuple(cyclic(layout.slices, layout.budget))
    return Plan("s3t", layout, orders, stages, design=design.over(layout.slices))


def shared_rank(recipe: Recipe, plan: Plan, layers: int) -> Recipe:
    """Return ``recipe`` with the rank at which a whole chain of ``plan`` stores as many LoRA weights as the paper's blocks do
    at the recipe's own rank, in a model of so many ``layers``; a node's head and configuration aside.

    The paper's blocks are on ``layers // slices`` layers each. A plan that stores adapters on f times as many layers in all
    (stacked blocks, or snapshots of one adapter) has the rank divided by f, to the nearest whole number, ties to the even one,
    and at least 1. ``alpha`` goes along, so that what the matrices' product is multiplied by stays: alpha / rank, with
    ``rslora`` alpha / sqrt(rank). Raises LayoutError if there is nothing to share: no chains of LoRA, more slices than layers,
    or as many layers as the paper's; RecipeError for adapters without a rank, or a rank that is out of range.
    """
    if not plan.stages or any(stage.kind != "lora" for stage in plan.stages):
        raise LayoutError(f"{plan.method} stores no LoRA adapters, so there is no rank to share; leave it out")
    if recipe.adapter != "lora":
        raise RecipeError(f"adapter={recipe.adapter!r} has no rank to share; leave it out, or use adapter='lora'")
    paper = sum(map(len, top_down_blocks(layers, plan.layout.slices)))
    stored = sum(len(stage.layers) for stage in plan.stages)
    if stored == paper:
        raise LayoutError(
            f"a chain stores adapters on {stored} layers, as many as the paper's blocks, so there is no rank to share; leave "
            "it out, or lay the blocks otherwise, for example stacked"
        )
    rank = max(1, round(recipe.rank * paper / stored))
    whole = recipe.alpha * rank / recipe.rank
    return replace(recipe, rank=rank, alpha=whole if not recipe.rslora else recipe.alpha * (rank / recipe.rank) ** 0.5)
