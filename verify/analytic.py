"""The analytic head, as slowly and plainly as docs/DERIVATION.md ("Analytic head") writes it: features, sums, map, scores.

It shares no code with the system's head. A record's features are made from the frozen base model in a pass of their own; sums
are taken in integers and by integer products alone, one record after the other, so nothing is rounded and no bound on their
number is needed below 2^62; the map from sums to weights is in float64, in the order in which the document writes it, for its
bits are compared.
"""

# ruff: noqa: N803, N806 - matrices have the letters of the document
from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from s3t.errors import DataError
from verify.binary import features_digest
from verify.plans import Head

if TYPE_CHECKING:
    from torch import Tensor

    from s3t.backbone import Backbone, Encoded

LARGEST = 32767
"""Features are cut to this size."""
UNIT = 2**15
"""A number of 1 is this as a target."""


@dataclass(frozen=True)
class Reading:
    """How a record's features are made: by ``head`` on ``backbone``, with the run's ``seed``."""

    backbone: Backbone
    head: Head
    seed: int

    def features(self, row: Encoded) -> NDArray[np.int16]:
        """Return the features of one encoded record, (d,). DataError for one that is not finite."""
        import torch

        x = torch.cat([_pooled(tokens, how) for tokens in self._outputs(row) for how in self.head.poolings]).cpu()
        if self.head.random:
            x = torch.cat([x, torch.relu(x @ drawn(len(x), self.head.random, self.seed))])
        if not bool(torch.isfinite(x).all()):
            raise DataError("a feature is not finite")
        wide = x.double().numpy() / self.head.step
        return np.clip(np.rint(wide), -LARGEST, LARGEST).astype(np.int16)

    def _outputs(self, row: Encoded) -> list[Tensor]:
        """Return what leaves each layer that the head reads, (tokens, hidden) in float32, the record being alone."""
        import torch

        layers = self.backbone.layer_modules(self.backbone.model)
        seen: dict[int, Tensor] = {}
        watched = []
        for number, layer in enumerate(layers):

            def note(module: Any, given: Any, made: Any, number: int = number) -> None:
                out = made[0] if isinstance(made, tuple) else made
                seen[number] = out[0].detach().float()

            watched.append(layer.register_forward_hook(note))
        try:
            with torch.no_grad():
                self.backbone.model(**self.backbone.collate([row]))
        finally:
            for one in watched:
                one.remove()
        return [seen[number] for number in self.head.layers or range(len(layers))]


def _pooled(tokens: Tensor, how: str) -> Tensor:
    import torch

    if how == "mean":
        return torch.mean(tokens, 0)
    if how == "max":
        return torch.amax(tokens, 0)
    return tokens[{"first": 0, "last": -1}[how]]


def drawn(inputs: int, outputs: int, seed: int) -> Tensor:
    """Return the matrix R (inputs, outputs) of the random features."""
    import torch

    generator = torch.Generator().manual_seed(seed % 2**63)
    normal = torch.randn(inputs, outputs, generator=generator, dtype=torch.float32)
    return normal / math.sqrt(inputs)


@dataclass
class Sums:
    """c (answers,), t (answers,), l (d,), X (d, answers), S (d, d) over records, in int64."""

    c: NDArray[np.int64]
    t: NDArray[np.int64]
    l: NDArray[np.int64]  # noqa: E741 - the document's name
    X: NDArray[np.int64]
    S: NDArray[np.int64]


def sums(rows: Iterable[tuple[NDArray[np.int16], int | float]], size: int, answers: int) -> Sums:
    """Return the sums over records (features (size,), target), added one by one; ``answers``: classes, 1 for numbers.

    A target is the index of a class, or a number in -1..1.
    """
    at = Sums(*(np.zeros(shape, np.int64) for shape in (answers, answers, size, (size, answers), (size, size))))
    for features, target in rows:
        q = features.astype(np.int64)
        wanted = np.zeros(answers, np.int64)
        if answers == 1:
            wanted[0] = round(float(target) * UNIT)  # Python rounds halves to even
            at.c[0] += 1
        else:
            wanted[int(target)] = 1
            at.c[int(target)] += 1
        at.t += wanted
        at.l += q
        for k in range(answers):
            at.X[:, k] += q * wanted[k]
        for i in range(size):
            at.S[i] += q[i] * q
    return at


def solve(at: Sums, head: Head) -> dict[str, Tensor]:
    """Return ``weights`` W (d, answers) and ``bias`` b (answers,), float64, of at least one record."""
    import torch

    c, t, l, X, S = (torch.from_numpy(part).double() for part in (at.c, at.t, at.l, at.X, at.S))  # noqa: E741
    N = torch.sum(c)

    def shrunk(A: Tensor, s: Tensor) -> Tensor:
        return A + torch.eye(len(A), dtype=torch.float64) * torch.clamp(s, min=1.0)

    def divided(A: Tensor, B: Tensor) -> Tensor:
        L = torch.linalg.cholesky(A)
        Y = torch.linalg.solve_triangular(L, B, upper=False)
        W: Tensor = torch.linalg.solve_triangular(L.T, Y, upper=True).contiguous()
        return W

    def scatter(A: Tensor) -> Tensor:
        return torch.mean(torch.clamp(torch.diagonal(A), min=0.0))

    if head.form == "ridge":
        u = 1.0 / UNIT if len(c) == 1 else 1.0
        A = S - torch.outer(l, l / N)
        B = (X - torch.outer(l, t / N)) * u
        W = divided(shrunk(A, head.ridge * scatter(A)), B)
        return {"weights": W, "bias": (t * u - l @ W) / N}
    M = torch.zeros_like(X)
    for k in range(len(c)):
        if c[k] > 0:
            M[:, k] = X[:, k] / c[k]
    A = S
    for k in range(len(c)):
        A = A - torch.outer(X[:, k], M[:, k])
    v = scatter(A)
    W = divided(shrunk(A, head.ridge * v), M * N) if head.form == "balanced" else M / torch.clamp(v / N, min=1.0)
    b = -0.5 * torch.sum(M * W, 0)
    b[c == 0] = -1e6
    return {"weights": W, "bias": b}


def tensor_digests(solved: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the SHA-256 of each tensor's raw little-endian bytes, row-major, in hex."""
    return {name: hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest() for name, tensor in solved.items()}


def scores(rows: Sequence[NDArray[np.int16]], solved: Mapping[str, Tensor]) -> NDArray[np.float64]:
    """Return H (rows, answers): each input's features times the weights, plus the bias, one input after the other.

    Both are in memory of their own, weights row by row: where a product's factors lie may move its last bits.
    """
    import torch

    W, b = solved["weights"].contiguous(), solved["bias"]
    found = [torch.tensor(features, dtype=torch.float64) @ W + b for features in rows]
    return torch.stack(found).numpy()


def read_all(
    reading: Reading, rows: Iterable[tuple[str, Encoded, int | float]], answers: int
) -> tuple[Sums, dict[str, str]]:
    """Return the sums over ``rows`` (id, encoded record, target), and the digest of each one's features by id."""
    digests: dict[str, str] = {}

    def made() -> Iterator[tuple[NDArray[np.int16], int | float]]:
        for name, row, target in rows:
            features = reading.features(row)
            digests[name] = features_digest(features.astype("<i2").tobytes())
            yield features, target

    size = reading.head.features(reading.backbone.layers, reading.backbone.hidden)
    return sums(made(), size, answers), digests
