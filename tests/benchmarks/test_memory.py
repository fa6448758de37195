"""What must not grow with the number of records does not: peaks of Python's own memory at two sizes, and counts of reads."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import aged
from s3t import requests, runs
from s3t.backbone import Backbone
from s3t.cli.inputs import choose_ids
from s3t.errors import DataError, RecordError
from s3t.facts import Facts
from s3t.records import Layout, Record, grouped
from s3t.rows import RecordStore
from s3t.runs import Run
from s3t.status import describe_status
from s3t.unique import check_unique

LAYOUT = Layout(2, 2, 2)
SIZES = (1_000, 20_000)
SLACK = 60_000
"""Bytes by which two peaks may differ where nothing grows; all ids of the larger run are more than ten times as much."""


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory, tiny: Backbone) -> aged.Donor:
    return aged.make_donor(tmp_path_factory.mktemp("donor") / "run", LAYOUT, tiny)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory, donor: aged.Donor) -> tuple[Path, Path]:
    """Runs of both sizes, with nodes whose reads are as many as if they had been trained on these records."""
    made = tuple(tmp_path_factory.mktemp("runs") / str(size) for size in SIZES)
    for path, size in zip(made, SIZES, strict=True):
        aged.ingest(path, donor.config, size)
        run = runs.open_run(path)
        donor.lend(run, Facts(run.ledger, run.config.plan), aged.Reads(path.parent / f"reads-{size}", size, LAYOUT))
        run.close()
    assert len(made) == 2
    return made


def _peak(work: Callable[[], Any]) -> int:
    work()  # what is imported and kept once is not counted
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _on(path: Path, work: Callable[[Run, Facts], Any]) -> Callable[[], Any]:
    def opened() -> None:
        run = runs.open_run(path)
        facts = Facts(run.ledger, run.config.plan)
        requests.recover(run, facts)
        work(run, facts)
        run.close()

    return opened


def _delete(run: Run, facts: Facts) -> None:
    last = requests.created_rows(run) - 1
    done = requests.delete(run, [aged.name(last - run.ledger.tombstones())])
    assert done.fresh
    requests.erase(run, set())


def _choose(run: Run, facts: Facts) -> None:
    assert len(choose_ids(run.records.each_id("train"), 5)) == 5


def _group(run: Run, facts: Facts) -> None:
    with pytest.raises(RecordError, match="belongs to group"):
        requests.members(run, "nobody")


WORK: dict[str, Callable[[Run, Facts], Any]] = {
    "open": lambda run, facts: None,
    "status": describe_status,
    "status that reads all files": lambda run, facts: describe_status(run, facts, check=True),
    "delete": _delete,
    "choose some ids": _choose,
    "look for a group": _group,
    "commitments": lambda run, facts: sum(1 for _ in run.records.commitments()),
}


@pytest.mark.parametrize("what", list(WORK))
def test_memory_does_not_grow_with_the_records(paths: tuple[Path, Path], what: str) -> None:
    small, large = (_peak(_on(path, WORK[what])) for path in paths)
    assert abs(large - small) < SLACK, (small, large)


def test_ids_all_at_once_do_grow(paths: tuple[Path, Path]) -> None:
    """What the other tests would see if ids were collected."""
    small, large = (_peak(_on(path, lambda run, _: run.records.ids("train"))) for path in paths)
    assert large - small > 8 * SLACK, (small, large)


def test_ingestion_keeps_a_row_at_a_time(tmp_path: Path, donor: aged.Donor) -> None:
    counter = iter(range(100))

    def made(size: int) -> Callable[[], None]:
        return lambda: runs.create(tmp_path / f"run-{next(counter)}", donor.config, aged.KEY, aged.Made(size), ((), ()))

    small, large = (_peak(made(size)) for size in SIZES)
    assert abs(large - small) < SLACK, (small, large)


def test_uniqueness_takes_eight_bytes_a_record() -> None:
    small, large = (_peak(lambda size=size: check_unique(aged.Made(size))) for size in SIZES)  # type: ignore[misc]
    assert large - small < 10 * (SIZES[1] - SIZES[0])


class _Colliding(str):
    """Ids whose hashes are all the same."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 7


def test_ids_of_the_same_hash_are_told_apart() -> None:
    records = [Record(_Colliding(name), {"text": ""}, 0) for name in ("a", "b", "c")]
    check_unique(records)
    with pytest.raises(DataError, match="record id 'b' occurs twice"):
        check_unique([*records, records[1]])


def test_a_deletion_looks_up_its_own_rows_alone(paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    real, looked = RecordStore._index, []

    def counted(self: RecordStore, where: str, *values: Any) -> Iterator[Any]:
        for row in real(self, where, *values):
            looked.append(where)
            yield row

    monkeypatch.setattr(RecordStore, "_index", counted)
    counts: Collection[int] = []
    for path, size in zip(paths, SIZES, strict=True):
        run = runs.open_run(path)
        looked.clear()
        ids = [aged.name(size // 2 + i) for i in range(20)]
        assert len(requests.delete(run, ids).fresh) == 20
        requests.erase(run, set())
        counts = [*counts, len(looked)]
        run.close()
    assert counts == [40, 40], "once to find where each lies, once to overwrite it"


def test_members_of_a_group_are_found_in_their_slot(tmp_path: Path, donor: aged.Donor) -> None:
    path = tmp_path / "run"
    names = [grouped("ann", f"{i}") for i in range(30)] + [grouped("anna", "0"), "ann"]
    runs.create(path, donor.config, aged.KEY, [Record(name, {"text": "x"}, 0) for name in names], ((), ()))
    run = runs.open_run(path)
    assert requests.members(run, "ann") == sorted(names[:30])
    run.close()
