"""The features of a run's training records on disk, one row each, erased row by row. No torch, no numpy.

They are as personal as the records. A row is where its record is among the training records, in order of ingestion; a deletion
overwrites it with zeros where it is, so nothing moves and no copy is left. Its check binds it to the record's salted commitment
and to the environment in which it was made (docs/DERIVATION.md, "Run folder").
"""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s3t.errors import DamageError, RunError
from s3t.records import canonical_json
from s3t.store import no_space

FEATURES = "features.bin"
MAGIC = b"s3t feat"
HEADER = len(MAGIC) + 8
CHECK = 16
"""Bytes of a row's check."""


class FeatureStore:
    """Rows of ``size`` features for ``rows`` records in ``folder``. RunError if the file is missing or another one."""

    def __init__(self, folder: Path, size: int, rows: int) -> None:
        self._folder, self.size = folder, size
        self._width = 2 * size + CHECK
        try:
            self._file = os.open(folder / FEATURES, os.O_RDWR)
        except OSError as error:
            raise RunError(f"the run's {FEATURES} cannot be opened ({error}); restore it from a copy") from error
        self._closing = weakref.finalize(self, os.close, self._file)
        found, wanted = os.fstat(self._file).st_size, HEADER + rows * self._width
        if os.pread(self._file, HEADER, 0) != _header(size) or found != wanted:
            raise RunError(
                f"the run's {FEATURES} is damaged (it does not begin as it must, or has another length); restore it"
            )

    @staticmethod
    def create(folder: Path, size: int, rows: int) -> None:
        """Make room for all rows, as zeros, durably."""
        with (folder / FEATURES).open("wb") as file:
            file.write(_header(size))
            file.truncate(HEADER + rows * (2 * size + CHECK))
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close the file; the object must not be used afterwards."""
        self._closing()

    def read(self, number: int, commitment: str, environment: Mapping[str, Any]) -> bytes | None:
        """Return a row's little-endian int16 features, None where there are none.

        DamageError if they are not this record's, or were made in another ``environment``.
        """
        row = os.pread(self._file, self._width, HEADER + number * self._width)
        if not any(row):
            return None
        if _check(commitment, environment, row[:-CHECK]) != row[-CHECK:]:
            raise DamageError(
                f"{FEATURES}: row {number} is not the features of its record; run `s3t refresh` to make them anew"
            )
        return row[:-CHECK]

    def write(self, number: int, commitment: str, environment: Mapping[str, Any], features: bytes) -> None:
        """Write a row that was made in ``environment``; on disk only after :meth:`sync`."""
        self._put(number, features + _check(commitment, environment, features))

    def erase(self, number: int) -> None:
        """Overwrite a row with zeros; on disk only after :meth:`sync`."""
        self._put(number, bytes(self._width))

    def sync(self) -> None:
        """Have everything on disk. RunError if it is full."""
        with no_space(self._folder):
            os.fdatasync(self._file)

    def _put(self, number: int, content: bytes) -> None:
        start = HEADER + number * self._width
        with no_space(self._folder):
            while content:
                written = os.pwrite(self._file, content, start)
                start, content = start + written, content[written:]


def _header(size: int) -> bytes:
    return MAGIC + size.to_bytes(8, "big")


def _check(commitment: str, environment: Mapping[str, Any], features: bytes) -> bytes:
    about = canonical_json(environment) + b"\x00" + bytes.fromhex(commitment)
    return hashlib.sha256(b"s3t features v2\x00" + about + features).digest()[:CHECK]
