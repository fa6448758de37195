"""Nothing that was changed is accepted: fields, bits, order, length, keys, ledgers, runs, tensors."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from s3t.errors import S3TError
from verify.attest.envelope import canonical
from verify.attest.keys import signer
from verify.report import Verdict

from .conftest import Certified, report_on, with_payload

Path_ = tuple[str | int, ...]


def leaves(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """Yield the place of every scalar and of every empty list or object."""
    if isinstance(value, dict | list) and value:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*at, key))
    else:
        yield at


def changed(value: Any) -> Any:
    if isinstance(value, str):
        return value[:-1] + ("0" if value[-1:] != "0" else "1")
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return ["x"]


def with_change(statement: Any, at: Path_) -> Any:
    made = copy.deepcopy(statement)
    inner = made
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = changed(inner[at[-1]])
    return made


def rejected(certified: Certified, raw: bytes, *, run: bool = False, **options: Any) -> bool:
    try:
        return certified.check(raw, run=run, **options).verdict is not Verdict.HOLDS
    except S3TError:
        return True


def test_every_field_changed_breaks_the_signature(certified_once: Certified) -> None:
    statement = certified_once.statement
    places = list(leaves(statement))
    assert len(places) > 250
    for at in places:
        raw = with_payload(certified_once.raw, canonical(with_change(statement, at)))
        assert certified_once.check(raw, run=False).verdict is Verdict.VIOLATED, at


def test_every_field_changed_and_signed_by_a_stranger_is_not_accepted(
    certified_once: Certified, tmp_path: Path
) -> None:
    statement, stranger = certified_once.statement, tmp_path / "stranger"
    own = signer(certified_once.keys, certified_once.run).public_key
    for at in [(), *leaves(statement)]:
        raw = certified_once.sign(with_change(statement, at) if at else statement, stranger)
        assert certified_once.check(raw, run=False).verdict is not Verdict.HOLDS, at
        assert certified_once.check(raw, run=False, key=own).verdict is Verdict.VIOLATED, at


ON_TRUST = {"issued", "findings", "notes", "claim", "stores", "limits", "leaks", "levels"}
"""What no run can contradict; it rests on the signer alone."""


def rests_on_trust(at: Path_) -> bool:
    return at[0] == "predicate" and (
        at[1] in ON_TRUST
        or at[1:3] == ("run", "base")
        or at[1:] == ("selection", "rule")
        or (at[1] == "served" and at[-2:] == ("reads", "root"))
    )


def test_every_fact_of_the_run_is_contradicted_by_the_run_even_under_the_own_key(certified_once: Certified) -> None:
    statement = certified_once.statement
    facts = [at for at in leaves(statement) if not rests_on_trust(at)]
    assert len(facts) > 200
    for at in facts:
        raw = certified_once.sign(with_change(statement, at))
        assert rejected(certified_once, raw, run=True), at


def flips(certified: Certified, count: int, seed: int) -> list[int]:
    """Return the positions of bits whose flip was accepted."""
    draw, accepted = random.Random(seed), []
    for _ in range(count):
        bit = draw.randrange(8 * len(certified.raw))
        raw = bytearray(certified.raw)
        raw[bit // 8] ^= 1 << bit % 8
        if not rejected(certified, bytes(raw)):
            accepted.append(bit)
    return accepted


def test_no_flipped_bit_is_accepted(certified_once: Certified) -> None:
    assert flips(certified_once, 300, 1) == []


@pytest.mark.slow
def test_none_of_10_000_flipped_bits_is_accepted(certified_once: Certified) -> None:
    assert flips(certified_once, 10_000, 2) == []


def test_no_truncation_is_accepted(certified_once: Certified) -> None:
    size = len(certified_once.raw)
    for keep in {*range(0, 40), *range(0, size, 199), *range(size - 200, size)}:
        assert rejected(certified_once, certified_once.raw[:keep]), keep


def reorder(raw: bytes) -> bytes:
    told = json.loads(raw)
    return json.dumps({key: told[key] for key in sorted(told, reverse=True)}, separators=(",", ":")).encode() + b"\n"


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "no newline": lambda raw: raw[:-1],
    "trailing space": lambda raw: raw + b" ",
    "twice": lambda raw: raw + raw,
    "space inside": lambda raw: raw.replace(b",", b", ", 1),
    "reordered": reorder,
    "field repeated": lambda raw: raw.replace(b"{", b'{"payload":"",', 1),
    "field added": lambda raw: canonical(json.loads(raw) | {"more": 1}) + b"\n",
    "signature repeated": lambda raw: (
        canonical(json.loads(raw) | {"signatures": json.loads(raw)["signatures"] * 2}) + b"\n"
    ),
    "no signature": lambda raw: canonical(json.loads(raw) | {"signatures": []}) + b"\n",
    "other type": lambda raw: raw.replace(b"in-toto+json", b"in-toto+jsom"),
    "escaped": lambda raw: raw.replace(b"payloadType", b"payload\\u0054ype"),
    "empty": lambda raw: b"",
    "nested": lambda raw: b"[" * 100_000,
}


@pytest.mark.parametrize("name", FORMS)
def test_one_statement_has_one_file(certified_once: Certified, name: str) -> None:
    with pytest.raises(S3TError, match="is not a certificate"):
        certified_once.check(FORMS[name](certified_once.raw))


def test_a_payload_that_is_not_canonical_is_not_accepted(certified_once: Certified) -> None:
    key, statement = signer(certified_once.keys, certified_once.run), certified_once.statement
    from securesystemslib.dsse import Envelope

    for text in (json.dumps(statement), json.dumps(statement, indent=1), '{"_type":1,' + json.dumps(statement)[1:]):
        envelope = Envelope(text.encode(), "application/vnd.in-toto+json", {})
        envelope.sign(key)
        raw = canonical(envelope.to_dict()) + b"\n"
        report = certified_once.check(raw, run=False)
        assert report.verdict is Verdict.VIOLATED
        assert any("RFC 8785" in f.message for f in report.findings)


@pytest.mark.parametrize("statement", [{}, {"predicate": []}, {"predicate": {}}, {"_type": None, "subject": 3}])
def test_a_signed_statement_of_another_form_is_not_accepted(certified_once: Certified, statement: Any) -> None:
    assert certified_once.check(certified_once.sign(statement)).verdict is Verdict.VIOLATED


def says(certified: Certified, verdict: Verdict, message: str, raw: bytes | None = None) -> None:
    report = certified.check(raw)
    assert report.verdict is verdict, report.dumps()
    assert any(message in f.message for f in report.findings if f.verdict is verdict), report.dumps()


def test_an_unknown_signer_is_undecided(certified_once: Certified, tmp_path: Path) -> None:
    report = certified_once.check(keys=tmp_path)
    assert report.verdict is Verdict.UNDECIDED
    assert "is unknown; give the public key with --key" in report.findings[0].message


def test_a_rewritten_entry(certified: Certified) -> None:
    certified.sql("UPDATE entries SET body=replace(body,'\"shard\":0','\"shard\":1') WHERE seq=3")
    says(certified, Verdict.VIOLATED, "hash chain breaks at entry 3")


def test_a_lost_entry_and_entries_in_another_order(certified: Certified) -> None:
    certified.sql("DELETE FROM entries WHERE seq=4")
    says(certified, Verdict.VIOLATED, "hash chain breaks at entry 4")


def test_a_ledger_that_was_cut(certified: Certified) -> None:
    certified.sql("DELETE FROM entries WHERE seq=(SELECT max(seq) FROM entries)")
    says(certified, Verdict.VIOLATED, "it was cut or forked")


@pytest.mark.parametrize("more", [0, 3])
def test_a_fork(certified: Certified, more: int) -> None:
    certified.sql("DELETE FROM entries WHERE seq=(SELECT max(seq) FROM entries)")
    certified.append("request", *[{"request": "r000001", "tags": [], "slots": [[0, i % 3]]} for i in range(more + 1)])
    says(certified, Verdict.VIOLATED, "a fork, or another run")


def test_another_runs_certificate(certified: Certified, fitted: Path, tmp_path: Path) -> None:
    from s3t.system import System

    other = Certified(tmp_path / "other", b"", certified.keys)
    shutil.copytree(fitted, other.run)
    opened = System.open(other.run)
    opened.delete(["row-030"])
    opened.close()
    other.raw = other.certify(report_on(other.run))
    assert other.check().verdict is Verdict.HOLDS
    assert certified.check(other.raw).verdict is Verdict.VIOLATED
    assert other.check(certified.raw).verdict is Verdict.VIOLATED


def served_file(certified: Certified, name: str, chain: int = 0, node: int = -1) -> Path:
    key = certified.statement["predicate"]["served"][chain]["nodes"][node]["key"]
    return certified.run / "nodes" / key / name


def test_swapped_tensor_files(certified: Certified) -> None:
    one, two = (served_file(certified, "head.safetensors", chain) for chain in (0, 1))
    a, b = one.read_bytes(), two.read_bytes()
    one.write_bytes(b)
    two.write_bytes(a)
    says(certified, Verdict.VIOLATED, "not the file that the ledger recorded")


def test_weights_with_nan(certified: Certified) -> None:
    path = served_file(certified, "head.safetensors")
    path.write_bytes(path.read_bytes()[:-4] + b"\x00\x00\xc0\x7f")
    says(certified, Verdict.VIOLATED, "not the file that the ledger recorded")


def test_weights_that_were_nan_all_along(certified: Certified) -> None:
    """A run whose ledger records NaN, certified by a signer who does not look."""
    path = served_file(certified, "head.safetensors")
    node = certified.statement["predicate"]["served"][0]["nodes"][-1]
    old = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes()[:-4] + b"\x00\x00\xc0\x7f")
    rechain(certified, old, hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(S3TError, match="holds NaN or infinity, so nothing is certified"):
        certified.certify(report_on(certified.run))
    statement = certified.statement
    refreshed = restate(certified, statement)
    says(certified, Verdict.VIOLATED, f"{node['name']}:head.weight holds NaN", certified.sign(refreshed))


def rechain(certified: Certified, old: str, new: str) -> None:
    """Write the whole ledger anew with one digest replaced: a chain that holds, of another history."""
    import sqlite3

    ledger = sqlite3.connect(certified.run / "ledger.sqlite")
    rows = ledger.execute("SELECT kind, body FROM entries ORDER BY seq").fetchall()
    ledger.close()
    certified.sql("DELETE FROM entries WHERE seq > 1")
    for kind, body in rows[1:]:
        certified.append(kind, json.loads(body.replace(old, new)))


def restate(certified: Certified, statement: Any) -> Any:
    """Return the statement with the proofs and positions of the ledger as it is now."""
    from verify.attest import issue
    from verify.evidence import read_evidence

    entries = read_evidence(certified.run).entries
    statement["predicate"]["ledger"] = issue._position(entries)
    statement["predicate"]["request"] = issue._request(entries, issue.find_request(entries, "r000001"))
    return statement


def test_a_missing_node(certified: Certified) -> None:
    shutil.rmtree(served_file(certified, "head.safetensors").parent)
    says(certified, Verdict.UNDECIDED, "is missing from the run")


def test_a_run_that_moved_on(certified: Certified, system: Callable[[], Any]) -> None:
    opened = system()
    opened.delete(["row-040"])
    says(certified, Verdict.UNDECIDED, "the run has moved on: 1 request since")
    opened.refresh()
    says(certified, Verdict.UNDECIDED, "the run has moved on: 1 request, ")


@pytest.mark.parametrize("content", [None, b"", b"SQLite format 3\x00" + bytes(50), "half"])
def test_a_ledger_that_cannot_be_read_is_undecided(certified: Certified, content: Any) -> None:
    path = certified.run / "ledger.sqlite"
    raw = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(raw[:4096] if content == "half" else content)
    says(certified, Verdict.UNDECIDED, "the ledger cannot be read")


def test_files_of_the_run_that_are_gone_or_edited(certified: Certified) -> None:
    (certified.run / "commitments").write_bytes((certified.run / "commitments").read_bytes()[:-32] + bytes(32))
    says(certified, Verdict.VIOLATED, "do not give the root that was committed to")
    (certified.run / "commitments").unlink()
    says(certified, Verdict.UNDECIDED, "commitments holds 0 bytes")
    config = certified.run / "run.json"
    config.write_bytes(config.read_bytes() + b" ")
    says(certified, Verdict.VIOLATED, "run.json is not that of the certificate")
    config.unlink()
    says(certified, Verdict.UNDECIDED, "run.json cannot be read")
