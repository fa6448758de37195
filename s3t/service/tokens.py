"""The token that allows deletions: in a file that its owner alone can read; made where there is none."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from pathlib import Path

from s3t.errors import ServiceError

SHORTEST = 16
"""Fewest characters of a token; those that are made here have 43, 256 random bits."""
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")  # RFC 6750, section 2.1


class Token:
    """A secret that is compared in constant time and shows itself nowhere; of it only a digest is kept."""

    def __init__(self, secret: str) -> None:
        self._digest = hashlib.sha256(secret.encode()).digest()

    def allows(self, header: str) -> bool:
        """Say whether a header ``Authorization`` carries the token, as ``Bearer TOKEN``."""
        scheme, _, given = header.partition(" ")
        digest = hashlib.sha256(given.strip().encode()).digest()
        return hmac.compare_digest(digest, self._digest) and scheme.lower() == "bearer"


def default_path(run: Path) -> Path:
    """Return where a run's token lies if nothing is said: beside the run's folder, never inside."""
    whole = run.resolve()
    return whole.with_name(f"{whole.name}.token")


def read_token(path: Path, run: Path) -> Token:
    """Return the token in ``path``; a file that does not exist is made, with a random token and mode 0600.

    ServiceError, which never quotes the token, if the file lies inside the run's folder (which is copied and moved as a
    whole), is no plain file, belongs to someone else, can be read or written by group or others, or holds no usable token.
    """
    if path.resolve().is_relative_to(run.resolve()):
        raise ServiceError(f"{path} lies inside the run's folder, which is copied as a whole; keep the token elsewhere")
    try:
        _make(path)
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would keep us waiting
        with os.fdopen(handle, "rb") as file:
            _check(os.fstat(handle), path)
            secret = file.read(4096).decode("ascii", "replace").strip()
    except OSError as error:
        raise ServiceError(f"the token file {path} cannot be used ({error.strerror}); name another one") from error
    if len(secret) < SHORTEST or not _TOKEN.fullmatch(secret):
        raise ServiceError(
            f"{path} holds no usable token; put {SHORTEST} or more letters and digits on one line, or remove the file "
            "and a random one is made"
        )
    return Token(secret)


def _make(path: Path) -> None:
    """Make the file with a random token unless it is there; whoever sees it sees it whole."""
    if path.exists():
        return
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            os.fchmod(handle, 0o600)
            file.write(secrets.token_urlsafe(32) + "\n")
            file.flush()
            os.fsync(handle)
        try:
            os.link(draft, path)
        except FileExistsError:  # another service was faster: its token holds
            return
    finally:
        draft.unlink(missing_ok=True)


def _check(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ServiceError(f"{path} is no plain file; name a file that holds the token")
    if found.st_uid != os.geteuid():
        raise ServiceError(f"{path} belongs to user {found.st_uid}, not to {os.geteuid()}; use a file of your own")
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise ServiceError(f"{path} is open to others (mode {mode:04o}); make a new token, and chmod 600 its file")
