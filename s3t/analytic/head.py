"""What an analytic head is, as data: whose features it reads, how they are quantised, how it is solved. No torch."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from s3t.errors import RecipeError, did_you_mean

Pooling = Literal["mean", "first", "last", "max"]
Form = Literal["ridge", "balanced", "prototypes"]
"""``ridge``: least squares on one-hot answers, or on numbers (Hoerl and Kennard 1970). ``balanced``: linear discriminant
analysis with the same prior for every class, its within-class scatter shrunk by the same ridge (Friedman 1989).
``prototypes``: the nearest class mean (Snell et al. 2017, section 2.4, without training the features)."""

NAME = "analytic head"
"""What it is called among what serves."""
BITS = 15
"""Bits of a quantised feature beside its sign: it lies within ``-LEVELS .. LEVELS``."""
LEVELS = 2**BITS - 1
MOST_RANDOM = 2**15
"""Random features at most: the sums have the square of a record's features."""


@dataclass(frozen=True)
class AnalyticHead:
    """A linear head on features of the frozen backbone.

    ``layers``: whose outputs are read, from 0 at the input side; empty: all. ``poolings``: how a layer's tokens become one
    row, one after another. ``random``: how many random features (``relu(x R)``, R drawn from the run's seed) follow them.
    ``step``: a feature ``x`` is kept as the integer nearest to ``x / step``, within 15 bits and sign: a constant, declared
    before any record was seen. ``ridge``: the regularisation, as a share of the features' mean variance among the retained
    records. ``temperature``: what scores are multiplied by before a softmax. Raises RecipeError for a value that cannot be.
    """

    layers: tuple[int, ...] = ()
    poolings: tuple[Pooling, ...] = ("mean",)
    random: int = 0
    step: float = 2.0**-8
    form: Form = "ridge"
    ridge: float = 0.1
    temperature: float = 6.0

    def __post_init__(self) -> None:
        for name in ("layers", "poolings"):
            if not isinstance(getattr(self, name), tuple):
                raise RecipeError(f"{name}={getattr(self, name)!r} is no tuple of different values")
        for number in (*self.layers, self.random):
            if type(number) is not int or number < 0:
                raise RecipeError(f"{number!r} is no layer and no number of random features; give integers from 0")
        if self.random > MOST_RANDOM:
            raise RecipeError(f"random={self.random} is too many random features; give at most {MOST_RANDOM}")
        if not self.poolings:
            raise RecipeError(f"poolings are empty; choose from {', '.join(get_args(Pooling))}")
        for name, values, known in (("poolings", self.poolings, Pooling), ("form", (self.form,), Form)):
            for value in values:
                if value not in get_args(known):
                    hint = did_you_mean(value, get_args(known))
                    raise RecipeError(f"{name}={value!r} is unknown{hint}; choose from {', '.join(get_args(known))}")
        for name in ("layers", "poolings"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise RecipeError(f"{name}={getattr(self, name)!r} is no tuple of different values")
        for name in ("step", "ridge", "temperature"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= sys.float_info.max:
                raise RecipeError(f"{name}={value!r} is not a positive number")
        if math.frexp(self.step)[0] != 0.5:
            raise RecipeError(
                f"step={self.step!r} is no power of two, so dividing by it would round; give one, as 2**-8"
            )

    def size(self, layers: int, hidden: int) -> int:
        """Return how many features a record has on a backbone of ``layers`` layers of ``hidden`` features."""
        return (len(self.layers) or layers) * len(self.poolings) * hidden + self.random

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {**asdict(self), "layers": list(self.layers), "poolings": list(self.poolings)}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> AnalyticHead:
        """Rebuild a head from :meth:`to_json`; absent fields have their defaults. RecipeError for unknown fields or values."""
        if not isinstance(raw, Mapping):
            raise RecipeError(f"an analytic head is an object, not {raw!r}")
        known = [field.name for field in fields(cls)]
        for name in raw:
            if name not in known:
                raise RecipeError(
                    f"an analytic head has no {name!r}{did_you_mean(name, known)}; known are {', '.join(known)}"
                )
        tuples = {n: tuple(raw[n]) for n in ("layers", "poolings") if n in raw and isinstance(raw[n], list | tuple)}
        return cls(**{**raw, **tuples})
