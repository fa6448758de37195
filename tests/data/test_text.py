"""The parsers, on small files of each format; with ``-m packs`` the real packs, counted once and held to it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from s3t.data.fetch import cache_folder
from s3t.data.packs import PACKS
from s3t.data.splits import carve_validation, three_way
from s3t.data.text import TREC_FIRST, parse
from s3t.errors import DataError
from s3t.records import Dataset, Record


def every(data: Dataset) -> list[Record]:
    return sorted((*data.train, *data.validation, *data.test), key=lambda record: record.id)


def content(data: Dataset) -> list[tuple[str, object, str]]:
    return [(record.id, record.inputs["text"], data.classes[record.label]) for record in every(data)]


def test_trec_starts_where_the_whole_set_starts_and_keeps_first_questions(tmp_path: Path) -> None:
    lines = ["DESC:manner Left out ?"] * TREC_FIRST + [
        "DESC:manner How ?",
        "HUM:ind Who is caf\xe9 ?",
        "DESC:def How ?",
        "ENTY:animal ",
        "LOC:other Where : here ?",
        "",
    ]
    (tmp_path / "question_labels.txt").write_text("\n".join(lines), encoding="latin-1")
    data = parse(PACKS["trec6"], tmp_path)
    assert content(data) == [
        ("trec6-10000", "How ?", "DESC"),
        ("trec6-10001", "Who is café ?", "HUM"),
        ("trec6-10004", "Where : here ?", "LOC"),
    ]
    assert data.classes == ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")


def test_an_undeclared_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "question_labels.txt").write_text("\n" * TREC_FIRST + "WHAT:ever Is it ?")
    with pytest.raises(DataError, match="undeclared class 'WHAT' at trec6-10000"):
        parse(PACKS["trec6"], tmp_path)


def test_rated_snippets_have_the_sign_of_their_mean_rating(tmp_path: Path) -> None:
    lines = ["1\t2.5\tGood.", "2\t0.0\tSo so.", "3\t-0.1\tBad\tindeed \x85 yes.", "4\t1.0\t ", ""]
    (tmp_path / "tweets_GroundTruth.txt").write_bytes("\r\n".join(lines).encode())
    assert content(parse(PACKS["tweets"], tmp_path)) == [
        ("tweets-00000", "Good.", "positive"),
        ("tweets-00002", "Bad\tindeed \x85 yes.", "negative"),
    ]


def test_tables_have_three_header_rows_and_their_own_test_file(tmp_path: Path) -> None:
    body = "".join(f"{'earn' if i % 2 else 'acq'}\twords {i}\n" for i in range(100))
    long = f"ship\t{'x' * 200_000}\ngrain\t\n"
    for part, text in (("train", body), ("test", long)):
        (tmp_path / f"reuters-r8-{part}.tab").write_text(f"Category\tText\nd\tstring\nclass\t\n\n{text}")
    data = parse(PACKS["r8"], tmp_path)
    names = [f"r8-train-{i:05d}" for i in range(1, 101)]
    assert [record.id for record in data.train] == [name for name in names if carve_validation(name) == "train"]
    assert [record.id for record in data.validation] == [
        name for name in names if carve_validation(name) == "validation"
    ]
    assert [(record.id, len(record.inputs["text"]), record.label) for record in data.test] == [
        ("r8-test-00001", 200_000, 6)
    ]
    assert {data.classes[record.label] for record in data.train} == {"acq", "earn"}


def test_an_id_alone_decides_a_records_split(tmp_path: Path) -> None:
    (tmp_path / "tweets_GroundTruth.txt").write_text("".join(f"{i}\t1\tt{i}\n" for i in range(300)))
    data = parse(PACKS["tweets"], tmp_path)
    for split in ("train", "validation", "test"):
        records = getattr(data, split)
        assert records
        assert {three_way(record.id) for record in records} == {split}


MEASURED: dict[str, tuple[str, dict[str, list[int]]]] = {
    "trec6": (
        "a9235cefa4a9fbfa89e730532ba7bc7fe361855696a8cf92a7cd623b964ec631",
        {
            "train": [67, 933, 1004, 971, 647, 698],
            "validation": [10, 109, 118, 115, 81, 81],
            "test": [9, 111, 123, 129, 96, 79],
        },
    ),
    "newsgroups": (
        "791abab7f508eb731855813aa7a8572f1a2324b5bef09eeb84fcd8f8b20a572e",
        {
            "train": [
                441,
                536,
                518,
                535,
                515,
                532,
                519,
                534,
                543,
                532,
                536,
                542,
                530,
                537,
                542,
                548,
                495,
                517,
                410,
                347,
            ],
            "validation": [39, 48, 54, 55, 63, 61, 66, 60, 55, 65, 64, 53, 61, 57, 51, 50, 50, 47, 55, 30],
            "test": [
                319,
                389,
                394,
                392,
                385,
                392,
                390,
                395,
                398,
                397,
                399,
                396,
                393,
                396,
                394,
                398,
                364,
                376,
                310,
                251,
            ],
        },
    ),
    "r8": (
        "07839c0967b2a1a3c6b14852e4a0279fd071cd4f5828eb8610c0f87d0c2411a9",
        {
            "train": [1419, 229, 2564, 36, 168, 178, 101, 228],
            "validation": [177, 24, 276, 5, 22, 28, 7, 23],
            "test": [696, 121, 1083, 10, 81, 87, 36, 75],
        },
    ),
    "movies": (
        "01210d6b72e910a0b1b74c2fd9470be28436e964eef08ee129c80575e769a038",
        {"train": [4319, 4204], "validation": [505, 510], "test": [502, 528]},
    ),
    "tweets": (
        "b8d97a55fff4757344559c274a4c4d324d0909def3fdd782bd8f8f15e7a1a44c",
        {"train": [1045, 2330], "validation": [125, 262], "test": [129, 305]},
    ),
}


def in_cache(name: str) -> Path:
    folder = cache_folder() / f"{name}-{PACKS[name].version}"
    if not folder.is_dir():
        pytest.skip(f"pack {name} is not in the cache: s3t fetch {name}")
    return folder


@pytest.mark.packs
@pytest.mark.parametrize("name", list(MEASURED))
def test_a_real_pack_has_the_measured_records(name: str) -> None:
    from s3t.data import load

    in_cache(name)
    data = load(name)
    digest, counts = MEASURED[name]
    for split, expected in counts.items():
        found = Counter(record.label for record in getattr(data, split))
        assert [found[label] for label in range(len(data.classes))] == expected, split
    assert data.digest == digest


@pytest.mark.packs
@pytest.mark.parametrize(("name", "layers", "hidden"), [("minilm", 6, 384), ("mpnet", 12, 768)])
def test_a_real_model_is_a_folder_with_its_sizes(name: str, layers: int, hidden: int) -> None:
    import json

    from s3t.data import model_source

    in_cache(name)
    folder = Path(model_source(name))
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"]) == (layers, hidden)
    assert {path.name for path in folder.iterdir()} == {member.file for member in PACKS[name].files}
