"""What a user of the Trainer may turn without changing the schedule: precision, attention, batches by length, workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from s3t.errors import RecipeError, did_you_mean

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
Attention = Literal["sdpa", "eager"]


@dataclass(frozen=True)
class Options:
    """How the Trainer runs. The defaults are the Trainer's own.

    ``precision``: bfloat16 is autocast. ``half_base``: the frozen weights are bfloat16 too, which saves casting them at every
    step; what is trained stays in float32. ``group_by_length``: batches of rows of similar length, within
    the Trainer's windows. ``workers``: processes that load and collate, 0 for none. ``batch_size`` None: the recipe's; another
    one changes the optimization. ``attention``: transformers' implementation; sdpa is what it loads, but backward in bfloat16
    on a CPU it takes most of the time, and eager is then the faster. Raises RecipeError for anything else.
    """

    precision: Precision = "float32"
    group_by_length: bool = False
    workers: int = 0
    batch_size: int | None = None
    half_base: bool = False
    attention: Attention = "sdpa"

    def __post_init__(self) -> None:
        for name, word, known in (
            ("precision", self.precision, PRECISIONS),
            ("attention", self.attention, get_args(Attention)),
        ):
            if word not in known:
                hint = did_you_mean(word, known)
                raise RecipeError(f"{name}={word!r} is unknown{hint}; choose from {', '.join(known)}")
        if self.half_base and self.precision != "bfloat16":
            raise RecipeError(f"half_base=True needs precision='bfloat16', not {self.precision!r}")
        for name, value, least in (("workers", self.workers, 0), ("batch_size", self.batch_size, 1)):
            if value is not None and (type(value) is not int or value < least):
                raise RecipeError(f"{name}={value!r} is not possible: give a whole number of at least {least}")

    @property
    def name(self) -> str:
        """The options in words, such as ``bfloat16, by length``."""
        parts = [str(self.precision)]
        if self.half_base:
            parts.append("bfloat16 base")
        if self.attention != "sdpa":
            parts.append(f"{self.attention} attention")
        if self.group_by_length:
            parts.append("by length")
        if self.workers:
            parts.append(f"{self.workers} worker{'s' * (self.workers > 1)}")
        if self.batch_size is not None:
            parts.append(f"batches of {self.batch_size}")
        return ", ".join(parts)
