"""The scan, word for word: what exactly each stray file, folder, link or table makes it say, and nothing beside it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from verify.report import Verdict
from verify.scan import check_scan, damaged, file_digest, walk
from verify.state import Survivor

V, U, H = "VIOLATED", "UNDECIDED", "HOLDS"
UNKNOWN = "is unknown: no declared file or surviving node accounts for it"
NOTHING = "nothing declared or surviving accounts for it"


def told(run: Any) -> list[tuple[str, str, Any]]:
    found = check_scan(*run.read())
    assert {(f.check, f.tensor) for f in found} == {("E0 scan", "")}
    return [(f.verdict.value, f.message, f.details.get("path")) for f in found]


def first(run: Any) -> str:
    return f"nodes/{sorted(path.name for path in (run.folder / 'nodes').iterdir())[0]}"


def write(name: str, text: str = "x") -> Callable[[Any], Any]:
    return lambda run: (run.folder / name.format(first(run))).write_text(text)


STRAY: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "log": (write("train.log"), "train.log", UNKNOWN),
    "hidden": (write(".cache"), ".cache", UNKNOWN),
    "in a node": (write("{}/merged.bin"), "{}/merged.bin", UNKNOWN),
    "beside nodes": (write("nodes/x.tmp"), "nodes/x.tmp", UNKNOWN),
    "folder": (lambda run: (run.folder / "old").mkdir(), "old", f"is an unknown folder: {NOTHING}"),
    "like nodes": (lambda run: (run.folder / "node").mkdir(), "node", f"is an unknown folder: {NOTHING}"),
    "no node": (
        lambda run: (run.folder / "nodes" / "0").mkdir(),
        "nodes/0",
        f"is a dropped or unknown node: {NOTHING}",
    ),
    "edited": (
        write("{}/head.safetensors"),
        "{}/head.safetensors",
        "is not the file that the ledger recorded: its SHA-256 differs",
    ),
    "reads edited": (
        write("{}/reads.json", "[]"),
        "{}/reads.json",
        "is not the file that the ledger recorded: its SHA-256 differs",
    ),
    "link": (
        lambda run: (run.folder / "more").symlink_to(run.folder.parent),
        "more",
        "is a link; a run folder holds plain files",
    ),
}


@pytest.mark.parametrize("name", STRAY)
def test_each_stray_says_exactly_this(forge: Callable[..., Any], name: str) -> None:
    spoil, place, message = STRAY[name]
    run = forge()
    spoil(run)
    where = place.format(first(run))
    shown = where + "/" * (": nothing" in message)
    assert told(run) == [(V, f"{shown} {message}", where)]


def test_a_file_that_differs_is_damage_where_its_node_does_not_serve(forge: Callable[..., Any]) -> None:
    run = forge()
    differs = "is not the file that the ledger recorded: its SHA-256 differs"
    idle, live = run.trained[0, (1,)], run.trained[0, (0,)]
    for key in (idle, live):
        (run.folder / "nodes" / key / "head.safetensors").write_text("x")
    evidence, state = run.read()
    serving = {node.key for one in state.chains for node in one.nodes}
    found = {f.details["path"]: (f.verdict.value, f.message) for f in check_scan(evidence, state, serving)}
    names = [f"nodes/{key}/head.safetensors" for key in (idle, live)]
    again = f"{names[0]} {differs}; its node does not serve, and `s3t refresh` makes it anew"
    assert found == {names[0]: (U, again), names[1]: (V, f"{names[1]} {differs}")}
    assert {f.verdict.value for f in check_scan(evidence, state)} == {V}
    (run.folder / "nodes" / idle / "more").write_text("x")
    assert (V, f"nodes/{idle}/more {UNKNOWN}") in [
        (f.verdict.value, f.message) for f in check_scan(evidence, state, serving)
    ]


def test_damaged_nodes_and_the_first_file_of_each(forge: Callable[..., Any]) -> None:
    run = forge()
    evidence, state = run.read()
    assert damaged(evidence, state) == {}
    for name in ("head.safetensors", "reads.json"):
        (run.folder / "nodes" / run.trained[0, (1,)] / name).unlink()
    (run.folder / "nodes" / run.trained[1, (0, 1)] / "reads.json").write_text("[]")
    assert damaged(evidence, state) == {
        (0, (1,)): f"nodes/{run.trained[0, (1,)]}/head.safetensors is missing",
        (1, (0, 1)): f"nodes/{run.trained[1, (0, 1)]}/reads.json "
        "is not the file that the ledger recorded: its SHA-256 differs",
    }


def test_what_lies_in_an_unknown_folder_is_named_as_well(forge: Callable[..., Any]) -> None:
    run = forge()
    (run.folder / "old" / "deep").mkdir(parents=True)
    (run.folder / "old" / "deep" / "a").write_text("")
    assert [path for _, _, path in told(run)] == ["old", "old/deep", "old/deep/a"]


def test_a_clean_run_is_counted_and_side_files_of_sqlite_are_known(forge: Callable[..., Any]) -> None:
    run = forge(shards=1, slices=1, budget=1)
    assert told(run) == [
        (H, "10 files: all declared, of surviving nodes, and as recorded; nothing else is there", None)
    ]
    (found,) = check_scan(*run.read())
    assert found.details == {"files": 10}
    for name in ("ledger.sqlite-wal", "ledger.sqlite-shm", "ledger.sqlite-journal"):
        read = run.read()
        (run.folder / name).write_bytes(b"")
        (found,) = check_scan(*read)
        assert (found.verdict, found.details) == (Verdict.HOLDS, {"files": 11})
        (run.folder / name).unlink()
    for end in ("-wal", "-shm", "-journal"):
        read = run.read()
        (run.folder / f"records.sqlite{end}").write_bytes(b"")
        (found,) = check_scan(*read)
        assert (found.verdict, found.details) == (Verdict.VIOLATED, {"path": f"records.sqlite{end}"})
        (run.folder / f"records.sqlite{end}").unlink()


def test_every_fixed_file_is_expected(forge: Callable[..., Any]) -> None:
    run = forge(shards=1, slices=1, budget=1)
    for name in ("run.json", "secret.key", "commitments", "records.bin"):
        read = run.read()
        kept = (run.folder / name).read_bytes()
        (run.folder / name).unlink()
        (found,) = check_scan(*read)
        assert (found.check, found.verdict, found.message) == ("E0 scan", Verdict.UNDECIDED, f"{name} is missing")
        assert found.details == {"path": name}
        (run.folder / name).write_bytes(kept)


def test_missing_files_are_named_in_order(forge: Callable[..., Any]) -> None:
    run = forge(shards=1, slices=1, budget=1)
    for name in ("reads.json", "head.safetensors"):
        (run.folder / first(run) / name).unlink()
    assert told(run) == [
        (U, f"{first(run)}/head.safetensors is missing", f"{first(run)}/head.safetensors"),
        (U, f"{first(run)}/reads.json is missing", f"{first(run)}/reads.json"),
    ]


def test_a_half_made_run_beside_the_folder(forge: Callable[..., Any]) -> None:
    run = forge()
    name = f".{run.folder.name}.partial"
    (run.folder.parent / name).write_text("")
    assert told(run) == [(V, f"{name} beside the run is a half-made run, with all its records", name)]


def test_files_that_no_node_has_whatever_the_ledger_says(forge: Callable[..., Any]) -> None:
    run = forge(shards=1, slices=1, budget=1)
    body = dict(run.read()[0].entries[1].body)
    names = ["zz.bin", "cache.bin"]
    for name in names:
        (run.folder / first(run) / name).write_bytes(b"")
    files = dict(body["files"]) | dict.fromkeys(names, hashlib.sha256(b"").hexdigest())
    run.enter("train", body | {"files": files})
    (found,) = check_scan(*run.read())
    assert (found.check, found.verdict, found.node) == ("E0 scan", Verdict.VIOLATED, "shard 0, slices 0")
    assert found.message == "the ledger gives it the file 'cache.bin', which no node has"


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("lora", ("adapter_config.json", "adapter_model.safetensors", "head.safetensors", "reads.json")),
        ("full", ("model.safetensors", "head.safetensors", "reads.json")),
    ],
)
def test_each_kind_of_node_has_its_files(forge: Callable[..., Any], kind: str, names: tuple[str, ...]) -> None:
    run = forge(shards=1, slices=1, budget=1, method=f"retrain-{kind}")
    evidence, state = run.read()
    (node,) = state.survivors.values()
    home = run.folder / "nodes" / node.key
    for path in home.iterdir():
        path.unlink()
    digests = {}
    for name in names:
        (home / name).write_text(name)
        digests[name] = file_digest(home / name)
    known = dataclasses.replace(node, files=digests, reads=digests["reads.json"])
    state = dataclasses.replace(state, survivors={(0, (0,)): known})
    assert [f.verdict for f in check_scan(evidence, state)] == [Verdict.HOLDS]


def test_a_node_deeper_than_the_plan_is_left_to_the_lineage(forge: Callable[..., Any]) -> None:
    run = forge(shards=1, slices=1, budget=1)
    evidence, state = run.read()
    deep = Survivor(9, "deep", 0, (0, 1), None, "", "", "", {"odd.bin": ""}, {})
    other = dataclasses.replace(next(iter(state.survivors.values())), files={"odd.bin": ""})
    state = dataclasses.replace(state, survivors={(0, (0, 1)): deep, (1, (0,)): other})
    named = [f.node for f in check_scan(evidence, state) if "which no node has" in f.message]
    assert named == ["shard 1, slices 0"]


def test_tables(forge: Callable[..., Any]) -> None:
    run = forge()
    run.store.execute("CREATE TABLE zz(x)")
    run.store.execute("CREATE TABLE losses(x INTEGER PRIMARY KEY AUTOINCREMENT)")
    run.store.execute("CREATE TABLE tombstones(tag)")
    run.ledger.execute("CREATE VIEW names AS SELECT 1")
    run.ledger.execute("CREATE TABLE hits(x)")
    assert told(run) == [
        (V, "ledger.sqlite holds an unknown table 'names'", "ledger.sqlite"),
        (V, "records.sqlite holds an unknown table 'losses'", "records.sqlite"),
        (V, "records.sqlite holds an unknown table 'tombstones'", "records.sqlite"),
        (V, "records.sqlite holds an unknown table 'zz'", "records.sqlite"),
    ]


def test_the_index_of_records_has_the_declared_columns_alone(forge: Callable[..., Any]) -> None:
    run = forge()
    run.store.execute("ALTER TABLE records ADD COLUMN text TEXT")
    run.store.execute("ALTER TABLE records ADD COLUMN id TEXT")
    run.ledger.execute("ALTER TABLE entries ADD COLUMN note TEXT")
    assert told(run) == [
        (V, "records.sqlite holds an unknown column 'id'", "records.sqlite"),
        (V, "records.sqlite holds an unknown column 'text'", "records.sqlite"),
    ]


def test_the_index_of_tombstones(forge: Callable[..., Any]) -> None:
    run = forge()
    run.ledger.execute("CREATE TABLE tombstones(tag TEXT, seq INTEGER)")
    run.ledger.commit()
    assert [v for v, _, _ in told(run)] == [H]
    run.delete("row-000", "row-001")
    message = "the ledger's table of tombstones holds {}, its requests name 2"
    assert told(run) == [(V, message.format(0), "ledger.sqlite")]
    tags = sorted(run.read()[1].tombstones)
    run.ledger.execute("INSERT INTO tombstones VALUES(?, 1)", (tags[0],))
    run.ledger.commit()
    assert told(run) == [(V, message.format(1), "ledger.sqlite")]
    run.ledger.execute("INSERT INTO tombstones VALUES(?, 1)", (tags[1],))
    run.ledger.commit()
    assert [v for v, _, _ in told(run)] == [H]


def test_the_walk_is_sorted_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "z").write_text("")
    (tmp_path / "b" / "a").write_text("")
    (tmp_path / "a").write_text("")
    (tmp_path / "c").symlink_to(tmp_path / "b")
    assert [(path.relative_to(tmp_path).as_posix(), kind) for path, kind in walk(tmp_path)] == [
        ("a", "file"),
        ("b", "folder"),
        ("b/a", "file"),
        ("b/z", "file"),
        ("c", "link"),
    ]


def test_a_run_without_nodes_keeps_its_empty_folder(forge: Callable[..., Any]) -> None:
    run = forge(shards=1, slices=1, budget=1)
    run.delete("row-000")
    assert list((run.folder / "nodes").iterdir()) == []
    assert told(run) == [(H, "6 files: all declared, of surviving nodes, and as recorded; nothing else is there", None)]


def test_the_kind_of_a_node_is_that_of_its_own_stage(forge: Callable[..., Any]) -> None:
    run = forge(shards=1, slices=2, budget=1)
    evidence, state = run.read()
    full = dataclasses.replace(state.plan.stages[1], kind="full")
    plan = dataclasses.replace(state.plan, stages=(state.plan.stages[0], full))
    named = [
        (f.node, f.message)
        for f in check_scan(evidence, dataclasses.replace(state, plan=plan))
        if "which no node has" in f.message
    ]
    odd = "the ledger gives it the file 'adapter_config.json', which no node has"
    assert named == [("shard 0, slices 0-1", odd)]
