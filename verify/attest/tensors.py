"""Tensors of safetensors files by digest, read with numpy alone: names, dtypes, shapes, and whether all are finite.

Format: 8 bytes little-endian length, a JSON header, the raw bytes (huggingface/safetensors, README, "Format").
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from verify.attest import AttestError

DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
"""dtype in the file: (name as torch has it, bytes of one value)."""

BODY = {"lora": "adapter_model.safetensors", "full": "model.safetensors"}
HEAD = "head.safetensors"


@dataclass(frozen=True)
class Stored:
    """One stored tensor. ``sha256`` is of its raw little-endian bytes, row-major."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str
    finite: bool

    def subject(self) -> dict[str, Any]:
        """Return the in-toto subject that stands for the tensor."""
        return {
            "name": self.name,
            "digest": {"sha256": self.sha256},
            "annotations": {"dtype": self.dtype, "shape": list(self.shape)},
        }


@dataclass(frozen=True)
class Part:
    """What of one node serves: its key, its readable name, the kind of its stage, and which of its files."""

    key: str
    name: str
    kind: str
    body: bool
    head: bool

    def files(self) -> list[tuple[str, str]]:
        """Return (file, prefix of its tensors' names) of what serves."""
        body = [(BODY[self.kind], "adapter.")] if self.body else []
        return body + ([(HEAD, "head.")] if self.head else [])


def served_parts(stages: Sequence[Mapping[str, Any]], chain: Sequence[tuple[str, str]]) -> list[Part]:
    """Return the parts of a ``chain`` of (key, name). Of stages that continue one adapter only the last serves."""
    owner = {stage["adapter"]: i for i, stage in enumerate(stages[: len(chain)])}
    return [
        Part(key, name, stage["kind"], owner[stage["adapter"]] == i, i == len(chain) - 1)
        for i, (stage, (key, name)) in enumerate(zip(stages, chain, strict=False))
    ]


def node_name(shard: int, prefix: Iterable[int]) -> str:
    """Return a node's name in the served tensors, such as ``shard-01/2-0``."""
    return f"shard-{shard:02d}/{'-'.join(map(str, prefix))}"


def read_part(nodes: Path, part: Part, recorded: Mapping[str, str]) -> list[Stored]:
    """Return the served tensors of one node. AttestError for a file that is missing, damaged or not as recorded."""
    found: list[Stored] = []
    for file, prefix in part.files():
        path = nodes / part.key / file
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise AttestError(f"{file} of node {part.name} cannot be read ({error.strerror})") from error
        if hashlib.sha256(raw).hexdigest() != recorded.get(file):
            raise AttestError(
                f"{file} of node {part.name} is not the file that the ledger recorded: its SHA-256 differs"
            )
        found += parse(raw, f"{part.name}:{prefix}")
    return found


def parse(raw: bytes, prefix: str = "") -> list[Stored]:
    """Return the tensors of a safetensors file, sorted by name. AttestError unless its bytes are all accounted for."""
    try:
        length = int.from_bytes(raw[:8], "little")
        if len(raw) < 8 + length:
            raise ValueError(f"a header of {length} bytes does not fit")
        header = json.loads(raw[8 : 8 + length])
        header.pop("__metadata__", None)
        data, end = memoryview(raw)[8 + length :], 0
        found = []
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            start, stop = entry["data_offsets"]
            known, size = DTYPES[entry["dtype"]]
            shape = tuple(int(n) for n in entry["shape"])
            if start != end or stop - start != size * math.prod(shape) or stop > len(data):
                raise ValueError(f"the bytes of {name!r} are not where they belong")
            block, end = data[start:stop], stop
            digest = hashlib.sha256(block).hexdigest()
            found.append(Stored(prefix + name, known, shape, digest, _finite(block, known)))
        if end != len(data):
            raise ValueError("bytes follow the last tensor")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AttestError(f"a file of tensors is damaged ({type(error).__name__}: {error})") from error
    return sorted(found, key=lambda tensor: tensor.name)


def _finite(block: memoryview, dtype: str) -> bool:
    if dtype == "bfloat16":
        return bool(((np.frombuffer(block, dtype="<u2") & 0x7F80) != 0x7F80).all())
    if dtype.startswith("float"):
        return bool(np.isfinite(np.frombuffer(block, dtype=f"<f{int(dtype[5:]) // 8}")).all())
    return True
