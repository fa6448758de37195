"""Audits of both ports: every mistake alone, none, and all together; rows, and whether every due rejection was made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from s3t.errors import S3TError
from verify.case import Event
from verify.machine import describe_machine, on_threads
from verify.report import Verdict, combine

if TYPE_CHECKING:
    from verify.ports.labs import Lab

Name = Literal["s3t", "sisa"]
LINEAGE, RESIDUE, NEVER, LOUD, HISTORIES = (
    "E0 lineage",
    "E0 residue",
    "E1b never ingested",
    "E1c loud",
    "E4 histories",
)
CHECKS = (LINEAGE, RESIDUE, NEVER, LOUD, HISTORIES)
LEVELS = ("E0", "E1b", "E1c", "E4")
STORIES = ("delete", "delete, refresh")
"""What happens after the fit, to one record."""

HISTORIES_PLAYED = 4


@dataclass(frozen=True)
class Mistake:
    """One known mistake: its switch, what is described, the checks that MUST reject it, and a note where none can."""

    switch: str
    described: str
    caught_by: tuple[str, ...]
    note: str = ""


S3T = (
    Mistake(
        "substring_layers",
        "layers matched by substring: the last slice of a 12-layer model also trains layers 10 and 11",
        (NEVER, LOUD),
        "Its reads look right: each stage reads its own slice, and writes into another's block.",
    ),
    Mistake(
        "rewrapped",
        "earlier adapters zeroed by re-wrapping",
        (),
        "An accuracy fault, not a leak: the same bits with and without the deleted record. In a run of this suite E1a "
        "rejects it (planted fault 43), for its clean room knows what the tensors should be.",
    ),
    Mistake(
        "first_listed",
        "the checkpoint to serve is `os.listdir()[0]`",
        (HISTORIES,),
        "What is listed first is up to the file system; the laboratory lists the other way round after a restart.",
    ),
    Mistake(
        "best_on_test",
        "best epoch picked on the test split",
        (),
        "Not a leak of training records, for test records are never deletable; it makes the reported accuracy too good. In "
        "a run of this suite E1a rejects an epoch other than the last. Picked on deletable records it is planted fault 2.",
    ),
    Mistake(
        "capped_budget",
        "budgets above L are capped silently",
        (),
        "A capacity fault, not a leak: fewer chains than asked for, each of them exact. In a run of this suite the orders "
        "are derived again from the layout (E0, E1a), a budget that cannot be is refused, and the capacity benchmark counts.",
    ),
    Mistake(
        "unseeded",
        "LoRA and head are initialised before any seed is set",
        (NEVER, LOUD, HISTORIES),
        "Nothing can be reproduced, so nothing can be shown to be exact bit for bit: every comparison of bits fails, leak or "
        "not. What is left is E2, which compares distributions over many trainings.",
    ),
    Mistake(
        "retried_batches",
        "batch size by out-of-memory retries",
        (NEVER, LOUD),
        "Simulated by a limit on tokens per batch: one long record halves the batches of all that trains after it.",
    ),
    Mistake("listed_only", "a deletion edits a list only, nothing on disk", (RESIDUE,)),
)
SISA = (
    Mistake(
        "key_without_seed",
        "the cache key ignores the seed",
        (),
        "Not a leak by itself: a run with another seed in the same folder serves the models of the first. The histories of an "
        "audit do not change the seed. In a run of this suite node keys are derived again, seed included (E0, E1a).",
    ),
    Mistake(
        "key_without_recipe",
        "the cache key ignores the recipe",
        (),
        "As for the seed: a run with another recipe in the same folder serves the models of the first.",
    ),
    Mistake(
        "key_without_last_rows",
        "the cache key ignores the last rows of a shard, so a deleted row can stay in the served model",
        (LINEAGE, RESIDUE, NEVER, LOUD),
    ),
    Mistake(
        "link_kept",
        "a failing symlink keeps the old model served",
        (LINEAGE, RESIDUE, NEVER, LOUD),
    ),
    Mistake(
        "requests_overwritten",
        "requests of a non-uniform distribution are overwritten by uniform ones",
        (LINEAGE, RESIDUE, NEVER, LOUD, HISTORIES),
        "As ported: other records are deleted than the caller named. As described it falsifies an experiment's cost as well, "
        "which no audit of a model sees.",
    ),
)
PORTS: Mapping[Name, tuple[Mistake, ...]] = {"s3t": S3T, "sisa": SISA}


@dataclass(frozen=True)
class Row:
    """One audit: of which port with which mistakes, after which story, and per check verdict and first problem."""

    port: Name
    mistakes: tuple[str, ...]
    story: str
    verdicts: Mapping[str, str]
    problems: Mapping[str, str]
    claim: str
    seconds: float


def variants(port: Name) -> list[tuple[str, ...]]:
    """Return no mistake, every mistake alone, and all of them."""
    names = [mistake.switch for mistake in PORTS[port]]
    return [(), *((name,) for name in names), tuple(names)]


def make_lab(port: Name, mistakes: Sequence[str]) -> Lab:
    """Return the laboratory of a port with ``mistakes``. S3TError for one that it does not know."""
    from verify.ports import labs
    from verify.ports import mistakes as switches

    kind: Any = switches.S3TMistakes if port == "s3t" else switches.SISAMistakes
    unknown = set(mistakes) - {f.name for f in fields(kind)}
    if unknown:
        raise S3TError(f"{min(unknown)!r} is no mistake of {port}; it has {', '.join(f.name for f in fields(kind))}")
    lab: Any = labs.S3TLab if port == "s3t" else labs.SISALab
    made: Lab = lab(mistakes=kind(**dict.fromkeys(mistakes, True)))
    return made


def audit_port(port: Name, mistakes: Sequence[str], story: str, levels: Sequence[str] = LEVELS) -> Row:
    """Audit a port with ``mistakes`` after ``story`` through its adapter."""
    from verify.adapter import audit_adapter
    from verify.effort import Effort
    from verify.histories import E4Plan

    lab = make_lab(port, mistakes)
    history = [Event("delete", (lab.victim(),)), *([Event("refresh")] if story != "delete" else [])]
    effort = Effort(histories=E4Plan(HISTORIES_PLAYED, crashes=False))
    with on_threads(1):
        report = audit_adapter(lab, history, levels=levels, effort=effort)
    checks = dict.fromkeys(finding.check for finding in report.findings)
    verdicts = {check: combine(f.verdict for f in report.findings if f.check == check).value for check in checks}
    problems: dict[str, str] = {}
    for finding in report.findings:
        if finding.verdict is not Verdict.HOLDS:
            problems.setdefault(finding.check, " ".join((finding.node, finding.tensor, finding.message)).strip())
    return Row(port, tuple(mistakes), story, verdicts, problems, report.claim, round(report.seconds, 1))


def write(folder: Path, port: Name, rows: Sequence[Row]) -> Path:
    """Write the rows of one port, with the machine that they were found on."""

    folder.mkdir(parents=True, exist_ok=True)
    path, partial = folder / f"{port}.json", folder / f".{port}.partial"
    effort = {"levels": list(LEVELS), "histories": HISTORIES_PLAYED}
    raw = {"schema": 1, "effort": effort, "machine": describe_machine(), "rows": [asdict(row) for row in rows]}
    partial.write_text(json.dumps(raw, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def read(folder: Path) -> tuple[list[Row], list[dict[str, Any]]]:
    """Return the rows of all ports in ``folder``, and the machines they were found on. S3TError if there are none."""
    rows, machines = [], []
    for port in PORTS:
        path = folder / f"{port}.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            rows += [Row(**{**row, "mistakes": tuple(row["mistakes"])}) for row in raw["rows"]]
            machines.append(raw["machine"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise S3TError(
                f"{path} holds no rows of the ports ({error}); run `python -m verify ports --out {folder}`"
            ) from error
    return rows, machines


def rejected(rows: Iterable[Row], port: Name, mistakes: Sequence[str]) -> dict[str, str]:
    """Return the verdict per check over all stories of one variant."""
    mine = [row for row in rows if row.port == port and row.mistakes == tuple(mistakes)]
    checks = dict.fromkeys(check for row in mine for check in row.verdicts)
    return {
        check: combine(Verdict(row.verdicts[check]) for row in mine if check in row.verdicts).value for check in checks
    }


def faults(rows: Sequence[Row]) -> list[str]:
    """Return every due rejection that is missing, and every alarm about a clean port."""
    found = []
    for port, mistakes in PORTS.items():
        clean = rejected(rows, port, ())
        found += [f"{port} without mistakes: {check} says {said}" for check, said in clean.items() if said != "HOLDS"]
        for mistake in mistakes:
            said = rejected(rows, port, (mistake.switch,))
            due = [check for check in mistake.caught_by if said and said.get(check) != "VIOLATED"]
            found += [f"{port} with {mistake.switch}: {check} says {said.get(check)}" for check in due]
    return found


Note = Callable[[str], None]


def audit_all(ports: Sequence[Name], chosen: Sequence[str], out: Path | None, note: Note) -> list[Row]:
    """Audit all variants of ``ports`` (or only those whose mistakes are all ``chosen``), writing rows as they come."""
    rows: list[Row] = []
    for port in ports:
        mine: list[Row] = []
        for mistakes in variants(port):
            if chosen and not (mistakes and set(mistakes) <= set(chosen)):
                continue
            for story in STORIES:
                mine.append(audit_port(port, mistakes, story))
                said = ", ".join(check for check, verdict in mine[-1].verdicts.items() if verdict == "VIOLATED")
                note(
                    f"{port} {'+'.join(mistakes) or 'clean'}, {story}: {said or 'nothing rejected'}, {mine[-1].seconds} s"
                )
                if out is not None:
                    write(out, port, mine)
        rows += mine
    return rows
