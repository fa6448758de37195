"""How much the levels that draw samples may spend, fixed before any of them looks at an outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from s3t.contract import Progress
from verify.case import Case
from verify.report import Finding, Verdict

if TYPE_CHECKING:
    from verify.distribution import E2Plan
    from verify.histories import E4Plan
    from verify.membership import E3Plan


@dataclass(frozen=True)
class Effort:
    """Plans of E2, E3 and E4; None takes the defaults of their modules."""

    distribution: E2Plan | None = field(default=None)
    membership: E3Plan | None = field(default=None)
    histories: E4Plan | None = field(default=None)


def black_box_levels(
    case: Case, levels: Sequence[str], classes: int, effort: Effort, progress: Progress | None = None
) -> list[Finding]:
    """Run E1c, E2, E3 and E4, as far as ``levels`` name them, on anything that implements the contract."""
    found: list[Finding] = []
    if "E1c" in levels:
        from verify.loud import check_loud

        found += check_loud(case, classes, progress)
    if "E2" in levels:
        from verify import distribution as e2

        plan = effort.distribution or e2.E2Plan()
        found += [_number(e2.CHECK)] if classes == 1 else e2.check_distribution(case, plan, progress)
    if "E3" in levels:
        from verify import membership as e3

        how = effort.membership or e3.E3Plan()
        found += [_number(e3.CHECK)] if classes == 1 else e3.check_membership(case, how, progress)
    if "E4" in levels:
        from verify.histories import E4Plan, check_histories

        found += check_histories(case, effort.histories or E4Plan(), progress)
    return found


def _number(check: str) -> Finding:
    """Return why a level that judges probabilities of classes says nothing of a system that answers with numbers or texts."""
    return Finding(
        check, Verdict.UNDECIDED, "the system answers with numbers or texts; this level judges probabilities of classes"
    )
