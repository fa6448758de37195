"""Which slot a record belongs to, and what stands for it once it is gone (docs/DERIVATION.md, "Records").

A slot depends on the record's id and the run's secret key alone: never on content, never on other records. A deletion
therefore cannot move another record (arXiv 2406.16257, section 3.2, asks for disjoint slices; the keyed hash is ours).
Standard library only, for the ledger and the command line must not load numpy for this.
"""

from __future__ import annotations

import hashlib
import hmac

from s3t.errors import DataError
from s3t.records import Layout, Record, owner

KEY_BYTES = 32
"""Length of a run's secret slot key."""

SALT_BYTES = 16
"""Length of a record's salt, destroyed with the record."""

_SLOT = b"s3t slot v1\x00"
_TAG = b"s3t tag v1\x00"
_ROW = b"s3t row v1\x00"


def slot(key: bytes, record_id: str, layout: Layout) -> tuple[int, int]:
    """Return (shard, slice), with 0 <= shard < layout.shards and 0 <= slice < layout.slices, from the id's owner alone.

    Both are read from separate halves of one HMAC-SHA256, so they are independent of each other; the modulo's bias is
    below shards / 2^64. Raises DataError for a key that is not 32 bytes or an empty id.
    """
    mac = _mac(key, _SLOT, owner(record_id))
    return int.from_bytes(mac[0:8], "big") % layout.shards, int.from_bytes(mac[8:16], "big") % layout.slices


def tag(key: bytes, record_id: str) -> str:
    """Return the 64 hex digits that stand for ``record_id`` wherever a deleted id would otherwise remain.

    Without the key a tag cannot be traced to an id by guessing. Raises DataError as :func:`slot`.
    """
    return _mac(key, _TAG, record_id).hex()


def commitment(salt: bytes, record: Record) -> str:
    """Return the salted SHA-256 of the record's content, 64 hex digits.

    Once the salt is destroyed, the commitment cannot be matched to guessed content. Raises DataError for a salt that is
    not 16 bytes.
    """
    return content_commitment(salt, record.content())


def content_commitment(salt: bytes, content: bytes) -> str:
    """Return the commitment of a record by its content (:meth:`Record.content`); raises as :func:`commitment`."""
    if len(salt) != SALT_BYTES:
        raise DataError(f"a salt of {len(salt)} bytes is not usable: give {SALT_BYTES} random bytes per record")
    return hashlib.sha256(_ROW + salt + content).hexdigest()


def _mac(key: bytes, purpose: bytes, record_id: str) -> bytes:
    if len(key) != KEY_BYTES:
        raise DataError(f"a slot key of {len(key)} bytes is not usable: give {KEY_BYTES} random bytes")
    if not record_id:
        raise DataError("record id '' is not usable: give a non-empty string")
    return hmac.digest(key, purpose + record_id.encode(), "sha256")
