"""A rule with what it needs, as a plan states it: how the orders of a run were chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from s3t.errors import LayoutError, did_you_mean
from s3t.orders.growth import matching
from s3t.orders.optimum import best
from s3t.orders.rotations import cyclic
from s3t.orders.sampling import conditional, random
from s3t.orders.value import SCORES
from s3t.records import Order

RULES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "cyclic": (),
        "matching": ("prior", "horizon", "score"),
        "conditional": ("prior", "seed"),
        "random": ("seed",),
        "best": ("prior", "horizon", "seed"),
    }
)
"""The rules by name, and what each needs."""
HORIZON = 100
"""Requests that orders are chosen for where nothing is said."""


@dataclass(frozen=True)
class Rule:
    """How orders are chosen. ``prior``: request probability of each slice of a shard; ``horizon``: number of requests.

    ``score``: of matching. What the rule does not need is None. Raises LayoutError for an unknown rule or score, for
    something that is missing, and for something that the rule does not use.
    """

    name: str = "cyclic"
    prior: tuple[float, ...] | None = None
    horizon: int | None = None
    seed: int | None = None
    score: str | None = None

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise LayoutError(f"orders {self.name!r} are unknown{did_you_mean(self.name, RULES)}; known: {list(RULES)}")
        for what in ("prior", "horizon", "seed", "score"):
            given, needed = getattr(self, what) is not None, what in RULES[self.name]
            if given and not needed:
                raise LayoutError(f"{self.name} orders use no {what}: leave it out, or choose another rule")
            if needed and not given:
                raise LayoutError(f"{self.name} orders need a {what}: give one, or choose another rule")
        if self.score is not None and self.score not in SCORES:
            raise LayoutError(
                f"score {self.score!r} is unknown{did_you_mean(self.score, SCORES)}; choose from {SCORES}"
            )

    @classmethod
    def of(cls, name: str, *, prior: tuple[float, ...] | None, horizon: int | None, seed: int) -> Rule:
        """Return the rule with defaults: the horizon, our score, and ``seed`` where it draws. LayoutError as the class."""
        needed = RULES.get(name, ())
        return cls(
            name,
            prior,
            HORIZON if horizon is None and "horizon" in needed else horizon,
            seed if "seed" in needed else None,
            "expected_length" if "score" in needed else None,
        )

    def orders(self, slices: int, budget: int) -> tuple[Order, ...]:
        """Return the orders. LayoutError if the prior has not one number per slice, and as the rule's own function."""
        prior = self.prior or ()
        if self.prior is not None and len(prior) != slices:
            raise LayoutError(f"the prior has {len(prior)} numbers for {slices} slices; give one per slice")
        horizon, seed = self.horizon or 0, self.seed or 0
        if self.name == "matching":
            return tuple(matching(prior, horizon, str(self.score), budget))
        if self.name == "conditional":
            return tuple(conditional(prior, budget, seed))
        if self.name == "random":
            return tuple(random(slices, budget, seed))
        if self.name == "best":
            return tuple(best(prior, budget, horizon, seed))
        return tuple(cyclic(slices, budget))

    def __str__(self) -> str:
        """Return the rule in words for a status line."""
        told = {"horizon": self.horizon, "seed": self.seed, "score": self.score}
        words = [f"{name} {value}" for name, value in told.items() if value is not None]
        words += ["prior " + " ".join(f"{value:g}" for value in self.prior)] if self.prior is not None else []
        return self.name + (f" ({', '.join(words)})" if words else "")

    def to_json(self) -> dict[str, Any]:
        """Return the name and what the rule needs as JSON values."""
        raw = {what: getattr(self, what) for what in RULES[self.name]}
        return {"name": self.name} | {what: list(v) if isinstance(v, tuple) else v for what, v in raw.items()}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Rule:
        """Rebuild a rule from :meth:`to_json`."""
        prior = raw.get("prior")
        horizon, seed, score = raw.get("horizon"), raw.get("seed"), raw.get("score")
        return cls(raw["name"], None if prior is None else tuple(prior), horizon, seed, score)


CYCLIC = Rule()
"""What orders are chosen by where nothing is said."""
