"""A report as JSON, field by field, and as a terminal table, line by line and style by style."""

from __future__ import annotations

import io
import json

from rich.console import Console

from verify.report import LIMITS, Finding, Report, Verdict

H, V, U = Verdict.HOLDS, Verdict.VIOLATED, Verdict.UNDECIDED
FOUND = (
    Finding("E0 scan", H, "clean"),
    Finding("E0 rows", U, "no salt", details={"n": 1}),
    Finding("E1a clean room", V, "differs", "shard 0, slices 1", "head.weight", {"ulps": 3}),
)
WHOLE = Report(
    "run", "Zürich", "retrained", ("E0", "E1a"), FOUND, ("not run: x",), 1.23456, {"entries": 3}, {"shards": 2}
)


def test_json_field_by_field() -> None:
    assert WHOLE.to_json() == {
        "schema": 1,
        "verdict": "VIOLATED",
        "run": "run",
        "system": "Zürich",
        "claim": "retrained",
        "checked": {"entries": 3},
        "graph": {"shards": 2},
        "levels": {"E0": "UNDECIDED", "E1a": "VIOLATED"},
        "findings": [
            {"check": "E0 scan", "verdict": "HOLDS", "message": "clean", "node": "", "tensor": "", "details": {}},
            {
                "check": "E0 rows",
                "verdict": "UNDECIDED",
                "message": "no salt",
                "node": "",
                "tensor": "",
                "details": {"n": 1},
            },
            {
                "check": "E1a clean room",
                "verdict": "VIOLATED",
                "message": "differs",
                "node": "shard 0, slices 1",
                "tensor": "head.weight",
                "details": {"ulps": 3},
            },
        ],
        "notes": ["not run: x"],
        "limits": list(LIMITS),
        "seconds": 1.235,
    }


def test_json_text_is_indented_and_keeps_letters() -> None:
    text = WHOLE.dumps()
    assert text == json.dumps(WHOLE.to_json(), indent=2, ensure_ascii=False)
    assert '\n  "system": "Zürich",\n' in text


def test_evidence_counts_for_every_level_and_makes_it_undecided() -> None:
    torn = Report("", "", "", ("E0",), (Finding("E0 scan", H, "clean"), Finding("evidence", U, "torn")))
    assert torn.of("E0") is U
    assert torn.of("E7") is U
    bad = Report("", "", "", ("E0",), (Finding("E0 scan", H, "clean"), Finding("evidence", V, "torn")))
    assert bad.of("E0") is V


def shown(report: Report, width: int = 100, **console: bool) -> list[str]:
    stream = io.StringIO()
    report.print(Console(file=stream, width=width, **console))  # type: ignore[arg-type]
    return stream.getvalue().splitlines()


def cells(lines: list[str]) -> list[list[str]]:
    return [
        [part.strip() for part in line.strip("│┃").replace("┃", "│").split("│")] for line in lines if line[0] in "│┃"
    ]


def test_the_table_line_by_line() -> None:
    lines = shown(WHOLE)
    assert lines[0].strip() == "Zürich: claim checked: retrained"
    assert cells(lines) == [
        ["check", "verdict", "node", "finding"],
        ["E1a clean room", "VIOLATED", "shard 0, slices 1", "head.weight: differs"],
        ["E0 rows", "UNDECIDED", "", "no salt"],
        ["E0 scan", "HOLDS", "", "clean"],
    ]
    rules = [line for line in lines if line and line[0] in "┏┡└├"]
    assert len(rules) == 3
    after = lines[lines.index(rules[-1]) + 1 :]
    assert after[0] == "note: not run: x"
    assert " ".join(" ".join(after[1:-1]).split()) == "limits: " + " ".join(LIMITS)
    assert after[-1] == "VIOLATED  E0, E1a"


def test_problems_come_first_in_every_order() -> None:
    turned = Report("", "s", "c", ("E0",), (*reversed(FOUND), Finding("E0 scan", H, "again")))
    assert [row[1] for row in cells(shown(turned))[1:]] == ["VIOLATED", "UNDECIDED", "HOLDS", "HOLDS"]


def test_without_names_the_title_says_so() -> None:
    assert shown(Report("", "", "", ("E0",), ()))[0].strip() == "system: claim checked: none"


def test_long_findings_are_folded_and_never_cut() -> None:
    long = "x" * 150
    lines = shown(Report("", "s", "c", ("E0",), (Finding("E0 scan", H, long),)), width=60)
    assert "".join(row[3] for row in cells(lines)[1:]) == long
    assert "…" not in "".join(lines)


def test_styles() -> None:
    stream = io.StringIO()
    WHOLE.print(Console(file=stream, width=100, force_terminal=True, color_system="standard", no_color=False))
    text = stream.getvalue()
    for style, word in (("1;31", "VIOLATED"), ("1;33", "UNDECIDED"), ("1;32", "HOLDS")):
        assert f"\x1b[{style}m{word}" in text
    assert "\x1b[2mlimits: " in text
    assert text.rstrip().endswith("\x1b[1;31mVIOLATED  E0, E1a\x1b[0m")


def test_without_a_console_it_prints_to_the_terminal(capsys: object) -> None:
    Report("", "s", "c", ("E0",), ()).print()
    assert "UNDECIDED  E0" in capsys.readouterr().out  # type: ignore[attr-defined]


def test_findings_and_limits_stay_as_they_were_given() -> None:
    told = FOUND[2].to_json()
    told["details"]["ulps"] = 4
    assert FOUND[2].details == {"ulps": 3}
    assert len(LIMITS) == 6


def test_exit_codes_and_the_first_of_a_kind() -> None:
    assert {verdict: verdict.exit_code for verdict in Verdict} == {H: 0, V: 1, U: 3}
    assert WHOLE.first(U) is FOUND[1]
    assert Report("", "", "", (), ()).first(H) is None
