"""The rows of the ports' audits as Markdown: the table alone, or the whole of docs/PORTS.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verify.ports.audits import CHECKS, HISTORIES_PLAYED, PORTS, STORIES, Name, Row, rejected

SHORT: Mapping[str, str] = {"HOLDS": "holds", "VIOLATED": "**rejects**", "UNDECIDED": "undecided"}
TITLES: Mapping[Name, str] = {"s3t": "Reference design of S3T", "sisa": "Reference design of SISA"}


def table(port: Name, rows: Sequence[Row]) -> str:
    """Return a Markdown table: per variant what each check says over all stories."""
    lines = [f"| mistake | {' | '.join(CHECKS)} |", f"| --- {'| --- ' * len(CHECKS)}|"]
    named = [("none", ()), *((f"`{m.switch}`", (m.switch,)) for m in PORTS[port])]
    for name, mistakes in [*named, ("all of them", tuple(m.switch for m in PORTS[port]))]:
        said = rejected(rows, port, mistakes)
        if said:
            cells = " | ".join(SHORT.get(said.get(check, ""), "not run") for check in CHECKS)
            lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def document(rows: Sequence[Row], machines: Sequence[Mapping[str, Any]]) -> str:
    """Return docs/PORTS.md."""
    parts = [
        "# Audits of two reference designs, as ports",
        "This page is written by `python -m verify ports --out results/ports --document docs/PORTS.md` from the rows in "
        "`results/ports`; a test compares them.",
        "**What these are.** The authors' code is not part of this project and was not audited. From a published "
        "description of known mistakes we wrote two small systems (`verify/ports`), each mistake a switch. With all "
        "switches off each is a clean simple system of its kind, which every check must accept. The table says which checks "
        "reject which mistake *as described*; whether and how a given version of the authors' code has it, only an audit "
        "of that code can tell.",
        "**How.** Both systems are known to the verifier by the contract alone, through `verify/adapter.py`: 30 records, 2 "
        "shards of 3 slices, a random model of 12 layers, one record deleted, chosen such that what is described can show (a "
        "long one of a last slice; the last row of a shard). Each variant was audited after two stories "
        f"({'; '.join(STORIES)}); a check rejects if it is VIOLATED after either. E4 played {HISTORIES_PLAYED} equivalent "
        "histories each, with restarts, without crashes. E1a needs a declared derivation of every tensor, which a foreign "
        "system does not have; it is UNDECIDED here and left out. E2 and E3 were not run. E0 residue searches ids and inputs, "
        "not weights: beside a model that should be gone it finds the log of what that model read. "
        "Together, mistakes can hide one from a check that sees it "
        "alone: a model that is kept in service whatever is asked looks the same after every history.",
    ]
    for port, mistakes in PORTS.items():
        parts += [f"## {TITLES[port]}", table(port, rows)]
        notes = []
        for mistake in mistakes:
            seen = [check for check in CHECKS if rejected(rows, port, (mistake.switch,)).get(check) == "VIOLATED"]
            first = next((row.problems for row in rows if row.mistakes == (mistake.switch,) and row.problems), {})
            found = f"First problem of {seen[0]}: {first[seen[0]]}." if seen and seen[0] in first else ""
            unseen = "" if seen else "**No check of this audit sees it.**"
            notes.append(
                " ".join(f"- `{mistake.switch}`: {mistake.described}. {unseen} {mistake.note} {found}".split())
            )
        parts.append("\n".join(notes))
    parts.append("## Where")
    keys = ("commit", "dirty", "torch", "peft", "transformers", "python", "system", "processor")
    for port, machine in zip(PORTS, machines, strict=True):
        parts.append(f"{TITLES[port]}: " + ", ".join(f"{key} {machine.get(key)}" for key in keys) + ".")
    return "\n\n".join(parts) + "\n"
