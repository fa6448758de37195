"""Signing keys: made on first use in a folder of their owner, never in a run; public keys to hand out beside them.

The private key is PKCS 8 in PEM, readable by its owner alone; the public one is SubjectPublicKeyInfo in PEM, named by its
key id (SHA-256 as securesystemslib derives it).
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import Any

from s3t.durable import make_folder, put
from verify.attest import AttestError, need

PRIVATE = "signing.pem"


def default_folder() -> Path:
    """Return $S3T_KEYS, or s3t/keys below $XDG_CONFIG_HOME or ~/.config."""
    told = os.environ.get("S3T_KEYS")
    if told:
        return Path(told)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "s3t" / "keys"


def signer(folder: Path, run: Path) -> Any:
    """Return the signer whose key lies in ``folder``, made if there is none yet.

    AttestError if the folder lies in ``run`` (which is handed to others) or folder or file are open to others.
    """
    if folder.resolve().is_relative_to(run.resolve()):
        raise AttestError(
            f"the keys folder {folder} lies inside the run, which is handed to others; choose another --keys"
        )
    path = folder / PRIVATE
    try:
        make_folder(folder, 0o700)
        _private(folder)
        if not path.exists():
            _make(path)
        _private(path)
        made = _load(path.read_bytes(), str(path))
        public = folder / f"{made.public_key.keyid}.pub"
        if not public.exists():
            put(public, _public_pem(made))
    except OSError as error:
        raise AttestError(f"the keys folder {folder} cannot be used ({error}); choose another --keys") from error
    return made


def public_key(path: Path) -> Any:
    """Return the public key in a PEM file. AttestError if it holds no ed25519 public key."""
    serialization = need("cryptography.hazmat.primitives.serialization")
    ed25519 = need("cryptography.hazmat.primitives.asymmetric.ed25519")
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise AttestError(f"{path} holds no public key ({error}); give the signer's KEYID.pub") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise AttestError(f"{path} holds a {type(key).__name__}, not an ed25519 key; give the signer's KEYID.pub")
    return need("securesystemslib.signer").SSlibKey.from_crypto(key)


def find_public(folder: Path, keyid: str) -> Any | None:
    """Return the public key KEYID.pub in ``folder``, or None if the signer is not known there."""
    if len(keyid) != 64 or set(keyid) - set("0123456789abcdef"):
        return None
    path = folder / f"{keyid}.pub"
    return public_key(path) if path.is_file() else None


def _private(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        want = "700" if path.is_dir() else "600"
        raise AttestError(f"{path} has mode {mode:o}, so others may use the key; chmod {want} {path}")


def _make(path: Path) -> None:
    """Write a new private key; if another process was first, its key stays."""
    made = need("securesystemslib.signer").CryptoSigner.generate_ed25519()
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        _write(part, made.private_bytes, 0o600)
        os.link(part, path)
    except FileExistsError:
        pass
    finally:
        part.unlink(missing_ok=True)


def _write(path: Path, content: bytes, mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _load(pem: bytes, where: str) -> Any:
    serialization = need("cryptography.hazmat.primitives.serialization")
    ed25519 = need("cryptography.hazmat.primitives.asymmetric.ed25519")
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise AttestError(
            f"{where} holds no private key ({error}); restore it, or remove it to make a new one"
        ) from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise AttestError(f"{where} holds a {type(key).__name__}, not an ed25519 key; remove it to make a new one")
    return need("securesystemslib.signer").CryptoSigner(key)


def _public_pem(made: Any) -> bytes:
    serialization = need("cryptography.hazmat.primitives.serialization")
    private = serialization.load_pem_private_key(made.private_bytes, password=None)
    encoded: bytes = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded
