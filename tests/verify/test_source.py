"""The source data is evidence only if it is what the run was fitted on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

import s3t.data
from s3t.errors import DataError
from s3t.records import Dataset
from verify.evidence import Evidence
from verify.source import SourceChangedError, source_records


@pytest.fixture
def whole(forge: Callable[..., Any]) -> tuple[Evidence, Dataset]:
    """A run on all of a data set (16 train rows, 3 test rows)."""
    run = forge()
    data = Dataset("forged", ("a", "b", "c"), tuple(run.records), (), tuple(run.test), "here")
    return declaring(run.read()[0], data), data


def declaring(evidence: Evidence, data: Dataset) -> Evidence:
    said = {"name": data.name, "source": data.source, "digest": data.digest, "classes": list(data.classes)}
    return dataclasses.replace(evidence, run=json.loads(json.dumps(evidence.run)) | {"data": said})


def loading(monkeypatch: pytest.MonkeyPatch, data: Dataset | Exception) -> None:
    def load(source: str) -> Dataset:
        assert source == "here"
        if isinstance(data, Exception):
            raise data
        return data

    monkeypatch.setattr(s3t.data, "load", load, raising=False)


def test_the_same_data(whole: tuple[Evidence, Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    evidence, data = whole
    loading(monkeypatch, data)
    assert source_records(evidence) == (data.train, "")


def test_a_subset_is_taken_again(whole: tuple[Evidence, Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    evidence, data = whole
    more = tuple(dataclasses.replace(record, id=f"more-{record.id}") for record in data.train)
    larger = dataclasses.replace(data, train=(*data.train, *more))
    loading(monkeypatch, larger)
    assert source_records(declaring(evidence, larger.subset(16, 0, 3)))[0] == larger.subset(16, 0, 3).train


def test_changed_or_unreadable_sources_are_no_evidence(
    whole: tuple[Evidence, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence, data = whole
    loading(monkeypatch, dataclasses.replace(data, train=data.train[1:]))
    with pytest.raises(SourceChangedError, match="its digest differs"):
        source_records(evidence)
    loading(monkeypatch, DataError("gone"))
    assert source_records(evidence) == (None, "source 'here' cannot be read again: gone")


def test_no_source(forge: Callable[..., Any]) -> None:
    assert source_records(forge().read()[0]) == (None, "the run names no source of its data")
