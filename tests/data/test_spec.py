"""A spec says how a file was read, and reads back as it was written."""

from __future__ import annotations

from typing import Any

import pytest

from s3t.data.spec import read_spec, write_spec
from s3t.errors import DataError


def test_defaults_leave_the_path_alone() -> None:
    assert write_spec("a/rows.csv", {"text": None, "classes": None}) == "a/rows.csv"
    assert read_spec("a/rows.csv") == ("a/rows.csv", {})


@pytest.mark.parametrize(
    "options",
    [
        {"text": "sentence"},
        {"id": "a b&c=d", "label": "Ä?"},
        {"classes": ("no", "yes", "a,b")},
        {"classes": ("only",), "validation": "/data/v.csv", "test": "t.csv", "name": "n"},
    ],
)
def test_what_is_written_reads_back(options: dict[str, Any]) -> None:
    assert read_spec(write_spec("rows.csv", options)) == ("rows.csv", options)


def test_unknown_and_repeated_options_are_refused() -> None:
    with pytest.raises(DataError, match=r"unknown option 'txt' \(did you mean 'text'\?\)"):
        read_spec("rows.csv?txt=a")
    with pytest.raises(DataError, match="says 'text' 2 times"):
        read_spec("rows.csv?text=a&text=b")
