"""The command line end to end on a tiny random model, and every bad input that goes through it: one line, exit 2."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from command_line import said

from s3t.errors import IsolationError
from s3t.partition import slot
from s3t.records import sha256
from s3t.runs import open_run
from s3t.system import System

Row = dict[str, str]
Copied = tuple[Path, tuple[str | Path, ...], str]
SMALL = ("--model", "tiny", "--epochs", "1", "--rank", "2", "--batch-size", "8")
LAYOUT = ("--shards", "2", "--slices", "2", "--budget", "2")
COMMANDS = ("fetch", "train", "predict", "delete", "duplicates", "refresh", "serve", "status", "plot")


class Result:
    """What a call of the command line left behind."""

    def __init__(self, *args: str | Path) -> None:
        self.code, self.out, self.err = said(*args)

    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)

    def refused(self, message: str) -> None:
        """One line on stderr that says ``message``, nothing on stdout, exit code 2."""
        assert self.code == 2, self.err
        assert self.out == ""
        assert re.fullmatch(r"error: .+\n", self.err), self.err
        assert re.search(message, self.err), self.err


def _rows(count: int = 60) -> list[Row]:
    topics = (("animal", "the cat saw a dog number"), ("number", "how many are there of"))
    return [{"key": f"q{i:03}", "question": f"{topics[i % 2][1]} {i}", "topic": topics[i % 2][0]} for i in range(count)]


def _write(path: Path, rows: list[Row]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def _local(path: Path) -> tuple[str | Path, ...]:
    columns = ("--text", "question", "--label", "topic", "--id", "key", "--classes", "animal,number")
    return ("--data", path, *columns)


def _snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("data") / "questions.csv", _rows())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    done = Result("train", run, *_local(data), *SMALL, *LAYOUT)
    assert done.code == 0, done.err
    assert re.search(r"trained .*: 8 nodes trained, \d+ optimizer steps", done.out)
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A fresh copy of a trained run, elsewhere."""
    return Path(shutil.copytree(trained, tmp_path / "elsewhere" / "run"))


@pytest.fixture
def unchanged(run: Path) -> Iterator[None]:
    """The run's files are, byte for byte, what they were."""
    before = _snapshot(run)
    yield
    assert _snapshot(run) == before


def _retained(run: Path) -> list[str]:
    system = System.open(run)
    ids = system.ids()
    system.close()
    return ids


# ---- without a run ----


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    done = Result(command, "--help")
    assert done.code == 0
    assert "--help" in done.out


def test_python_m_s3t_is_the_same_command_line(python: Callable[..., Any]) -> None:
    done = python("-m", "s3t", "status", "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: there is no run at nowhere; train one with `s3t train nowhere`\n"


@pytest.mark.parametrize("command", ["predict", "delete", "refresh", "status"])
def test_a_run_that_does_not_exist(tmp_path: Path, command: str) -> None:
    more = ("--id", "q000") if command == "delete" else ()
    Result(command, tmp_path / "none", *more).refused("there is no run at .*none; train one with")


def test_an_unknown_pack() -> None:
    Result("fetch", "minlm").refused("'minlm'.*did you mean 'minilm'")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--slices", "3", "--budget", "7"), "budget=7 exceeds the 6 orders that 3 slices have"),
        (("--shards", "0"), "shards=0 is not possible: give an integer of at least 1"),
        (("--shards", "1", "--slices", "7"), "slices=7 exceeds the model's 6 layers"),
        (("--model", "minlm"), "model 'minlm' cannot be loaded.*did you mean 'minilm'"),
        (("--method", "sisa-lroa"), "method 'sisa-lroa' is unknown.*did you mean 'sisa-lora'"),
        (("--method", "retrain-lora", "--slices", "3"), "slices=3 does not apply to retrain-lora"),
        (("--epochs", "0"), "epochs=0.0 is out of range"),
        (("--recipe", "droput=0.1"), "unknown Recipe key 'droput'.*did you mean 'dropout'"),
        (("--recipe", "dropout"), "--recipe 'dropout' is not NAME=VALUE"),
        (("--shards", "40"), r"of 120 slots have no record.*allow empty"),
        (("--text", "body"), "column 'body'"),
        (("--classes", "animal,place"), "label 'number'"),
        (("--data", "questions.cvs"), "questions.cvs"),
    ],
)
def test_training_that_cannot_be_leaves_nothing(
    data: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    Result("train", tmp_path / "run", *_local(data), *SMALL, *options).refused(message)
    assert not list(tmp_path.iterdir())


def test_an_id_that_occurs_twice(tmp_path: Path) -> None:
    rows = _rows()
    rows[7]["key"] = rows[3]["key"]
    data = _write(tmp_path / "twice.csv", rows)
    Result("train", tmp_path / "run", *_local(data), *SMALL, *LAYOUT).refused("'q003' occurs twice")
    assert not (tmp_path / "run").exists()


# ---- a run's life ----


def test_the_life_of_a_run(run: Path, tmp_path: Path) -> None:
    before = Result("status", run, "--json").json()
    assert (before["deleted"], before["missing_nodes"], before["offline"]) == (0, 0, [])
    assert Result("predict", run, "--json").json()["n"] > 0

    victims = _retained(run)[:2]
    receipt = Result("delete", run, "--id", victims[0], "--json").json()
    assert receipt["deleted"] == [victims[0]]
    assert receipt["nodes_dropped"]
    assert receipt["cost"]["optimizer_steps"] == receipt["cost"]["forward_passes"] == 0

    again = Result("delete", run, "--id", victims[0])
    assert again.code == 0
    assert again.out == f"record {victims[0]!r} was deleted before: nothing to do\n"

    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join(victims) + "\n")
    both = Result("delete", run, "--ids-file", ids, "--json").json()
    assert (both["deleted"], both["already"]) == ([victims[1]], [victims[0]])

    cut = Result("status", run, "--json").json()
    assert (cut["deleted"], cut["requests"]) == (2, 2)
    assert cut["retained"] == before["retained"] - 2
    assert cut["missing_nodes"] > 0

    built = Result("refresh", run, "--json").json()
    assert built["cost"]["nodes"] == cut["missing_nodes"]
    whole = Result("status", run, "--json").json()
    assert (whole["missing_nodes"], whole["surviving_nodes"]) == (0, before["surviving_nodes"])


@pytest.mark.parametrize("command", [("s3t", "verify"), ("verify",)])
def test_a_run_is_audited_after_a_deletion(python: Callable[..., Any], run: Path, command: tuple[str, ...]) -> None:
    assert Result("delete", run, "--any", "1").code == 0
    done = python("-m", *command, str(run), "--no-isolate")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "HOLDS" in done.stdout


def test_predicting_a_file(run: Path, tmp_path: Path) -> None:
    table = _write(tmp_path / "new.csv", [{"text": "the cat"}, {"text": "how many"}])
    done = Result("predict", run, "--input", table, "--json").json()
    assert done["classes"] == ["animal", "number"]
    assert [row["id"] for row in done["rows"]] == ["0", "1"]
    assert all(len(row["scores"]) == 2 for row in done["rows"])

    lines = tmp_path / "new.jsonl"
    lines.write_text('{"q": "the cat"}\n{"q": "how many"}\n')
    assert Result("predict", run, "--input", lines, "--text", "q", "--json").json() == done
    plain = Result("predict", run, "--input", table).out
    assert plain == "".join(f"{row['id']}\t{row['class']}\n" for row in done["rows"])

    Result("predict", run, "--input", table, "--text", "txet").refused(
        "no column 'txet' .did you mean 'text'.*it has text"
    )
    Result("predict", run, "--input", tmp_path / "none.csv").refused("there is no file .*none.csv; check the path")
    Result("predict", run, "--input", tmp_path / "new.txt").refused("unknown ending '.txt'")


def test_training_again_with_the_same_command_continues(run: Path, data: Path) -> None:
    again = Result("train", run, *_local(data), *SMALL, *LAYOUT, "--json").json()
    assert again["cost"]["nodes"] == 0


@pytest.mark.usefixtures("unchanged")
def test_training_with_another_configuration_is_refused(run: Path, data: Path) -> None:
    Result("train", run, *_local(data), *SMALL, *LAYOUT, "--seed", "1").refused("was made with another seed")


def test_a_subset_of_the_training_rows(data: Path, tmp_path: Path) -> None:
    layout = ("--shards", "1", "--slices", "1", "--limit", "20")
    assert Result("train", tmp_path / "run", *_local(data), *SMALL, *layout).code == 0
    assert Result("status", tmp_path / "run", "--json").json()["retained"] == 20


def test_subsets_of_all_splits(data: Path, tmp_path: Path) -> None:
    layout = ("--shards", "1", "--slices", "1", "--limit", "20,1,4")
    assert Result("train", tmp_path / "run", *_local(data), *SMALL, *layout).code == 0
    assert Result("status", tmp_path / "run", "--json").json()["retained"] == 20
    assert Result("predict", tmp_path / "run", "--json").json()["n"] == 4


@pytest.mark.parametrize("limit", ["0", "-3", "20,4", "20,1,x", "many", "", "20,1,4,4"])
def test_limits_that_say_nothing(data: Path, tmp_path: Path, limit: str) -> None:
    wanted = ("train", tmp_path / "run", *_local(data), *SMALL, "--limit", limit)
    Result(*wanted).refused(f"--limit '{limit}' says no numbers of records; write 600, or 600,200,240")
    assert not (tmp_path / "run").exists()


def test_an_eager_method_retrains_at_once(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert Result("train", run, *_local(data), *SMALL, "--method", "retrain-lora").code == 0
    receipt = Result("delete", run, "--any", "1", "--json").json()
    assert receipt["cost"]["nodes"] == 1
    assert Result("status", run, "--json").json()["missing_nodes"] == 0


def test_status_for_people_names_every_field(run: Path) -> None:
    text, facts = Result("status", run).out, Result("status", run, "--json").json()
    assert [line[:16].strip().replace(" ", "_") for line in text.splitlines()] == list(facts)


# ---- copies under other ids ----


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Copied:
    """A run on 40 unlike texts, of which q001 and q002 are copies of q000, and q009 has almost the text of q008; how it
    was trained; what that said on stderr."""
    folder = tmp_path_factory.mktemp("copies")
    rows = [{**row, "question": sha256(row["key"].encode())} for row in _rows(40)]
    rows[0]["question"], rows[1]["question"], rows[2]["question"] = "What is it?", "what is it?", "WHAT  is it?"
    rows[8]["question"], rows[9]["question"] = "the quick brown fox jumps over it", "The quick brown fox jumps over it!"
    held = [_write(folder / f"{split}.csv", [{**rows[0], "key": split}]) for split in ("validation", "test")]
    data = _write(folder / "questions.csv", rows)
    options = (*_local(data), "--validation", held[0], "--test", held[1], *SMALL, "--shards", "3", "--slices", "2")
    done = Result("train", folder / "run", *options)
    assert done.code == 0, done.err
    return folder / "run", options, done.err


def test_training_says_first_how_many_copies_there_are_and_names_none(
    copied: Copied,
) -> None:
    run, _, said = copied
    assert re.match(
        r"duplicates: 2 groups hold 5 of 40 records \(1 of exact copies, 2 with different labels; .*\); "
        r"\d lie in several slots, \d in several shards: deleting one copy leaves the others",
        said,
    )
    assert not re.search(r"q\d{3}", said)
    assert not [name for name, content in _snapshot(run).items() if b"uplicate" in content]


def test_training_without_looking_for_copies(copied: Copied, tmp_path: Path) -> None:
    _, options, _ = copied
    facts = Result("train", tmp_path / "run", *options, "--json")
    assert facts.json()["duplicates"]["records"] == 5
    silent = Result("train", tmp_path / "other", *options, "--json", "--no-duplicates")
    assert silent.json()["duplicates"] is None
    assert silent.err == ""
    again = Result("train", tmp_path / "run", *options, "--json")
    assert again.json()["duplicates"] is None


def test_training_does_not_look_for_copies_for_minutes(
    copied: Copied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3t.cli.records.MOST", 1000)
    done = Result("train", tmp_path / "run", *copied[1], "--json")
    assert list(done.json()["duplicates"]) == ["skipped"]
    assert done.err.startswith("duplicates: not looked for among 40 records, which would take minutes; ask with")


def test_copies_are_listed_for_data_and_for_a_run(copied: Copied) -> None:
    run, options, _ = copied
    of_run = Result("duplicates", run, "--json").json()
    assert [group["ids"] for group in of_run["list"]] == [["q000", "q001", "q002"], ["q008", "q009"]]
    assert [(group["exact"], group["labels_differ"]) for group in of_run["list"]] == [(True, True), (False, True)]
    with closing(open_run(run)) as opened:
        key, layout = opened.key, opened.config.plan.layout
    places = [sorted({slot(key, name, layout) for name in group["ids"]}) for group in of_run["list"]]
    assert [[tuple(place) for place in group["slots"]] for group in of_run["list"]] == places
    assert of_run["across_slots"] == sum(len(place) > 1 for place in places)

    table, columns = options[1], ("--text", "question", "--label", "topic", "--id", "key", "--classes", "animal,number")
    of_data = Result("duplicates", table, *columns, "--json").json()
    assert of_data["across_slots"] is None
    lines = Result("duplicates", run, "--threshold", "1").out.splitlines()
    assert lines[0].startswith("1 groups hold 3 of 40 records")
    assert re.fullmatch(r"exact, different labels, slots( \d\.\d)+: q000 q001 q002", lines[1])
    words = Result("duplicates", run, "--shingles", "words", "--threshold", "0.6", "--json").json()
    assert words["shingles"] == "words"
    Result("duplicates", run, "--shingles", "lines").refused(
        "--shingles 'lines' is unknown; choose characters .* or words"
    )
    Result("duplicates", run, "--threshold", "1.5").refused("threshold=1.5 is not possible")
    Result("duplicates", "trecc6").refused("did you mean 'trec6'")


def test_a_deletion_takes_the_copies_along(copied: Copied, tmp_path: Path) -> None:
    run = Path(shutil.copytree(copied[0], tmp_path / "run"))
    receipt = Result("delete", run, "--id", "q001", "--id", "q020", "--closure", "--json").json()
    assert sorted(receipt["deleted"]) == ["q000", "q001", "q002", "q020"]
    assert receipt["copies"] == ["q000", "q002"]
    facts = Result("status", run, "--json").json()
    assert (facts["deleted"], facts["requests"]) == (4, 1)
    assert not {"q000", "q001", "q002", "q020"} & set(_retained(run))

    text = Result("delete", run, "--id", "q009", "--id", "q001", "--closure").out.splitlines()
    assert text[0] == (
        "record 'q001' was deleted before: nothing to do, and its copies cannot be found, for its content is gone"
    )
    assert text[1] == "record 'q008' is a copy and goes as well"
    assert text[2].startswith("deleted 2 records")
    assert Result("delete", run, "--id", "q010", "--json").json()["copies"] == []


def test_a_closure_has_a_threshold(copied: Copied, tmp_path: Path) -> None:
    run = Path(shutil.copytree(copied[0], tmp_path / "run"))
    assert Result("delete", run, "--id", "q008", "--closure", "--threshold", "1", "--json").json()["copies"] == []
    before = _snapshot(run)
    Result("delete", run, "--id", "q000", "--id", "q999", "--closure").refused(
        "'q999' is not in this system, so nothing"
    )
    Result("delete", run, "--id", "q000", "--closure", "--threshold", "0").refused("threshold=0.0 is not possible")
    Result("delete", run, "--id", "q000", "--closure", "--shingles", "x").refused("--shingles 'x' is unknown")
    assert _snapshot(run) == before


# ---- requests that cannot be ----


@pytest.mark.usefixtures("unchanged")
def test_an_unknown_id_changes_nothing_even_among_known_ones(run: Path) -> None:
    known = _retained(run)[0]
    Result("delete", run, "--id", known, "--id", "q999").refused("'q999' is not in this system, so nothing was deleted")


@pytest.mark.usefixtures("unchanged")
def test_a_test_record_cannot_be_deleted(run: Path) -> None:
    name = Result("predict", run, "--json").json()["rows"][0]["id"]
    Result("delete", run, "--id", name).refused("belongs to the test split, which is never trained on")


@pytest.mark.usefixtures("unchanged")
def test_a_deletion_names_records(run: Path) -> None:
    Result("delete", run).refused("no id is given; name records with --id, --ids-file or --group")
    Result("delete", run, "--any", "1000").refused("--any 1000 exceeds the")


# ---- runs that cannot be used ----


@pytest.mark.parametrize("missing", ["run.json", "secret.key", "ledger.sqlite", "records.sqlite", "records.bin"])
def test_a_half_written_run(run: Path, missing: str) -> None:
    (run / missing).unlink()
    before = _snapshot(run)
    for command in ("status", "predict", "refresh"):
        Result(command, run).refused(f"is not a whole run: {missing} is missing")
    Result("delete", run, "--id", "q000").refused(f"{missing} is missing")
    assert _snapshot(run) == before


def test_a_run_of_another_version(run: Path) -> None:
    config = run / "run.json"
    raw = json.loads(config.read_text())
    config.write_text(json.dumps({**raw, "format": 99, "s3t": "9.9"}))
    before = _snapshot(run)
    Result("status", run).refused(r"made by another version \(format 99, s3t '9.9'\)")
    Result("delete", run, "--id", "q000").refused("made by another version")
    assert _snapshot(run) == before


def test_a_run_without_anything_to_serve(run: Path) -> None:
    assert Result("delete", run, *(f"--id={name}" for name in _retained(run))).code == 0
    Result("predict", run).refused("refresh")


# ---- how commands end ----


def test_an_interrupted_training_says_how_to_continue(run: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(System, "fit", interrupted)
    done = Result("train", run, *_local(data), *SMALL, *LAYOUT)
    assert done.code == 130
    assert done.err.endswith("interrupted: nothing acknowledged is lost; the same command continues\n")


def test_the_error_decides_the_exit_code(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def violated(*_: object) -> None:
        raise IsolationError("stage 1 changed a tensor\nthat is not its own")

    monkeypatch.setattr(System, "refresh", violated)
    done = Result("refresh", run)
    assert done.code == 1
    assert done.err.endswith("error: stage 1 changed a tensor that is not its own\n")


def test_a_fault_of_ours_keeps_its_traceback(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(System, "status", broken)
    with pytest.raises(ZeroDivisionError, match="ours"):
        Result("status", run)


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_verify_passes_arguments_and_verdict_through(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    seen: list[list[str]] = []

    def audit(args: list[str]) -> int:
        seen.append(args)
        return code

    monkeypatch.setattr("verify.cli.main", audit)
    assert Result("verify", "run", "--json", "--checks", "lineage").code == code
    assert seen == [["run", "--json", "--checks", "lineage"]]
