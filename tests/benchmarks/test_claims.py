"""results/claims.toml: every derived value is what theory gives, every measured one is in a committed row."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.claims import derive, find, read_claims
from benchmarks.rows import read
from s3t.errors import DataError


def test_every_column_holds(root: Path) -> None:
    claims, rows = read_claims(root / "results" / "claims.toml"), read(root / "results" / "rows")
    assert len(claims) >= 6 and len({claim.name for claim in claims}) == len(claims)
    for claim in claims:
        assert claim.source and claim.reported and (claim.derived or claim.measured), claim.name
        if claim.derived:
            assert derive(claim.derived) == pytest.approx(claim.derived["value"], rel=1e-6), claim.name
        for told in filter(None, (claim.measured, claim.against)):
            assert (root / "results" / "rows" / told["file"]).exists(), "one row set, whatever is measured later"
            assert find(told, rows) == pytest.approx(told["value"], rel=1e-6, abs=1e-9), claim.name


def test_what_cannot_be_read_or_found(root: Path, tmp_path: Path) -> None:
    (tmp_path / "claims.toml").write_text('[[claim]]\nname = "x"\nsaid = "y"\n')
    with pytest.raises(DataError, match="cannot be read as claims"):
        read_claims(tmp_path / "claims.toml")
    with pytest.raises(DataError, match="cannot be read as claims"):
        read_claims(tmp_path / "none.toml")
    with pytest.raises(DataError, match="has no function 'luck'"):
        derive({"function": "luck", "arguments": []})
    with pytest.raises(DataError, match="no committed row is"):
        find({"question": "cost", "metric": "luck", "value": 1.0}, read(root / "results" / "rows"))
