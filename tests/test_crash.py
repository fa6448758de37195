"""A process that ends by a signal loses nothing acknowledged; its locks end with it.

Kills at every write, and losses of power, are those of :mod:`verify.crashes` (tests/verify/test_crashes.py).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from verify.crashes.bench import RECORDS, Bench, differences, folder, state, trained

FIT = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from verify.crashes.bench import RECORDS, Bench
root = Path(sys.argv[1])
Bench("reference", root).system(root).fit(RECORDS, lambda done, total, what: print(done, flush=True))
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench("reference", tmp_path_factory.mktemp("crash"))


def test_kill_minus_nine_during_fit(tmp_path: Path, bench: Bench) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "HF_HUB_OFFLINE": "1"}
    child = subprocess.Popen([sys.executable, "-c", FIT, str(tmp_path)], stdout=subprocess.PIPE, env=env, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 2:
            break
    child.send_signal(signal.SIGKILL)
    child.stdout.close()
    assert child.wait() == -signal.SIGKILL
    before = trained(tmp_path)
    assert len(before) >= 2
    with closing(bench.system(tmp_path)) as system:
        assert system.fit(RECORDS).nodes == 4 - len(before)
        assert list(differences(state(system), bench.end())) == list(folder(tmp_path)) == []


def test_a_lock_ends_with_its_process(tmp_path: Path, bench: Bench) -> None:
    shutil.copytree(bench.start(), tmp_path, dirs_exist_ok=True)
    child = os.fork()
    if child == 0:
        with bench.open(tmp_path)._opened()[0].building():
            time.sleep(0.05)
            os._exit(0)
    os.waitpid(child, 0)
    with closing(bench.open(tmp_path)) as system:
        assert system.refresh().nodes == 0
