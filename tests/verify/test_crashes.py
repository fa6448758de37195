"""The harness that cuts works short: it finds nothing on the suite, and whatever is planted."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from s3t import exporting, ledger, requests, rows, runs, store
from s3t.cli import attest
from s3t.errors import S3TError
from verify import crash
from verify.attest import keys
from verify.cli import main
from verify.crashes import __main__ as playing
from verify.crashes.__main__ import ENGINES, WORKS, Point, Stage, chosen
from verify.crashes.bench import Work
from verify.crashes.deletions import Recover

HARM = {"loss", "resurrection", "refused"}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "stage")


def _found(stage: Stage, work: str, how: str) -> set[str]:
    """Play points from the last to the first until one fails; return the kinds of faults."""
    points = [point for point in stage.points("reference", work) if point.how == how]
    for point in reversed(points):
        if found := stage.play(point):
            return {kind for kind, _ in found}
    return set()


def _nothing(*args: Any, **options: Any) -> None:
    return None


def _unsynchronised(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=10.0, isolation_level=None)


def _noted_at_once(self: rows.RecordStore, through: int) -> None:
    self._write(0, rows._header(through))


def _made_only(path: Path) -> None:
    path.mkdir(parents=True)


PLANTED: dict[str, tuple[str, str, Any, str, Any, set[str]]] = {
    "made folders are not synchronised": ("train", "synchronised", runs, "make_folder", _made_only, {"loss"}),
    "the ledger is not synchronised": ("delete", "synchronised", ledger, "_connect", _unsynchronised, HARM),
    "node files are not synchronised": ("train", "part", store, "write_synced", Path.write_bytes, {"loss", "refused"}),
    "node folders are not synchronised": ("train", "synchronised", store, "sync_folder", _nothing, {"loss", "refused"}),
    "dropped nodes come back": ("delete", "synchronised", store, "sync_folder", _nothing, {"resurrection"}),
    "rows come back": ("delete", "synchronised", rows.RecordStore, "note_erased", _noted_at_once, {"resurrection"}),
    "leftovers stay": ("refresh, then delete", "kill", requests, "erase_leftovers", _nothing, HARM),
    "nothing is recovered": ("recover", "kill", requests, "recover", _nothing, HARM),
    "a certificate is not synchronised": ("certify", "part", attest, "put", Path.write_bytes, {"loss"}),
    "a signer's keys are not synchronised": ("certify", "synchronised", keys, "put", Path.write_bytes, {"loss"}),
    "an export is not synchronised": ("export", "synchronised", exporting, "sync_folder", _nothing, {"loss"}),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_what_is_planted_is_found(stage: Stage, planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work, how, module, name, faulty, kinds = PLANTED[planted]
    monkeypatch.setattr(module, name, faulty)
    assert _found(stage, work, how) & kinds


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("crashes") / "stage")


def test_nothing_is_lost_at_some_points_of_every_work(shared: Stage) -> None:
    every = {
        (engine, work.name, how) for engine in ENGINES for work in WORKS for how in ("kill", "synchronised", "part")
    }
    points = chosen(shared, len(every), seed=1)
    assert {(point.engine, point.work, point.how) for point in points} == every
    assert [(point, found) for point in points if (found := shared.play(point))] == []


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "work"), [(engine, work) for engine in ENGINES for work in WORKS])
def test_nothing_is_lost_at_any_point(stage: Stage, engine: str, work: type[Work]) -> None:
    points = list(stage.points(engine, work.name))
    assert len(points) > 30
    assert [(point, found) for point in points if (found := stage.play(point))] == []


def test_points_lie_before_within_and_after_a_work(shared: Stage) -> None:
    cuts = shared.cuts("reference", "delete")
    assert [cut.said for cut in cuts] == sorted(cut.said for cut in cuts) and {cut.said for cut in cuts} == {0, 1, 2}
    points = list(shared.points("reference", "delete"))
    assert [point.at for point in points if point.how == "kill"] == list(range(1, len(cuts)))
    assert len({point.at for point in points if point.how == "synchronised"}) >= 5
    with pytest.raises(S3TError, match=f"has fewer than {len(cuts)} write points"):
        shared.play(Point("reference", "delete", "kill", len(cuts)))


def test_nothing_is_cut_short_where_nothing_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crash, "why_not", lambda: "no fork")
    with pytest.raises(S3TError, match="nothing can be cut short here: no fork"):
        Stage(tmp_path)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playing, "WORKS", (Recover,))
    out = tmp_path / "crashes.json"
    assert main(["crashes", "--points", "10", "--out", str(out)]) == 0
    told = json.loads(out.read_text())
    assert told == json.loads(capsys.readouterr().out)
    assert told["total"] == {"points": 10, "loss": 0, "resurrection": 0, "difference": 0, "refused": 0}
    assert [row["points"] for row in told["rows"]] == [2, 1, 1, 1, 1, 1, 1, 1, 1] and told["faults"] == []
    assert told["seed"] == 0 and "commit" in told["machine"]
    monkeypatch.setattr(requests, "recover", _nothing)
    assert main(["crashes", "--at", "reference:recover:synchronised:1:0"]) == 1
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told["total"]["points"] == told["total"]["resurrection"] == 1 and "1 faults" in printed.err
    assert "resurrection: deleted record 'row-03' is in a file" in told["faults"][0]["found"]
    assert told["faults"][0]["again"].endswith("--seed 0 --at 'reference:recover:synchronised:1:0'")
    assert told["faults"][0]["again"] in printed.err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--points", "0"), "--points 0 plays none; give at least 1"),
        (("--at", "reference:delete"), "names no point; give ENGINE:WORK:HOW:AT:PART"),
        (("--at", "reference:undo:kill:3:0"), "names no point; engines"),
        (("--at", "reference:delete:kill:0:0"), "names no point; engines"),
        (("--at", "reference:recover:part:999:0"), "'recover' has fewer than 999 write points"),
        (("--at", "reference:recover:kill:999:0"), "'recover' has fewer than 999 write points"),
        (("--out", "/nowhere/crashes.json"), "cannot be written"),
    ],
)
def test_bad_input(given: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crashes", *given]) == 2
    assert message in capsys.readouterr().err
