"""The verifier: it derives from documents and evidence what a system must be, and compares bit for bit.

It shares records, contract, errors and the numeric training kernel with the suite, and nothing with the planner. A
verdict is HOLDS, VIOLATED or UNDECIDED; missing evidence is UNDECIDED, never a pass. Importing this package imports
neither torch nor peft.
"""

from __future__ import annotations

from verify.audit import audit
from verify.report import Finding, Report, Verdict

__all__ = ["Finding", "Report", "Verdict", "audit"]
