"""Cost accounting: counts are exact, bytes and memory are at least what was used, and what is missing has a reason."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import flops, metering
from benchmarks.energy import Joules, cpu
from benchmarks.flops import Peak, count_flops, matmul_peak, model_shapes
from benchmarks.metering import Meter, Usage, costs
from s3t.errors import DataError

MB = 1_000_000
PEAK = Peak(4e6, (2, 3, 4), {(2, 3, 4): 4e6}, "float32", 1)


def test_a_matrix_product_counts_two_per_multiplication() -> None:
    left, right = torch.ones(3, 5), torch.ones(5, 7)
    assert count_flops(lambda: left @ right) == 2 * 3 * 5 * 7
    assert count_flops(lambda: left + 1) == 0


def test_backward_passes_are_counted() -> None:
    layer, rows = nn.Linear(5, 7), torch.ones(3, 5)
    forward = 2 * 3 * 5 * 7
    assert count_flops(lambda: layer(rows).sum().backward()) == 2 * forward  # the rows need no gradient
    assert count_flops(lambda: layer(rows.requires_grad_()).sum().backward()) == 3 * forward


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_counted_on_the_cpu(masked: bool) -> None:
    query, key, value = (torch.rand(2, 3, 8, 4, requires_grad=True) for _ in range(3))
    mask = torch.zeros(2, 1, 8, 8) if masked else None
    product = 2 * 2 * 3 * 8 * 8 * 4

    def attend() -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    with torch.no_grad():
        assert count_flops(attend) == 2 * product
    assert count_flops(lambda: attend().sum().backward()) == (2 + 5) * product


def test_an_encoder_counts_as_by_hand() -> None:
    """Per layer and token: four projections of h x h and two of h x 2h; per head the scores and the mixture."""
    from s3t.backbone import load

    backbone = load("tiny", torch.device("cpu"))
    rows, words, hidden, layers = 3, 10, 32, 6
    batch = {"input_ids": torch.ones(rows, words, dtype=torch.long), "attention_mask": torch.ones(rows, words)}
    linear = 2 * rows * words * (4 * hidden * hidden + 2 * hidden * 2 * hidden)
    attention = 2 * 2 * rows * words * words * hidden
    with torch.no_grad():
        assert count_flops(lambda: backbone.model(**batch)) == layers * (linear + attention)


def test_equal_shapes_are_counted_once() -> None:
    calls: list[int] = []

    def work() -> torch.Tensor:
        calls.append(1)
        return torch.ones(2, 2) @ torch.ones(2, 2)

    key = ("tests", "a product of 2 x 2")
    flops._counted.pop(key, None)
    assert [count_flops(work, shape=key) for _ in range(3)] == [16, 16, 16]
    assert len(calls) == 1
    flops._counted.pop(key)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peak_is_the_best_of_the_shapes(dtype: str) -> None:
    threads = torch.get_num_threads()
    shapes = model_shapes(8, 16, 32)
    assert shapes == [(8, 16, 16), (8, 16, 32), (8, 32, 16)]
    peak = matmul_peak(dtype, shapes=shapes, rounds=1, square=(32, 32, 32), threads=1)
    assert set(peak.measured) == {(32, 32, 32), *shapes}
    assert peak.flops_per_second == peak.measured[peak.shape] == max(peak.measured.values()) > 0
    assert (peak.dtype, peak.threads, torch.get_num_threads()) == (dtype, 1, threads)
    with pytest.raises(DataError, match="rounds=0 measures nothing"):
        matmul_peak(rounds=0)


def test_bytes_are_at_least_those_moved(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with Meter() as meter:
        file.write_bytes(bytes(3 * MB))
    assert meter.usage.bytes_written is not None and 3 * MB <= meter.usage.bytes_written < 4 * MB
    with Meter() as meter:
        file.read_bytes()
    assert meter.usage.bytes_read is not None and 3 * MB <= meter.usage.bytes_read < 4 * MB
    assert meter.usage.bytes_written == 0


def test_bytes_of_a_process_that_has_ended_count(tmp_path: Path) -> None:
    with Meter() as meter:
        code = f"open({str(tmp_path / 'file')!r}, 'wb').write(bytes({MB}))"
        subprocess.run([sys.executable, "-c", code], check=True)
    assert meter.usage.bytes_written is not None and meter.usage.bytes_written >= MB
    assert meter.usage.cpu_seconds > 0


@pytest.mark.parametrize("sampled", [False, True])
def test_the_peak_of_memory_grows_by_an_allocation(sampled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if sampled:
        monkeypatch.setattr(Meter, "_reset_peak", lambda self: False)
    with Meter(every=0.001) as meter:
        block = b"\x01" * (80 * MB)
        if sampled:
            meter._sampler._note()  # type: ignore[union-attr]
        del block
    usage = meter.usage
    assert usage.memory_growth is not None and usage.peak_memory is not None
    assert 75 * MB <= usage.memory_growth < 160 * MB
    assert usage.peak_memory > usage.memory_growth
    assert ("exact_peak_memory" in usage.missing) == sampled
    with Meter() as after:
        pass
    assert after.usage.memory_growth is not None and after.usage.memory_growth < 40 * MB, "the earlier peak has gone"


def test_the_memory_of_worker_processes_counts() -> None:
    code = f"block = b'1' * {60 * MB}; print('ready', flush=True); input()"
    with Meter(children=True, every=0.001) as meter:
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout and child.stdout.readline() == "ready\n"
            assert child.pid in metering._descendants()
            meter._sampler._note()  # type: ignore[union-attr]
            child.communicate("\n")
        assert metering._private(child.pid) == 0
    assert meter.usage.memory_growth is not None and meter.usage.memory_growth >= 60 * MB


def test_samples_take_no_more_than_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause grows with what a sample took: a meter that takes a core for itself would slow down what it measures."""
    clock, pauses = [0.0], []

    def sample() -> tuple[int, int]:
        clock[0] += taken[len(pauses)]
        return len(pauses), 0

    def wait(seconds: float) -> bool:
        pauses.append(seconds)
        return len(pauses) == 3

    taken = [0.0, 0.0001, 0.04]
    sampler = metering._Sampler(sample, 0.05)
    monkeypatch.setattr(metering.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(sampler._end, "wait", wait)
    sampler.run()
    assert pauses == pytest.approx([0.05, 0.05, 0.04 / metering.SHARE - 0.04])
    assert sampler._most == (2, 0)


def test_what_cannot_be_read_is_missing_with_a_reason(tmp_path: Path) -> None:
    with Meter(root=tmp_path / "nowhere") as meter:
        sum(range(1000))
    usage = meter.usage
    for name in ("bytes_read", "bytes_written", "storage_read", "storage_written", "peak_memory"):
        assert getattr(usage, name) is None and "cannot be read" in usage.missing[name]
    assert usage.memory_growth is None
    assert usage.seconds > 0


def test_a_usage_before_the_end_is_refused() -> None:
    meter = Meter()
    with pytest.raises(DataError, match="has not ended"):
        _ = meter.usage
    with meter, pytest.raises(DataError, match="has not ended"):
        _ = meter.usage
    assert meter.usage.seconds >= 0


def test_a_failing_block_is_metered_and_its_error_goes_on() -> None:
    meter = Meter(children=True)
    with pytest.raises(ZeroDivisionError), meter:
        _ = 1 / 0
    assert meter.usage.seconds > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has these")
def test_without_a_gpu_its_fields_are_missing() -> None:
    with Meter() as meter:
        pass
    assert meter.usage.cuda_peak_memory is None and meter.usage.missing["cuda_peak_memory"] == "no GPU"
    assert "no GPU" in meter.usage.missing.get("joules", "no GPU")


def _zone(root: Path, name: str, energy: int, most: int) -> Path:
    zone = root / name
    zone.mkdir()
    (zone / "energy_uj").write_text(f"{energy}\n")
    (zone / "max_energy_range_uj").write_text(f"{most}\n")
    return zone


def test_packages_are_summed_and_parts_of_a_package_are_not(tmp_path: Path) -> None:
    _zone(tmp_path, "intel-rapl:0", 3_000_000, 10_000_000)
    _zone(tmp_path, "intel-rapl:1", 4_000_000, 10_000_000)
    _zone(tmp_path, "intel-rapl:0:0", 2_000_000, 10_000_000)
    counter = cpu(tmp_path)
    assert counter.read is not None and counter.read() == 7.0
    assert counter.between(2.0, 7.0) == 5.0
    assert counter.between(9.0, 1.0) == 2.0


def test_counters_that_are_not_there_or_not_ours_have_a_reason(tmp_path: Path) -> None:
    assert cpu(tmp_path) == Joules("cpu", None, "no RAPL counters on this machine")
    (_zone(tmp_path, "intel-rapl:0", 1, 2) / "energy_uj").unlink()
    assert cpu(tmp_path).reason == "RAPL cannot be read: FileNotFoundError"


def test_a_readable_counter_gives_joules(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([10.0, 12.5])
    monkeypatch.setattr(metering, "cpu", lambda: Joules("cpu", lambda: next(readings)))
    monkeypatch.setattr(metering, "gpu", lambda: Joules("gpu", None, "no GPU"))
    with Meter() as meter:
        pass
    assert meter.usage.joules == 2.5
    assert meter.usage.missing["joules"] == "no GPU"


def _usage(**changes: Any) -> Usage:
    return dataclasses.replace(
        Usage(2.0, 3.0, 10, 20, 0, 5, 1000, 100, None, None, {"joules": "no counter"}), **changes
    )


def test_a_rows_cost_accounting() -> None:
    extra = costs(_usage(), records=50, flops=4_000_000, peak=PEAK)
    assert extra["records_per_second"] == 25.0
    assert extra["flops_per_second"] == 2e6
    assert extra["share_of_peak"] == 0.5
    assert (extra["bytes_read"], extra["bytes_written"], extra["storage_written"]) == (10, 20, 5)
    assert (extra["peak_memory"], extra["memory_growth"], extra["cuda_peak_memory"]) == (1000, 100, None)
    assert extra["joules"] is None and extra["missing"] == {"joules": "no counter"}
    assert extra["peak"] == {"flops_per_second": 4e6, "shape": [2, 3, 4], "dtype": "float32", "threads": 1}
    assert json.loads(json.dumps(extra)) == extra


def test_without_a_count_no_share_is_claimed() -> None:
    extra = costs(_usage(), records=50, peak=PEAK)
    assert extra["flops"] is extra["flops_per_second"] is extra["share_of_peak"] is None
    assert extra["missing"]["flops"] == "not counted for this block"
    assert "peak" not in costs(_usage(), records=1)
    with pytest.raises(DataError, match=r"a block of 0\.0 s has no rate"):
        costs(_usage(seconds=0.0), records=1)


def test_importing_the_meter_loads_no_torch(python: Any) -> None:
    done = python("-c", "import benchmarks.metering, sys; sys.exit('torch' in sys.modules)", cwd=os.getcwd())
    assert done.returncode == 0, done.stderr
