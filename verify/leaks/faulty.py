"""A small lab whose systems have a planted fault, for checks that make, open and play systems themselves (E4)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3t import runs
from s3t.contract import UnlearningSystem
from verify.case import SAME, Variant
from verify.leaks.leak import Leak
from verify.small import SmallLab


@dataclass(frozen=True)
class FaultyLab(SmallLab):
    """Makes and opens systems in which ``fault`` is planted."""

    fault: Leak

    def make(self, folder: Path, variant: Variant = SAME) -> UnlearningSystem:
        clean: Any = super().make(folder, variant)
        return self.fault.plant(
            folder, clean.config, key=clean._key, evaluation=clean._evaluation, backbone=clean._backbone
        )

    def open(self, folder: Path) -> UnlearningSystem:
        system = self.make(folder)
        made: Any = system
        made._attach(runs.open_run(folder))
        return system
