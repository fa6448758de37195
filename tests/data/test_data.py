"""By name: what ``load`` and ``model_source`` take a name for."""

from __future__ import annotations

from pathlib import Path

import pytest

import s3t.data
from s3t.data import load, model_source
from s3t.errors import DataError, ModelError


def test_a_name_that_is_nothing_is_answered_with_the_closest_pack() -> None:
    with pytest.raises(
        DataError,
        match=r"data 'trec' is unknown \(did you mean 'trec6'\?\); give a pack \(alpaca, mnist, fashion-mnist, ",
    ):
        load("trec")
    with pytest.raises(DataError, match="data '' is unknown; give a pack"):
        load("")


def test_packs_are_of_their_kind_and_have_fixed_columns() -> None:
    with pytest.raises(
        DataError, match="pack 'minilm' is of kind model, not data; packs of kind data are alpaca, mnist, fashion-mnist"
    ):
        load("minilm")
    with pytest.raises(DataError, match="'trec6' is a pack with fixed columns and splits; leave out label, text"):
        load("trec6", text="a", label="b")
    with pytest.raises(
        ModelError, match="pack 'trec6' is of kind data, not model; packs of kind model are minilm, mpnet"
    ):
        model_source("trec6")


def test_an_absent_file_with_a_known_ending_is_a_file_not_a_hub_name() -> None:
    with pytest.raises(DataError, match=r"there is no file owner/rows\.csv; check the path"):
        load("owner/rows.csv")


def test_a_files_options_may_stand_in_the_spec_and_yield_to_arguments(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b,label\n" + "".join(f"a{i},b{i},{i % 2}\n" for i in range(50)))
    assert load(f"{path}?text=a").train[0].inputs["text"].startswith("a")
    assert load(f"{path}?text=a", text="b").train[0].inputs["text"].startswith("b")


def test_a_model_is_a_pack_a_folder_or_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3t.data, "fetch", lambda name: tmp_path / f"fetched-{name}")
    assert model_source("minilm") == tmp_path / "fetched-minilm"
    assert model_source(str(tmp_path)) == tmp_path
    assert model_source("bert-base-uncased") == "bert-base-uncased"
    assert model_source("FacebookAI/roberta-large") == "FacebookAI/roberta-large"


@pytest.mark.parametrize("name", ["./absent", "/no/such/model", "~/absent", "a/b/c", ""])
def test_a_path_without_a_folder_is_no_model(name: str) -> None:
    with pytest.raises(ModelError, match="neither a pack, nor an existing folder, nor a hub name"):
        model_source(name)
