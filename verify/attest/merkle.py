"""Inclusion and consistency proofs of RFC 6962, section 2.1, over the digests of ledger entries. Standard library alone.

A leaf is the 32 raw bytes of an entry's digest; the tree of size n covers entries 1 to n. Verification follows RFC 9162,
sections 2.1.3.2 and 2.1.4.2. Proofs are lists of hex digests, lowest level first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from verify.derive import merkle_root


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _split(width: int) -> int:
    return 1 << ((width - 1).bit_length() - 1)


def prove_inclusion(leaves: Sequence[bytes], index: int) -> list[str]:
    """Return PATH(index, leaves), ``index`` from 0."""
    if len(leaves) <= 1:
        return []
    k = _split(len(leaves))
    if index < k:
        return [*prove_inclusion(leaves[:k], index), merkle_root(leaves[k:])]
    return [*prove_inclusion(leaves[k:], index - k), merkle_root(leaves[:k])]


def prove_consistency(leaves: Sequence[bytes], first: int) -> list[str]:
    """Return PROOF(first, leaves): the tree of the first ``first`` leaves is the beginning of the whole one."""
    return _subproof(leaves, first, True) if first < len(leaves) else []


def _subproof(leaves: Sequence[bytes], first: int, whole: bool) -> list[str]:
    if first == len(leaves):
        return [] if whole else [merkle_root(leaves)]
    k = _split(len(leaves))
    if first <= k:
        return [*_subproof(leaves[:k], first, whole), merkle_root(leaves[k:])]
    return [*_subproof(leaves[k:], first - k, False), merkle_root(leaves[:k])]


def includes(leaf: bytes, index: int, size: int, path: Sequence[str], root: str) -> bool:
    """Say whether ``path`` proves that ``leaf`` is at ``index`` (from 0) of the tree of ``size`` leaves with ``root``."""
    if not 0 <= index < size:
        return False
    fn, sn, found = index, size - 1, hashlib.sha256(b"\x00" + leaf).digest()
    for step in map(bytes.fromhex, path):
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            found = _node(step, found)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            found = _node(found, step)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and found.hex() == root


def extends(first: int, second: int, path: Sequence[str], old: str, new: str) -> bool:
    """Say whether ``path`` proves that the tree of size ``second`` (root ``new``) begins with that of ``first`` (``old``)."""
    if not 0 < first <= second:
        return False
    if first == second:
        return not path and old == new
    steps = [bytes.fromhex(step) for step in path]
    if first & (first - 1) == 0:
        steps = [bytes.fromhex(old), *steps]
    if not steps:
        return False
    fn, sn = first - 1, second - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    before = after = steps[0]
    for step in steps[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            before, after = _node(step, before), _node(step, after)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            after = _node(after, step)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and before.hex() == old and after.hex() == new
