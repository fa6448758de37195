"""Requests on a run without any model: rows erased for all that is acknowledged, at a cost that no other record sets."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from s3t import requests, runs
from s3t.errors import RecordError, RunError
from s3t.facts import Facts
from s3t.partition import slot, tag
from s3t.plan import s3t_plan
from s3t.records import Layout, Recipe, Record
from s3t.rows import CONTENTS
from s3t.runs import Run, RunConfig
from s3t.status import describe_status
from s3t.system import System
from verify.evidence import read_evidence
from verify.report import Verdict
from verify.rows import check_rows
from verify.state import derive_state

KEY = bytes(range(32))
LAYOUT = Layout(2, 2, 1)
MODEL = {"name": "m", "digest": "d", "layers": 6, "hidden": 8}
DATA = {"name": "n", "source": "", "digest": "", "classes": ["a", "b"]}
CONFIG = RunConfig(s3t_plan(LAYOUT, Recipe(), 6), Recipe(), MODEL, DATA, 3, "1", "0.1")


def _records(count: int) -> list[Record]:
    return [Record(f"row-{i:05d}", {"text": f"secret-{i:05d}"}, i % 2) for i in range(count)]


RECORDS = _records(24)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    runs.create(tmp_path / "run", CONFIG, KEY, RECORDS, ([Record("v", {"text": "x"}, 0)], []))
    return tmp_path / "run"


@pytest.fixture
def run(path: Path) -> Iterator[Run]:
    opened = runs.open_run(path)
    yield opened
    opened.close()


def _recover(run: Run) -> Facts:
    facts = Facts(run.ledger, run.config.plan)
    requests.recover(run, facts)
    return facts


def _gone(path: Path) -> set[str]:
    """Ids of which no byte is in the run's contents; the verifier finds the rows in order."""
    evidence = read_evidence(path)
    assert evidence.problems == ()
    assert {f.verdict for f in check_rows(evidence, derive_state(evidence))} == {Verdict.HOLDS}
    raw = (path / CONTENTS).read_bytes()
    gone = {record.id for record in RECORDS if record.id.encode() not in raw}
    assert gone == {record.id for record in RECORDS if record.id.replace("row", "secret").encode() not in raw}
    return gone


def test_a_request_is_durable_first_and_erased_then(run: Run, path: Path) -> None:
    before = (path / CONTENTS).read_bytes()
    request = requests.delete(run, ["row-00003", "row-00005", "row-00003"])
    assert (request.fresh, request.already) == (("row-00003", "row-00005"), ())
    assert request.slots == tuple(sorted({slot(KEY, name, LAYOUT) for name in request.fresh}))
    assert (path / CONTENTS).read_bytes() == before
    requests.erase(run, set())
    assert _gone(path) == {"row-00003", "row-00005"}
    assert run.records.erased_through() == run.ledger.head() == 2
    again = requests.delete(run, ["row-00005"])
    assert (again.name, again.fresh, again.already) == ("", (), ("row-00005",))


def test_several_thousand_ids_are_one_request(tmp_path: Path) -> None:
    """5,000 of 6,000 records, in one entry of the ledger; repeated, it is nothing to do."""
    many = _records(6000)
    runs.create(tmp_path / "run", CONFIG, KEY, many, ([Record("v", {"text": "x"}, 0)], []))
    run = runs.open_run(tmp_path / "run")
    wanted = [record.id for record in many[:5000]]
    request = requests.delete(run, wanted)
    assert request.fresh == tuple(wanted) and run.ledger.count("request") == 1
    requests.erase(run, set())
    raw = (tmp_path / "run" / CONTENTS).read_bytes()
    assert raw.count(b"secret-") == 1000 and not any(f"secret-{i:05d}".encode() in raw for i in range(0, 5000, 97))
    again = requests.delete(run, wanted)
    assert (again.fresh, len(again.already)) == ((), 5000)
    assert describe_status(run, _recover(run)).retained == 1000
    run.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [("unknown", "so nothing was deleted; it holds 23 training records"), ("v", "belongs to the validation split")],
)
def test_one_bad_id_spoils_the_whole_request(run: Run, path: Path, name: str, message: str) -> None:
    requests.delete(run, ["row-00000"])
    requests.erase(run, set())
    head = run.ledger.head()
    with pytest.raises(RecordError, match=message):
        requests.delete(run, ["row-00001", name])
    requests.erase(run, set())
    assert run.ledger.head() == head
    assert _gone(path) == {"row-00000"}


def test_whoever_comes_next_erases_for_a_process_that_died(run: Run, path: Path) -> None:
    other = runs.open_run(path)
    requests.delete(other, ["row-00001"])  # and ends here
    other.close()
    requests.delete(run, ["row-00002"])
    requests.erase(run, set())
    assert _gone(path) == {"row-00001", "row-00002"}
    assert run.records.erased_through() == run.ledger.head()


def test_opening_completes_what_was_cut_short(run: Run, path: Path) -> None:
    requests.delete(run, ["row-00001"])
    requests.delete(run, ["row-00007", "row-00008"])
    _recover(run)
    assert _gone(path) == {"row-00001", "row-00007", "row-00008"}


def test_a_lost_note_costs_another_overwriting_and_nothing_else(run: Run, path: Path) -> None:
    requests.delete(run, ["row-00001"])
    requests.erase(run, set())
    whole = (path / CONTENTS).read_bytes()
    (path / CONTENTS).write_bytes(whole[:8] + bytes(8) + whole[16:])
    _recover(run)
    assert (path / CONTENTS).read_bytes() == whole


def test_contents_from_an_older_copy_are_erased_again(run: Run, path: Path, tmp_path: Path) -> None:
    requests.delete(run, ["row-00001"])
    requests.erase(run, set())
    shutil.copy(path / CONTENTS, tmp_path / "copy")
    for name in ("row-00002", "row-00003"):
        requests.delete(run, [name])
        requests.erase(run, set())
    shutil.copy(tmp_path / "copy", path / CONTENTS)
    again = runs.open_run(path)
    _recover(again)
    again.close()
    assert _gone(path) == {"row-00001", "row-00002", "row-00003"}


def test_an_older_ledger_is_refused(run: Run, path: Path, tmp_path: Path) -> None:
    requests.delete(run, ["row-00001"])
    requests.erase(run, set())
    shutil.copy(path / "ledger.sqlite", tmp_path / "copy")
    requests.delete(run, ["row-00002"])
    requests.erase(run, set())
    shutil.copy(tmp_path / "copy", path / "ledger.sqlite")
    again = runs.open_run(path)
    with pytest.raises(RunError, match="ends at entry 2, but rows were erased for requests up to entry 3"):
        _recover(again)
    again.close()
    assert any("it is an older one" in problem for problem in read_evidence(path).problems)


def test_nothing_is_written_when_there_is_nothing_to_erase(
    run: Run, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests.delete(run, ["row-00001"])
    requests.erase(run, set())
    run.ledger.append("extend", {"budget": 1})
    monkeypatch.setattr("os.pwrite", lambda *_: pytest.fail("written"))
    monkeypatch.setattr("os.fdatasync", lambda *_: pytest.fail("synchronised"))
    _recover(run)
    runs.open_run(path).close()


def test_two_processes_delete_the_same_record(run: Run, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, resolve = runs.open_run(path), requests._resolve

    def overtaken(asked: Run, ids: list[str]) -> object:
        monkeypatch.setattr(requests, "_resolve", resolve)
        found = resolve(asked, ids)
        requests.delete(other, ids[:1])
        return found

    monkeypatch.setattr(requests, "_resolve", overtaken)
    request = requests.delete(run, ["row-00001", "row-00002"])
    assert (request.name, request.fresh, request.already) == ("r000002", ("row-00002",), ("row-00001",))
    requests.erase(run, set())
    requests.erase(other, set())
    assert _gone(path) == {"row-00001", "row-00002"}
    other.close()


# ---- what it costs ----


@contextmanager
def _counted(run: Run, steps: list[int]) -> Iterator[None]:
    """Count the instructions of SQLite's virtual machine: one look-up takes as many in a large table as in a small one."""

    def step() -> int:
        steps.append(1)
        return 0

    databases: list[sqlite3.Connection] = [run.ledger._db, run.records._db]
    for database in databases:
        database.set_progress_handler(step, 1)
    yield
    for database in databases:
        database.set_progress_handler(None, 1)


def _aged(path: Path, records: int, older: int) -> Path:
    """A run with ``records``, of which the first ``older`` were deleted one by one."""
    runs.create(path, CONFIG, KEY, _records(records), ((), ()))
    run = runs.open_run(path)
    run.ledger._db.execute("PRAGMA synchronous = OFF")
    for record in _records(older):
        requests.delete(run, [record.id])
    requests.erase(run, set())
    run.close()
    return path


def _steps(path: Path, work: Callable[[Run, Facts], object]) -> int:
    steps: list[int] = []
    run = runs.open_run(path)
    facts = _recover(run)
    with _counted(run, steps):
        work(run, facts)
    run.close()
    return len(steps)


def _delete(run: Run, facts: Facts) -> None:
    facts.update()
    requests.delete(run, ["row-00399"])
    facts.update()
    requests.erase(run, set())


def test_what_a_deletion_and_a_start_cost_depends_on_no_other_record_or_request(tmp_path: Path) -> None:
    cases = [
        _aged(tmp_path / "few", 400, 60),
        _aged(tmp_path / "records", 4_000, 60),
        _aged(tmp_path / "old", 400, 380),
    ]
    for work in (_delete, lambda run, _: _recover(run), describe_status):
        few, *more = [_steps(path, work) for path in cases]
        assert few > 20
        assert more == [few, few], work


def test_counts_are_those_of_the_entries(tmp_path: Path) -> None:
    run = runs.open_run(_aged(tmp_path / "run", 60, 12))
    requests.delete(run, [f"row-{i:05d}" for i in range(10, 20)])
    requests.retire(run, [(0, 0)])
    assert run.ledger.requests() == run.ledger.count("request") == 14
    assert run.ledger.tombstones() == len({t for e in run.ledger.entries("request") for t in e.body["tags"]}) == 20
    assert requests.retained(run) == 40
    wanted: dict[tuple[int, int], int] = {}
    for entry in run.ledger.entries("request"):
        wanted |= dict.fromkeys(map(tuple, entry.body["slots"]), entry.seq)
    assert run.ledger.hits() == wanted
    assert run.ledger.tombstone(tag(KEY, "row-00010")) == 12
    run.close()


def _leftovers(run: Run) -> set[str]:
    """Leave two nodes that no entry of the ledger knows, as a build does that is cut short: one not renamed yet."""
    for name in (".partial-ab", "cd"):
        (run.nodes.root / name).mkdir()
        (run.nodes.root / name / "reads.json").write_text('["row-00003"]')
    return run.nodes.keys()


def test_what_a_build_left_half_done_goes_with_the_next_start(run: Run) -> None:
    assert len(_leftovers(run)) == 2
    _recover(run)
    assert run.nodes.keys() == set()


def test_what_a_build_left_half_done_goes_with_a_deletion(path: Path) -> None:
    system = System.open(path)
    run = system._opened()[0]
    _leftovers(run)
    system.delete(["row-00003"])
    assert run.nodes.keys() == set()
    system.close()


def test_what_a_build_under_way_has_not_recorded_yet_is_left_to_it(run: Run, path: Path) -> None:
    left, other = _leftovers(run), runs.open_run(path)
    with other.building():
        _recover(run)
        assert run.nodes.keys() == left
    _recover(run)
    assert run.nodes.keys() == set()
    other.close()
