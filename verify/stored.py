"""The tensors of a node as they lie in the run folder, against the digests that the ledger holds of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from s3t.records import sha256
from verify import derive
from verify.report import Finding, Verdict
from verify.state import Node, State, node_name

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Stored:
    """A node's files as bytes, and their tensors named as a system serves them: ``adapter.*`` and ``head.*``."""

    adapter: bytes
    head: bytes
    tensors: Mapping[str, Tensor]


def read_stored(folder: Path, state: State, node: Node, check: str) -> tuple[Stored | None, list[Finding]]:
    """Return what is stored of a surviving ``node`` and what is wrong with it; None if a file cannot be read.

    None too, and UNDECIDED, for a node that does not serve and has a file that the ledger did not record: it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    survivor = state.survivors[node]
    home = folder / "nodes" / survivor.key
    idle = survivor not in [one for chain in state.chains for one in chain.nodes]
    adapter = "model" if state.plan.stages[len(node[1]) - 1].kind == "full" else "adapter_model"
    raw: dict[str, bytes] = {}
    tensors: dict[str, Tensor] = {}
    found: list[Finding] = []
    for part, file, recorded in (("adapter", adapter, survivor.tensors), ("head", "head", survivor.head)):
        try:
            raw[part] = (home / f"{file}.safetensors").read_bytes()
            read = load(raw[part])
        except (OSError, SafetensorError) as error:
            message = f"{file}.safetensors cannot be read ({type(error).__name__})"
            return None, [*found, Finding(check, Verdict.UNDECIDED, message, node_name(*node))]
        if idle and sha256(raw[part]) != survivor.files[f"{file}.safetensors"]:
            message = f"{file}.safetensors is not the file that the ledger recorded: its SHA-256 differs"
            return None, [*found, Finding(check, Verdict.UNDECIDED, message, node_name(*node))]
        if derive.tensors_digest(read) != recorded:
            message = f"the ledger's digest of its {part} is not that of the tensors in {file}.safetensors"
            found.append(Finding(check, Verdict.VIOLATED, message, node_name(*node)))
        tensors |= {f"{part}.{name}": tensor for name, tensor in read.items()}
    return Stored(raw["adapter"], raw["head"], tensors), found
