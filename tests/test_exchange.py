"""The shared store of a build and its workers: content by digest, a note before the first byte, erased by whoever is next."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from s3t import S3T
from s3t.backbone import Backbone
from s3t.errors import RunError
from s3t.exchange import NOTE, Exchange, erase_noted, noted
from s3t.executors.channels import Direct, Shared
from s3t.records import Layout, Recipe, Record
from s3t.system import System


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return (tmp_path / "place").as_uri() if request.param == "file" else f"memory://{tmp_path.name}"


def test_what_is_left_is_taken(tmp_path: Path, place: str) -> None:
    ours = Exchange.begin(place, tmp_path)
    assert noted(tmp_path) == (ours.url,) and ours.url.startswith(place)
    digest = ours.put(b"abc")
    assert digest == hashlib.sha256(b"abc").hexdigest() == ours.put(b"abc")
    assert Exchange(ours.url).get(digest) == b"abc"
    assert Exchange.begin(place, tmp_path).url != ours.url, "a build's own"


def test_both_channels_carry_the_bits(tmp_path: Path, place: str) -> None:
    tensors = {"a": torch.tensor([[1.0, -0.0], [float("inf"), 1e-40]]), "b": torch.zeros(3)}
    ours = Exchange.begin(place, tmp_path)
    for channel, other in ((Direct(), Direct()), (Shared(ours), Shared(Exchange(ours.url)))):
        there = other.receive(channel.send(tensors))  # type: ignore[arg-type]
        assert there.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert there[name].numpy().tobytes() == tensor.numpy().tobytes()


def test_what_was_changed_there_is_not_taken(tmp_path: Path) -> None:
    ours = Exchange.begin((tmp_path / "place").as_uri(), tmp_path)
    digest = ours.put(b"abc")
    (file,) = (tmp_path / "place").rglob(digest)
    file.write_bytes(b"abd")
    with pytest.raises(RunError, match="has other bytes than were left there"):
        ours.get(digest)
    with pytest.raises(RunError, match=r"cannot be read \("):
        ours.get("0" * 64)


def test_it_is_erased_then_its_note(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Exchange.begin(place, tmp_path)
    digest = ours.put(b"abc")

    def unreachable(self: Exchange) -> None:
        raise RunError("no network")

    with monkeypatch.context() as patch:
        patch.setattr(Exchange, "erase", unreachable)
        with pytest.raises(RunError, match="no network"):
            erase_noted(tmp_path)
        assert noted(tmp_path) == (ours.url,), "what could not be erased is still told of"
    erase_noted(tmp_path)
    assert noted(tmp_path) == ()
    with pytest.raises(RunError):
        Exchange(ours.url).get(digest)
    erase_noted(tmp_path)
    ours.erase()


@pytest.mark.parametrize("url", ["nonsense://place", "s3t-no-such-protocol:///x"])
def test_what_is_no_store(tmp_path: Path, url: str) -> None:
    with pytest.raises(RunError, match=r"the exchange at .* cannot be reached"):
        Exchange.begin(url, tmp_path)
    assert noted(tmp_path) == ()


def test_a_run_that_was_cut_short_erases_it(tmp_path: Path, tiny: Backbone) -> None:
    """By opening, by a deletion, and by the next build: all do what recovery does."""
    records = [Record(f"r{i:02d}", {"text": f"the cat sat on {i}"}, i % 2) for i in range(12)]
    common: Any = {"classes": ("a", "b"), "model": tiny, "recipe": Recipe(rank=2, epochs=1), "key": b"k" * 32}
    system = S3T(tmp_path / "run", Layout(2, 1, 1), allow_empty=True, **common)
    system.fit(records)
    ends = (
        lambda: system.delete([records[0].id]),
        system.refresh,
        lambda: System.open(tmp_path / "run", tiny).delete([records[1].id]),
    )
    for end in ends:
        left = Exchange.begin((tmp_path / "place").as_uri(), tmp_path / "run")
        left.put(b"tensors")
        assert system.status().stores[-1] == left.url
        end()
        assert not any((tmp_path / "place").rglob("*")) and not (tmp_path / "run" / NOTE).exists()
