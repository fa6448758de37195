"""Signing keys: made once, private to their owner, outside of the run; public keys are found by their id."""

from __future__ import annotations

import multiprocessing
import stat
from pathlib import Path
from typing import Any

import pytest

from verify.attest import AttestError
from verify.attest.keys import PRIVATE, default_folder, find_public, public_key, signer


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_a_key_is_made_once_and_is_private(tmp_path: Path, run: Path) -> None:
    keys = tmp_path / "a" / "b"
    made = signer(keys, run)
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    assert stat.S_IMODE((keys / PRIVATE).stat().st_mode) == 0o600
    public = keys / f"{made.public_key.keyid}.pub"
    assert {path.name for path in keys.iterdir()} == {PRIVATE, public.name}
    assert b"PRIVATE" in (keys / PRIVATE).read_bytes() and b"PRIVATE" not in public.read_bytes()
    assert signer(keys, run).public_key == made.public_key == public_key(public)
    assert find_public(keys, made.public_key.keyid) == made.public_key


def test_a_lost_public_key_is_written_again(tmp_path: Path, run: Path) -> None:
    public = tmp_path / "k" / f"{signer(tmp_path / 'k', run).public_key.keyid}.pub"
    content = public.read_bytes()
    public.unlink()
    signer(tmp_path / "k", run)
    assert public.read_bytes() == content


@pytest.mark.parametrize("inside", ["keys", "nodes/deep/keys", "."])
def test_the_keys_are_never_in_the_run(run: Path, inside: str) -> None:
    with pytest.raises(AttestError, match="lies inside the run, which is handed to others"):
        signer(run / inside, run)
    assert list(run.iterdir()) == []


def test_a_link_into_the_run_is_seen_through(tmp_path: Path, run: Path) -> None:
    (tmp_path / "link").symlink_to(run)
    with pytest.raises(AttestError, match="lies inside the run"):
        signer(tmp_path / "link" / "keys", run)
    with pytest.raises(AttestError, match="lies inside the run"):
        signer(run / "keys", tmp_path / "link")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o777, 0o610])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, run: Path, mode: int) -> None:
    signer(tmp_path / "k", run)
    (tmp_path / "k" / PRIVATE).chmod(mode)
    with pytest.raises(AttestError, match=f"has mode {mode:o}, so others may use the key; chmod 600"):
        signer(tmp_path / "k", run)


def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path, run: Path) -> None:
    (tmp_path / "k").mkdir(mode=0o755)
    with pytest.raises(AttestError, match="has mode 755, so others may use the key; chmod 700"):
        signer(tmp_path / "k", run)
    assert list((tmp_path / "k").iterdir()) == []


def test_a_folder_that_cannot_be(tmp_path: Path, run: Path) -> None:
    (tmp_path / "k").write_text("")
    with pytest.raises(AttestError, match="cannot be used"):
        signer(tmp_path / "k", run)


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_damaged_key_is_refused(tmp_path: Path, run: Path, content: bytes) -> None:
    keyid = signer(tmp_path / "k", run).public_key.keyid
    (tmp_path / "k" / PRIVATE).write_bytes(content)
    with pytest.raises(AttestError, match="holds no private key"):
        signer(tmp_path / "k", run)
    (tmp_path / "k" / f"{keyid}.pub").write_bytes(content)
    with pytest.raises(AttestError, match="holds no public key"):
        find_public(tmp_path / "k", keyid)


def test_keys_of_another_kind_are_refused(tmp_path: Path, run: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    signer(tmp_path / "k", run)
    kinds = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "k" / PRIVATE).write_bytes(key.private_bytes(*kinds))
    with pytest.raises(AttestError, match="not an ed25519 key"):
        signer(tmp_path / "k", run)
    public = key.public_key().public_bytes(kinds[0], serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "other.pub").write_bytes(public)
    with pytest.raises(AttestError, match="not an ed25519 key"):
        public_key(tmp_path / "other.pub")


def test_key_ids_cannot_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "x.pub").write_text("")
    assert find_public(tmp_path / "k", "../x") is None
    assert find_public(tmp_path, "0" * 64) is None


def first_use(keys: str, run: str, barrier: Any, said: Any) -> None:
    barrier.wait()
    said.put(signer(Path(keys), Path(run)).public_key.keyid)


def test_concurrent_first_uses_make_one_key(tmp_path: Path, run: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, said = context.Barrier(6), context.Queue()
    given = (str(tmp_path / "k"), str(run), barrier, said)
    processes = [context.Process(target=first_use, args=given) for _ in range(6)]
    for process in processes:
        process.start()
    found = {said.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(found) == 1
    assert {path.name for path in (tmp_path / "k").iterdir()} == {PRIVATE, f"{found.pop()}.pub"}


def test_where_keys_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("S3T_KEYS", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".config" / "s3t" / "keys"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "x"))
    assert default_folder() == tmp_path / "x" / "s3t" / "keys"
    monkeypatch.setenv("S3T_KEYS", str(tmp_path / "k"))
    assert default_folder() == tmp_path / "k"
