"""Files of fixed width in a run folder, from docs/DERIVATION.md, "Run folder": `commitments` and `features.bin`.

Of features.bin one row is in memory at a time: which record's is there, and whether it is what its check says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3t.records import canonical_json
from verify.plans import declared_plan

LEAF = 32
"""Bytes of one commitment in the file `commitments`."""
FILE = "features.bin"
MAGIC = b"s3t feat"
HEADER = 16
"""Bytes before the first row: the magic, then how many features a record has (big-endian)."""
CHECK = 16
"""Bytes of a row's check, behind its features."""


@dataclass(frozen=True)
class FeatureRow:
    """The place of one training record in features.bin, by its ``tag``. ``zero``: nothing is there. ``sound``: its check is
    that of its bytes, the record's commitment, and the environment on record. ``digest``: SHA-256 of the features' bytes.
    """

    tag: str
    zero: bool
    sound: bool
    digest: str


def features_digest(raw: bytes) -> str:
    """Return the digest under which features (d little-endian int16) are compared, in hex."""
    return hashlib.sha256(raw).hexdigest()


def row_check(commitment: str, environment: Mapping[str, Any] | None, raw: bytes) -> bytes:
    """Return the check of a row: of its record's commitment (hex), where it was made, and the features' bytes."""
    about = canonical_json(environment) + b"\x00" + bytes.fromhex(commitment)
    return hashlib.sha256(b"s3t features v2\x00" + about + raw).digest()[:CHECK]


def read_features(
    folder: Path,
    run: Any,
    places: Sequence[tuple[str, str | None]],
    made: Mapping[str, Any] | None,
    problems: list[str],
) -> tuple[FeatureRow, ...]:
    """Return the rows of features.bin, one for each of ``places``: (tag, commitment) of the training records, in order.

    Nothing where the run declares no analytic head, or where the file is not there and need not be: ``made`` is the
    environment in which all features were, None if they were not. What is wrong with the file as a whole is added to
    ``problems``. RunError for a plan that cannot be read.
    """
    path = folder / FILE
    head = declared_plan(run).head if "head" in run["plan"] else None
    if head is None:
        return ()
    if not path.is_file():
        if made is not None:
            problems.append(f"{FILE} is missing: the ledger says that all features were made")
        return ()
    size = head.features(int(run["model"]["layers"]), int(run["model"]["hidden"]))
    stride = 2 * size + CHECK
    with path.open("rb") as file:
        if file.read(HEADER) != MAGIC + size.to_bytes(8, "big"):
            problems.append(f"{FILE} does not begin as it must, for {size} features")
            return ()
        if path.stat().st_size != HEADER + stride * len(places):
            problems.append(f"{FILE} has {path.stat().st_size} bytes, not {stride} for each of {len(places)} records")
            return ()
        return tuple(_row(tag, commitment, made, file.read(stride)) for tag, commitment in places)


def _row(tag: str, commitment: str | None, made: Mapping[str, Any] | None, raw: bytes) -> FeatureRow:
    features, check = raw[:-CHECK], raw[-CHECK:]
    try:
        sound = check == row_check(str(commitment), made, features)
    except ValueError:  # there is no commitment, or it is not hex
        sound = False
    return FeatureRow(tag, not any(raw), sound, features_digest(features))


def read_leaves(path: Path, rows: int | None, problems: list[str]) -> tuple[bytes, ...]:
    """Return the leaves in `commitments`, of which there must be ``rows`` where that is known."""
    if not path.is_file():
        problems.append("commitments is missing: nothing says what was committed to before training")
        return ()
    raw = path.read_bytes()
    leaves = tuple(raw[i : i + LEAF] for i in range(0, len(raw), LEAF))
    if len(raw) % LEAF or (rows is not None and rows != len(leaves)):
        problems.append(f"commitments holds {len(raw)} bytes, not {LEAF} for each of the {rows} rows committed to")
        return ()
    return leaves
