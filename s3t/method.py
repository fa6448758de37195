"""S3T itself: the system with S3T's plan. Importing this loads neither torch nor peft."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3t.describing import base_model, describe
from s3t.design import PAPER, Design
from s3t.engine.mode import choose
from s3t.orders import Rule
from s3t.plan import s3t_plan
from s3t.records import Layout, Recipe
from s3t.resources import Resources
from s3t.runs import Evaluation
from s3t.system import System

if TYPE_CHECKING:
    from s3t.backbone import Backbone


class S3T(System):
    """S3T in a run folder: LoRA blocks trained slice by slice, several orders per shard (arXiv 2406.16257).

    ``S3T("runs/demo", Layout(shards=4, slices=3, budget=3), model="minilm", classes=data.classes)`` describes it;
    ``fit`` trains it, ``S3T.open("runs/demo")`` opens it again. ``rule``: how the orders are chosen, cyclic if None
    (:class:`s3t.orders.Rule`). ``design``: how the blocks lie (:class:`s3t.design.Design`). ``engine``, ``precision``,
    ``resources``: see :mod:`s3t.engine.mode`. Raises LayoutError if there are more slices than layers, or if the rule or the
    design does not fit them.
    """

    def __init__(
        self,
        run: Path | str,
        layout: Layout,
        *,
        classes: Sequence[str],
        model: str | Backbone = "minilm",
        recipe: Recipe | None = None,
        rule: Rule | None = None,
        design: Design = PAPER,
        seed: int = 0,
        key: bytes | None = None,
        evaluation: Evaluation = ((), ()),
        allow_empty: bool = False,
        engine: str = "reference",
        precision: str = "auto",
        resources: Resources | None = None,
    ) -> None:
        backbone, recipe = base_model(model), recipe or Recipe()
        plan = s3t_plan(layout, recipe, backbone.layers, design)
        plan = plan if rule is None else plan.ordered_by(rule)
        config = describe(plan, recipe, backbone, {"classes": list(classes)}, seed, choose(engine, precision))
        rest: Any = {"backbone": backbone, "allow_empty": allow_empty, "resources": resources}
        super().__init__(run, config, key=key, evaluation=evaluation, **rest)
