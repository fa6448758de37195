"""The kill matrix: settings and victims, cells that resume, tables, and the command line."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from s3t.engine.mode import FOR_IMAGES, MODES, Mode
from s3t.errors import RunError
from s3t.partition import slot
from s3t.records import Layout
from verify.leaks import CLEAN, LEAKS, Bench, matrix
from verify.leaks.__main__ import main
from verify.leaks.leak import CHECKS, CLEANROOM, LINEAGE, LOUD, NEVER, SCAN, Leak, not_planted
from verify.leaks.matrix import Cell, Place, faults, finished, full, play, reduced, write
from verify.leaks.settings import (
    ROWS,
    SETTINGS,
    VICTIMS,
    Setting,
    find_setting,
    make_corpus,
    victim_slot,
    with_blocks,
    with_dropout,
    with_head,
    with_padding_that_counts,
    with_three_orders,
    with_twelve_layers,
)
from verify.leaks.tables import COLUMNS, describe, markdown, pattern, share, table, terminal
from verify.report import Verdict

ALL = (CLEAN, *LEAKS)
PLANTED = [leak for leak in ALL if "reference" not in leak.absent]
X, H, U = Verdict.VIOLATED, Verdict.HOLDS, Verdict.UNDECIDED


def leak(number: int) -> Leak:
    return next(leak for leak in ALL if leak.number == number)


def cell(number: int, setting: str, victim: int, **said: Verdict) -> Cell:
    names = {"lineage": LINEAGE, "scan": SCAN, "room": CLEANROOM, "never": NEVER}
    return Cell(number, Place(setting, victim), {names[check]: verdict for check, verdict in said.items()})


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_victim_is_the_odd_one_of_its_records(setting: Setting) -> None:
    slots = [victim_slot(setting.layout, number) for number in range(VICTIMS)]
    assert len(set(slots)) == VICTIMS
    assert {s for s, _ in slots} == set(range(setting.layout.shards))
    assert {p for _, p in slots} == set(range(setting.layout.slices))
    for number, place in enumerate(slots):
        corpus = make_corpus(setting, number)
        homes = {record.id: slot(setting.key, record.id, setting.layout) for record in corpus.records}
        sizes = Counter(homes.values())
        assert len(corpus.records) == ROWS and ROWS % setting.recipe.batch_size == 0
        assert homes[corpus.victim.id] == place
        assert all(sizes[place] > size for other, size in sizes.items() if other != place)
        assert homes[corpus.beside.id][0] == place[0] and homes[corpus.beside.id] != place
        assert homes[corpus.other.id][0] != place[0] and homes[corpus.other.id][1] != place[1]
        lengths = {record.id: len(str(record.inputs["text"]).split()) for record in corpus.records}
        assert lengths.pop(corpus.victim.id) > 5 * max(lengths.values())


def test_the_slots_of_victims_are_distinct_in_every_layout() -> None:
    for shards, slices in itertools.product(range(1, 5), range(1, 7)):
        layout = Layout(shards, slices, 1)
        found = {victim_slot(layout, number) for number in range(shards * slices)}
        assert len(found) == shards * slices, layout


def test_victims_differ_in_content_too() -> None:
    victims = [make_corpus(SETTINGS[0], number).victim for number in range(VICTIMS)]
    assert len({victim.inputs["text"] for victim in victims}) == VICTIMS


def test_settings_differ_and_needs_change_them_as_little_as_possible() -> None:
    assert len(SETTINGS) >= 3 and len({setting.key for setting in SETTINGS}) == len(SETTINGS)
    for setting in SETTINGS:
        assert with_dropout(setting).recipe.dropout > 0
        assert with_blocks(setting).method == "s3t"
        assert with_three_orders(setting).layout == replace(setting.layout, slices=3, budget=3)
        assert with_twelve_layers(setting) == replace(setting, method="s3t", layers=12)
        assert with_padding_that_counts(setting) == setting
        headed = with_head(setting)
        assert headed == replace(setting, head=headed.head) and headed.plan(12).head == headed.head is not None
        rounded = with_padding_that_counts(replace(setting, mode=MODES[2]))
        assert rounded.recipe.dropout > 0 and rounded.mode == MODES[2]
    assert with_dropout(SETTINGS[0]) == with_blocks(SETTINGS[0]) == with_three_orders(SETTINGS[0]) == SETTINGS[0]


def test_a_fault_gets_what_it_needs_on_a_bench_of_its_own(tmp_path: Path) -> None:
    bench = Bench(tmp_path, SETTINGS[2], 1)
    other = bench.fit_for(leak(43))
    assert other is not bench and other.setting.method == "s3t" and other.number == 1
    assert bench.fit_for(leak(43)) is other
    assert bench.fit_for(leak(1)) is bench


def test_the_full_matrix_has_every_fault_in_every_place() -> None:
    work = full(ALL)
    assert len(work) == len(SETTINGS) * VICTIMS >= 15
    assert all(leaks == PLANTED for leaks in work.values())
    assert set(full(ALL, ["s3t-3x2"], 2)) == {Place("s3t-3x2", 0), Place("s3t-3x2", 1)}


def test_the_reduced_matrix_has_every_fault_once_and_the_control_everywhere() -> None:
    work = reduced(ALL)
    counted = Counter(leak.number for leaks in work.values() for leak in leaks)
    assert counted == {0: len(SETTINGS)} | {leak.number: 1 for leak in PLANTED if leak.number}
    assert len({place.victim for place in work}) == len({place.setting for place in work}) == len(SETTINGS)


@pytest.mark.parametrize("mode", [*MODES[1:], *FOR_IMAGES], ids=lambda mode: mode.kernel)
def test_every_mode_has_a_matrix_of_its_own(mode: Mode) -> None:
    apart = set(not_planted(LEAKS, mode.name))
    for work in (full(ALL, victims=2, mode=mode), reduced(ALL, mode=mode)):
        assert not set(work) & set(full(ALL))
        assert {leak.number for leaks in work.values() for leak in leaks} == {0, *(leak.number for leak in LEAKS)} - apart
        for place in work:
            setting = find_setting(place.setting)
            plain = find_setting(setting.name)
            assert setting.mode == mode and plain.mode == Mode()
            assert replace(setting, mode=Mode()) == plain and setting.key == plain.key, "the same victims in every mode"
            assert mode.kernel in describe(setting)


def test_faults_that_an_engine_cannot_have_say_why() -> None:
    assert set(not_planted(LEAKS, "fast")) == {37}
    assert set(not_planted(LEAKS, "reference")) == {37, 44, 45}
    of_texts = {4, 6, 8, 34, 37, 42, 44, 52}
    assert set(not_planted(LEAKS, "graphs")) == of_texts
    assert set(not_planted(LEAKS, "grouped")) == {*of_texts, 9}
    assert "keeps no activations" in not_planted(LEAKS, "reference")[44]


def test_records_of_one_length_hide_a_fault_from_checks_by_length() -> None:
    plain = SETTINGS[0]
    images = replace(plain, mode=FOR_IMAGES[0])
    assert images.model == "tiny-vit-3" and plain.model == "tiny-3"
    assert set(images.inputs("a word")) == {"image"} and images.inputs("a word") != images.inputs("b word")
    assert LOUD in leak(29).due(plain) and LOUD not in leak(29).due(images)
    grouped = replace(plain, mode=FOR_IMAGES[2])
    assert grouped.mode.name == "grouped" and leak(31).due(grouped) == (CLEANROOM,) != leak(31).due(images)
    assert leak(19).due(plain) == leak(19).due(images) == leak(19).caught_by
    missed = cell(29, images.label, 0, room=H, never=X)
    assert missed.missed(leak(29)) == (CLEANROOM,) and share(leak(29), [missed], CLEANROOM) == "!"


def test_finished_cells_are_not_played_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = {Place("s3t-2x3", 0): [CLEAN, leak(19), leak(25)]}
    seen: list[str] = []
    first = play(work, tmp_path, ["E0"], progress=lambda done, total, what: seen.append(f"{done}/{total} {what}"))
    assert seen == [f"{n}/3 {number} in s3t-2x3, victim 0" for n, number in ((1, 0), (2, 19), (3, 25))]
    assert [c.leak for c in first] == [0, 19, 25] and list(finished(tmp_path).values()) == first
    assert [name for name, verdict in first[2].verdicts.items() if verdict is X] == ["E0 scan", "E0 residue"]

    def refused(*given: object) -> object:
        raise AssertionError("a finished cell was played again")

    monkeypatch.setattr(matrix, "play_group", refused)
    assert play(work, tmp_path, ["E0"]) == first
    with pytest.raises(AssertionError, match="played again"):
        play(work, tmp_path, ["E0", "E1a"])
    monkeypatch.setattr(matrix, "code", lambda: "other code")
    assert finished(tmp_path) == {}


@pytest.mark.slow
def test_jobs_run_places_side_by_side(tmp_path: Path) -> None:
    work = {Place("s3t-2x3", 0): [leak(25)], Place("s3t-3x2", 1): [leak(25)]}
    found = play(work, tmp_path, ["E0"], jobs=2)
    assert [c.place for c in found] == list(work)
    assert all(c.verdicts[SCAN] is X for c in found)


def test_a_damaged_cell_is_named(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "s3t-2x3-0.jsonl").write_text('{"code": "", "leak": 1}\n')
    with pytest.raises(RunError, match=r"s3t-2x3-0\.jsonl, line 1 is no cell of a matrix"):
        play({}, tmp_path)


CELLS = [
    cell(0, "s3t-2x3", 0, lineage=H, scan=H, room=H, never=H),
    cell(19, "s3t-2x3", 0, lineage=H, scan=H, room=X, never=X),
    cell(19, "s3t-2x3", 1, lineage=H, scan=U, room=X, never=H),
    cell(19, "sisa-2x3", 0, lineage=X, scan=H, room=X, never=X),
]


def test_shares_and_patterns() -> None:
    stale = leak(19)
    said = {check: share(stale, CELLS, check) for check in (LINEAGE, SCAN, CLEANROOM, NEVER, "E0 rows")}
    assert said == {LINEAGE: "1/3", SCAN: "?", CLEANROOM: "X", NEVER: "2/3!", "E0 rows": ""}
    assert pattern(stale, CELLS, SCAN) == ".? ."
    assert pattern(stale, CELLS, NEVER) == "X. X"


def test_missed_catches_and_alarms_are_faults() -> None:
    assert faults(CELLS, ALL) == [f"{NEVER} missed fault 19 in s3t-2x3, victim 1"]
    loud = [cell(0, "sisa-2x3", 2, lineage=H, room=U)]
    assert faults(loud, ALL) == [f"{CLEANROOM} does not hold on the clean system in sisa-2x3, victim 2"]
    assert faults(CELLS[1:2], ALL) == [], "a check that did not run was not due"


def test_the_table_has_a_row_per_cell_and_check(tmp_path: Path) -> None:
    json_file, page = write(CELLS, ALL, tmp_path, complete=True)
    told = json.loads(json_file.read_text())
    assert told["code"] == matrix.code() and len(matrix.code()) == 64
    assert tuple(told["columns"]) == COLUMNS and list(told["settings"]) == ["s3t-2x3", "sisa-2x3"]
    assert len(told["rows"]) == sum(len(c.verdicts) for c in CELLS)
    assert [19, "s3t-2x3", 1, NEVER, "HOLDS", 1] in told["rows"]
    assert [19, "s3t-2x3", 1, SCAN, "UNDECIDED", 0] in told["rows"]
    assert told["leaks"]["19"] == {"name": "old chain still served", "channel": "selection"}
    assert page.read_text() == markdown(CELLS, ALL) and table(CELLS, ALL) == json_file.read_text()
    assert "| 19 old chain still served | selection | 1/3 | ? |  |  | X | 2/3! |  |" in page.read_text()
    assert not list(tmp_path.glob("*.part")) and not (tmp_path / "cells").exists()


def test_the_terminals_table_names_every_check() -> None:
    made = terminal(CELLS, ALL)
    assert [str(column.header).replace("\n", " ") for column in made.columns] == ["fault", *CHECKS]
    assert made.row_count == 2


def test_the_command_line_prints_the_matrix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["--leak", "19", "--levels", "E0", "--setting", "s3t-2x3", "--victims", "1", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "19 old chain" in said.out and "2/2 19 in s3t-2x3, victim 0" in said.err
    assert {path.name for path in out.iterdir()} == {"matrix.json", "matrix.md"}


def test_a_missed_catch_and_an_alarm_end_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verify.leaks.__main__.play", lambda *given: CELLS)
    assert main(["--out", str(tmp_path), "--markdown"]) == 1
    said = capsys.readouterr()
    assert f"{NEVER} missed fault 19 in s3t-2x3, victim 1" in said.err
    assert said.out == markdown(CELLS, ALL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--leak", "54"], "fault 54 is not planted; there are 1 to 53"),
        (["--leak", "44"], "fault 44 is not planted: reference engine: it keeps no activations"),
        (["--leak", "37", "--engine", "fast"], "fault 37 is not planted: requests chosen from served outputs"),
        (["--precision", "bfloat16"], "the reference engine computes in float32, not bfloat16; choose engine=fast"),
        (["--setting", "s3t-2x2"], "setting 's3t-2x2' is unknown (did you mean 's3t-3x2'?)"),
        (["--victims", "6"], "--victims 6 is out of range; a setting has 1 to 5"),
        (["--jobs", "0"], "--jobs 0 is not possible; give at least 1"),
        (["--levels", "E9"], "level 'E9' is unknown"),
    ],
)
def test_bad_input_is_one_clear_error(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
