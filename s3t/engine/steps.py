"""Optimizer steps of the fast engine: taken one by one, or recorded once and replayed.

A step on a GPU is hundreds of small launches, and launching them takes the processor longer than some take the device. Where
batches come in the same shape, the whole step (forward, backward, clipping, AdamW) is recorded as a CUDA graph and replayed:
the same kernels on the same buffers, launched as one. Learning rates are float32 tensors then, so bits differ from those of
plain steps, and runs say so in their kernel's name. What is recorded belongs to one node and ends with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from s3t.records import Recipe

Loss = Callable[[Tensor, Sequence[int], Tensor], Tensor]
"""From hidden states (rows, tokens, hidden), their lengths and their answers (rows,) to the mean loss, a scalar."""

LEAST = 8
"""Batches of one size that a node must have before their step is recorded: recording takes as long as a few steps."""


class Updates:
    """What AdamW makes of the gradients of a node's tensors ``body`` and ``head``; call it once they are there."""

    def __init__(self, recipe: Recipe, body: Sequence[nn.Parameter], head: Sequence[nn.Parameter]) -> None:
        self._peaks = (recipe.lr, recipe.head_lr)
        self._tensors = [*body, *head]
        self._clip = recipe.clip
        groups = [{"params": [*part], "lr": lr} for part, lr in zip((body, head), self._rates(), strict=True)]
        capturable = head[0].device.type == "cuda" and isinstance(groups[0]["lr"], Tensor)
        self._optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay, fused=True, capturable=capturable)

    def _rates(self) -> Sequence[float | Tensor]:
        return self._peaks

    def rates(self, share: float) -> None:
        """Set the learning rates of the next step to ``share`` of their peaks."""
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * share

    def update(self) -> Tensor:
        """Clip, step, forget the gradients; return their norm before clipping, a scalar on the device."""
        norm = nn.utils.clip_grad_norm_(self._tensors, self._clip, foreach=True)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return norm


class Steps(Updates):
    """Steps of AdamW over a node's tensors ``body`` and ``head``, by ``loss``; call one to take it."""

    def __init__(self, recipe: Recipe, body: Sequence[nn.Parameter], head: Sequence[nn.Parameter], loss: Loss) -> None:
        super().__init__(recipe, body, head)
        self._loss = loss

    def __call__(self, hidden: Tensor, lengths: Sequence[int], answers: Tensor) -> Tensor:
        """Take a step on a batch; return the gradient's norm before clipping, a scalar on the device."""
        self._loss(hidden, lengths, answers).backward()  # type: ignore[no-untyped-call]
        return self.update()


class Replayed(Steps):
    """Steps on batches that all have rows of one length. Those of ``sizes`` (rows) are recorded when they come a second time.

    The first is taken as it is, beside the device's main stream: it makes the optimizer's state and what libraries make once.
    Without CUDA nothing can be recorded; the same buffers are filled and the step is taken on them.
    """

    def __init__(
        self,
        recipe: Recipe,
        body: Sequence[nn.Parameter],
        head: Sequence[nn.Parameter],
        loss: Loss,
        sizes: frozenset[int],
    ) -> None:
        self._device = head[0].device
        self._shares = [torch.tensor(lr, device=self._device) for lr in (recipe.lr, recipe.head_lr)]
        super().__init__(recipe, body, head, loss)
        self._sizes = sizes
        self._seen: set[int] = set()
        self._recorded: dict[int, Recorded] = {}

    def _rates(self) -> Sequence[float | Tensor]:
        return self._shares

    def rates(self, share: float) -> None:
        """Set the learning rates of the next step to ``share`` of their peaks, where recorded steps read them."""
        for rate, peak in zip(self._shares, self._peaks, strict=True):
            rate.fill_(peak * share)

    def __call__(self, hidden: Tensor, lengths: Sequence[int], answers: Tensor) -> Tensor:
        """Take a step, as :meth:`Steps.__call__` does."""
        rows = len(hidden)
        if rows not in self._sizes or rows not in self._seen:
            self._seen.add(rows)
            return self._aside(hidden, lengths, answers)
        if rows not in self._recorded:
            self._recorded[rows] = Recorded(super().__call__, hidden, lengths, answers)
        return self._recorded[rows](hidden, answers)

    def _aside(self, hidden: Tensor, lengths: Sequence[int], answers: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return super().__call__(hidden, lengths, answers)
        main, beside = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        beside.wait_stream(main)
        with torch.cuda.stream(beside):
            norm = super().__call__(hidden, lengths, answers)
        main.wait_stream(beside)
        return norm


class Recorded:
    """A step on buffers of its own, shaped like the given batch; a CUDA graph where there is CUDA."""

    def __init__(
        self,
        step: Callable[[Tensor, Sequence[int], Tensor], Tensor],
        hidden: Tensor,
        lengths: Sequence[int],
        answers: Tensor,
    ) -> None:
        self._hidden, self._answers = hidden.clone(), answers.clone()
        self._replay: Callable[[], Tensor] = lambda: step(self._hidden, lengths, self._answers)
        if hidden.device.type == "cuda":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                norm = step(self._hidden, lengths, self._answers)

            def replay() -> Tensor:
                graph.replay()
                return norm.clone()

            self._replay = replay

    def __call__(self, hidden: Tensor, answers: Tensor) -> Tensor:
        """Take the step on a batch of the recorded shape; return the gradient's norm."""
        self._hidden.copy_(hidden)
        self._answers.copy_(answers)
        return self._replay()


def repeated(batches: Sequence[Sequence[int]]) -> frozenset[int]:
    """Return the sizes of batches that come often enough to be worth recording."""
    return frozenset(size for size, count in Counter(map(len, batches)).items() if count >= LEAST)
