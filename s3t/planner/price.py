"""What work costs on this machine and model: seconds per layer pass, bytes per stored layer. Measured, or given."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from s3t.contract import Cost
from s3t.errors import DataError
from s3t.planner.work import Work
from s3t.reading import parse_json
from s3t.records import Dataset, Layout, Recipe


@dataclass(frozen=True)
class Price:
    """The price of work. ``layers``: of the model. Seconds per layer pass (a record through one layer, forward or backward);
    bytes of a node beside its adapters (head, configuration), of one layer's adapter, of a fully fine-tuned model."""

    model: str
    layers: int
    seconds_per_layer_pass: float
    bytes_per_node: float
    bytes_per_layer: float
    bytes_per_model: float

    def seconds(self, work: Work) -> float:
        """Return how long ``work`` takes, one node after another."""
        return work.layer_passes * self.seconds_per_layer_pass

    def bytes(self, work: Work) -> float:
        """Return what the nodes of ``work`` take on disk."""
        stored = work.lora_layers * self.bytes_per_layer + work.full_models * self.bytes_per_model
        return work.nodes * self.bytes_per_node + stored


def read(path: Path) -> Price:
    """Read a price that :func:`write` wrote. DataError if the file is not one."""
    try:
        raw: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        made = Price(**{f.name: raw[f.name] for f in fields(Price)})
        numbers = [getattr(made, f.name) for f in fields(Price) if f.name != "model"]
        if not all(isinstance(n, int | float) and math.isfinite(n) and n >= 0 for n in numbers) or made.layers < 1:
            raise ValueError("its values are no amounts")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no price of work ({error!r}); write one with `s3t plan --save-price FILE`"
        ) from error
    return made


def write(price: Price, path: Path) -> None:
    """Write ``price`` as JSON."""
    path.write_text(json.dumps(asdict(price), indent=1) + "\n", encoding="utf-8")


def measure(model: str, dataset: Dataset, recipe: Recipe, records: int = 64) -> Price:
    """Train three small nodes on ``records`` of ``dataset``'s records, the way runs do, and return what they cost.

    Two stages of S3T and LoRA on all layers; a first training, not counted, warms the machine up. Raises ModelError for an
    unknown model, DataError if there are fewer records.
    """
    from s3t.backbone import load
    from s3t.plan import s3t_plan

    if len(dataset.train) < records:
        raise DataError(f"{len(dataset.train)} training records are too few to measure on; give at least {records}")
    backbone = load(model)
    few = dataset.subset(records, 0, 0)
    once = Recipe(**{**asdict(recipe), "epochs": 1.0})
    costs: list[tuple[int, Cost]] = []
    for slices in (1, 1, 2) if backbone.layers > 1 else (1, 1):
        plan = s3t_plan(Layout(1, slices, 1), once, backbone.layers)
        costs.append((backbone.layers // slices, _fitted(plan, once, backbone, few)))
    _, whole, *halves = costs
    spent = sum((cost for _, cost in costs[1:]), Cost())
    per_node, per_layer = _lines([(layers, cost.bytes / cost.nodes) for layers, cost in (whole, *halves)])
    parameters = sum(p.numel() * p.element_size() for p in backbone.model.parameters())
    return Price(model, backbone.layers, spent.seconds / spent.layer_passes, per_node, per_layer, float(parameters))


def _fitted(plan: Any, recipe: Recipe, backbone: Any, dataset: Dataset) -> Cost:
    from s3t.system import System

    with tempfile.TemporaryDirectory(prefix="s3t-plan-") as folder:
        made = System.create(
            Path(folder) / "run", plan, recipe, model=backbone, classes=dataset.classes, allow_empty=True
        )
        with closing(made) as system:
            return system.fit(dataset.train)


def _lines(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Return intercept and slope of the line through one or two points (layers, bytes of a node)."""
    (x, y), *rest = points
    if not rest:
        return 0.0, y / x
    slope = (y - rest[0][1]) / (x - rest[0][0])
    return y - slope * x, slope
