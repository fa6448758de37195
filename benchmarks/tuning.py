"""Choose recipes on the validation split: the same grid for every method. ``python -m benchmarks.tuning --help``.

The test split is never read here. The outcome is written down in docs/TUNING.md and in benchmarks/profiles.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from benchmarks.life import accuracy
from benchmarks.profiles import PROFILES, Profile
from benchmarks.workbench import Workbench, describe
from s3t.records import Recipe

LORA_RATES = (1e-3, 2e-3, 4e-3)
FULL_RATES = (5e-5, 1e-4, 2e-4)
HEAD_RATES = (3e-3, 1e-2)


def grid(method: str, base: Recipe) -> Iterator[Recipe]:
    """Yield the recipes tried for ``method``: 3 learning rates of its kind x 2 of the head."""
    rates = FULL_RATES if method.endswith(("-full", "-full-lazy")) else LORA_RATES
    for rate, head in product(rates, HEAD_RATES):
        yield dataclasses.replace(base, lr=rate, head_lr=head)


def validation_accuracy(bench: Workbench, method: str, recipe: Recipe, data: str, seed: int) -> float:
    """Train ``method`` with one order on the training split and return its accuracy on the validation split."""
    dataset = bench.dataset(data)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        system = describe(folder, method, bench.layout(method, 1), recipe, bench.backbone, dataset, seed)
        system.fit(dataset.train)
        found, _ = accuracy(system, dataset.validation)
        system.close()
    return found


def main() -> None:
    """Print one line per trial: method, learning rates, validation accuracy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="quick", choices=sorted(PROFILES))
    parser.add_argument("--train", type=int, help="training records (default: the profile's)")
    parser.add_argument("--method", action="append", required=True)
    parser.add_argument("--data", default="trec6")
    parser.add_argument("--epochs", type=float, default=Recipe.epochs)
    parser.add_argument("--seed", type=int, default=100)
    options = parser.parse_args()
    profile: Profile = PROFILES[options.profile]
    if options.train:
        profile = dataclasses.replace(profile, limits=(options.train, 10_000, 1))
    bench = Workbench(profile, Path())
    for method in options.method:
        for recipe in grid(method, Recipe(epochs=options.epochs)):
            found = validation_accuracy(bench, method, recipe, options.data, options.seed)
            print(f"{method}\t{options.data}\t{recipe.epochs}\t{recipe.lr}\t{recipe.head_lr}\t{found:.4f}", flush=True)


if __name__ == "__main__":
    main()
