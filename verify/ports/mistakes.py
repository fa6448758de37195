"""The known mistakes of two reference implementations, as switches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class S3TMistakes:
    """Of the reference implementation of S3T (arXiv 2406.16257); all off is the clean system.

    ``substring_layers``: the layers of a block are matched by a piece of their name. ``rewrapped``: wrapping the model anew
    for a stage sets the adapters of the earlier ones to zero. ``first_listed``: of a shard the first chain in the folder's
    listing serves. ``best_on_test``: the epoch with the lowest loss on the test split is kept. ``capped_budget``: a budget
    above the number of slices is cut to it, silently. ``unseeded``: adapters and head are initialised before any seed is set.
    ``retried_batches``: a batch that does not fit in memory halves the batch size from then on. ``listed_only``: a deletion
    writes the id into a list and changes nothing else on disk.
    """

    substring_layers: bool = False
    rewrapped: bool = False
    first_listed: bool = False
    best_on_test: bool = False
    capped_budget: bool = False
    unseeded: bool = False
    retried_batches: bool = False
    listed_only: bool = False


@dataclass(frozen=True)
class SISAMistakes:
    """Of the reference implementation of SISA (arXiv 1912.03817); all off is the clean system.

    ``key_without_seed``, ``key_without_recipe``: the cache key covers neither. ``key_without_last_rows``: the key covers whole
    batches of rows only, not the rows left over at the end. ``link_kept``: a link that exists cannot be made anew, and the
    failure is passed over. ``requests_overwritten``: the list of requests is overwritten by one drawn uniformly.
    """

    key_without_seed: bool = False
    key_without_recipe: bool = False
    key_without_last_rows: bool = False
    link_kept: bool = False
    requests_overwritten: bool = False
