"""The error tree: every fault of a user raises one of these, with value, bound and remedy.

``exit_code`` is what the command line exits with. 1 and 3 belong to the verifier (violated, undecided).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class S3TError(Exception):
    """Root of all errors that S3T raises on purpose."""

    exit_code = 2


class LayoutError(S3TError):
    """Shards, slices, budget, orders or blocks that cannot exist."""


class RecipeError(S3TError):
    """A hyper-parameter out of range, or an unknown key in a configuration."""


class DataError(S3TError):
    """Training data that cannot be read as declared: columns, duplicate ids, labels, digests."""


class RecordError(S3TError):
    """A request that names a record which this system does not hold."""


class ModelError(S3TError):
    """A base model that is unknown, has no known family, or differs from its pinned digest."""


class RunError(S3TError):
    """A run folder that cannot be used: missing, half-written, of another version, damaged, or full."""


class DamageError(RunError):
    """A file of a trained node that is missing or not what the ledger says; a refresh makes it anew."""


class BusyError(RunError):
    """Another process holds the run's build lock."""


class OfflineError(S3TError):
    """No shard has a surviving chain: there is nothing left to serve until a refresh."""


class ServiceError(S3TError):
    """A service that cannot start: an address, a limit or a token file that will not do."""


class HubError(S3TError):
    """The hub did not take an upload: no connection, no token, or no right to that name."""


class DivergedError(S3TError):
    """Training met a gradient that is not finite. Nothing was stored."""


class IsolationError(S3TError):
    """A stage changed, or was about to change, a tensor that is not its own. Nothing was stored."""

    exit_code = 1


def did_you_mean(value: object, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest known word, or an empty string: also for what is no word at all."""
    close = difflib.get_close_matches(value, list(known), n=1) if isinstance(value, str) else []
    return f" (did you mean {close[0]!r}?)" if close else ""
