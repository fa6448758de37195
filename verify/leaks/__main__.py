"""``python -m verify.leaks``: plant every fault and print which check caught which. Exit code 1 if one was missed."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from verify.leaks import CLEAN, LEAKS, NOT_PLANTED, matrix
from verify.leaks.bench import describe_matrix
from verify.report import Verdict


def main() -> int:
    """Print the matrix of faults and checks."""
    with tempfile.TemporaryDirectory(prefix="s3t-leaks-") as folder:
        table = matrix((CLEAN, *LEAKS), Path(folder))
    print(describe_matrix(table))
    for number, why in NOT_PLANTED.items():
        print(f"{number} not planted: {why}")
    missed = [
        leak for leak, said in table.items() for check in leak.caught_by if said.get(check) is not Verdict.VIOLATED
    ]
    alarmed = any(verdict is not Verdict.HOLDS for verdict in table[CLEAN].values())
    return 1 if missed or alarmed else 0


if __name__ == "__main__":
    sys.exit(main())
