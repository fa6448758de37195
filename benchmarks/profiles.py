"""How large the benchmarks are: smoke (CI, tiny random model), quick (default), health (all of TREC-6, every method before
deletions, about half an hour; engines on a third of it), pairs (a part of every text set that comes with a pack: the life of
every method, and what S3T's own choices are worth), larger (a base model of twelve layers), vision (real images), paper (the
cases of benchmarks/paper.py, and nothing else), full (hours).

Recipes were chosen on the validation split alone, with the same number of trials for every method (docs/TUNING.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from s3t.records import Recipe

LORA = Recipe(lr=4e-3, head_lr=1e-2)
SEQUENTIAL = Recipe(lr=4e-3, head_lr=3e-3)
FULL = Recipe(lr=1e-4, head_lr=3e-3)
"""Full fine-tuning wants a smaller step than LoRA."""

REQUESTS = (
    *("uniform:once", "uniform", "exponential", "pareto:1.5", "zipf:1.2", "bursty:10", "by-user", "drift:100", "worst"),
    "adaptive",
)
"""Every kind of request stream but those from files."""


@dataclass(frozen=True)
class Comparison:
    """A data set on which engines are compared: the records of each split used (None: the profile's), for ``seeds`` seeds.

    ``every_order``: as many orders as slices are trained too, for one seed.
    """

    data: str
    limits: tuple[int, int, int] | None = None
    seeds: int = 1
    every_order: bool = False


@dataclass(frozen=True)
class Profile:
    """One size of the benchmarks.

    ``limits``: training, validation and test records used (None: all). ``cases``: (method, budget) pairs whose life is
    measured; ``healthy``: pairs measured before deletions only, being too dear for more here. ``checkpoints``: numbers of
    deletions after which accuracy is measured; ``eager_checkpoints``: the same for methods that retrain at each deletion.
    ``individually``: deletions that these execute one by one, before the rest are batched up to each checkpoint (by
    exactness the model is the same; the cost of the rest is derived).
    ``streams``: deletion streams per budget in the capacity measurement; ``trials``: simulated lives per cell.
    ``request_streams`` and ``accuracy_streams``: streams (:func:`s3t.streams.make_stream`) under which capacity, and
    accuracy, are measured, after ``stream_checkpoints`` requests; ``stream_lives`` real and ``stream_trials`` simulated
    ones each, accuracy for the first ``stream_seeds`` seeds.
    ``engine``, ``precision``: the mode in which runs are trained, of every method (:mod:`s3t.engine.mode`), unless a
    benchmark compares modes.
    ``engine_data``: where engines are compared; ``engine_rounds``: how often the parts of the engine, and growth, are timed, on
    the first of these (0: not at all, nor profiled); ``engine_growth``: numbers of training records at which a node is timed;
    ``designs``: whether S3T's own choices are turned one at a time; ``audits``: whether every method is audited on all data
    (where it is not, the main job of the README audits by command).
    ``engine_tuning``: rows per trial when the stock pipeline is tuned, over few combinations or ``engine_grid``.
    """

    name: str
    model: str
    data: tuple[str, ...]
    limits: tuple[int, int, int] | None
    shards: int
    slices: int
    seeds: tuple[int, ...]
    cases: tuple[tuple[str, int], ...]
    healthy: tuple[tuple[str, int], ...]
    checkpoints: tuple[int, ...]
    eager_checkpoints: tuple[int, ...]
    individually: int
    streams: int
    trials: int
    rounds: int
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    request_streams: tuple[str, ...] = REQUESTS
    accuracy_streams: tuple[str, ...] = ("uniform:once", "zipf:1.2", "worst")
    stream_checkpoints: tuple[int, ...] = (0, 4, 12, 24)
    stream_lives: int = 5
    stream_trials: int = 20_000
    stream_seeds: int = 1
    engine: str = "fast"
    precision: str = "auto"
    engine_data: tuple[Comparison, ...] = (Comparison("trec6", (240, 0, 200)),)
    engine_rounds: int = 1
    engine_growth: tuple[int, ...] = (60, 120, 240)
    engine_tuning: int = 96
    engine_grid: bool = False
    designs: bool = False
    audits: bool = False

    def recipe(self, method: str) -> Recipe:
        """Return the recipe of a method: its own if it has one, else that of its kind of training."""
        if method in self.recipes:
            return self.recipes[method]
        if method.endswith(("-full", "-full-lazy")):
            return FULL
        return SEQUENTIAL if method == "sequential" else LORA


_SHORT = Recipe(epochs=1, batch_size=16)

PROFILES: dict[str, Profile] = {
    "smoke": Profile(
        name="smoke",
        model="tiny",
        data=("synthetic",),
        limits=(96, 24, 48),
        shards=2,
        slices=3,
        seeds=(0, 1),
        cases=(("s3t", 1), ("s3t", 3), ("sequential", 1), ("sisa-lora", 1), ("sisa-lora-lazy", 1), ("retrain-lora", 1)),
        healthy=(("sisa-full-lazy", 1), ("retrain-full", 1)),
        checkpoints=(0, 2, 5),
        eager_checkpoints=(0, 5),
        individually=1,
        streams=5,
        trials=2_000,
        rounds=5,
        request_streams=("uniform:once", "zipf:1.2", "by-user", "worst", "adaptive"),
        accuracy_streams=("uniform:once",),
        stream_checkpoints=(0, 2, 5),
        stream_lives=2,
        stream_trials=1_000,
        engine_data=(Comparison("synthetic", None, 2, True),),
        engine_rounds=2,
        engine_growth=(24, 48),
        engine_tuning=32,
        designs=True,
        audits=True,
        recipes=dict.fromkeys(("s3t", "sequential", "sisa-lora", "sisa-lora-lazy", "retrain-lora"), _SHORT),
    ),
    "quick": Profile(
        name="quick",
        model="minilm",
        data=("trec6",),
        limits=(600, 200, 240),
        shards=4,
        slices=3,
        seeds=(0, 1, 2),
        cases=(
            ("s3t", 1),
            ("s3t", 2),
            ("s3t", 3),
            ("sequential", 1),
            ("sisa-lora", 1),
            ("sisa-lora-lazy", 1),
            ("retrain-lora", 1),
        ),
        healthy=(),
        checkpoints=(0, 4, 12, 24),
        eager_checkpoints=(0, 24),
        individually=1,
        streams=20,
        trials=100_000,
        rounds=20,
        request_streams=REQUESTS[:-1],
        engine_data=(Comparison("trec6", (160, 0, 160)),),
        engine_rounds=0,
    ),
    "health": Profile(
        name="health",
        model="minilm",
        data=("trec6",),
        limits=None,
        shards=4,
        slices=3,
        seeds=(0, 1, 2),
        cases=(("s3t", 1),),
        healthy=(("retrain-lora", 1), ("sequential", 1), ("sisa-lora-lazy", 1), ("retrain-full", 1)),
        checkpoints=(0, 8, 16, 24),
        eager_checkpoints=(0,),
        individually=1,
        streams=20,
        trials=100_000,
        rounds=20,
        engine_data=(Comparison("trec6", (1000, 0, 982), 5, True), Comparison("newsgroups", (240, 0, 500), 3)),
        engine_rounds=3,
        engine_growth=(270, 540, 1080),
        designs=True,
    ),
    "full": Profile(
        name="full",
        model="minilm",
        data=("trec6", "movies", "tweets", "r8", "newsgroups"),
        limits=None,
        shards=4,
        slices=3,
        seeds=(0, 1, 2, 3, 4),
        cases=(
            ("s3t", 1),
            ("s3t", 2),
            ("s3t", 3),
            ("s3t", 6),
            ("sequential", 1),
            ("sequential", 3),
            ("sisa-lora", 1),
            ("sisa-lora-lazy", 1),
            ("sisa-lora-lazy", 3),
            ("sisa-full-lazy", 1),
            ("retrain-lora", 1),
            ("retrain-full", 1),
        ),
        healthy=(),
        checkpoints=(0, 1, 2, 4, 8, 12, 16, 24, 32),
        eager_checkpoints=(0, 8, 16, 32),
        individually=4,
        streams=100,
        trials=1_000_000,
        rounds=200,
        accuracy_streams=REQUESTS,
        stream_lives=20,
        stream_trials=200_000,
        stream_seeds=3,
        engine_data=(Comparison("trec6", None, 5, True), Comparison("newsgroups", (1200, 0, 1000), 5, True)),
        engine_rounds=5,
        engine_growth=(270, 540, 1080, 2160, 4320),
        engine_tuning=512,
        engine_grid=True,
        designs=True,
        audits=True,
    ),
}
PROFILES["pairs"] = replace(
    PROFILES["quick"],
    name="pairs",
    data=("trec6", "movies", "r8", "newsgroups"),
    healthy=(("retrain-full", 1),),
    designs=True,
    audits=True,
)
PROFILES["larger"] = replace(
    PROFILES["pairs"],
    name="larger",
    model="mpnet",
    data=("trec6",),
    limits=(240, 120, 240),
    seeds=(0,),
    designs=False,
    recipes=dict.fromkeys(("sequential", "retrain-lora", "sisa-lora", "sisa-lora-lazy"), replace(LORA, lr=2e-3))
    | {"s3t": replace(LORA, lr=5e-4)},
)
_VISION = Recipe(lr=4e-3, head_lr=3e-3)
_VISION_SISA = replace(_VISION, lr=1e-3)
PROFILES["vision"] = replace(
    PROFILES["quick"],
    name="vision",
    model="vit-s",
    data=("fashion-mnist", "mnist"),
    healthy=(("retrain-full", 1),),
    engine_data=(Comparison("fashion-mnist", (160, 0, 160)),),
    audits=True,
    recipes={
        "s3t": _VISION,
        "sequential": _VISION,
        "retrain-lora": replace(_VISION, lr=2e-3),
        "sisa-lora": _VISION_SISA,
        "sisa-lora-lazy": _VISION_SISA,
        "retrain-full": replace(FULL, lr=3e-5),
    },
)
PROFILES["paper"] = replace(PROFILES["quick"], name="paper")
