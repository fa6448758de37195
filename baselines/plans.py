"""The baselines' plans (docs/DERIVATION.md, "Plans"): SISA, sequential LoRA, full retraining, the analytic head alone.

Sources: SISA is Bourtoule et al., IEEE S&P 2021, arXiv 1912.03817, sections IV and V; its epochs per slice are set so that
the work equals unsliced training (section V-B). Sequential LoRA is SISA's scheme with S3T's epochs per stage.
"""

from __future__ import annotations

from typing import Literal

from s3t.analytic.head import AnalyticHead
from s3t.orders import cyclic
from s3t.plan import Plan, Stage
from s3t.records import Layout, Recipe

Kind = Literal["lora", "full"]
_ADAPTER = {"lora": "all", "full": "full"}


def _continued(method: str, layout: Layout, layers: int, kind: Kind, epochs: float, *, eager: bool) -> Plan:
    stage = Stage(_ADAPTER[kind], kind, tuple(range(layers)), epochs)
    return Plan(method, layout, tuple(cyclic(layout.slices, layout.budget)), (stage,) * layout.slices, eager)


def sequential(layout: Layout, recipe: Recipe, layers: int) -> Plan:
    """Return sequential LoRA: one adapter over all layers continues over the slices, a snapshot per stage."""
    return _continued("sequential", layout, layers, "lora", float(recipe.epochs), eager=False)


def sisa(layout: Layout, recipe: Recipe, layers: int, *, kind: Kind = "lora", eager: bool = True) -> Plan:
    """Return SISA: all trainable tensors continue over the slices; eager retrains at once, lazy serves the checkpoint."""
    epochs = 2.0 * recipe.epochs / (layout.slices + 1)
    return _continued(f"sisa-{kind}" + ("" if eager else "-lazy"), layout, layers, kind, epochs, eager=eager)


def retrain(recipe: Recipe, layers: int, *, kind: Kind = "lora") -> Plan:
    """Return full retraining: one model on all data, trained again at each deletion."""
    return _continued(f"retrain-{kind}", Layout(1, 1, 1), layers, kind, float(recipe.epochs), eager=True)


def analytic(head: AnalyticHead | None = None) -> Plan:
    """Return the plan of an analytic head alone: nothing is trained, and any record can leave it exactly at any time."""
    return Plan("analytic", Layout(1, 1, 1), ((0,),), (), head=head or AnalyticHead(), share=1.0)
