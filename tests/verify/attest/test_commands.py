"""`s3t certify` and `s3t check` as commands: exit codes, files, and what checking must not need."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import said

from verify.report import Finding, Verdict

from .conftest import Certified, report_on


def s3t(*args: object) -> tuple[int, str]:
    code, out, err = said(*args)
    return code, out + err


@pytest.fixture
def report(certified: Certified, tmp_path: Path) -> Path:
    path = tmp_path / "report.json"
    path.write_text(report_on(certified.run).dumps())
    return path


def test_certify_and_check(certified: Certified, report: Path, tmp_path: Path) -> None:
    out, keys = tmp_path / "c.json", tmp_path / "keys"
    code, told = s3t("certify", certified.run, "--request", "r000001", "--report", report, "--out", out, "--keys", keys)
    assert code == 0, told
    (public,) = keys.glob("*.pub")
    assert public.name in told
    assert s3t("check", out, certified.run, "--keys", keys)[0] == 0
    assert s3t("check", out, "--key", public)[0] == 0
    code, told = s3t("check", out, "--keys", tmp_path / "none")
    assert code == 3
    code, told = s3t("check", out, certified.run, "--key", public, "--json")
    assert (code, json.loads(told)["verdict"]) == (0, "HOLDS")
    out.write_bytes(out.read_bytes()[:-9])
    code, told = s3t("check", out, "--key", public)
    assert code == 2 and "is not a certificate" in told


@pytest.mark.slow
def test_certify_runs_the_audit_itself(certified: Certified, tmp_path: Path) -> None:
    out, keys = tmp_path / "c.json", tmp_path / "keys"
    code, told = s3t("certify", certified.run, "--request", "r000001", "--out", out, "--keys", keys, "--by", "me")
    assert code == 0, told
    assert s3t("check", out, certified.run, "--keys", keys)[0] == 0


def test_what_is_refused_writes_nothing(certified: Certified, report: Path, tmp_path: Path) -> None:
    keys, out = tmp_path / "keys", tmp_path / "c.json"
    common = ("certify", certified.run, "--request", "r000001", "--out", out, "--keys", keys)
    for verdict in (Verdict.VIOLATED, Verdict.UNDECIDED):
        report.write_text(report_on(certified.run, Finding("E0 x", verdict, "bad"), levels=("E0",)).dumps())
        assert s3t(*common, "--report", report)[0] == 1
    assert not out.exists()
    assert s3t(*common, "--report", report, "--allow-undecided")[0] == 0
    assert s3t("check", out, certified.run, "--keys", keys)[0] == 3
    for wrong in (
        ("certify", certified.run, "--request", "r9", "--report", report, "--allow-undecided", "--keys", keys),
        ("certify", tmp_path / "none", "--request", "r000001"),
        (*common, "--report", report, "--level", "E0"),
        (*common[:4], "--report", report, "--keys", certified.run / "keys"),
        (*common[:4], "--report", report, "--keys", keys, "--out", certified.run / "c.json"),
        (*common, "--level", "E9"),
        ("check", tmp_path / "none.json"),
        ("check", out, tmp_path / "none"),
        ("check", out, "--key", out),
    ):
        assert s3t(*wrong)[0] == 2, wrong


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked!r}:
            raise ImportError(f'{{name}} is blocked')
sys.meta_path.insert(0, Block())
from s3t.cli import main
sys.argv = ['s3t', *{arguments!r}]
main()
"""
WITHOUT = (
    "torch",
    "transformers",
    "peft",
    "datasets",
    "safetensors",
    "pymerkle",
    "in_toto_attestation",
    "google",
    "scipy",
)


def test_checking_needs_no_torch_no_records_and_no_secret(
    certified: Certified, python: Callable[..., Any], tmp_path: Path
) -> None:
    (certified.run / "records.sqlite").unlink()
    (certified.run / "records.bin").unlink()
    (certified.run / "secret.key").unlink()
    public = next(certified.keys.glob("*.pub"))
    path = tmp_path / "c.json"
    path.write_bytes(certified.raw)
    arguments = ["check", str(path), str(certified.run), "--key", str(public)]
    done = python("-c", BLOCK.format(blocked=WITHOUT, arguments=arguments))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("missing", ["securesystemslib", "rfc8785", "cryptography"])
def test_a_missing_extra_is_one_error(
    certified: Certified, python: Callable[..., Any], tmp_path: Path, missing: str
) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(certified.raw)
    arguments = ["check", str(path), "--keys", str(certified.keys)]
    done = python("-c", BLOCK.format(blocked=(missing,), arguments=arguments))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "pip install 's3t[audit]'" in done.stderr and len(done.stderr.strip().splitlines()) == 1
