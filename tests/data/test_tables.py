"""Three formats, the same strings; every unreadable file is one DataError."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from s3t.data.tables import read_table
from s3t.errors import DataError

ROWS = [
    {"uid": "01", "text": 'a "quoted", text', "label": "NA"},
    {"uid": "1e5", "text": "two\nlines — Ä", "label": "null"},
    {"uid": "2020-01-01", "text": "nan", "label": "True"},
]


@pytest.fixture(params=[".csv", ".jsonl", ".parquet", ".CSV"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """ROWS in each format."""
    path = tmp_path / f"rows{request.param}"
    frame = pd.DataFrame(ROWS)
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n", encoding="utf-8")
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return path


def test_all_formats_give_the_strings_that_were_written(written: Path) -> None:
    table = read_table(written)
    assert table.names == ("uid", "text", "label")
    for name in table.names:
        assert table.column(name) == [row[name] for row in ROWS]
    assert [path.name for path in written.parent.iterdir()] == [written.name], "no cache beside it"


def test_missing_cells_are_empty_strings(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a,b\nx\n,y\n"",z\n')
    assert read_table(tmp_path / "a.csv").column("a") == ["x", "", ""]
    assert read_table(tmp_path / "a.csv").column("b") == ["", "y", "z"]
    (tmp_path / "a.jsonl").write_text('{"a": "x"}\n{"a": null, "b": "y"}\n')
    assert read_table(tmp_path / "a.jsonl").column("a") == ["x", ""]
    assert read_table(tmp_path / "a.jsonl").column("b") == ["", "y"]
    parquet.write_table(pa.table({"a": ["x", None], "n": [2**53 + 1, None]}), tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet").column("a") == ["x", ""]
    assert read_table(tmp_path / "a.parquet").column("n") == ["9007199254740993", ""], "no float in between"


def test_typed_values_are_written_in_decimal(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"a": 1}\n{"a": 1.0}\n{"a": 0.5}\n{"a": true}\n{"a": NaN}\n{"a": 9007199254740993}'
    )
    assert read_table(tmp_path / "a.jsonl").column("a") == ["1", "1", "0.5", "True", "", "9007199254740993"]
    nullable = pd.DataFrame({"a": pd.array([1, None], dtype="Int64")})
    nullable.to_parquet(tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet").column("a") == ["1", ""]


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfid,text\r\n1,x\r\n")
    assert read_table(tmp_path / "a.csv").names == ("id", "text")
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"id": 1}\r\n')
    assert read_table(tmp_path / "a.jsonl").column("id") == ["1"]


def test_a_missing_column_is_answered_with_those_there_are(written: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'txt' \(did you mean 'text'\?\); it has uid, text, label"):
        read_table(written).column("txt")


def test_nested_values_matter_only_in_a_named_column(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x", "meta": {"a": 1}}\n')
    parquet.write_table(pa.table({"text": ["x"], "meta": [[1, 2]]}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        table = read_table(tmp_path / name)
        assert table.column("text") == ["x"]
        with pytest.raises(DataError, match=r"column 'meta' holds no plain values: .* is nested"):
            table.column("meta")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"x", r"unknown ending '\.txt'; give one of \.csv, \.json, \.jsonl, \.parquet"),
        ("a.csv", b"", "is empty; give a file with records"),
        ("a.jsonl", b"", "is empty; give a file with records"),
        ("a.parquet", b"", "is empty; give a file with records"),
        ("a.csv", b"\n\n", r"cannot be read as \.csv: No columns"),
        ("a.csv", b"text,label\ncaf\xe9,1\n", "is not UTF-8 .*iconv"),
        ("a.jsonl", b'{"text": "caf\xe9"}\n', "is not UTF-8 .*iconv"),
        ("a.csv", b"text,label\nx,1\ny,2,3\n", r"cannot be read as \.csv: .*line 3, saw 3"),
        ("a.csv", b"text,text\nx,1\n", "more than one column 'text'"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"cannot be read as \.jsonl: line 2 is not JSON"),
        ("a.jsonl", b'["x"]\n', "line 1 is not an object"),
        ("a.parquet", b"no parquet at all", r"cannot be read as \.parquet: "),
    ],
)
def test_what_cannot_be_read_is_one_error(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / name)


def test_an_absent_file_and_a_folder_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for name in ("absent.csv", "folder.csv"):
        with pytest.raises(DataError, match=f"there is no file .*{name}; check the path"):
            read_table(tmp_path / name)
