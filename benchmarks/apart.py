"""One step on a run in a process of its own, so that its seconds and its peak of memory are its own; torch only to predict.
Sums over made-up features are one too, though they need no run.

``python -m benchmarks.apart STEP RUN TIMES`` prints one line of JSON: ``seconds`` of each time, ``peak`` of the process's
resident memory in bytes, and ``before``, what that was when all was ready. What the step needs to know is read from stdin, as
JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import aged
from benchmarks.synthetic import made_features
from s3t import runs
from s3t.analytic.sums import Sums
from s3t.system import System


@dataclass(frozen=True)
class Step:
    """What a step took: seconds, of each time; peak of resident memory in bytes, and that before it began."""

    seconds: list[float]
    peak: int
    before: int


def apart(step: str, run: Path, said: Any = None, times: int = 1) -> Step:
    """Do ``step`` so many times in a process of its own. CalledProcessError if it fails."""
    command = [sys.executable, "-m", "benchmarks.apart", step, str(run), str(times)]
    done = subprocess.run(command, input=json.dumps(said), check=True, stdout=subprocess.PIPE, text=True)
    return Step(**json.loads(done.stdout))


Work = Callable[[], object]


def _ingest(path: Path, said: Any) -> Work:
    config = runs.RunConfig.from_bytes((Path(said["like"]) / runs.CONFIG).read_bytes(), said["like"])
    return lambda: runs.create(path, config, aged.KEY, aged.Made(said["records"]), ((), ()))


def _open(path: Path, said: Any) -> Work:
    return lambda: System.open(path).close()


def _status(path: Path, said: Any) -> Work:
    def work() -> None:
        with closing(System.open(path)) as system:
            assert not system.status(check=bool(said)).damaged

    return work


def _delete(path: Path, said: Any) -> Work:
    def work() -> None:
        with closing(System.open(path)) as system:
            receipt = system.delete(said)
            assert len(receipt.deleted) == len(said) and receipt.nodes_dropped

    return work


def _choose(path: Path, said: Any) -> Work:
    from s3t.cli.inputs import choose_ids

    def work() -> None:
        with closing(System.open(path)) as system:
            assert len(choose_ids(system.each_id(), said)) == said

    return work


def _predict(path: Path, said: Any) -> Work:
    from s3t.backbone import load

    tiny = load("tiny")

    def work(run: Path = path) -> None:
        with closing(System.open(run, tiny)) as system:
            system.predict([{"text": "is it so"}])
            assert len(system.status().live) == system.config.plan.layout.shards

    work(Path(said))  # a small run: what the first prediction of all needs is there then
    return work


def _sum(path: Path, said: Any) -> Work:
    records, features, classes = said

    def work() -> None:
        assert Sums.over(features, classes, made_features(records, features, classes)).records == records

    return work


STEPS = {
    "ingest": _ingest,
    "open": _open,
    "status": _status,
    "delete": _delete,
    "choose": _choose,
    "predict": _predict,
    "sum": _sum,
}
"""Each makes ready, and returns what is measured."""


def main(step: str, run: str, times: str) -> None:
    """Do a step and say what it took."""
    work = STEPS[step](Path(run), json.load(sys.stdin))
    before, seconds = aged.peak(), []
    for _ in range(int(times)):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    print(json.dumps(asdict(Step(seconds, aged.peak(), before))))


if __name__ == "__main__":
    main(*sys.argv[1:])
