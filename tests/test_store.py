"""The store of nodes: whole or not at all, checked by digest, one error when the disk is full."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from s3t import store as store_module
from s3t.errors import RunError
from s3t.store import NodeStore, no_space, tensor_bytes

FILES = {"a.bin": b"alpha", "b.bin": b"beta" * 1000}


def _nothing() -> None:
    pass


@pytest.fixture
def store(tmp_path: Path) -> NodeStore:
    return NodeStore(tmp_path)


def _digest(name: str) -> str:
    return hashlib.sha256(FILES[name]).hexdigest()


def test_bytes_are_counted_while_others_remove_files(store: NodeStore) -> None:
    ended = threading.Event()

    def churn() -> None:
        while not ended.is_set():
            store.write("k", FILES, _nothing)
            store.erase({"k"})

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        found = {store.bytes() for _ in range(1000)}
    finally:
        ended.set()
        thread.join()
    assert found <= {0, 5, 4000, 4005}, found


def test_a_node_is_there_whole_when_the_ledger_is_told(store: NodeStore) -> None:
    seen: list[dict[str, bytes]] = []

    def before_commit() -> None:
        seen.append({path.name: path.read_bytes() for path in (store.root / "k").iterdir()})

    store.write("k", FILES, before_commit)
    assert seen == [FILES]
    assert store.keys() == {"k"}
    assert store.read("k", "a.bin", _digest("a.bin")) == b"alpha"
    assert store.bytes() == 4005


def test_files_and_folder_are_synchronised_before_the_rename(store: NodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def named(handle: int) -> None:
        done.append("sync " + Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def renamed(self: Path, target: Path) -> Path:
        done.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", named)
    monkeypatch.setattr(Path, "rename", renamed)
    store.write("k", FILES, lambda: done.append("ledger"))
    root = store.root.name
    assert done == ["sync a.bin", "sync b.bin", "sync .partial-k", "rename", f"sync {root}", "ledger"]


class Full:
    """A disk that is full at the n-th operation of writing a node."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, code: int) -> None:
        self.left = at
        for owner, name in (
            (Path, "mkdir"),
            (store_module, "write_synced"),
            (store_module, "sync_folder"),
            (Path, "rename"),
        ):
            patch.setattr(owner, name, self._failing(getattr(owner, name), code))

    def _failing(self, real: Any, code: int) -> Any:
        def step(*args: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                if real.__name__ == "write_synced":
                    args[0].write_bytes(args[1][:2])
                raise OSError(code, os.strerror(code))
            return real(*args, **options)

        return step


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("at", range(1, 7))
def test_a_full_disk_leaves_nothing_half_written(
    store: NodeStore, monkeypatch: pytest.MonkeyPatch, at: int, code: int
) -> None:
    store.write("old", FILES, _nothing)
    with monkeypatch.context() as patch:
        full = Full(patch, at, code)
        with pytest.raises(RunError, match=r"no space left for the run \(\d+ bytes free\).*what is finished is kept"):
            store.write("k", FILES, lambda: pytest.fail("the ledger was told"))
        assert full.left == 0
    assert store.keys() == {"old"}
    store.write("k", FILES, _nothing)
    assert store.read("k", "b.bin", _digest("b.bin")) == FILES["b.bin"]


def test_other_faults_of_the_disk_are_not_called_full() -> None:
    with pytest.raises(PermissionError), no_space(Path()):
        raise PermissionError(errno.EACCES, "denied")


def test_what_the_ledger_refuses_is_undone(store: NodeStore) -> None:
    def refuse() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write("k", FILES, refuse)
    assert store.keys() == set()


def test_a_half_written_node_of_before_is_replaced(store: NodeStore) -> None:
    for name in (".partial-k", "k"):
        (store.root / name).mkdir()
        (store.root / name / "residue").write_bytes(b"x")
    store.write("k", FILES, _nothing)
    assert store.keys() == {"k"}
    assert {path.name for path in (store.root / "k").iterdir()} == set(FILES)


def test_damaged_or_lost_files_are_refused(store: NodeStore) -> None:
    store.write("k", FILES, _nothing)
    for position in (0, 4):
        damaged = bytearray(b"alpha")
        damaged[position] ^= 1
        (store.root / "k" / "a.bin").write_bytes(damaged)
        with pytest.raises(RunError, match=r"node k: a.bin has sha256 .* the ledger says .* run `s3t refresh`"):
            store.read("k", "a.bin", _digest("a.bin"))
    (store.root / "k" / "a.bin").unlink()
    with pytest.raises(RunError, match=r"node k has lost its file a.bin \(No such file"):
        store.read("k", "a.bin", _digest("a.bin"))


def test_erase_takes_folders_files_and_what_is_gone(store: NodeStore) -> None:
    for key in ("k1", "k2", "k3"):
        store.write(key, FILES, _nothing)
    (store.root / "loose").write_bytes(b"x")
    store.erase({"k1", "k2", "loose", "never"})
    assert store.keys() == {"k3"}
    store.erase(set())
    assert store.keys() == {"k3"}


def test_two_processes_may_erase_the_same_node(store: NodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write("k", FILES, _nothing)
    rmtree, calls = store_module.shutil.rmtree, []

    def overtaken(path: Path) -> None:
        calls.append(path)
        (path / "a.bin").unlink(missing_ok=True)
        if len(calls) == 1:
            raise FileNotFoundError(path / "a.bin")
        rmtree(path)

    monkeypatch.setattr(store_module.shutil, "rmtree", overtaken)
    store.erase({"k"})
    assert store.keys() == set()
    assert len(calls) == 2


def test_tensors_keep_every_bit(store: NodeStore) -> None:
    tensors = {"w": torch.tensor([[1.5, -0.0], [float("nan"), 1e-45]]), "i": torch.arange(3)}
    content = tensor_bytes(tensors)
    store.write("k", {"t.safetensors": content}, _nothing)
    found = store.tensors("k", "t.safetensors", hashlib.sha256(content).hexdigest())
    stock = load_file(store.root / "k" / "t.safetensors")
    for name, tensor in tensors.items():
        for other in (found[name], stock[name]):
            assert other.dtype == tensor.dtype
            assert other.numpy().tobytes() == tensor.numpy().tobytes()
