"""The run's records: slots, erasure down to the bytes of the file, and reads that are observed."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from s3t import rows as rows_module
from s3t.errors import RunError
from s3t.partition import commitment, slot, tag
from s3t.records import Layout, Record
from s3t.rows import ObservedRows, RecordStore

KEY = bytes(range(32))
LAYOUT = Layout(2, 3, 1)


def _records(count: int, name: str = "row") -> list[Record]:
    return [
        Record(f"{name}-{i:04d}", {"text": f"begin-{name}-{i:04d} words end-{name}-{i:04d}"}, i % 3)
        for i in range(count)
    ]


TRAIN, VALIDATION, TEST = _records(40), _records(5, "valid"), _records(6, "probe")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.sqlite"


@pytest.fixture
def store(path: Path) -> RecordStore:
    return RecordStore.create(path, KEY, LAYOUT, TRAIN, VALIDATION, TEST)


def test_ingestion_gives_slots_to_training_records_alone(store: RecordStore) -> None:
    sizes: dict[tuple[int, int], int] = {}
    for record in TRAIN:
        place = slot(KEY, record.id, LAYOUT)
        assert store.place(tag(KEY, record.id)) == ("train", place)
        sizes[place] = sizes.get(place, 0) + 1
    assert store.slot_sizes() == sizes
    assert store.place(tag(KEY, TEST[0].id)) == ("test", None)
    assert store.place(tag(KEY, "unknown")) is None
    assert [store.count(split) for split in ("train", "validation", "test")] == [40, 5, 6]
    assert store.ids("train") == [record.id for record in TRAIN]
    assert store.evaluation("test") == TEST
    assert store.evaluation("validation") == VALIDATION


def test_training_records_are_not_for_evaluation(store: RecordStore) -> None:
    with pytest.raises(RunError, match="split 'train' is not for evaluation"):
        store.evaluation("train")


def test_commitments_are_salted_and_fresh(store: RecordStore, path: Path, tmp_path: Path) -> None:
    again = RecordStore.create(tmp_path / "again.sqlite", KEY, LAYOUT, TRAIN, (), ())
    assert not set(store.commitments()) & set(again.commitments())
    found = sqlite3.connect(path).execute('SELECT salt, "commitment", content FROM records').fetchall()
    assert len({salt for salt, _, _ in found}) == 51
    assert all(value == commitment(salt, Record.from_content(content)) for salt, value, content in found)


def test_erasing(store: RecordStore) -> None:
    gone = [record.id for record in TRAIN[::7]]
    assert store.erase([tag(KEY, name) for name in gone]) == len(gone)
    assert store.erase([tag(KEY, name) for name in gone]) == 0
    assert store.ids("train") == [record.id for record in TRAIN if record.id not in gone]
    assert store.place(tag(KEY, gone[0])) is None


def test_evaluation_records_cannot_be_erased(store: RecordStore) -> None:
    assert store.erase([tag(KEY, TEST[0].id), tag(KEY, VALIDATION[0].id)]) == 0
    assert store.count("test") == 6


def test_erased_bytes_are_gone_from_the_file(path: Path) -> None:
    """Rows of very different lengths make pages split and merge, which leaves copies that ``secure_delete`` misses."""
    draw = random.Random(1)
    train = [
        Record(
            f"needle-{i:04d}", {"text": f"begin-{i:04d} " + "word " * draw.choice((1, 10, 60, 600)) + f"end-{i:04d}"}, 0
        )
        for i in range(600)
    ]
    store = RecordStore.create(path, KEY, LAYOUT, train, (), ())
    salts = dict(sqlite3.connect(path).execute("SELECT id, salt FROM records"))
    left = [record.id for record in train]
    draw.shuffle(left)
    gone: list[str] = []
    for size in (1, 1, 1, 2, 5, 20, 50, 100, 1, 200, 100):
        batch, left = left[:size], left[size:]
        store.erase([tag(KEY, name) for name in batch])
        gone += batch
        raw = path.read_bytes()
        for name in gone:
            number = name.removeprefix("needle-")
            for needle in (name, f"begin-{number}", f"end-{number}", tag(KEY, name)):
                assert needle.encode() not in raw
            assert salts[name] not in raw
        assert all(name.encode() in raw for name in left)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no journal is left either


def test_an_interrupted_rewriting_is_made_up_for(
    store: RecordStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    def crash(_: RecordStore) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(RecordStore, "compact", crash)
        with pytest.raises(Crash):
            store.erase([tag(KEY, TRAIN[0].id)])
    again = RecordStore(path)
    assert again._db.execute("PRAGMA user_version").fetchone() == (rows_module._TO_COMPACT,)
    again.compact()
    assert again._db.execute("PRAGMA user_version").fetchone() == (0,)
    assert again.count("train") == 39


def test_a_full_disk_is_one_error(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(rows_module, "_TO_COMPACT", type("Full", (), {"__format__": lambda *_: full()})())
        with pytest.raises(RunError, match="no space left for the run"):
            store.erase([tag(KEY, TRAIN[0].id)])
    assert store.count("train") == 40  # undone, to be given again
    assert store.erase([tag(KEY, TRAIN[0].id)]) == 1


def test_a_missing_or_damaged_file_is_refused(path: Path) -> None:
    with pytest.raises(RunError, match=r"records\.sqlite is missing"):
        RecordStore(path)
    assert not path.exists()
    for content in (b"", b"no database " * 400):
        path.write_bytes(content)
        with pytest.raises(RunError, match="the run's records are damaged"):
            RecordStore(path)


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
