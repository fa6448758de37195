"""Exit codes and the command line: 0 holds, 1 violated, 3 undecided, 2 bad input."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s3t.errors import S3TError
from verify.audit import resolve_levels
from verify.cli import main


class Fake:
    """A live system that only has an account of itself."""

    def __init__(self, run: Any, **changes: Any) -> None:
        self.told = run.provenance(**changes)

    def provenance(self) -> Any:
        return self.told


def lineage_only(run: Any, *more: str, **changes: Any) -> int:
    return main([str(run.folder), "--level", "E0", *more], opener=lambda _: Fake(run, **changes))


def test_holds(forge: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    run = forge()
    run.delete("row-000")
    assert lineage_only(run, "--json") == 0
    raw = json.loads(capsys.readouterr().out)
    assert raw["verdict"] == "HOLDS"
    assert [f["check"] for f in raw["findings"]] == ["E0 lineage", "E0 scan", "E0 rows"]
    assert raw["notes"][0].startswith("not run: search of all bytes for ids and inputs of 1 of 1 deleted records")
    assert "the run names no source" in raw["notes"][1]


def test_violated(forge: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    run = forge()
    (run.folder / "train.log").write_text("x")
    assert lineage_only(run) == 1
    shown = capsys.readouterr().out
    assert "VIOLATED" in shown
    assert "train.log" in shown


def test_undecided(forge: Callable[..., Any]) -> None:
    run = forge()
    assert lineage_only(run, stray=None) == 3
    told = Fake(run)
    (run.folder / "secret.key").unlink()
    assert main([str(run.folder)], opener=lambda _: told) == 3


def test_a_ledger_that_makes_no_sense_is_undecided(forge: Callable[..., Any]) -> None:
    run = forge()
    told = Fake(run)
    run.enter("request", {"tags": [], "slots": 7})
    assert main([str(run.folder), "--level", "E0"], opener=lambda _: told) == 3


def test_damage_is_undecided_before_the_system_is_opened(forge: Callable[..., Any]) -> None:
    run = forge()
    (run.folder / "ledger.sqlite").unlink()

    def refuse(_: Path) -> Any:
        raise AssertionError("must not be opened")

    assert main([str(run.folder)], opener=refuse) == 3


def test_bad_input(tmp_path: Path, forge: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    assert "there is no run folder" in capsys.readouterr().err
    assert main([str(forge().folder), "--level", "E1d"]) == 2
    assert "level 'E1d' is unknown" in capsys.readouterr().err

    def broken(_: Path) -> Any:
        raise S3TError("cannot be opened")

    assert main([str(forge().folder)], opener=broken) == 2
    capsys.readouterr()
    assert main([]) == 2
    assert "nothing to audit is named" in capsys.readouterr().err
    assert main(["--adapter", "nothing"]) == 2
    assert "is not MODULE:FACTORY" in capsys.readouterr().err
    assert main(["--adapter", "verify.nothing:made"]) == 2
    assert "cannot be loaded" in capsys.readouterr().err


def test_a_fault_of_ours_keeps_its_traceback(forge: Callable[..., Any]) -> None:
    def broken(_: Path) -> Any:
        raise ZeroDivisionError("ours")

    with pytest.raises(ZeroDivisionError, match="ours"):
        main([str(forge().folder)], opener=broken)


def test_levels() -> None:
    assert resolve_levels(["E1"]) == ("E1a", "E1b", "E1c")
    assert resolve_levels(["E4", "E2"]) == ("E2", "E4")
    assert resolve_levels(["E1b", "E0"]) == ("E0", "E1b")
    with pytest.raises(S3TError, match="level 'E5' is unknown"):
        resolve_levels(["E5"])


def test_help_is_fast_and_loads_no_torch() -> None:
    code = (
        "import sys; from verify.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(str({'torch', 'peft', 'transformers'} & set(sys.modules) or ''))"
    )
    root = Path(__file__).resolve().parents[2]
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.stderr.strip() in ("", "set()"), done.stderr
    assert "Exit code: 0 HOLDS" in " ".join(done.stdout.split())
    assert time.monotonic() - began < 10


def test_a_changed_source_never_holds(
    live: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from verify import source

    def changed(_: Any) -> Any:
        raise source.SourceChangedError("its digest differs")

    live.system.close()
    monkeypatch.setattr(source, "source_records", changed)
    assert main([str(live.folder), "--level", "E0", "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert told["findings"][0]["check"] == "evidence"
    assert main([str(live.folder), "--level", "E0", "--no-source"]) == 0


def test_a_sample_and_the_oracle(live: Any, capsys: pytest.CaptureFixture[str]) -> None:
    live.system.delete(["row-003"])
    live.system.close()
    given = [str(live.folder), "--level", "E1a", "--no-isolate", "--json"]
    assert main([*given, "--sample", "2", "--nonce", "7", "--oracle"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["findings"]
    assert (found["details"]["sampled"], found["details"]["sample_seed"]) == (2, 7)
    assert main([*given, "--sample", "0"]) == 2
    assert "a sample of 0 nodes checks nothing" in capsys.readouterr().err


def test_a_certificate_adds_level_a(
    live: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from s3t.cli.attest import certify

    monkeypatch.setenv("S3T_KEYS", str(tmp_path / "keys"))
    name = live.system.delete(["row-003"]).request
    live.system.close()
    paper = tmp_path / "paper.json"
    certify(live.folder, name, None, paper, ["E0"])
    given = [str(live.folder), "--level", "E0", "--json", "--certificate"]
    capsys.readouterr()
    assert main([*given, str(paper)]) == 0
    assert json.loads(capsys.readouterr().out)["levels"] == {"E0": "HOLDS", "A": "HOLDS"}
    monkeypatch.setenv("S3T_KEYS", str(tmp_path / "others"))
    assert main([*given, str(paper)]) == 3, "an unknown signer"
    (known,) = (tmp_path / "keys").glob("*.pub")
    assert main([*given, str(paper), "--key", str(known)]) == 0
    paper.write_bytes(paper.read_bytes()[:-20])
    assert main([*given, str(paper)]) == 2
    assert main([*given, str(tmp_path / "none")]) == 2
