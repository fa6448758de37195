"""What a block of work used: seconds, bytes, memory, energy. What cannot be measured here is None, with the reason.

with Meter() as meter:
    system.fit(records)
bench.add(..., extra=costs(meter.usage, records=..., flops=count_flops(...), peak=matmul_peak()))
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.energy import Joules, cpu, gpu
from benchmarks.flops import Peak
from s3t.errors import DataError

SELF = Path("/proc/self")
SHARE = 0.01
"""Of the time that samples may take: the kernel walks all pages of a process to tell what is its own, tens of milliseconds."""


@dataclass(frozen=True)
class Usage:
    """What a block used. Bytes are those of read and write calls, of worker processes too once they have ended.

    ``storage_read`` and ``storage_written``: the part that reached a disk. ``peak_memory``: the largest resident set during the
    block; ``memory_growth``: by how much that exceeds the start. ``missing``: why a field is None.
    """

    seconds: float
    cpu_seconds: float
    bytes_read: int | None
    bytes_written: int | None
    storage_read: int | None
    storage_written: int | None
    peak_memory: int | None
    memory_growth: int | None
    cuda_peak_memory: int | None
    joules: float | None
    missing: dict[str, str] = field(default_factory=dict)


class Meter:
    """Measures its ``with`` block; :attr:`usage` afterwards. One at a time per process, for the memory's peak is reset.

    ``children``: worker processes count too; their private memory is sampled ``every`` seconds, or less often, so that sampling
    takes no more than :data:`SHARE` of the time; the process' own peak is exact. Work on a GPU is waited for at both ends.
    """

    def __init__(self, *, children: bool = False, every: float = 0.05, root: Path = SELF) -> None:
        self._children, self._every, self._root = children, every, root
        self._usage: Usage | None = None
        self.missing: dict[str, str] = {}

    @property
    def usage(self) -> Usage:
        """What the block used. DataError before it has ended."""
        if self._usage is None:
            raise DataError("the block that is metered has not ended; ask for its usage afterwards")
        return self._usage

    def __enter__(self) -> Meter:
        self._usage, self.missing = None, {}
        self._energy = [counter for counter in (gpu(), cpu()) if self._has(counter)]
        self._exact, self._sampler = self._reset_peak(), None
        self._start = self._resident("VmRSS")
        if self._children or not self._exact:
            self._sampler = _Sampler(self._sampled, self._every)
            self._sampler.start()
        self._cuda = _cuda_reset()
        self._joules = [counter.read() for counter in self._energy if counter.read]
        self._io, self._cpu, self._began = self._counters(), _cpu_seconds(), time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cuda = _cuda_peak() if self._cuda else None
        seconds = time.perf_counter() - self._began
        used, io = _cpu_seconds() - self._cpu, self._counters()
        joules = [
            counter.between(before, counter.read())
            for counter, before in zip(self._energy, self._joules, strict=True)
            if counter.read
        ]
        peak = self._peak()
        if cuda is None:
            self.missing["cuda_peak_memory"] = "no GPU"

        def moved(name: str) -> int | None:
            return io[name] - self._io[name] if name in io and name in self._io else None

        self._usage = Usage(
            seconds=seconds,
            cpu_seconds=used,
            bytes_read=moved("rchar"),
            bytes_written=moved("wchar"),
            storage_read=moved("read_bytes"),
            storage_written=moved("write_bytes"),
            peak_memory=peak,
            memory_growth=None if peak is None or self._start is None else max(0, peak - self._start),
            cuda_peak_memory=cuda,
            joules=sum(joules) if joules else None,
            missing=dict(self.missing),
        )

    def _has(self, counter: Joules) -> bool:
        if counter.read is None:
            self.missing["joules"] = "; ".join(filter(None, (self.missing.get("joules"), counter.reason)))
        return counter.read is not None

    def _reset_peak(self) -> bool:
        """Set the kernel's mark of the highest resident set back to the present one; say whether it could be done."""
        try:
            (self._root / "clear_refs").write_text("5")
        except OSError:
            return False
        return self._resident("VmHWM") is not None

    def _resident(self, name: str) -> int | None:
        try:
            lines = (self._root / "status").read_text().splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)

    def _sampled(self) -> tuple[int, int]:
        """Return the resident set now, and the private memory of all descendants."""
        return self._resident("VmRSS") or 0, sum(map(_private, _descendants())) if self._children else 0

    def _peak(self) -> int | None:
        own, theirs = self._sampler.stop() if self._sampler else (0, 0)
        exact = self._resident("VmHWM") if self._exact else own
        if not exact:
            self.missing["peak_memory"] = f"{self._root.name}/status cannot be read"
            return None
        if not self._exact:
            self.missing["exact_peak_memory"] = f"clear_refs cannot be written; sampled every {self._every} s"
        return exact + theirs

    def _counters(self) -> dict[str, int]:
        try:
            pairs = (line.split(": ") for line in (self._root / "io").read_text().splitlines())
            return {name: int(value) for name, value in pairs}
        except OSError as error:
            for name in ("bytes_read", "bytes_written", "storage_read", "storage_written"):
                self.missing[name] = f"{self._root.name}/io cannot be read: {type(error).__name__}"
            return {}


class _Sampler(threading.Thread):
    """Keeps the maxima of what ``sample`` returns, apart for each of its two numbers."""

    def __init__(self, sample: Callable[[], tuple[int, int]], every: float) -> None:
        super().__init__(daemon=True)
        self._sample, self._every, self._end = sample, every, threading.Event()
        self._most = sample()

    def run(self) -> None:
        pause = self._every
        while not self._end.wait(pause):
            began = time.perf_counter()
            self._note()
            pause = max(self._every, (time.perf_counter() - began) * (1 / SHARE - 1))

    def _note(self) -> None:
        own, theirs = self._sample()
        self._most = max(self._most[0], own), max(self._most[1], theirs)

    def stop(self) -> tuple[int, int]:
        """End the thread and return both maxima, the last moment included."""
        self._end.set()
        self.join()
        self._note()
        return self._most


def costs(usage: Usage, *, records: int, flops: int | None = None, peak: Peak | None = None) -> dict[str, Any]:
    """Return a row's cost accounting, for its ``extra``.

    ``records``: record passes in the block. ``flops``: counted for the same work; ``flops_per_second`` and ``share_of_peak``
    follow from it. Fields without a value are None, and ``missing`` says why. Raises DataError for a block without time.
    """
    if usage.seconds <= 0:
        raise DataError(f"a block of {usage.seconds} s has no rate; meter some work")
    rate = None if flops is None else flops / usage.seconds
    out: dict[str, Any] = {
        "seconds": usage.seconds,
        "cpu_seconds": usage.cpu_seconds,
        "records": records,
        "records_per_second": records / usage.seconds,
        "flops": flops,
        "flops_per_second": rate,
        "share_of_peak": rate / peak.flops_per_second if rate is not None and peak else None,
        "bytes_read": usage.bytes_read,
        "bytes_written": usage.bytes_written,
        "storage_written": usage.storage_written,
        "peak_memory": usage.peak_memory,
        "memory_growth": usage.memory_growth,
        "cuda_peak_memory": usage.cuda_peak_memory,
        "joules": usage.joules,
        "missing": dict(usage.missing),
    }
    if peak:
        out["peak"] = {"flops_per_second": peak.flops_per_second, "shape": list(peak.shape), "dtype": peak.dtype}
        out["peak"]["threads"] = peak.threads
    if flops is None:
        out["missing"]["flops"] = "not counted for this block"
    return out


def _cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def _descendants() -> list[int]:
    found, due = [], [os.getpid()]
    while due:
        pid = due.pop()
        for listing in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                due += (children := [int(word) for word in listing.read_text().split()])
                found += children
    return found


def _private(pid: int) -> int:
    """Memory that only process ``pid`` has; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def _cuda_reset() -> bool:
    import torch

    if not torch.cuda.is_available():
        return False
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return True


def _cuda_peak() -> int:
    import torch

    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated())
