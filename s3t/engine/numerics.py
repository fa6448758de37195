"""The numeric engines behind one interface, by the kernel's name. Planner, server and clean room come through here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from torch import Tensor

from s3t.backbone import Backbone, Encoded
from s3t.blocks import ChainModel, ModelState, score
from s3t.engine.ensemble import FastChain, score_together
from s3t.engine.fast import train_node_fast
from s3t.engine.grouped import train_group
from s3t.engine.mode import GROUP, Mode
from s3t.errors import DivergedError, RunError
from s3t.records import Recipe
from s3t.training import Keep, Task, Trained, train_node

if TYPE_CHECKING:
    from s3t.plan import Stage


class Served(Protocol):
    """A chain in memory, as any engine serves it."""

    def adapter_tensors(self, name: str) -> dict[str, Tensor]: ...

    def head_tensors(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Numerics:
    """One engine in one precision."""

    mode: Mode

    @staticmethod
    def of(kernel: str) -> Numerics:
        """Return the engine with this kernel name. RunError if this version has none."""
        mode = Mode.of(kernel)
        if mode is None:
            raise RunError(
                f"kernel {kernel!r} is not known to this version; train anew, or use the version that was used"
            )
        return Numerics(mode)

    def train(self, backbone: Backbone, task: Task, keep: Keep | None = None) -> Trained:
        """Train one node (:func:`s3t.training.train_node`); ``keep`` holds activations for engines that use them."""
        if self.mode.engine == "reference":
            return train_node(backbone, task)
        if self.together > 1:
            (done,) = self.train_group(backbone, [task], [keep])
            if isinstance(done, DivergedError):
                raise done
            return done
        graphs = self.mode.form == "graphs"
        return train_node_fast(backbone, task, precision=self.mode.precision, keep=keep, graphs=graphs)

    @property
    def together(self) -> int:
        """How many nodes of one stage :meth:`train_group` takes at once; 1 for engines that have no groups."""
        return GROUP if self.mode.form == "grouped" else 1

    def train_group(
        self, backbone: Backbone, tasks: Sequence[Task], keeps: Sequence[Keep | None]
    ) -> list[Trained | DivergedError]:
        """Train nodes of one stage together (:func:`s3t.engine.grouped.train_group`)."""
        return train_group(backbone, tasks, precision=self.mode.precision, keeps=keeps)

    def chain(
        self, backbone: Backbone, stages: Sequence[Stage], state: ModelState, recipe: Recipe, classes: int
    ) -> Served:
        """Return a chain ready to serve. IsolationError if ``state`` does not fit the stages."""
        if self.mode.engine == "fast" and all(stage.kind == "lora" for stage in stages):
            return FastChain(backbone, stages, state, recipe, self.mode.precision)
        model = ChainModel(backbone, stages, recipe, classes)
        model.mount(state)
        return model

    def score(self, chains: Mapping[int, Served], rows: Sequence[Encoded]) -> dict[int, Tensor]:
        """Return each chain's logits (len(rows), classes), on the CPU, float32, by shard."""
        lean = {shard: chain for shard, chain in chains.items() if isinstance(chain, FastChain)}
        out = score_together(lean, rows) if lean else {}
        plain = cast(Mapping[int, ChainModel], {shard: chain for shard, chain in chains.items() if shard not in lean})
        return out | {shard: score(model, rows) for shard, model in plain.items()}
