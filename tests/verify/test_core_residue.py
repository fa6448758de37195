"""The search for residue: what is looked for, in which forms, where, and what excuses a hit."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s3t.records import Record
from verify import residue
from verify.report import Verdict
from verify.residue import Needle, Search, check_residue, search

LONG = "a text of its own, longer than twelve bytes"


def victim(name: str = "victim-7", **inputs: Any) -> Record:
    return Record(name, inputs or {"text": LONG}, 0)


def told(folder: Path, *victims: Record, retained: Any = (), declared: Any = ()) -> list[tuple[str, str]]:
    found = search(folder, victims, retained, declared)
    assert {f.check for f in found} == {"E0 residue"}
    return [(f.message, str(f.details.get("path"))) for f in found if f.verdict is Verdict.VIOLATED]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    return tmp_path / "deep"


def test_nothing_found_is_counted(tmp_path: Path, place: Path) -> None:
    (place / "a").write_bytes(b"x" * 100)
    (tmp_path / "b").write_bytes(b"")
    (found,) = search(tmp_path, [victim(), victim("second-one")], [])
    assert found.verdict is Verdict.HOLDS
    assert found.check == "E0 residue"
    assert found.message == "no id or input of 2 deleted records in the bytes of 2 files"
    assert found.details == {"victims": 2, "needles": 4}


def test_a_hit_names_what_whose_and_where(tmp_path: Path, place: Path) -> None:
    (place / "log").write_bytes(b"..victim-7.. " + LONG.encode())
    found = search(tmp_path, [victim()], [])
    assert [(f.check, f.verdict, f.message, f.details) for f in found] == [
        (
            "E0 residue",
            Verdict.VIOLATED,
            f"{what} of deleted record 'victim-7' is in deep/log",
            {"path": "deep/log", "id": "victim-7"},
        )
        for what in ("the id", "input 'text'")
    ]


def test_every_file_is_searched(tmp_path: Path, place: Path) -> None:
    for path in (tmp_path / "a", place / "b", tmp_path / "z"):
        path.write_bytes(b"victim-7")
    assert [where for _, where in told(tmp_path, victim())] == ["a", "deep/b", "z"]


FORMS: dict[str, tuple[Any, bytes]] = {
    "raw": ("Zürich und drei Wörter", "Zürich und drei Wörter".encode()),
    "JSON": ('he said "yes" twice', b'he said \\"yes\\" twice'),
    "JSON with letters": ('Zürich said "yes"', 'Zürich said \\"yes\\"'.encode()),
    "JSON in ASCII": ("Zürich und drei Wörter", b"Z\\u00fcrich und drei W\\u00f6rter"),
    "bytes": (b"\x00\x01raw bytes here", b"\x00\x01raw bytes here"),
    "base64": (b"\x00\x01raw bytes here", base64.b64encode(b"\x00\x01raw bytes here")),
}


@pytest.mark.parametrize("form", FORMS)
def test_inputs_are_found_in_each_form(tmp_path: Path, form: str) -> None:
    value, lying = FORMS[form]
    path = tmp_path / "file"
    path.write_bytes(b"{" + lying + b"}")
    assert told(tmp_path, victim(field=value)) == [("input 'field' of deleted record 'victim-7' is in file", "file")]
    path.write_bytes(b"{" + lying[1:] + b"}")
    assert told(tmp_path, victim(field=value)) == []
    path.write_bytes(b"{" + lying[:-1] + b"}")
    assert told(tmp_path, victim(field=value)) == []


@pytest.mark.parametrize(("length", "hit"), [(11, False), (12, True)])
def test_inputs_of_fewer_than_twelve_bytes_are_words(tmp_path: Path, length: int, hit: bool) -> None:
    value = "abcdefghijklmnop"[:length]
    (tmp_path / "file").write_text(value)
    assert bool(told(tmp_path, victim(text=value))) is hit


def test_long_ids_are_searched_raw_and_everywhere(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.json"):
        (tmp_path / name).write_bytes(b"xabcdefx")
    assert [where for _, where in told(tmp_path, victim("abcdef"))] == ["a.safetensors", "b.json"]


def test_short_ids_are_searched_in_quotes_and_outside_tensors(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.json", "c.txt"):
        (tmp_path / name).write_bytes(b'x"abcde"x' if name != "c.txt" else b"xabcdex")
    assert told(tmp_path, victim("abcde")) == [("the id of deleted record 'abcde' is in b.json", "b.json")]


def test_a_short_id_as_a_key_is_no_id(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"r": 8}')
    assert told(tmp_path, victim("r")) == []
    path.write_text('["r"]')
    assert told(tmp_path, victim("r")) != []
    path.write_text('["r" :1]')
    assert told(tmp_path, victim("r")) != []


def test_what_is_part_of_something_retained_or_declared_is_not_theirs(tmp_path: Path) -> None:
    path = tmp_path / "file"
    kept = Record("kept-victim-7", {"text": "see: " + LONG}, 0)
    path.write_bytes(kept.content())
    assert told(tmp_path, victim(), retained=[kept]) == []
    assert len(told(tmp_path, victim())) == 2
    path.write_bytes(kept.content() + b" victim-7")
    assert [message for message, _ in told(tmp_path, victim(), retained=[kept])] == [
        "the id of deleted record 'victim-7' is in file"
    ]
    path.write_bytes(b'["sst"]')
    assert told(tmp_path, victim("sst"), declared=[b'"sst"']) == []
    assert len(told(tmp_path, victim("sst"), declared=[b'"st"'])) == 1
    short = Record("other", {"text": 'a "sst" b'}, 0)
    path.write_bytes(b'the words a \\"sst\\" b stand here "sst"')
    assert len(told(tmp_path, victim("sst"), retained=[short])) == 1


def test_a_twin_of_a_deleted_record_is_told_unless_the_source_is_known(forge: Callable[..., Any]) -> None:
    records = [Record(f"row-{i:03d}", {"text": f"a text of its own {i % 7}"}, 0) for i in range(8)]
    run = forge(records=records, shards=1)
    run.delete("row-000")
    evidence, _ = run.read()
    (found,) = check_residue(evidence, records[:1])
    assert (found.check, found.verdict) == ("E0 residue", Verdict.UNDECIDED)
    assert found.message == (
        "retained 'row-007' has the content of deleted 'row-000'; only the source records tell whose it is"
    )
    assert [f.verdict for f in check_residue(evidence, records[:1], known=True)] == [Verdict.HOLDS]
    (run.folder / "log").write_text("row-000")
    verdicts = [f.verdict for f in check_residue(evidence, records[:1])]
    assert verdicts == [Verdict.VIOLATED, Verdict.UNDECIDED]


def test_declared_words_are_not_theirs_in_either_spelling(forge: Callable[..., Any], monkeypatch: Any) -> None:
    run = forge()
    evidence, _ = run.read()
    data = {"name": "Größe", "source": "hub", "digest": "", "classes": ["ä", "no"]}
    changed = dict(evidence.run) | {"data": data, "model": {"name": "tiny", "digest": ""}}
    object.__setattr__(evidence, "run", changed)
    for word in ("Größe", "hub", "ä", "no", "tiny"):
        for flag in (False, True):
            (run.folder / "notes.json").write_text(json.dumps([word], ensure_ascii=flag))
            names = [f.verdict for f in check_residue(evidence, [victim(word)])]
            assert names == [Verdict.HOLDS], (word, flag)
    (run.folder / "notes.json").write_text('["other"]')
    assert [f.verdict for f in check_residue(evidence, [victim("other")])] == [Verdict.VIOLATED]


def test_a_victim_that_is_still_stored_excuses_nothing(forge: Callable[..., Any]) -> None:
    run = forge()
    evidence, _ = run.read()
    found = check_residue(evidence, run.records[:1])
    assert any(f.details.get("path") == "records.bin" for f in found)


def test_nothing_to_search_finds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abcdef")
    empty = Search([])
    assert empty.in_file(path) == []
    assert list(empty.in_bytes(b"abcdef")) == []
    one = Search([Needle("v", "id", b"abc")])
    assert list(one.in_bytes(b"ab")) == []
    assert list(one.in_bytes(b"abc")) == [Needle("v", "id", b"abc")]
    path.write_bytes(b"")
    assert one.in_file(path) == []


def test_a_hit_counts_in_the_window_in_which_it_starts() -> None:
    needle = Needle("v", "id", b"abc")
    found = Search([needle])
    raw = b"..abc..abc.."
    for begin in range(12):
        for end in (None, *range(13)):
            starts = [p for p in (2, 7) if p >= begin and (end is None or p < end)]
            assert list(found.in_bytes(raw, begin, end)) == [needle] * len(starts), (begin, end)


def test_needles_that_share_a_beginning_or_are_equal() -> None:
    needles = [
        Needle("a", "id", b"abcd"),
        Needle("b", "id", b"abcde"),
        Needle("c", "id", b"abcd"),
        Needle("d", "id", b"abd"),
        Needle("e", "id", b"\xff\xff\xff"),
        Needle("f", "id", b"\x00\x00\x00\x01"),
    ]
    found = Search(needles)
    raw = b"abcde \xff\xff\xff \x00\x00\x00\x01 abd"
    assert sorted(n.victim for n in found.in_bytes(raw)) == ["a", "b", "c", "d", "e", "f"]


def test_an_excuse_must_cover_the_hit() -> None:
    needle = Needle("v", "id", b"abc", (b"xabc", b"abcyz"))
    found = Search([needle])
    for raw, hits in (
        (b"xabc", 0),
        (b"abcyz", 0),
        (b"abc", 1),
        (b"abcy", 1),
        (b"abc xabc", 1),
        (b"xabc abc", 1),
        (b"abcyz xabc", 0),
        (b"xabcabc", 1),
        (b"abcabcyz", 1),
    ):
        assert len(list(found.in_bytes(raw))) == hits, raw


@pytest.mark.parametrize("chunk", [1, 2, 5, 8, 16])
def test_small_windows_find_what_one_large_window_finds(tmp_path: Path, monkeypatch: Any, chunk: int) -> None:
    monkeypatch.setattr(residue, "CHUNK", chunk)
    needles = [Needle("v", "id", b"abcabd", (b"xabcabd",)), Needle("w", "id", b"abq")]
    path = tmp_path / "file"
    for raw in (b"abcabd", b"xabcabd", b"abcabcabd" * 3, b"." * 30 + b"xabcabd" + b"." * 9 + b"abcabd", b"abq" * 9):
        for offset in range(20):
            whole = b"." * offset + raw
            path.write_bytes(whole)
            expected = list(dict.fromkeys(Search(needles).in_bytes(whole)))
            assert sorted(Search(needles).in_file(path), key=str) == sorted(expected, key=str), (raw, offset)


def test_memory_stays_bounded_by_windows(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(residue, "CHUNK", 64)
    path = tmp_path / "file"
    path.write_bytes(b"." * 5000 + b"abcabd")
    seen: list[int] = []
    real = Search.in_bytes

    def watched(self: Search, raw: bytes, begin: int = 0, end: int | None = None) -> Any:
        seen.append(len(raw))
        return real(self, raw, begin, end)

    monkeypatch.setattr(Search, "in_bytes", watched)
    assert len(Search([Needle("v", "id", b"abcabd")]).in_file(path)) == 1
    assert max(seen) <= 64 + 64 + 2 * 6
    assert len(seen) > 50


@pytest.mark.parametrize("name", ["abc123", "0.1234", "123456", "0123456789abcdef."])
def test_ids_of_hexadecimal_digits_must_stand_apart(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file"
    for beside in "0123456789abcdef.":
        for text in (beside + name, name + beside, f"{beside}{name}{beside}", f" {name}{beside}"):
            path.write_text(text)
            assert told(tmp_path, victim(name)) == [], text
    for beside in ("", " ", "g", "-", '"', "A"):
        path.write_text(beside + name + beside)
        assert len(told(tmp_path, victim(name))) == 1, beside
    for text in (f"{name} 0", f"0 {name}", f"{name}-0"):
        path.write_text(text)
        assert len(told(tmp_path, victim(name))) == 1, text
    path.write_text(f"0{name} {name}")
    assert len(told(tmp_path, victim(name))) == 1
    assert not told(tmp_path, victim(name, text=LONG), declared=[f" {name}".encode()])


def test_other_ids_are_found_wherever_they_stand(tmp_path: Path) -> None:
    for beside in "0aX.":
        (tmp_path / "file").write_text(f"{beside}user-abc123{beside}")
        assert len(told(tmp_path, victim("user-abc123"))) == 1


def test_every_declared_word_is_excused_and_no_other(forge: Callable[..., Any]) -> None:
    run = forge()
    evidence, _ = run.read()
    data = {"name": "d1", "source": "d2", "digest": "d3", "classes": ["d4"], "more": "x1"}
    changed = dict(evidence.run) | {
        "s3t": "a1",
        "kernel": "a2",
        "data": data,
        "model": {"name": "m1", "digest": "m2", "layers": 4, "more": "x2"},
        "plan": {"method": "p1", "stages": [{"adapter": "p2", "kind": "p3", "more": "x3"}], "orders": [[0]]},
        "recipe": {"ensemble": "r1", "rank": 8, "targets": ["r2", "r3"]},
        "more": "x4",
    }
    object.__setattr__(evidence, "run", changed)
    for entry in evidence.entries:
        if entry.kind == "train":
            object.__setattr__(entry, "body", dict(entry.body) | {"environment": {"e": "e1", "threads": 1}})
    declared = ["a1", "a2", "d1", "d2", "d3", "d4", "m1", "m2", "p1", "p2", "p3", "r1", "r2", "r3", "e1"]
    declared += ["LORA", "none", "megatron.core", "layer", "layers", "query", "value", "attn.q", "attn.v", "q_lin"]
    declared += ["v_lin"]
    place = run.folder / "notes.json"
    for word in declared:
        if len(word) < 6:
            place.write_text(json.dumps([word]))
            assert {f.verdict for f in check_residue(evidence, [victim(word)])} == {Verdict.HOLDS}, word
    for word in ("megatron.core", "attn.q"):
        place.write_text(json.dumps([word]))
        assert {f.verdict for f in check_residue(evidence, [victim(word)])} == {Verdict.HOLDS}, word
    for word in ("x1", "x2", "x3", "x4", "Query", "LAYER"):
        place.write_text(json.dumps([word]))
        assert {f.verdict for f in check_residue(evidence, [victim(word)])} == {Verdict.VIOLATED}, word


def test_an_input_that_is_a_declared_word_is_excused_in_either_spelling(forge: Callable[..., Any]) -> None:
    run = forge()
    evidence, _ = run.read()
    data = {"name": "", "source": "", "digest": "", "classes": ["Zürich und Umgebung"]}
    object.__setattr__(evidence, "run", dict(evidence.run) | {"data": data})
    for flag in (False, True):
        (run.folder / "notes.json").write_text(json.dumps(["Zürich und Umgebung"], ensure_ascii=flag))
        found = check_residue(evidence, [victim(text="Zürich und Umgebung")])
        assert [f.verdict for f in found] == [Verdict.HOLDS], flag


@pytest.mark.parametrize("chunk", [1, 3, 7, 24])
def test_an_excuse_may_reach_over_the_edge_of_a_window(tmp_path: Path, monkeypatch: Any, chunk: int) -> None:
    monkeypatch.setattr(residue, "CHUNK", chunk)
    needle = Needle("v", "id", b"abc", (b"<" * 20 + b"abc", b"abc" + b">" * 20))
    path = tmp_path / "file"
    for raw, hits in (
        (b"<" * 20 + b"abc", 0),
        (b"abc" + b">" * 20, 0),
        (b"<" * 19 + b"abc", 1),
        (b"abc" + b">" * 19, 1),
    ):
        for before in range(50):
            path.write_bytes(b"." * before + raw + b"." * 30)
            assert len(Search([needle]).in_file(path)) == hits, (raw, before)


def test_a_group_of_which_nothing_is_left(tmp_path: Path, place: Path) -> None:
    """Its name is looked for too, unless it is short, or a retained record has it."""
    gone = [victim("somebody\x1frow-1", text="x"), victim("some\x1frow-2", text="x"), victim("\x1frow-3", text="x")]
    (place / "log").write_bytes(b"of somebody, of some")
    hit = [("the group of deleted record 'somebody\\x1frow-1' is in deep/log", "deep/log")]
    assert told(tmp_path, *gone) == hit
    other = victim("somebody\x1frow-9", text="y")
    assert told(tmp_path, *gone, retained=[other]) == []


@pytest.mark.parametrize("form", [str.encode, lambda name: json.dumps(name).encode()], ids=["raw", "JSON"])
def test_a_retained_id_that_begins_like_a_deleted_one(
    tmp_path: Path, place: Path, form: Callable[[str], bytes]
) -> None:
    """Group `user name 3` is gone and `user name 31` is not, as files write either."""
    gone, left = victim("user name 3\x1frow", text="x"), victim("user name 31\x1frow", text="y")
    (place / "log").write_bytes(b".." + form(left.id) + b"..")
    assert told(tmp_path, gone, retained=[left]) == []
    (place / "log").write_bytes(b".." + form(left.id) + form(gone.id) + b"..")
    assert {file for _, file in told(tmp_path, gone, retained=[left])} == {"deep/log"}


@pytest.mark.parametrize("form", [str.encode, lambda name: json.dumps(name).encode()], ids=["raw", "JSON"])
def test_an_id_that_json_escapes_is_found_either_way(tmp_path: Path, place: Path, form: Callable[[str], bytes]) -> None:
    name = 'so\x1fme "body"'
    (place / "log").write_bytes(b".." + form(name) + b"..")
    assert told(tmp_path, victim(name, text="x")) == [(f"the id of deleted record {name!r} is in deep/log", "deep/log")]
