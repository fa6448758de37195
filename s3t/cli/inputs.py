"""From what was typed to the suite's nouns: layout, recipe, data, texts, ids."""

from __future__ import annotations

import re
from collections.abc import Iterable
from heapq import nsmallest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3t.analytic.head import AnalyticHead
from s3t.design import PAPER, Design
from s3t.errors import DataError, LayoutError, RecipeError
from s3t.orders import Rule
from s3t.reading import parse_json
from s3t.records import Dataset, Inputs, Layout, Recipe, candidate, sha256

if TYPE_CHECKING:
    from s3t.backbone import Backbone

LAYOUT = {"shards": 4, "slices": 3, "budget": 1}
"""What a run gets where nothing is said."""


def choose_layout(method: str, given: dict[str, int | None]) -> Layout:
    """Fill up what was given with LAYOUT. Raises LayoutError for a layout that the method does not have."""
    from baselines.methods import UNDIVIDED, find

    find(method)
    named = {name: value for name, value in given.items() if value is not None}
    if method in UNDIVIDED:
        for name, value in named.items():
            if value != 1:
                raise LayoutError(
                    f"{name}={value} does not apply to {method}: it trains one model on all data; leave it out"
                )
        return Layout(1, 1, 1)
    return Layout(**{**LAYOUT, **named})


def choose_rule(method: str, orders: str | None, prior: Path | None, horizon: int | None, seed: int) -> Rule | None:
    """Return the rule for the orders, None where nothing is said. Errors as :func:`read_prior` and ``Rule``."""
    from baselines.methods import UNDIVIDED

    if orders is None and prior is None and horizon is None:
        return None
    if method in UNDIVIDED:
        raise LayoutError(f"--orders, --prior and --horizon do not apply to {method}: it has one slice; leave them out")
    if orders is None:
        raise LayoutError("--prior and --horizon go with --orders: say which, for example --orders matching")
    return Rule.of(orders, prior=None if prior is None else read_prior(prior), horizon=horizon, seed=seed)


def choose_design(
    block_layers: str | None, *, bottom_up: bool, cumulative: bool, fresh_head: bool, stacked: bool = False
) -> Design | None:
    """Return how S3T's blocks lie, None where nothing is said. LayoutError for numbers of layers that are none."""
    try:
        sizes = None if block_layers is None else tuple(int(word) for word in block_layers.split(","))
    except ValueError:
        raise LayoutError(f"--block-layers {block_layers!r} are no numbers of layers; write 2, or 3,2,2") from None
    given = sizes[0] if sizes is not None and len(sizes) == 1 else sizes
    design = Design(given, bottom_up, cumulative, fresh_head, stacked)
    return None if design == PAPER else design


def read_prior(path: Path) -> tuple[float, ...]:
    """Return the numbers in a file: a JSON list, or text with commas, semicolons or white space between them.

    DataError for a file that cannot be read as such; LayoutError, naming the file, for numbers that are no request
    probabilities of slices.
    """
    from s3t.orders.checks import prior_of

    try:
        text = path.read_text(encoding="utf-8-sig").strip()
        numbers = (
            parse_json(text)
            if text.startswith(("[", "{"))
            else [float(word) for word in re.split(r"[,;\s]+", text) if word]
        )
        if not isinstance(numbers, list) or any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
            raise ValueError("not a list of numbers")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read as a prior ({error}); give a JSON list or plain text with one number per slice"
        ) from error
    try:
        return tuple(prior_of(numbers).tolist())
    except LayoutError as error:
        raise LayoutError(f"the prior in {path} does not do: {error}") from error


def choose_recipe(
    given: dict[str, float | int | None], more: list[str], tuned: tuple[Path, str] | None = None
) -> Recipe:
    """Return the recipe with ``given`` fields and ``more`` NAME=VALUE pairs, for the rest as ``tuned``, a file of `s3t tune`
    and the method. RecipeError for unknown or bad ones.
    """
    from s3t.tuning import read_best

    raw: dict[str, Any] = {} if tuned is None else read_best(*tuned).to_json()
    raw |= {name: value for name, value in given.items() if value is not None}
    return Recipe.from_json(raw | _fields("--recipe", more, "dropout=0.1"))


def choose_head(given: list[str] | None, tuned: Path | None, backbone: Backbone) -> AnalyticHead | None:
    """Return an analytic head with fields ``given`` as NAME=VALUE, for the rest as a file of `s3t tune` has it for
    ``backbone``: ``tuned``, or ``@FILE`` among what is given. None without any. RecipeError for unknown or bad ones.

    Lists are written with commas: ``poolings=mean,first,max``, ``layers=4,5``.
    """
    from s3t.tuning import read_head

    files = [Path(word[1:]) for word in given or [] if word.startswith("@")] + ([tuned] if tuned else [])
    if len(files) > 1:
        raise RecipeError(f"the head is to be that of {' and that of '.join(map(str, files))}; give one file")
    if not given and not files:
        return None
    raw = read_head(files[0], backbone.name, backbone.digest).to_json() if files else {}
    raw |= head_fields([word for word in given or [] if not word.startswith("@")])
    return AnalyticHead.from_json(raw)


def head_fields(pairs: list[str]) -> dict[str, Any]:
    """Return fields of an analytic head as typed. RecipeError for what is not NAME=VALUE."""
    raw = _fields("--head", pairs, "ridge=0.1")
    for name in ("layers", "poolings"):
        if isinstance(value := raw.get(name), str | int):
            raw[name] = [typed(word.strip()) for word in str(value).split(",")]
    return raw


def _fields(option: str, pairs: list[str], example: str) -> dict[str, Any]:
    """Return NAME=VALUE pairs by name. RecipeError for one that is none."""
    raw: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise RecipeError(f"{option} {pair!r} is not NAME=VALUE; write for example {example}")
        raw[name] = typed(value)
    return raw


def typed(value: str) -> Any:
    """Return a field's value as it was typed: what JSON makes of it, else the word itself."""
    try:
        return parse_json(value)
    except ValueError:
        return value


def read_dataset(spec: str, columns: dict[str, str | None], classes: str | None, limit: str | None) -> Dataset:
    """Load ``spec``; ``limit`` keeps a fixed subset of the training records, or with three numbers of each split. DataError."""
    from s3t.data import load

    chosen: dict[str, Any] = {name: value for name, value in columns.items() if value is not None}
    if classes is not None:
        chosen["classes"] = tuple(name.strip() for name in classes.split(","))
    limits = None if limit is None else _limits(limit)
    dataset = load(spec, **chosen)
    if limits is None:
        return dataset
    train, validation, test = (*limits, len(dataset.validation), len(dataset.test))[:3]
    return dataset.subset(train, validation, test)


def _limits(text: str) -> list[int]:
    """Return the numbers of ``--limit``: of training records, or of all three splits. DataError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (1, 3) or not all(part.isascii() and part.isdigit() for part in parts) or int(parts[0]) < 1:
        raise DataError(
            f"--limit {text!r} says no numbers of records; write 600, or 600,200,240 for training, validation and test"
        )
    return [int(part) for part in parts]


def choose_ids(ids: Iterable[str], count: int) -> list[str]:
    """Return ``count`` of ``ids``, scattered by a hash, the same ones each time. DataError if there are fewer.

    In memory are never more than ``count`` of them.
    """
    chosen = nsmallest(count, ids, key=lambda name: sha256(b"s3t any v1\x00" + name.encode()))
    if count > len(chosen):
        raise DataError(f"--any {count} exceeds the {len(chosen)} retained records")
    return chosen


def read_inputs(
    path: Path, text: str, image: str | None, choices: str | None = None, answer: str | None = None
) -> dict[str, Inputs]:
    """Return what is to be answered, by name: images of a folder by path, or rows of a file by number from 0.

    A file's rows are its column ``text``, with the one called ``answer`` if it is named, or the images at the paths in its
    column ``image``, below the file's folder; with ``choices``, columns separated by commas, a row is a question in ``text``,
    and the choices that are filled in are named as its candidates (:func:`s3t.records.candidate`). A file in the Alpaca format
    is read as such. Raises DataError if it cannot be read as such.
    """
    from s3t.data.image_folders import SUFFIXES, read_image
    from s3t.data.instructions import has_instructions, prompts
    from s3t.data.questions import check_alone, choice_columns
    from s3t.data.tables import read_table

    if choices is not None:
        check_alone(choices, image=image)
    if path.is_dir():
        if choices is not None:
            raise DataError(f"{path} is a folder of images, which has no columns to choose from; leave out --choices")
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        return {file.relative_to(path).as_posix(): {"image": read_image(file, path)} for file in files}
    table = read_table(path)
    if image is None and text == "text" and answer is None and choices is None and has_instructions(table):
        rows = zip(prompts(table), table.column("output"), strict=True)
        return {str(row): {"text": cell, "answer": said} for row, (cell, said) in enumerate(rows)}
    cells = table.column(image or text)
    if answer is not None:
        rows = zip(cells, table.column(answer), strict=True)
        return {str(row): {"text": cell, "answer": said} for row, (cell, said) in enumerate(rows)}
    if choices is not None:
        return _candidates(path, cells, {name: table.column(name) for name in choice_columns(choices)})
    if image is None:
        return {str(row): {"text": cell} for row, cell in enumerate(cells)}
    return {str(row): {"image": read_image(path.parent / cell, path.parent)} for row, cell in enumerate(cells)}


def _candidates(path: Path, questions: list[str], columns: dict[str, list[str]]) -> dict[str, Inputs]:
    found: dict[str, Inputs] = {}
    for row, question in enumerate(questions):
        there = {name: cells[row] for name, cells in columns.items() if cells[row].strip()}
        if not there:
            raise DataError(f"{path}: row {row} has no choice in {', '.join(columns)}; fill one in or drop the row")
        found |= {candidate(str(row), name): {"text": question, "text_pair": cell} for name, cell in there.items()}
    return found
