"""The contract: what an unlearning system is. Harness and verifier know nothing else.

A system is fitted once on records with stable ids, deletes by id, serves predictions that no deleted record influences,
can be refreshed (brought back to full strength on what is retained), says what its served models depend on, and
accounts for what it has spent. S3T and every baseline implement :class:`UnlearningSystem`; so can any third party.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from s3t.records import Inputs, Record

if TYPE_CHECKING:
    from torch import Tensor

Slot = tuple[int, int]
"""(shard, slice): the place of a record. A deletion drops whole slots."""

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what) as long work proceeds."""

Claim = Literal["non-interference", "retrained"]
"""What a system promises about its served models now.

``non-interference``: bit-identical for all data sets that agree outside the dropped slots (same seed).
``retrained``: additionally bit-identical to a system fitted from scratch on the retained records (same seed).
"""


@dataclass(frozen=True)
class Cost:
    """What was spent. Additive; every field is a count except the two in seconds.

    ``record_passes``: records processed in training, each epoch counted. ``layer_passes``: record passes times layers
    forward plus layers backward (SPEC section 4). ``forward_passes``: records put forward without training. ``bytes``:
    bytes of trained nodes written. ``down_seconds``: time after a deletion in which the part of the service that it hit
    could not serve because it was being retrained.
    """

    nodes: int = 0
    record_passes: int = 0
    layer_passes: int = 0
    optimizer_steps: int = 0
    forward_passes: int = 0
    bytes: int = 0
    seconds: float = 0.0
    down_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Cost)})

    def __sub__(self, other: Cost) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) - getattr(other, f.name) for f in fields(Cost)})


@dataclass(frozen=True)
class Receipt:
    """The acknowledgement of one deletion request; durable before it is returned.

    ``deleted``: ids removed by this request. ``already``: ids that an earlier request had removed. ``slots``: what was
    dropped. ``nodes_dropped``: keys of trained nodes that are no longer served and whose files are erased.
    ``offline``: shards without any chain that can serve after the request. ``cost``: spent by this request.
    """

    request: str
    deleted: tuple[str, ...]
    already: tuple[str, ...]
    slots: tuple[Slot, ...]
    nodes_dropped: tuple[str, ...]
    offline: tuple[int, ...]
    cost: Cost


@dataclass(frozen=True)
class NodeFacts:
    """One trained node behind what is served.

    ``reads``: ids of the records OBSERVED to be read while it trained, or None where the system did not observe.
    """

    name: str
    key: str
    shard: int
    prefix: tuple[int, ...]
    parent: str | None
    reads: frozenset[str] | None


@dataclass(frozen=True)
class ServedChain:
    """The model that one shard serves: its nodes from first to last stage and its weight in the ensemble."""

    shard: int
    order: int
    weight: float
    nodes: tuple[NodeFacts, ...]


@dataclass(frozen=True)
class Provenance:
    """What everything served now depends on. ``stray``: ids (or keyed tags of ids) read outside any node, if observed."""

    system: str
    claim: Claim
    chains: tuple[ServedChain, ...]
    offline: tuple[int, ...]
    stray: frozenset[str] | None = field(default=frozenset())


@runtime_checkable
class UnlearningSystem(Protocol):
    """An exact-unlearning system for classification."""

    def fit(self, records: Sequence[Record], progress: Progress | None = None) -> Cost:
        """Train on ``records`` (unique ids; DataError otherwise), continuing an interrupted fit. Returns what it spent."""

    def delete(self, ids: Sequence[str]) -> Receipt:
        """Delete all ``ids`` as one atomic request. RecordError for an unknown id, and then nothing has changed."""

    def predict(self, inputs: Sequence[Inputs]) -> NDArray[np.float32]:
        """Return scores of shape (len(inputs), classes). OfflineError when nothing can be served."""

    def refresh(self, progress: Progress | None = None) -> Cost:
        """Rebuild what deletions dropped, on retained records only. Returns what it spent."""

    def provenance(self) -> Provenance:
        """Say what is served now and what it depends on."""

    def weights(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Return every tensor used by :meth:`predict` beyond the frozen base model.

        Keyed by node name (as in :class:`NodeFacts`), then tensor name; the very tensors that serve, not copies on disk.
        """

    def cost(self) -> Cost:
        """Return everything spent so far, fit and deletions and refreshes together."""
