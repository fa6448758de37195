"""Adapters per block, on PEFT, and the model of a chain: frozen base + blocks + head.

Every chain model is a structural copy of the frozen base that shares its tensors, so no two models can alias trained
state, and nothing has to be undone. Blocks know their layer indices; after PEFT has injected an adapter we check, module
by module, that exactly the intended layers carry it (arXiv 2406.16257, section 3.2; PEFT's own matching is by name).
"""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.ia3 import IA3Layer
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from s3t.backbone import Backbone, Encoded, Family
from s3t.errors import IsolationError
from s3t.records import Recipe

if TYPE_CHECKING:
    from s3t.plan import Stage

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class ModelState:
    """What a chain adds to the frozen base: tensors per adapter name (PEFT's names) and the head's weight and bias."""

    adapters: Mapping[str, Tensors]
    head: Tensors


def adapter_config(stage: Stage, family: Family, recipe: Recipe) -> LoraConfig | IA3Config:
    """Return PEFT's configuration of the stage's adapter; it names no base model (PEFT would put a local path there)."""
    if recipe.adapter == "ia3":
        return _ia3_config(stage, family, recipe)
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # type: ignore[arg-type]
        lora_dropout=recipe.dropout,
        use_rslora=recipe.rslora,
        use_dora=recipe.dora,
        target_modules=list(recipe.targets or family.targets),
        layers_to_transform=list(stage.layers),
        layers_pattern=family.layers.rsplit(".", 1)[-1],
        fan_in_fan_out=family.transposed,
        task_type=None,
    )


def _ia3_config(stage: Stage, family: Family, recipe: Recipe) -> IA3Config:
    """Return it for (IA)3, whose configuration names layers by a pattern alone."""
    inside = [re.escape(path) for path in (*family.ia3, *family.ia3_inputs)]
    if recipe.targets:
        inside = [rf"(?:.*\.)?{re.escape(target)}" for target in recipe.targets]
    layers = "|".join(map(str, stage.layers))
    return IA3Config(
        target_modules=rf"(?:.*\.)?{re.escape(family.layers)}\.(?:{layers})\.(?:{'|'.join(inside)})",
        feedforward_modules=rf".*\.\d+\.(?:{'|'.join(map(re.escape, family.ia3_inputs))})",
        fan_in_fan_out=family.transposed,
        task_type=None,
    )


def config_bytes(stage: Stage, family: Family, recipe: Recipe, base: str, task: str | None = None) -> bytes:
    """Return adapter_config.json of the stage's adapter on the base model called ``base``, for PEFT's task type ``task``."""
    raw = adapter_config(stage, family, recipe).to_dict()
    raw |= {"base_model_name_or_path": base, "inference_mode": True, "task_type": task}
    return json.dumps(raw, indent=1, sort_keys=True, default=sorted).encode()


class ChainModel(nn.Module):
    """Base model with the adapters of ``stages`` active and a linear head; maps a batch to logits (batch, classes)."""

    def __init__(self, backbone: Backbone, stages: Sequence[Stage], recipe: Recipe, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.stages = {stage.adapter: stage for stage in stages}
        full = any(stage.kind == "full" for stage in stages)
        shared = {} if full else {id(tensor): tensor for tensor in _tensors(backbone.model)}
        self.body: Any = copy.deepcopy(backbone.model, shared)
        if not full:
            with warnings.catch_warnings():
                # PEFT 0.21 still asks transformers 5.23 for a property by its old name
                warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
                for name, stage in self.stages.items():
                    config = adapter_config(stage, backbone.family, recipe)
                    if isinstance(self.body, PeftModel):
                        self.body.add_adapter(name, config)
                    else:
                        self.body = get_peft_model(self.body, config, adapter_name=name)
            self.body.base_model.set_adapter(list(self.stages), inference_mode=True)
            self.body.base_model.model.to(backbone.device)
        self.head = nn.Linear(backbone.hidden, classes, device=backbone.device)
        self.requires_grad_(False).eval()
        self._check_placement()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Return logits of shape (batch, classes), or what else the base model's scores are made of."""
        return self.backbone.outputs(self.body, self.head, batch)

    def _check_placement(self) -> None:
        layers = self.backbone.layer_modules(self._bare())
        for name, stage in self.stages.items():
            if stage.kind == "full":
                continue
            carrying = {index for index, layer in enumerate(layers) if any(name in _held(m) for m in layer.modules())}
            if carrying != set(stage.layers):
                raise IsolationError(
                    f"adapter {name!r} sits on layers {sorted(carrying)}, not on {sorted(stage.layers)}"
                )

    def _bare(self) -> nn.Module:
        return cast(nn.Module, self.body.base_model.model if isinstance(self.body, PeftModel) else self.body)

    def adapted(self, name: str) -> list[LoraLayer | IA3Layer]:
        """Return the modules that carry adapter ``name``, in the order of the layers from the input side."""
        return [m for m in self.body.modules() if name in _held(m)]

    def dropouts(self, name: str) -> list[nn.Module]:
        """Return the dropout modules of LoRA adapter ``name``; none for full fine-tuning and for (IA)3."""
        return [m.lora_dropout[name] for m in self.adapted(name) if isinstance(m, LoraLayer)]

    def adapter_parameters(self, name: str) -> list[nn.Parameter]:
        """Return the tensors that a stage with adapter ``name`` trains, besides the head."""
        if self.stages[name].kind == "full":
            return list(self.body.parameters())
        return [p for module in self.adapted(name) for p in _learned(module, name)]

    def mount(self, state: ModelState) -> None:
        """Copy ``state`` into the model. IsolationError if its tensors are not exactly those of the adapters."""
        for name, tensors in state.adapters.items():
            expected = self.adapter_tensors(name)
            if set(expected) != set(tensors):
                odd = sorted(set(expected) ^ set(tensors))[0]
                raise IsolationError(f"adapter {name!r} does not fit: tensor {odd!r} is missing or not expected")
            if self.stages[name].kind == "full":
                self.body.load_state_dict(dict(tensors))
            else:
                set_peft_model_state_dict(self.body, dict(tensors), adapter_name=name)
        self.head.load_state_dict(dict(state.head))

    def adapter_tensors(self, name: str) -> dict[str, Tensor]:
        """Return adapter ``name``'s tensors under PEFT's file names; the live tensors, not copies."""
        if self.stages[name].kind == "full":
            return dict(self.body.state_dict())
        return dict(get_peft_model_state_dict(self.body, adapter_name=name))

    def head_tensors(self) -> dict[str, Tensor]:
        """Return the head's ``weight`` (classes, hidden) and ``bias`` (classes,)."""
        return dict(self.head.state_dict())

    def initialise(self, name: str, seed: int) -> None:
        """Initialise adapter ``name`` afresh: A uniform in +-1/sqrt(inputs), B zero (Hu et al. 2021, as PEFT does); DoRA's
        magnitude is the norm of each of the frozen weight's rows, and (IA)3's vectors are ones, as PEFT has set them.

        Full fine-tuning starts at the pretrained weights and draws nothing.
        """
        if self.stages[name].kind == "full":
            return
        generator = torch.Generator().manual_seed(seed)
        for module in self.adapted(name):
            if isinstance(module, IA3Layer):
                continue
            weight_a, weight_b = _pair(module, name)
            bound = weight_a.shape[1] ** -0.5
            fresh = (torch.rand(weight_a.shape, generator=generator) * 2 - 1) * bound
            weight_a.data.copy_(fresh)
            weight_b.data.zero_()

    def initialise_head(self, seed: int) -> None:
        """Initialise the head afresh: weights normal with deviation 0.02, bias zero."""
        generator = torch.Generator().manual_seed(seed)
        self.head.weight.data.copy_(torch.randn(self.head.weight.shape, generator=generator) * 0.02)
        self.head.bias.data.zero_()


def score(model: ChainModel, rows: Sequence[Encoded], batch_size: int = 64) -> Tensor:
    """Return logits of shape (len(rows), classes) on the CPU, float32, in the order of ``rows``.

    Batches are formed from rows of similar length (stable sort) and padded to their own longest.
    """
    out = torch.zeros(len(rows), model.head.out_features)
    order = sorted(range(len(rows)), key=lambda i: rows[i].length)
    with torch.no_grad():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            outputs = model(model.backbone.collate([rows[i] for i in chosen])).float()
            out[chosen] = model.backbone.scores(outputs).cpu()
    return out


def _pair(module: LoraLayer, name: str) -> tuple[nn.Parameter, nn.Parameter]:
    return cast(nn.Parameter, module.lora_A[name].weight), cast(nn.Parameter, module.lora_B[name].weight)


def _held(module: nn.Module) -> Container[str]:
    """Return the names of the adapters that a module carries."""
    if isinstance(module, LoraLayer):
        return cast(Container[str], module.lora_A)
    return cast(Container[str], module.ia3_l) if isinstance(module, IA3Layer) else ()


def _learned(module: LoraLayer | IA3Layer, name: str) -> list[nn.Parameter]:
    """Return what a stage trains in a module: A, B, and DoRA's magnitude if it has one; or (IA)3's vector."""
    if isinstance(module, IA3Layer):
        return [cast(nn.Parameter, module.ia3_l[name])]
    magnitude = [module.lora_magnitude_vector[name].weight] if name in module.lora_magnitude_vector else []
    return [*_pair(module, name), *cast(list[nn.Parameter], magnitude)]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
