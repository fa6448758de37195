"""Hostile input, and that the harness would tell: of a traceback, a hang, a change of state."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from s3t.errors import DataError
from verify import fuzz, fuzz_targets
from verify.cli import main


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> list[fuzz.Target]:
    return fuzz_targets.targets(tmp_path_factory.mktemp("fuzz"))


def test_some_hundred_inputs(targets: list[fuzz.Target]) -> None:
    assert len({target.name for target in targets}) == len(targets) > 20
    assert fuzz.fuzz(targets, 30 * len(targets), 7) == []


@pytest.mark.slow
def test_twenty_thousand_inputs(targets: list[fuzz.Target]) -> None:
    assert fuzz.fuzz(targets, 20_000, 11) == []


def test_good_inputs_are_read(targets: list[fuzz.Target]) -> None:
    """What is spoiled is good to begin with, so that the depths of a reader are reached."""
    for target in targets:
        for good in target.good:
            target.file.write_bytes(good)
            found = target.use()
            assert target.name != "command line" or found == 0, good
        target.file.write_bytes(target.good[0])


def test_most_spoiled_inputs_are_no_longer_what_they_were(targets: list[fuzz.Target]) -> None:
    for target in targets:
        made = [fuzz.spoil(random.Random(i), target.good[0], target.good) for i in range(50)]
        assert sum(content != target.good[0] for content in made) > 40 and len(set(made)) > 30


def _target(tmp_path: Path, use: object) -> list[fuzz.Target]:
    return [fuzz.Target("mine", tmp_path / "file", (b'{"a": 1}',), use)]  # type: ignore[arg-type]


def test_a_traceback_a_hang_and_our_own_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ours() -> None:
        raise DataError("no")

    def theirs() -> None:
        raise KeyError("a")

    assert fuzz.fuzz(_target(tmp_path, ours), 3, 0) == []
    (failure, *more) = fuzz.fuzz(_target(tmp_path, theirs), 3, 0)
    assert (failure.target, failure.number, failure.what) == ("mine", 0, "KeyError: 'a'") and len(more) == 2
    assert failure.place.startswith("test_fuzz.py:")
    monkeypatch.setattr(fuzz, "SECONDS", 0.05)
    (hung,) = fuzz.fuzz(_target(tmp_path, lambda: time.sleep(5)), 1, 0)
    assert hung.what == "Hang: longer than 0.05 s"


def test_a_call_that_fails_and_changes_the_run(
    targets: list[fuzz.Target], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from s3t.system import System

    def spoiling(self: System, ids: object) -> object:
        (self.path / "trace").write_text("x")
        raise DataError("no")

    monkeypatch.setattr(System, "delete", spoiling)
    target = next(target for target in targets if target.name == "command line")
    target.file.write_bytes(b"delete\nRUN\n--id\nrow-01")
    with pytest.raises(AssertionError, match="exit code 2, and the run is another one"):
        target.use()
    monkeypatch.undo()
    target.file.write_bytes(b"delete\nRUN\n--id\nnobody")
    target.use()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "fuzz.json"
    assert (
        main(["fuzz", "--cases", "20", "--seed", "3", "--target", "csv", "--target", "prior", "--out", str(out)]) == 0
    )
    assert capsys.readouterr().out.endswith("20 inputs to 2 readers, seed 3: 0 failed\n")
    told = json.loads(out.read_text())
    assert told["cases"] == {"csv": 10, "prior": 10} and told["failures"] == []
    assert main(["fuzz", "--target", "luck"]) == 2
    assert "nothing to fuzz" in capsys.readouterr().err
