"""How tensors get from the build to a worker and back: with the call itself, or by way of a shared store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s3t.exchange import Exchange
from s3t.store import tensor_bytes, tensors

Tensors = Mapping[str, Tensor]


class Channel(Protocol):
    """Both ends have one of the same kind."""

    def send(self, given: Tensors) -> Any:
        """Return what travels for ``given``, all on the CPU."""

    def receive(self, sent: Any) -> dict[str, Tensor]:
        """Return the tensors that :meth:`send` was given, at the other end."""


class Direct:
    """Tensors travel as arrays, which any process can hold without sharing memory."""

    def send(self, given: Tensors) -> dict[str, NDArray[np.float32]]:
        return {name: tensor.numpy() for name, tensor in given.items()}

    def receive(self, sent: Mapping[str, NDArray[np.float32]]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(array.copy()) for name, array in sent.items()}


class Shared:
    """Tensors lie in a shared store as safetensors files, and their digests travel."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def send(self, given: Tensors) -> str:
        return self._exchange.put(tensor_bytes(given))

    def receive(self, sent: str) -> dict[str, Tensor]:
        return tensors(self._exchange.get(sent))


def channel(exchange: Exchange | None) -> Channel:
    """Return the channel through ``exchange``, or the direct one."""
    return Shared(exchange) if exchange else Direct()
