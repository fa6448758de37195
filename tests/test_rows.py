"""The run's records: slots, erasure down to the bytes of the file, and reads that are observed."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import random
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from s3t.errors import RunError
from s3t.observing import ObservedRows
from s3t.partition import commitment, slot, tag
from s3t.records import Layout, Record
from s3t.rows import CONTENTS, INDEX, RecordStore

KEY = bytes(range(32))
LAYOUT = Layout(2, 3, 1)


def _records(count: int, name: str = "row") -> list[Record]:
    return [
        Record(f"{name}-{i:04d}", {"text": f"begin-{name}-{i:04d} words end-{name}-{i:04d}"}, i % 3)
        for i in range(count)
    ]


TRAIN, VALIDATION, TEST = _records(40), _records(5, "valid"), _records(6, "probe")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def store(folder: Path) -> RecordStore:
    return RecordStore.create(folder, KEY, LAYOUT, TRAIN, VALIDATION, TEST)


def _index(folder: Path, columns: str) -> list[tuple[Any, ...]]:
    db = sqlite3.connect(folder / INDEX)
    found = db.execute(f"SELECT {columns} FROM records ORDER BY rowid").fetchall()
    db.close()
    return found


def _tags(records: Sequence[Record]) -> list[str]:
    return [tag(KEY, record.id) for record in records]


def test_ingestion_gives_slots_to_training_records_alone(store: RecordStore) -> None:
    for record in TRAIN:
        place = slot(KEY, record.id, LAYOUT)
        assert store.place(tag(KEY, record.id)) == ("train", place)
        assert record in [row.record for row in store.slot_rows(*place)]
    assert store.place(tag(KEY, TEST[0].id)) == ("test", None)
    assert store.place(tag(KEY, "unknown")) is None
    assert list(store.contents("train")) == [record.content() for record in TRAIN]
    assert store.ids("train") == [record.id for record in TRAIN]
    assert store.evaluation("test") == TEST
    assert store.evaluation("validation") == VALIDATION


def test_training_records_are_not_for_evaluation(store: RecordStore) -> None:
    with pytest.raises(RunError, match="split 'train' is not for evaluation"):
        store.evaluation("train")


def test_commitments_are_salted_and_fresh(store: RecordStore, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    again = RecordStore.create(tmp_path / "again", KEY, LAYOUT, TRAIN, (), ())
    assert not set(store.commitments()) & set(again.commitments())
    raw = (folder / CONTENTS).read_bytes()
    salts = set()
    for record, (committed, start, length) in zip(
        (*TRAIN, *VALIDATION, *TEST), _index(folder, '"commitment", start, length'), strict=True
    ):
        salt, content = raw[start : start + 16], raw[start + 16 : start + length]
        assert content == record.content()
        assert committed == commitment(salt, record)
        salts.add(salt)
    assert len(salts) == 51
    assert list(store.commitments()) == sorted(
        row[0] for row in _index(folder, '"commitment", split') if row[1] == "train"
    )


def test_the_file_is_as_documented(store: RecordStore, folder: Path) -> None:
    """The header, then the rows back to back and nothing else; the index names no id and no content."""
    raw = (folder / CONTENTS).read_bytes()
    assert raw[:16] == b"s3t rows" + bytes(8)
    end = 16
    for start, length in _index(folder, "start, length"):
        assert start == end
        end += length
    assert end == len(raw)
    index = (folder / INDEX).read_bytes()
    for record in (*TRAIN, *VALIDATION, *TEST):
        assert record.id.encode() not in index
    assert {path.name for path in folder.iterdir() if path.is_file()} == {INDEX, CONTENTS}


def test_erasing(store: RecordStore) -> None:
    gone = TRAIN[::7]
    assert store.erase(_tags(gone)) == len(gone)
    assert store.erase(_tags(gone)) == 0
    assert store.erase([tag(KEY, "unknown")]) == 0
    assert store.ids("train") == [record.id for record in TRAIN if record not in gone]
    assert store.place(tag(KEY, gone[0].id)) is None
    for place in itertools.product(range(2), range(3)):
        assert not {row.record.id for row in store.slot_rows(*place)} & {record.id for record in gone}


def test_evaluation_records_cannot_be_erased(store: RecordStore) -> None:
    assert store.erase(_tags([TEST[0], VALIDATION[0]])) == 0
    assert store.evaluation("test") == TEST


def test_erased_bytes_are_gone_and_nothing_else_has_changed(folder: Path) -> None:
    """Rows of very different lengths, erased one or many at a time; all other bytes stay as they were, where they were."""
    draw = random.Random(1)
    train = [
        Record(
            f"needle-{i:04d}", {"text": f"begin-{i:04d} " + "word " * draw.choice((1, 10, 60, 600)) + f"end-{i:04d}"}, 0
        )
        for i in range(600)
    ]
    store = RecordStore.create(folder, KEY, LAYOUT, train, (), ())
    expected = bytearray((folder / CONTENTS).read_bytes())
    spans = dict(zip((record.id for record in train), _index(folder, "start, length"), strict=True))
    index = (folder / INDEX).read_bytes()
    left = list(train)
    draw.shuffle(left)
    for step, size in enumerate((1, 1, 1, 2, 5, 20, 50, 100, 1, 200, 100), start=1):
        batch, left = left[:size], left[size:]
        assert store.erase(_tags(batch)) == size
        store.note_erased(step)
        expected[8:16] = step.to_bytes(8, "big")
        for record in batch:
            start, length = spans[record.id]
            expected[start : start + length] = bytes(length)
        assert (folder / CONTENTS).read_bytes() == expected
        assert store.ids("train") == sorted(record.id for record in left)
    assert (folder / INDEX).read_bytes() == index
    assert {path.name for path in folder.iterdir()} == {INDEX, CONTENTS}
    assert RecordStore(folder).erased_through() == step


def test_a_write_that_stops_short_is_continued(
    store: RecordStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, start: pwrite(file, content[:7], start))
    assert store.erase(_tags(TRAIN[:1])) == 1
    ((start, length),) = _index(folder, "start, length")[:1]
    assert (folder / CONTENTS).read_bytes()[start : start + length] == bytes(length)


def test_what_is_noted_as_done_was_synchronised_before(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    pwrite, fdatasync = os.pwrite, os.fdatasync
    monkeypatch.setattr(os, "pwrite", lambda *a: (steps.append(f"write {a[2] == 0}"), pwrite(*a))[1])
    monkeypatch.setattr(os, "fdatasync", lambda *a: (steps.append("sync"), fdatasync(*a))[1])
    store.erase(_tags(TRAIN[:2]))
    store.note_erased(9)
    assert steps == ["write False", "write False", "sync", "write True"]
    assert store.erased_through() == 9


def test_a_full_disk_is_one_error(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(RunError, match="no space left for the run"):
            store.erase(_tags(TRAIN[:1]))
    assert store.ids("train") == [record.id for record in TRAIN]
    assert store.erase(_tags(TRAIN[:1])) == 1


def test_a_missing_or_damaged_file_is_refused(folder: Path) -> None:
    with pytest.raises(RunError, match=r"records\.sqlite is missing"):
        RecordStore(folder)
    assert not list(folder.iterdir())
    (folder / CONTENTS).write_bytes(b"s3t rows" + bytes(8))
    for content in (b"", b"no database " * 400):
        (folder / INDEX).write_bytes(content)
        with pytest.raises(RunError, match="the run's records are damaged"):
            RecordStore(folder)
    (folder / CONTENTS).unlink()
    with pytest.raises(RunError, match=r"records\.bin is missing"):
        RecordStore(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda raw: raw[:-1], r"records\.bin has \d+ bytes, not \d+"),
        (lambda raw: raw + b"x", r"records\.bin has \d+ bytes, not \d+"),
        (lambda raw: b"other" + raw[5:], "does not begin as it must"),
        (lambda raw: raw[:10], "does not begin as it must"),
    ],
)
def test_damaged_contents_are_refused(
    store: RecordStore, folder: Path, spoil: Callable[[bytes], bytes], message: str
) -> None:
    store.close()
    (folder / CONTENTS).write_bytes(spoil((folder / CONTENTS).read_bytes()))
    with pytest.raises(RunError, match=message):
        RecordStore(folder)


def test_a_damaged_row_is_not_read(store: RecordStore, folder: Path) -> None:
    raw = (folder / CONTENTS).read_bytes()
    (folder / CONTENTS).write_bytes(raw.replace(b"begin-row-0003", b"begin-row-0033"))
    with pytest.raises(RunError, match=r"the row at byte \d+ does not match its commitment"):
        store.ids("train")
    assert store.evaluation("test") == TEST


@pytest.mark.parametrize("value", [b"\xff", float("inf"), 2.5])
@pytest.mark.parametrize("column", ["tag", "shard", "slice", "split", "start", "length", "commitment", "check"])
def test_a_row_with_a_value_of_another_kind_is_not_read(
    store: RecordStore, folder: Path, column: str, value: object
) -> None:
    """SQLite keeps any type in any column."""
    with closing(sqlite3.connect(folder / INDEX)) as db, db:
        db.execute(f'UPDATE records SET "{column}" = ? WHERE tag = ?', (value, tag(KEY, TRAIN[3].id)))
    with pytest.raises(RunError, match="the run's records are damaged"):
        list(store._index(""))


def test_a_reader_waits_for_an_erasure_that_is_under_way(
    store: RecordStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is half overwritten when it is read is read again once the one that overwrites it has let go."""
    other, held = RecordStore(folder), []
    start, length = _index(folder, "start, length")[0]
    whole = os.pread(other._file, length, start)
    os.pwrite(other._file, bytes(length // 2), start)

    @contextmanager
    def waited() -> Iterator[None]:
        held.append(os.pwrite(other._file, bytes(length), start))
        yield

    monkeypatch.setattr(store, "erasing", waited)
    assert store.ids("train") == [record.id for record in TRAIN[1:]]
    assert held == [len(whole)]


def test_two_processes_erase_one_after_the_other(store: RecordStore, folder: Path) -> None:
    other = RecordStore(folder)
    with store.erasing(), pytest.raises(BlockingIOError):
        fcntl.flock(other._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with other.erasing():
        other.erase(_tags(TRAIN[:1]))
    assert store.place(tag(KEY, TRAIN[0].id)) is None


def test_reads_are_sorted_by_id_and_observed(store: RecordStore) -> None:
    door = ObservedRows(store)
    slots = [(1, 2), (1, 0)]
    with door.observing() as reads:
        found = door.read(slots)
        assert reads == {row.record.id for row in found}
        more = {row.record.id for row in door.read([(0, 0)])}
    wanted = sorted((r for r in TRAIN if slot(KEY, r.id, LAYOUT) in slots), key=lambda r: r.id)
    assert [row.record for row in found] == wanted
    assert reads == {record.id for record in wanted} | more
    assert door.stray == set()


def test_reads_outside_any_node_are_stray(store: RecordStore) -> None:
    door = ObservedRows(store)
    first = {row.record.id for row in door.read([(0, 0)])}
    with door.observing() as reads:
        pass
    second = {row.record.id for row in door.read([(0, 1)])}
    assert first and second
    assert door.stray == first | second
    assert reads == set()


def test_each_node_has_reads_of_its_own(store: RecordStore) -> None:
    door = ObservedRows(store)

    def observe(place: tuple[int, int]) -> set[str]:
        with door.observing() as reads:
            door.read([place])
        return reads

    read: Callable[[tuple[int, int]], set[str]] = observe
    assert read((0, 0)).isdisjoint(read((0, 1)))
    assert read((1, 1)) == {r.id for r in TRAIN if slot(KEY, r.id, LAYOUT) == (1, 1)}


def test_an_error_while_a_node_trains_ends_its_observation(store: RecordStore) -> None:
    door = ObservedRows(store)
    with pytest.raises(ZeroDivisionError), door.observing():
        raise ZeroDivisionError
    door.read([(0, 0)])
    assert door.stray
