"""Nouns checked when made: records, data sets, layouts, recipes; content as bytes and back."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from s3t.errors import DataError, LayoutError, RecipeError
from s3t.records import Dataset, Layout, Recipe, Record, canonical_json, sha256
from s3t.unique import check_unique


def _record(name: str, label: int = 0, text: str = "text") -> Record:
    return Record(name, {"text": text}, label)


@pytest.mark.parametrize("name", ["", "a\x00b", 7, None])
def test_record_refuses_unusable_ids(name: Any) -> None:
    with pytest.raises(DataError, match=r"record id .* is not usable: give a non-empty string"):
        Record(name, {}, 0)


def test_record_refuses_negative_labels() -> None:
    with pytest.raises(DataError, match="record 'a' has label -1"):
        _record("a", -1)


def test_record_content_and_back() -> None:
    record = Record("ü-1", {"text": 'täxt "quoted"\n', "image": b"\x00\xff"}, 3)
    content = record.content()
    assert content.decode() == (
        '{"id":"ü-1","inputs":{"image":{"base64":"AP8="},"text":"täxt \\"quoted\\"\\n"},"label":3}'
    )
    assert Record.from_content(content) == record


def test_record_content_tells_all_fields_apart() -> None:
    variants = [
        Record("a", {"text": "x"}, 0),
        Record("b", {"text": "x"}, 0),
        Record("a", {"text": "y"}, 0),
        Record("a", {"text": "x"}, 1),
        Record("a", {"text_pair": "x"}, 0),
        Record("a", {"text": b"x"}, 0),
        Record("a", {"text": "x", "text_pair": ""}, 0),
    ]
    assert len({variant.content() for variant in variants}) == len(variants)


def test_canonical_json_is_one_encoding() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "ü"}) == '{"a":"ü","b":[1,2.5]}'.encode()
    assert sha256(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(math.nan)


def test_ids_are_unique() -> None:
    check_unique([_record("a"), _record("b")])
    with pytest.raises(DataError, match="record id 'a' occurs twice"):
        check_unique([_record("a"), _record("b"), _record("a", text="other")])


def _dataset(**changes: Any) -> Dataset:
    given: dict[str, Any] = {
        "name": "toy",
        "classes": ("x", "y"),
        "train": tuple(_record(f"t{i}", i % 2) for i in range(8)),
        "validation": tuple(_record(f"v{i}", i % 2) for i in range(4)),
        "test": (_record("p"),),
    }
    return Dataset(**(given | changes))


def test_dataset_digest_covers_content_and_splits_but_not_order() -> None:
    base = _dataset()
    assert _dataset(train=base.train[::-1]).digest == base.digest
    assert _dataset(name="renamed").digest == base.digest
    moved = _dataset(train=base.train[1:], validation=(*base.validation, base.train[0]))
    edited = _dataset(test=(_record("p", text="other"),))
    others = [moved, edited, _dataset(classes=("x", "z")), _dataset(test=())]
    assert len({base.digest, *(other.digest for other in others)}) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("x",)}, "the only class 'x' names no range of numbers; declare at least 2"),
        ({"test": (_record("t0"),)}, "record id 't0' occurs twice"),
        ({"validation": (_record("v", 2),)}, r"record 'v' has label 2, but the declared classes are \['x', 'y'\]"),
    ],
)
def test_dataset_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _dataset(**changes)


def test_subsets_only_grow() -> None:
    base = _dataset()
    sizes = [{record.id for record in base.subset(n, 0, 0).train} for n in range(9)]
    assert [len(size) for size in sizes] == list(range(9))
    assert all(small < large for small, large in itertools.pairwise(sizes))
    assert base.subset(3, 2, 1).train == tuple(r for r in base.train if r.id in sizes[3])


@pytest.mark.parametrize("name", ["shards", "slices", "budget"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2", None])
def test_layout_refuses(name: str, value: Any) -> None:
    with pytest.raises(LayoutError, match=rf"{name}={value!r} is not possible"):
        Layout(**{name: value})


def test_layout_bounds_the_budget_by_the_number_of_orders() -> None:
    for slices in range(1, 7):
        Layout(1, slices, math.factorial(slices))
        with pytest.raises(LayoutError, match=f"exceeds the {math.factorial(slices)} orders that {slices} slices have"):
            Layout(1, slices, math.factorial(slices) + 1)
    Layout(1, 1000, 10**9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": math.nan}, "lr=nan is out of range"),
        ({"lr": -1.0}, "lr=-1.0 is out of range"),
        ({"epochs": 0}, "epochs=0 is out of range: give 0.01 to 10000"),
        ({"rank": 0}, "rank=0 is out of range"),
        ({"batch_size": "8"}, "batch_size='8' is out of range"),
        ({"batch_size": 8.5}, "batch_size=8.5 is not a whole number"),
        ({"rank": 2.0}, "rank=2.0 is not a whole number"),
        ({"window": True}, "window=True is not a whole number"),
        ({"ensemble": "mean-logit"}, "did you mean 'mean-logits'"),
        ({"ensemble": None}, r"ensemble=None is unknown; choose from"),
        ({"adapter": ("lora", ["ia3"])}, r"adapter=\('lora', \['ia3'\]\) is unknown; choose from"),
        ({"targets": "query"}, "targets='query' are no names of modules"),
        ({"targets": ("query", ["value"])}, "are no names of modules; give a list of them"),
    ],
)
def test_recipe_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe(**changes)


def test_equal_recipes_are_stored_equally() -> None:
    """2 and 2.0 epochs are the same recipe: a run made with one is continued with the other."""
    assert canonical_json(Recipe(epochs=2, lr=1).to_json()) == canonical_json(Recipe(epochs=2.0, lr=1.0).to_json())


def test_recipe_is_stored_whole_and_read_strictly() -> None:
    recipe = Recipe(rank=3, targets=("query", "key"), rslora=True, epochs=1.5)
    assert Recipe.from_json(recipe.to_json()) == recipe
    with pytest.raises(RecipeError, match=r"unknown Recipe key 'epoch' \(did you mean 'epochs'\?\)"):
        Recipe.from_json({"epoch": 3})
    for raw in ([["lr"]], 7):
        with pytest.raises(RecipeError, match="Recipe"):
            Recipe.from_json(raw)  # type: ignore[arg-type]
