"""The model of a chain as a practitioner writes it: a PEFT model that grows an adapter per stage, and a linear head.

The frozen part stays in evaluation mode, as in S3T's schedule: its own dropout would train another model, and slower.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from baselines.stock.options import Options
from s3t.backbone import Family
from s3t.blocks import adapter_config
from s3t.errors import IsolationError, LayoutError, RecipeError
from s3t.losses import mean_loss
from s3t.plan import Plan, Stage
from s3t.records import Recipe

HEAD = "head.safetensors"


@dataclass(frozen=True)
class Base:
    """A frozen transformer and how its inputs are read; loaded once, copied per chain.

    ``layers``: where the model keeps its list of layers, ``depth`` how many there are. ``targets``: suffixes of the linear
    modules that LoRA adapts. ``features`` maps (model, batch) to (batch, hidden). ``collate`` makes a batch of examples, with
    ``labels``. ``by_length``: examples have ``input_ids``, so that they can be grouped by length.
    """

    model: nn.Module
    layers: str
    depth: int
    hidden: int
    targets: tuple[str, ...]
    device: torch.device
    features: Callable[[Any, dict[str, Tensor]], Tensor]
    collate: Callable[[list[Any]], dict[str, Any]]
    by_length: bool

    def prepared(self, options: Options) -> Base:
        """Return the base as ``options`` want it: weights in bfloat16, as models are commonly loaded for autocast, and
        attention; itself if it is that already.
        """
        model: Any = self.model
        attention = model.config._attn_implementation != options.attention
        if not (attention or options.half_base):
            return self
        model = copy.deepcopy(model)
        if attention:
            model.set_attn_implementation(options.attention)
        return dataclasses.replace(self, model=model.to(torch.bfloat16) if options.half_base else model)

    def check(self, plan: Plan) -> None:
        """Raise LayoutError unless every stage of ``plan`` is a LoRA block of its own on layers of this model."""
        if any(stage.kind != "lora" for stage in plan.stages) or len({s.adapter for s in plan.stages}) < len(
            plan.stages
        ):
            raise LayoutError(f"the stock pipeline trains a LoRA block per stage, not the stages of {plan.method!r}")
        highest = max(layer for stage in plan.stages for layer in stage.layers)
        if highest >= self.depth:
            raise LayoutError(f"layer {highest} is not in this model; its layers are 0..{self.depth - 1}")


class Classifier(nn.Module):
    """Base, adapters and head. :meth:`grow` adds a stage; exactly the newest adapter and the head require gradients.

    Returns ``{"loss", "logits"}``, or the logits alone without ``labels``. ``records`` counts the rows trained on. The frozen
    tensors are the base model's own, not copies.
    """

    accepts_loss_kwargs = False

    def __init__(self, base: Base, recipe: Recipe, classes: int) -> None:
        super().__init__()
        self.base, self.recipe = base, recipe
        shared = {id(tensor): tensor for tensor in (*base.model.parameters(), *base.model.buffers())}
        self.body: Any = copy.deepcopy(base.model, shared)
        self.body.requires_grad_(False).eval()
        self.head = nn.Linear(base.hidden, classes, device=base.device)
        self.fresh_head()
        self.stages: list[Stage] = []
        self._dropouts: list[nn.Module] = []
        self.records = 0

    def forward(self, labels: Tensor | None = None, **batch: Tensor) -> dict[str, Tensor]:
        """Return the logits (batch, classes) and, given labels, their mean cross-entropy (of numbers the squared error)."""
        logits = self.head(self.base.features(self.body, batch).to(self.head.weight.dtype))
        if labels is None:
            return {"logits": logits}
        if self.training:
            self.records += len(labels)
        return {"loss": mean_loss(logits, labels), "logits": logits}

    def train(self, mode: bool = True) -> Classifier:
        """Set the mode of the newest adapter's dropout and of the head alone."""
        self.training = mode
        self.head.train(mode)
        for dropout in self._dropouts:
            dropout.train(mode)
        return self

    def fresh_head(self) -> None:
        """Draw the head's weights anew."""
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def grow(self, stage: Stage, folder: Path | None = None) -> None:
        """Add the stage's adapter, fresh or as saved in ``folder``; earlier ones stay active and frozen.

        IsolationError if PEFT put it on other layers than the stage's.
        """
        if self.recipe.adapter != "lora":
            raise RecipeError(f"the stock pipeline trains LoRA, not adapter={self.recipe.adapter!r}")
        config = adapter_config(stage, Family(self.base.layers, self.base.targets), self.recipe)
        with quiet():
            if folder is not None and self.stages:
                self.body.load_adapter(str(folder / stage.adapter), stage.adapter, torch_device=str(self.base.device))
            elif folder is not None:
                self.body = PeftModel.from_pretrained(self.body, str(folder / stage.adapter), stage.adapter)
            elif self.stages:
                self.body.add_adapter(stage.adapter, config)
            else:
                self.body = get_peft_model(self.body, config, stage.adapter)
        self.stages.append(stage)
        self.body.base_model.set_adapter([s.adapter for s in self.stages], inference_mode=True)
        self.to(self.base.device)
        for parameter in self.trained():
            parameter.requires_grad_(True)
        self._check_placement()
        self.body.eval()
        self._dropouts = [module.lora_dropout[stage.adapter] for module in self.lora_layers()]

    def lora_layers(self) -> list[LoraLayer]:
        """Return the modules that carry the newest adapter; none before the first stage."""
        name = self.stages[-1].adapter if self.stages else ""
        return [m for m in self.body.modules() if isinstance(m, LoraLayer) and name in m.lora_A]

    def adapter(self) -> list[nn.Parameter]:
        """Return the newest adapter's tensors."""
        name = self.stages[-1].adapter
        return [p for m in self.lora_layers() for p in (*m.lora_A[name].parameters(), *m.lora_B[name].parameters())]

    def trained(self) -> list[nn.Parameter]:
        """Return what the current stage trains: the newest adapter and the head."""
        return [*self.adapter(), *self.head.parameters()]

    def _check_placement(self) -> None:
        stage = self.stages[-1]
        carrying = {
            index
            for index, layer in enumerate(self.body.base_model.model.get_submodule(self.base.layers))
            if any(isinstance(m, LoraLayer) and stage.adapter in m.lora_A for m in layer.modules())
        }
        if carrying != set(stage.layers):
            raise IsolationError(
                f"adapter {stage.adapter!r} sits on layers {sorted(carrying)}, not on {sorted(stage.layers)}"
            )

    def save(self, folder: Path) -> None:
        """Save the newest adapter (PEFT's format, in a folder of its name) and the head in ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        with quiet():
            names = [self.stages[-1].adapter]
            self.body.save_pretrained(str(folder), selected_adapters=names, save_embedding_layers=False)
        save_file({k: v.detach().cpu().contiguous() for k, v in self.head.state_dict().items()}, folder / HEAD)


def load_chain(
    base: Base, recipe: Recipe, classes: int, stages: Sequence[Stage], folders: Sequence[Path]
) -> Classifier:
    """Return the chain saved in ``folders``, one per stage, with the head of the last of them."""
    model = Classifier(base, recipe, classes)
    for stage, folder in zip(stages, folders, strict=True):
        model.grow(stage, folder)
    model.head.load_state_dict(load_file(folders[-1] / HEAD))
    return model.requires_grad_(False).eval()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence PEFT 0.21, which asks transformers 5.23 for a property by its old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        yield
