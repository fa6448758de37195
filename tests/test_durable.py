"""What is on the disk when a call returns: shown by which calls of fsync were made, and by a simulated loss of power."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3t.durable import make_folder, put, sync_folder, write_synced
from verify import power


def _kept(work: object, root: Path) -> dict[str, bytes | None]:
    """Return what is certainly on the disk after the work."""
    said = root.parent / "said"
    said.write_bytes(b"")
    cuts = power.recorded(work, root, said)  # type: ignore[arg-type]
    return {name: content for name, (_, content) in power.disk(cuts[-1]).items()}


def test_a_folder_is_kept_with_those_above_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    assert _kept(lambda: make_folder(root / "a" / "b"), root) == {"a": None, "a/b": None}
    make_folder(root / "c", 0o700)
    make_folder(root / "c")
    assert (root / "c").stat().st_mode & 0o777 == 0o700


def test_a_name_is_kept_by_its_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    assert _kept(lambda: write_synced(root / "a", b"1"), root) == {}

    def named() -> None:
        write_synced(root / "b", b"2")
        sync_folder(root)

    assert _kept(named, root)["b"] == b"2"


def test_a_file_is_put_whole_or_not_at_all(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a").write_bytes(b"old" * 500)
    said = tmp_path / "said"
    said.write_bytes(b"")
    cuts = power.recorded(lambda: put(root / "a", b"new" * 500), root, said)
    found = set()
    for cut in cuts:
        for seed in range(20):
            found.add(power.disk(cut, power.Random(seed))["a"][1])
    assert found == {b"old" * 500, b"new" * 500}
    assert {name: content for name, (_, content) in power.disk(cuts[-1]).items()} == {"a": b"new" * 500}


def test_a_put_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, target: Path) -> None:
        raise OSError("full")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="full"):
        put(tmp_path / "a", b"1")
    assert list(tmp_path.iterdir()) == []
