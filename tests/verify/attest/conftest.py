"""A certified run on the tiny model, with ways to change its certificate and to sign it again."""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from s3t.records import canonical_json, sha256
from verify.attest import check as checking
from verify.attest.envelope import canonical, seal
from verify.attest.issue import certify
from verify.attest.keys import signer
from verify.evidence import read_evidence
from verify.report import Finding, Report, Verdict

WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DELETED = ("row-003", "row-017")


def report_on(run: Path, *findings: Finding, levels: tuple[str, ...] = ("E0", "E1a")) -> Report:
    """Return a report on the run as it is now, by default one that holds."""
    made = findings or (
        Finding("E0 rows", Verdict.HOLDS, "58 rows", details={"rows": 58}),
        Finding("E1a", Verdict.HOLDS, "the same bits", details={"nodes": 4, "ulps": 0}),
    )
    return Report(str(run), "s3t", "non-interference", levels, made, ("a note",), checked=read_evidence(run).checked)


def statement_of(raw: bytes) -> dict[str, Any]:
    return dict(json.loads(base64.b64decode(json.loads(raw)["payload"])))


def with_payload(raw: bytes, payload: bytes) -> bytes:
    """Return the certificate with another payload under the old signature."""
    told = json.loads(raw)
    return canonical(told | {"payload": base64.b64encode(payload).decode()}) + b"\n"


@dataclass
class Certified:
    """A run, its certificate, and the keys of its signer."""

    run: Path
    raw: bytes
    keys: Path

    @property
    def statement(self) -> dict[str, Any]:
        return statement_of(self.raw)

    def sign(self, statement: Any, keys: Path | None = None) -> bytes:
        return seal(statement, signer(keys or self.keys, self.run))

    def certify(self, report: Report | None = None, request: str = "r000001", **options: Any) -> bytes:
        told = report or report_on(self.run)
        return certify(self.run, request, told, signer(self.keys, self.run), issued=WHEN, **options)

    def check(self, raw: bytes | None = None, *, run: bool = True, **options: Any) -> Report:
        given: dict[str, Any] = {"keys": self.keys} | options
        return checking.check(self.raw if raw is None else raw, self.run if run else None, **given)

    def append(self, kind: str, *bodies: dict[str, Any]) -> None:
        """Append entries to the ledger as documented."""
        ledger = sqlite3.connect(self.run / "ledger.sqlite")
        seq, previous = ledger.execute("SELECT seq, digest FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
        rows = []
        for body in bodies:
            seq, text = seq + 1, canonical_json(body).decode()
            digest = sha256(canonical_json([seq, kind, text, previous]))
            rows.append((seq, kind, text, previous, digest))
            previous = digest
        ledger.executemany("INSERT INTO entries VALUES(?,?,?,?,?)", rows)
        ledger.commit()
        ledger.close()

    def sql(self, *statements: str) -> None:
        """Change the ledger as somebody would who is not stopped by its triggers."""
        ledger = sqlite3.connect(self.run / "ledger.sqlite")
        for (name,) in ledger.execute("SELECT name FROM sqlite_master WHERE type='trigger'").fetchall():
            ledger.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            ledger.execute(statement)
        ledger.commit()
        ledger.close()


@pytest.fixture(scope="session")
def certified_once(fitted: Path, tmp_path_factory: pytest.TempPathFactory) -> Certified:
    from s3t.system import System

    home = tmp_path_factory.mktemp("certified")
    shutil.copytree(fitted, home / "run")
    system = System.open(home / "run")
    system.delete(list(DELETED))
    system.close()
    made = Certified(home / "run", b"", home / "keys")
    made.raw = made.certify()
    return made


@pytest.fixture
def certified(certified_once: Certified, tmp_path: Path) -> Certified:
    """A copy of the run that a test may change."""
    shutil.copytree(certified_once.run, tmp_path / "run")
    return Certified(tmp_path / "run", certified_once.raw, certified_once.keys)


@pytest.fixture
def system(certified: Certified) -> Iterator[Callable[[], Any]]:
    """Open the certified run as a system."""
    from s3t.system import System

    opened = []

    def open_() -> Any:
        opened.append(System.open(certified.run))
        return opened[-1]

    yield open_
    for one in opened:
        one.close()
