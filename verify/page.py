"""The report as one self-contained HTML page: verdicts, the graph of nodes, distributions for E2, ROC for E3.

It is drawn from the report's JSON alone, with no script, no font and no picture from elsewhere, so that it can be mailed and
archived.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from verify.report import Report

COLOURS = {"HOLDS": "#1a7f5a", "VIOLATED": "#c0392b", "UNDECIDED": "#b7791f"}
NODES = {"serves": "#1a7f5a", "survives": "#a9d5c3", "dropped": "#e3e3e3"}
SIDES = ("#2b6cb0", "#dd6b20")
RANK = ("VIOLATED", "UNDECIDED", "HOLDS")

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff;
margin: 2rem auto; max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } code { font-size: .9em; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; vertical-align: top; padding: .35rem .6rem;
border-bottom: 1px solid #e3e3e3; overflow-wrap: anywhere; } td:first-child, th { white-space: nowrap; }
.v { font-weight: 600; white-space: nowrap; }
.chip { display: inline-block; border-radius: 4px; color: #fff; padding: .1rem .6rem;
margin: 0 .4rem .4rem 0; font-weight: 600; }
figure { margin: 1rem 0; } figcaption { color: #555; } .row { display: flex; flex-wrap: wrap; gap: 1.5rem; }
details { margin: .3rem 0; } summary { cursor: pointer; }
pre { font-size: .8rem; overflow-x: auto; background: #f6f6f6; padding: .6rem; }
"""


def page(report: Report) -> str:
    """Return the HTML page of ``report``."""
    return page_of(report.to_json())


def page_of(told: Mapping[str, Any]) -> str:
    """Return the HTML page of a report in its JSON form, as ``--out`` writes it."""
    parts = [_head(told), _findings(told), _graph(told), _distributions(told), _membership(told), _limits(told)]
    body = "\n".join(part for part in parts if part)
    title = f"{told['verdict']}: {told['system'] or 'system'}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _chip(verdict: str, text: str) -> str:
    return f'<span class="chip" style="background:{COLOURS[verdict]}">{escape(text)}</span>'


def _head(told: Mapping[str, Any]) -> str:
    levels = "".join(_chip(verdict, f"{level} {verdict}") for level, verdict in told["levels"].items())
    checked = told.get("checked") or {}
    about = [
        ("system", told["system"]),
        ("claim checked", told["claim"]),
        ("ledger entries", checked.get("entries", "")),
        ("ledger head", checked.get("head", "")),
        ("configuration (SHA-256 of run.json)", checked.get("run", "")),
        ("seconds", told["seconds"]),
    ]
    rows = "".join(f"<tr><th>{escape(k)}</th><td><code>{escape(str(v))}</code></td></tr>" for k, v in about if v != "")
    return f"<h1>Audit: {_chip(told['verdict'], told['verdict'])}</h1>\n<p>{levels}</p>\n<table>{rows}</table>"


def _findings(told: Mapping[str, Any]) -> str:
    rows = []
    for f in sorted(told["findings"], key=lambda f: RANK.index(f["verdict"])):
        small = {name: value for name, value in f["details"].items() if name not in ("samples", "roc")}
        more = f"<details><summary>details</summary><pre>{escape(json.dumps(small, indent=1))}</pre></details>"
        said = f"{f['tensor']}: {f['message']}" if f["tensor"] else f["message"]
        rows.append(
            f'<tr><td>{escape(f["check"])}</td><td class="v" style="color:{COLOURS[f["verdict"]]}">{f["verdict"]}</td>'
            f"<td>{escape(f['node'])}</td><td>{escape(said)}{more if small else ''}</td></tr>"
        )
    notes = "".join(f"<li>{escape(note)}</li>" for note in told["notes"])
    head = "<tr><th>check</th><th>verdict</th><th>where</th><th>finding</th></tr>"
    return f"<h2>Findings</h2>\n<table>{head}{''.join(rows)}</table>" + (f"\n<ul>{notes}</ul>" if notes else "")


def _svg(width: float, height: float, shapes: Iterable[str], title: str) -> str:
    return (
        f'<svg role="img" aria-label="{escape(title, quote=True)}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" xmlns="http://www.w3.org/2000/svg" '
        f'font-family="system-ui, sans-serif" font-size="11">{"".join(shapes)}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", fill: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}">{escape(text)}</text>'


def _graph(told: Mapping[str, Any]) -> str:
    """Draw a row per shard and order, a cell per stage, framed in red if accused; nothing where a plan has no nodes."""
    graph = told.get("graph") or {}
    if not graph.get("nodes"):
        return ""
    accused = {f["node"] for f in told["findings"] if f["verdict"] == "VIOLATED"}
    nodes = {(n["shard"], tuple(n["prefix"])): n for n in graph["nodes"]}
    cell, left, top = 58, 150, 22
    shapes, y = [], float(top)
    for i in range(len(graph["orders"][0])):
        shapes.append(_text(left + cell * i + cell / 2 - 3, 14, f"stage {i + 1}", "middle"))
    for shard in range(graph["shards"]):
        for index, order in enumerate(graph["orders"]):
            if index == 0:
                shapes.append(_text(4, y + 15, f"shard {shard}"))
            shapes.append(_text(left - 10, y + 15, f"order {index}", "end", "#777"))
            for length in range(1, len(order) + 1):
                node = nodes[shard, tuple(order[:length])]
                bad = node["name"] in accused
                x, ink = left + cell * (length - 1), "#fff" if node["is"] == "serves" else "#333"
                frame = f' stroke="{COLOURS["VIOLATED"]}" stroke-width="3"' if bad else ""
                shapes.append(
                    f'<rect x="{x}" y="{y:.0f}" width="{cell - 6}" height="20" rx="3" fill="{NODES[node["is"]]}"{frame}>'
                    f"<title>{escape(node['name'])}: {node['is']}</title></rect>"
                )
                shapes.append(_text(x + (cell - 6) / 2, y + 14, "-".join(map(str, order[:length])), "middle", ink))
            y += 24
        y += 8
    drawn = _svg(left + cell * len(graph["orders"][0]) + 8, y, shapes, "nodes by shard, order and stage")
    counts = {kind: sum(n["is"] == kind for n in graph["nodes"]) for kind in NODES}
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    legend = "Dark green serves now; light green survives and may serve next; grey was dropped; a red frame is accused."
    caption = f"<figcaption>{said} (a prefix shared by orders is one node). {legend}</figcaption>"
    return f"<h2>Nodes</h2>\n<figure>{drawn}{caption}</figure>"


def _distributions(told: Mapping[str, Any]) -> str:
    figures = []
    for f in told["findings"]:
        samples = f["details"].get("samples")
        if isinstance(samples, Mapping) and samples:
            figures += [
                _histogram(name, sides) for name, sides in sorted(samples.items()) if isinstance(sides, Mapping)
            ]
    if not any(figures):
        return ""
    what = "Each value is one whole system: blue met the deleted records and deleted them, orange never met them."
    return f'<h2>E2: distributions</h2>\n<p>{what}</p>\n<div class="row">{"".join(figures)}</div>'


def _histogram(name: str, sides: Mapping[str, Sequence[float]], bins: int = 16) -> str:
    values = [float(v) for side in sides.values() for v in side if v == v]
    if not values:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    counts = {side: [0] * bins for side in sides}
    for side, drawn in sides.items():
        for v in drawn:
            if v == v:
                counts[side][min(bins - 1, int((v - low) / span * bins))] += 1
    top = max(max(each) for each in counts.values())
    width, height, base = 420, 190, 160
    step = (width - 20) / bins
    shapes = [f'<line x1="10" y1="{base}" x2="{width - 10}" y2="{base}" stroke="#999"/>']
    for number, (side, each) in enumerate(counts.items()):
        colour = SIDES[number % 2]
        for i, count in enumerate(each):
            tall = 125 * count / top
            x = 10 + step * i + number * step / 2
            bar = f'width="{step / 2 - 1:.1f}" height="{tall:.1f}"'
            shapes.append(f'<rect x="{x:.1f}" y="{base - tall:.1f}" {bar} fill="{colour}"/>')
        shapes.append(_text(10 + 200 * number, 14, f"{side} (n={len(sides[side])})", fill=colour))
    shapes += [_text(10, base + 16, f"{low:.4g}"), _text(width - 10, base + 16, f"{high:.4g}", "end")]
    return f"<figure>{_svg(width, height, shapes, name)}<figcaption>{escape(name)}</figcaption></figure>"


def _membership(told: Mapping[str, Any]) -> str:
    figures = [_roc(f["check"], f["details"]["roc"]) for f in told["findings"] if f["details"].get("roc")]
    if not figures:
        return ""
    what = "The diagonal is guessing. The attack on the model before the deletion is the control: it must rise above."
    return f'<h2>E3: membership attacks</h2>\n<p>{what}</p>\n<div class="row">{"".join(figures)}</div>'


def _roc(name: str, curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    side, off = 260, 30
    colours = (*SIDES, "#6b46c1", "#2f855a")
    shapes = [
        f'<rect x="{off}" y="10" width="{side}" height="{side}" fill="none" stroke="#999"/>',
        f'<line x1="{off}" y1="{10 + side}" x2="{off + side}" y2="10" stroke="#bbb" stroke-dasharray="4 4"/>',
        _text(off + side / 2, side + 32, "false positive rate", "middle"),
    ]
    for number, (attack, points) in enumerate(curves.items()):
        colour = colours[number % len(colours)]
        path = " ".join(f"{off + side * float(x):.1f},{10 + side * (1 - float(y)):.1f}" for x, y in points)
        shapes.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        shapes.append(_text(off + side - 6, side - 4 - 15 * number, attack, "end", colour))
    caption = f"<figcaption>{escape(name)}: true against false positives</figcaption>"
    return f"<figure>{_svg(side + 2 * off, side + 44, shapes, name)}{caption}</figure>"


def _limits(told: Mapping[str, Any]) -> str:
    return "<h2>Limits</h2>\n<ul>" + "".join(f"<li>{escape(limit)}</li>" for limit in told["limits"]) + "</ul>"
