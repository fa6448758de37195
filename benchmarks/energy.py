"""Energy counters of this machine: the GPU's own (NVML) and the CPU package's (RAPL), where they can be read.

Both count up: a block's energy is the difference. Read through the driver's library and the kernel's files, no package.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RAPL = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Joules:
    """A counter in joules. ``read`` None: there is none, for ``reason``. ``wrap``: where it starts again at 0."""

    name: str
    read: Callable[[], float] | None
    reason: str = ""
    wrap: float | None = None

    def between(self, before: float, after: float) -> float:
        """Return the energy from ``before`` to ``after``, over at most one wrap."""
        return after - before if after >= before or self.wrap is None else after - before + self.wrap


def gpu(device: int = 0) -> Joules:
    """Return the total energy counter of the CUDA device (Volta and later; millijoules in NVML)."""
    import torch

    if not torch.cuda.is_available():
        return Joules("gpu", None, "no GPU")
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        handle, uuid = ctypes.c_void_p(), f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        _check(library.nvmlInit_v2())
        _check(library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)))
    except (OSError, AttributeError, RuntimeError) as error:
        return Joules("gpu", None, f"NVML cannot be used: {error}")

    def read() -> float:
        value = ctypes.c_ulonglong()
        _check(library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value)))
        return value.value / 1000.0

    try:
        read()
    except RuntimeError as error:
        return Joules("gpu", None, f"the GPU reports no energy: {error}")
    return Joules("gpu", read)


def cpu(root: Path = RAPL) -> Joules:
    """Return the energy counter of all CPU packages together (microjoules in the kernel's files)."""
    packages = [zone for zone in sorted(root.glob("intel-rapl:*")) if zone.name.count(":") == 1]
    if not packages:
        return Joules("cpu", None, "no RAPL counters on this machine")

    def read() -> float:
        return sum(int((zone / "energy_uj").read_text()) for zone in packages) / 1e6

    try:
        read()
        wraps = [int((zone / "max_energy_range_uj").read_text()) / 1e6 for zone in packages]
    except (OSError, ValueError) as error:
        return Joules("cpu", None, f"RAPL cannot be read: {type(error).__name__}")
    return Joules("cpu", read, wrap=wraps[0])


def _check(status: Any) -> None:
    if status:
        raise RuntimeError(f"NVML status {status}")
