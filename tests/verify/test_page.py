"""The page: one self-contained file that shows what the report says, and nothing that a text in it could inject."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from verify.page import page, page_of
from verify.report import Finding, Report, Verdict

GRAPH = {
    "shards": 2,
    "orders": [[0, 1], [1, 0]],
    "nodes": [
        {"shard": shard, "prefix": prefix, "name": f"shard {shard}, slices {'-'.join(map(str, prefix))}", "is": what}
        for shard, prefix, what in [
            (0, [0], "serves"), (0, [1], "dropped"), (0, [0, 1], "dropped"), (0, [1, 0], "dropped"),
            (1, [0], "serves"), (1, [1], "survives"), (1, [0, 1], "serves"), (1, [1, 0], "survives"),
        ]
    ],
}  # fmt: skip


def report(*findings: Finding, graph: Any = GRAPH) -> Report:
    checked = {"run": "ab", "entries": 9, "head": "cd"}
    return Report("folder", "s3t", "retrained", ("E0", "E2"), findings, ("a note",), 1.5, checked, graph)


HOLDS = Finding("E0 scan", Verdict.HOLDS, "all accounted for", details={"files": 3})
E2 = Finding(
    "E2 distribution",
    Verdict.UNDECIDED,
    "too few",
    details={"n": 3, "samples": {"loss": {"unlearned": [0.1, 0.2, float("nan")], "reference": [0.15, 0.3, 0.3]}}},
)
E3 = Finding("E3 membership", Verdict.HOLDS, "no power", details={"roc": {"post": [[0, 0], [0.5, 0.5], [1, 1]]}})


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.sources: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.sources += [str(v) for name, v in attrs if name in ("src", "href", "onload", "onclick")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def tags(html: str) -> Tags:
    found = Tags()
    found.feed(html)
    assert not found.open, "every element is closed"
    return found


def drawings(html: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]


def test_it_is_self_contained_and_says_what_the_report_says() -> None:
    html = page(report(HOLDS, E2, E3))
    found = tags(html)
    assert not found.sources and not {"script", "link", "img", "iframe"} & set(found.seen)
    for text in ("UNDECIDED", "E0 HOLDS", "E2 UNDECIDED", "retrained", "a note", "all accounted for", "too few", "cd"):
        assert text in html, text
    assert len(drawings(html)) == 3, "nodes, a histogram, a ROC"


def test_nothing_in_a_report_becomes_markup() -> None:
    hostile = "<script>alert(1)</script>\"'&"
    html = page(report(Finding(hostile, Verdict.VIOLATED, hostile, hostile, hostile, {hostile: hostile})))
    assert "<script" not in html
    tags(html)


def test_nodes_are_drawn_by_what_has_become_of_them_and_accused_ones_are_framed() -> None:
    accused = Finding("E1a clean room", Verdict.VIOLATED, "bits", "shard 1, slices 0-1", "adapter.x")
    (drawn,) = drawings(page(report(accused)))
    cells = [e for e in drawn.iter() if e.tag.endswith("rect")]
    titles = [(cell[0].text or "", cell.get("stroke")) for cell in cells]
    assert len(cells) == 2 * 2 * 2
    assert ("shard 0, slices 1: dropped", None) in titles
    assert [text for text, stroke in titles if stroke] == ["shard 1, slices 0-1: serves"]


def test_a_histogram_counts_every_number_once() -> None:
    drawn = drawings(page(report(E2)))[1]
    labels = [e.text for e in drawn.iter() if e.tag.endswith("text")]
    assert "unlearned (n=3)" in labels and "reference (n=3)" in labels
    assert {"0.1", "0.3"} <= set(labels)
    bars = [float(e.get("height") or 0) for e in drawn.iter() if e.tag.endswith("rect")]
    assert sum(bar > 0 for bar in bars) == 4, "0.1, 0.2 | 0.15, 0.3 twice in one bar"


def test_without_graph_or_samples_there_is_no_drawing() -> None:
    assert drawings(page(report(HOLDS, graph={}))) == []
    assert drawings(page(report(HOLDS, graph={"shards": 1, "orders": [[0]], "nodes": []}))) == []


def test_the_page_of_a_live_audit_and_of_its_file_are_the_same(live: Any, tmp_path: Path, capsys: Any) -> None:
    import json

    from verify.cli import main

    live.system.delete(["row-003"])
    live.system.close()
    html, out = tmp_path / "new" / "report.html", tmp_path / "new" / "report.json"
    assert main([str(live.folder), "--level", "E0", "--html", str(html), "--out", str(out)]) == 0
    told = json.loads(out.read_text())
    assert html.read_text() == page_of(told)
    counts = [node["is"] for node in told["graph"]["nodes"]]
    assert set(counts) == {"serves", "survives", "dropped"} and len(counts) == 2 * 9
    assert told["checked"]["entries"] > 0 and len(told["checked"]["head"]) == 64
    assert main([str(live.folder), "--level", "E0", "--html", str(tmp_path)]) == 2
    assert "cannot be written" in capsys.readouterr().err
