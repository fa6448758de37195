"""Where faults are planted: settings (method, layout, recipe, seed, slot key, base model, mode) and, in each, several victims.

Every victim has its own 60 records, made so that it is the odd one: the only long row (statistics move with it), with half
of the words that elsewhere occur once, the first row of its slot (positions move with it), and what alone makes its slot
larger than the others of its shard (counts move with it). Another slot lacks a row, so that the number of all rows is a
multiple of every batch size here.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from baselines.methods import make_plan
from s3t.analytic.head import AnalyticHead
from s3t.engine.mode import FOR_IMAGES, MODES, Mode
from s3t.partition import slot
from s3t.plan import Plan
from s3t.records import Inputs, Layout, Recipe, Record

CLASSES = ("a", "b", "c")
ROWS = 60
SHARE = 0.3
"""What an analytic head weighs beside the chains."""
WORDS = ("amber", "birch", "cedar", "dune", "ember", "fjord", "grove", "heath", "islet", "jetty")


@dataclass(frozen=True)
class Setting:
    """One configuration of the system under test. ``method`` is one of :mod:`baselines.methods`.

    ``mode``: the engine and its precision; nothing else depends on it, so that the same victims are met in every mode.
    ``head``: an analytic head beside the chains, if any.
    """

    name: str
    method: str
    layout: Layout
    recipe: Recipe
    seed: int
    layers: int
    mode: Mode = Mode()  # noqa: RUF009 - frozen
    head: AnalyticHead | None = None
    weights: str = "equal"

    @property
    def label(self) -> str:
        """The setting's name, and its mode where that is not the reference: ``s3t-2x3-fast-bfloat16``."""
        mode = self.mode
        return self.name if mode.engine == "reference" else f"{self.name}-{mode.name}-{mode.precision}"

    @property
    def model(self) -> str:
        """The base model: one that reads texts, or images in the modes that are made for them."""
        return f"tiny-vit-{self.layers}" if self.of_images else f"tiny-{self.layers}"

    @property
    def of_images(self) -> bool:
        """Whether the records are images."""
        return self.mode in FOR_IMAGES

    def inputs(self, words: str) -> Inputs:
        """Return a record's inputs: the words, or an image of them."""
        return {"image": painted(words)} if self.of_images else {"text": words}

    @property
    def key(self) -> bytes:
        """The slot key, another one for every setting."""
        return hashlib.sha256(self.name.encode()).digest()

    def plan(self, layers: int) -> Plan:
        """Return the method's plan for a model of ``layers`` layers."""
        share = None if self.head is None or self.method == "analytic" else SHARE
        return make_plan(
            self.method, self.layout, self.recipe, layers, head=self.head, share=share, weights=self.weights
        )


Need = Callable[[Setting], Setting]
"""What a fault needs to have any effect: the setting, changed as little as that takes."""

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "s3t-2x3", "s3t", Layout(shards=2, slices=3, budget=3),
        Recipe(epochs=1.0, batch_size=6, window=2, dropout=0.1, rank=2), seed=3, layers=3,
    ),
    Setting(
        "s3t-3x2", "s3t", Layout(shards=3, slices=2, budget=2),
        Recipe(epochs=2.0, batch_size=5, window=3, rank=4, rslora=True, ensemble="mean-probabilities"),
        seed=11, layers=2,
    ),
    Setting(
        "sisa-2x3", "sisa-lora-lazy", Layout(shards=2, slices=3, budget=2),
        Recipe(epochs=3.0, batch_size=6, window=4, dropout=0.2, rank=3, lr=2e-3), seed=29, layers=3,
    ),
)  # fmt: skip
"""S3T with three orders; S3T otherwise in every respect; one adapter continued over all slices, for 1.5 epochs a stage."""

VICTIMS = 5
"""Victims per setting; they differ in slot, content and label."""


def in_mode(mode: Mode, names: Sequence[str] = ()) -> list[Setting]:
    """Return the settings called ``names`` (all by default) in ``mode``."""
    return [replace(setting, mode=mode) for setting in SETTINGS if not names or setting.name in names]


def in_every_mode() -> list[Setting]:
    """Return every setting in every mode."""
    return [setting for mode in (*MODES, *FOR_IMAGES) for setting in in_mode(mode)]


def find_setting(label: str) -> Setting:
    """Return the setting with this ``label``. KeyError if there is none."""
    return {setting.label: setting for setting in in_every_mode()}[label]


def with_dropout(setting: Setting) -> Setting:
    """Dropout must draw from a random generator."""
    return setting if setting.recipe.dropout else replace(setting, recipe=replace(setting.recipe, dropout=0.1))


def with_padding_that_counts(setting: Setting) -> Setting:
    """More padding must move a bit: in bfloat16 sums over it mostly round to what they were, but masks of dropout are drawn
    for the padded shape."""
    return with_dropout(setting) if setting.mode.precision == "bfloat16" else setting


def with_blocks(setting: Setting) -> Setting:
    """Every stage must have a block of layers of its own."""
    return replace(setting, method="s3t")


def with_three_orders(setting: Setting) -> Setting:
    """After any deletion, two orders of the victim's shard must still have a chain."""
    return replace(setting, layout=Layout(setting.layout.shards, slices=3, budget=3), layers=3)


def with_weights_by_length(setting: Setting) -> Setting:
    """Chains weigh by their length, and after any deletion the victim's shard must still have one."""
    return replace(with_three_orders(setting), weights="length")


def with_blocks_in_three_orders(setting: Setting) -> Setting:
    """The slice must be met by a stage with frozen layers below it, and that stage must serve: blocks, in three orders."""
    return with_blocks(with_three_orders(setting))


def with_twelve_layers(setting: Setting) -> Setting:
    """Blocks of layers, and enough of them that one's index begins another one's: 1 in the last block, 10 in the first."""
    return replace(with_blocks(setting), layers=12)


def with_head(setting: Setting) -> Setting:
    """An analytic head must serve beside the chains, with integers so large that float32 rounds their sums."""
    return replace(setting, head=AnalyticHead(poolings=("mean", "max"), random=8, step=2.0**-13))


@dataclass(frozen=True)
class Corpus:
    """The records of one victim, the victim itself, a record beside it (next slice) and another one (next shard as well)."""

    records: tuple[Record, ...]
    victim: Record
    beside: Record
    other: Record


def victim_slot(layout: Layout, number: int) -> tuple[int, int]:
    """Return the slot of victim ``number``: over all shards in turn, and over all slices; none comes twice before all have."""
    turns = number // math.lcm(layout.shards, layout.slices)
    return number % layout.shards, (1 - number - turns) % layout.slices


def make_corpus(setting: Setting, number: int) -> Corpus:
    """Return the records around victim ``number`` (0..) of ``setting``."""
    layout = setting.layout
    shard, piece = place = victim_slot(layout, number)
    there = (shard + 1) % layout.shards
    each = ROWS // (layout.shards * layout.slices)
    left = {(s, p): each for s in range(layout.shards) for p in range(layout.slices)}
    left[place] += 1
    left[there, piece] -= 1
    total, records, candidate = sum(left.values()), list[Record](), 0
    while len(records) < total:
        name = f"row-{candidate:04d}"
        candidate += 1
        home = slot(setting.key, name, layout)
        if left[home]:
            left[home] -= 1
            records.append(Record(name, setting.inputs(text(len(records))), (0, 1, 2, 0)[len(records) % 4]))
    homes = [slot(setting.key, record.id, layout) for record in records]
    following = (piece + 1) % layout.slices
    first, beside, other = (homes.index(home) for home in (place, (shard, following), (there, following)))
    rare = [f"item{position}" for position in range(number % 2, total, 2)]
    words = " ".join([text(first + 7 * number), *rare, *rare])
    records[first] = Record(records[first].id, setting.inputs(words), number % len(CLASSES))
    return Corpus(tuple(records), records[first], records[beside], records[other])


def painted(words: str) -> bytes:
    """Return an image file of 16 x 16 pixels, white but for one in the colour of each word, in order."""
    from PIL import Image

    image = Image.new("RGB", (16, 16), "white")
    for at, word in enumerate(words.split()[:256]):
        red, green, blue = hashlib.sha256(word.encode()).digest()[:3]
        image.putpixel((at % 16, at // 16), (red, green, blue))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def text(number: int) -> str:
    """Return 4 to 10 common words and one that is the number's own."""
    words = [WORDS[(number * step + step) % len(WORDS)] for step in (1, 3, 7, 2, 9, 4, 6, 8, 5, 1)]
    return " ".join([*words[: 4 + number % 7], f"item{number}"])
