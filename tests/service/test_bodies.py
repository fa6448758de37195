"""Bodies: what is read, and that every fault is one line that says what, which value, and what to do."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from s3t.answers import CANDIDATE, TEXT
from s3t.errors import DataError
from s3t.service.bodies import Wanted, read_json, read_records, read_wanted
from verify.fuzz import limited

CLASSES = ("a", "b")


def _records(*inputs: Any, classes: tuple[str, ...] = CLASSES, most: int = 9) -> list[tuple[str, dict[str, Any]]]:
    found = read_records(json.dumps({"inputs": inputs}).encode(), classes, most)
    return [(record.id, dict(record.inputs)) for record in found]


def test_texts_and_pairs() -> None:
    assert _records("one", {"text": "two"}) == [("0", {"text": "one"}), ("1", {"text": "two"})]
    assert _records({"text": "a", "text_pair": ""}) == [("0", {"text": "a", "text_pair": ""})]
    assert _records("one", classes=("0.0:5.0",)) == [("0", {"text": "one"})]


def test_answers_of_runs_that_predict_text() -> None:
    assert _records({"text": "a", "answer": "b"}, classes=TEXT) == [("0", {"text": "a", "answer": "b"})]


def test_images() -> None:
    assert _records({"image": base64.b64encode(b"\x00\xff").decode()}) == [("0", {"image": b"\x00\xff"})]


def test_candidates_are_counted() -> None:
    asked = {"text": "why", "choices": {"x": "one", "y": "two"}}
    rows = [("0\x1fx", {"text": "why", "text_pair": "one"}), ("0\x1fy", {"text": "why", "text_pair": "two"})]
    assert _records(asked, classes=CANDIDATE, most=2) == rows
    with pytest.raises(DataError, match="more than 1 rows, candidates counted"):
        _records(asked, classes=CANDIDATE, most=1)


@pytest.mark.parametrize(
    ("classes", "given", "line"),
    [
        (CLASSES, 3, '"inputs"[0] is 3; give an object with "text", "text_pair"'),
        (CLASSES, None, '"inputs"[0] is null; give an object'),
        (CLASSES, ["text"], '"inputs"[0] is a list; give an object'),
        (CLASSES, {}, "\"inputs\"[0] lacks 'text'; this run reads it"),
        (CLASSES, {"text": 1.5}, '"inputs"[0]["text"] is 1.5; give a text'),
        (CLASSES, {"text": {}}, '"inputs"[0]["text"] is an object; give a text'),
        (CLASSES, {"txt": "a"}, '"inputs"[0] has the unknown key "txt" (did you mean \'text\'?)'),
        (CLASSES, {"text": "a", "answer": "b"}, '"inputs"[0] has the unknown key "answer"'),
        (CLASSES, {"text": "a", "choices": {}}, '"inputs"[0] has the unknown key "choices"'),
        (CLASSES, {"text": "a", "image": "AAAA"}, '"inputs"[0] has the unknown key "text"; known here: "image"'),
        (CLASSES, {"text": "\ud800"}, "half of a surrogate pair"),
        (CLASSES, {"k" * 500: 1}, 'unknown key "' + "k" * 59 + "...; known"),
        (CLASSES, {"image": "A"}, '"inputs"[0]["image"] is not base64'),
        (CLASSES, {"image": "A A A"}, "is not base64"),
        (CLASSES, {"image": "\xe9\xe9\xe9\xe9"}, "is not base64"),
        (CLASSES, {"image": 7}, '["image"] is 7; give a text'),
        (TEXT, {"text": "a", "text_pair": "b"}, 'unknown key "text_pair"'),
        (CANDIDATE, "why", '"inputs"[0] is "why"; give an object with "text", "choices"'),
        (CANDIDATE, {"text": "why"}, "lacks 'choices'"),
        (CANDIDATE, {"text": "why", "choices": []}, '["choices"] is a list; give an object of texts by name'),
        (CANDIDATE, {"text": "why", "choices": {}}, '["choices"] is an object; give an object of texts by name'),
        (CANDIDATE, {"text": "why", "choices": {"x": 1}}, '["choices"]["x"] is 1; give a text'),
        (CANDIDATE, {"text": "why", "choices": {"x": " "}}, 'nothing in choice "x"'),
        (CANDIDATE, {"text": "why", "choices": {"": "one"}}, "candidate '' of question '0' is not usable"),
    ],
)
def test_inputs_that_will_not_do(classes: tuple[str, ...], given: Any, line: str) -> None:
    with pytest.raises(DataError) as caught:
        _records(given, classes=classes)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"{} {}", "no JSON (Extra data"),
        (b"\xff", "not UTF-8 (byte 0)"),
        (b'{"inputs": ["\xc3"]}', "not UTF-8 (byte 13)"),
        (b"\xef\xbb\xbf{}", "no JSON"),
        (b'{"inputs": NaN}', "the number NaN, which is not finite"),
        (b'{"inputs": -Infinity}', "the number -Infinity"),
        (b'{"inputs": 1e999}', "the number 1e999"),
        (b'{"inputs": ' + b"9" * 5000 + b"}", "no JSON"),
        (b'{"inputs": [], "inputs": ["a"]}', 'the key "inputs" is given twice'),
        (b'{"inputs": [{"text": "a", "text": "b"}]}', 'the key "text" is given twice'),
        (b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b"[]", 'the body is a list; give an object with "inputs"'),
        (b'"inputs"', 'the body is "inputs"; give an object'),
        (b"{}", 'the body lacks "inputs"; give a list'),
        (b'{"inputs": {}}', '"inputs" is an object; give a list'),
        (b'{"inputs": []}', "holds no rows to classify"),
        (b'{"inputs": "text"}', '"inputs" is "text"; give a list'),
        (b'{"inputs": ["a"], "input": 1}', "unknown key \"input\" (did you mean 'inputs'?)"),
    ],
)
def test_bodies_that_will_not_do(body: bytes, line: str) -> None:
    with pytest.raises(DataError) as caught:
        read_records(body, CLASSES, 9)
    assert line in str(caught.value)


def test_what_is_to_be_deleted() -> None:
    assert read_wanted(b'{"ids": ["a", "b\\u001fc"]}') == Wanted(("a", "b\x1fc"), ())
    assert read_wanted(b'{"groups": ["g"], "ids": []}') == Wanted((), ("g",))


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (b"{}", "no id is given"),
        (b'{"ids": []}', "no id is given"),
        (b'{"ids": "a"}', '"ids" is "a"; give a list'),
        (b'{"ids": [1]}', '"ids"[0] is 1; give a text'),
        (b'{"ids": ["a", null]}', '"ids"[1] is null; give a text'),
        (b'{"groups": [["a"]]}', '"groups"[0] is a list; give a text'),
        (b'{"ids": ["\\udc80"]}', '"ids"[0] has half of a surrogate pair'),
        (b'{"ids": ["a"], "closure": true}', 'unknown key "closure"'),
        (b'{"ids": ["a"], "ids": ["b"]}', 'the key "ids" is given twice'),
        (b"null", 'the body is null; give an object with "ids", "groups"'),
    ],
)
def test_deletions_that_will_not_do(body: bytes, line: str) -> None:
    with pytest.raises(DataError) as caught:
        read_wanted(body)
    assert line in str(caught.value)


def test_plain_json_is_read_as_python_reads_it() -> None:
    value = {"a": [1, -2.5e3, None, True, "\u00e9\U0001f600"], "b": {"c": {}}}
    for ascii_only in (True, False):
        assert read_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


def test_a_key_given_twice_among_very_many_is_found_at_once() -> None:
    """A body within the limit must not keep a thread for minutes."""
    names = ", ".join(f'"{number}": 0' for number in range(100_000))
    with limited(), pytest.raises(DataError, match='the key "99999" is given twice'):
        read_json(f'{{{names}, "99999": 0}}'.encode())
