"""``s3t serve`` as a process: over a socket, with signals, restarted, and audited."""

from __future__ import annotations

import http.client
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from command_line import refused
from serving_http import PROBE, RECORDS, head_of, placed

from benchmarks.services import MODULE, Listening
from s3t.backbone import Backbone
from s3t.system import System
from verify.audit import audit
from verify.report import Verdict

SLOW = """
import pathlib, sys, time
from s3t import cli, requests
real = requests.erase
def slow(run, dropped):
    if dropped:
        pathlib.Path(sys.argv[0]).touch()
        time.sleep({seconds})
    real(run, dropped)
requests.erase = slow
sys.argv[0] = {mark!r}
cli.main()
"""
Start = Callable[..., "Process"]


class Process(Listening):
    """A service of its own process, which is listening."""

    def __init__(self, run: Path, *options: str, slow: str = "") -> None:
        super().__init__(run, options, ("-c", slow) if slow else MODULE)
        self.run = run

    def ask(self, method: str, path: str, body: Any = None, token: str = "") -> tuple[int, Any]:
        """Send one request over a connection of its own: status and JSON."""
        with closing(self.client()) as client:
            return client.ask(method, path, body, token)

    def predict(self) -> tuple[int, Any]:
        return self.ask("POST", "/predict", {"inputs": PROBE})

    def arguments(self) -> str:
        return Path(f"/proc/{self.process.pid}/cmdline").read_bytes().decode()

    def end(self) -> tuple[int, str]:
        """Wait for the end; exit code, and what was said after the first line on either stream."""
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out + err

    def kill(self) -> None:
        """End it, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def start(copied: Callable[[], Path]) -> Iterator[Start]:
    """Starts services, each on a copy of the run, or on a given run."""
    begun: list[Process] = []

    def begin(*options: str, run: Path | None = None, slow: str = "") -> Process:
        begun.append(Process(run or copied(), *options, slow=slow))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()


def _slow(seconds: float, mark: Path) -> str:
    return SLOW.format(seconds=seconds, mark=str(mark))


def _wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.01)


def _holds(run: Path, tiny: Backbone, victims: list[str]) -> None:
    """The deletions hold: by the ledger, on disk, and as the verifier sees it."""
    with closing(System.open(run, tiny)) as system:
        assert not set(victims) & set(system.ids())
        report = audit(system, run, levels=("E0",), records=RECORDS)
        assert report.verdict is Verdict.HOLDS, report.dumps()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_during_a_deletion_finishes_and_answers_it(
    start: Start, tmp_path: Path, tiny: Backbone, number: signal.Signals
) -> None:
    mark, victim, answers = tmp_path / "mark", placed(0, 1)[0], []
    process = start(slow=_slow(2.0, mark))
    status, before = process.predict()
    assert status == 200
    body, token = {"ids": [victim]}, process.token
    thread = threading.Thread(target=lambda: answers.append(process.ask("POST", "/delete", body, token)))
    thread.start()
    _wait_for(mark)
    assert answers == []
    assert process.predict()[1] != before, "the request is durable, so it holds for predictions already"
    process.process.send_signal(number)
    code, said = process.end()
    thread.join()
    assert (code, said) == (0, "")
    assert [(status, answer["deleted"]) for status, answer in answers] == [(200, [victim])]
    with pytest.raises(ConnectionRefusedError):
        process.predict()
    again = start("--host", "0.0.0.0", run=process.run)
    assert again.token == token
    assert again.predict() != (200, before)
    assert again.ask("POST", "/delete", body, token)[1]["already"] == [victim]
    again.process.send_signal(signal.SIGTERM)
    code, said = again.end()
    assert (code, said.count("\n")) == (0, 1)
    assert "others can reach this address" in said
    _holds(process.run, tiny, [victim])


def test_a_second_signal_ends_at_once_and_what_is_durable_holds(start: Start, tmp_path: Path, tiny: Backbone) -> None:
    mark, victim = tmp_path / "mark", placed(0, 1)[0]
    process = start(slow=_slow(600.0, mark))
    head = head_of(process.run)

    def ask() -> None:
        with pytest.raises((http.client.HTTPException, OSError)):
            process.ask("POST", "/delete", {"ids": [victim]}, process.token)

    thread = threading.Thread(target=ask)
    thread.start()
    _wait_for(mark)
    process.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    process.process.send_signal(signal.SIGTERM)
    assert process.end() == (128 + signal.SIGTERM, "")
    thread.join()
    assert head_of(process.run) == head + 1
    _holds(process.run, tiny, [victim])


def test_the_life_of_a_service(start: Start, tiny: Backbone) -> None:
    process = start("--access-log", "--max-body", "1000000")
    token, victims = process.token, placed(1, 0)[:2]
    assert set(process.said) == {"url", "port", "token_file"}
    assert process.said["url"] == f"http://127.0.0.1:{process.said['port']}"
    assert Path(process.said["token_file"]).parent == process.run.parent
    assert process.ask("GET", "/health") == (200, {"status": "serving"})
    before = process.predict()[1]
    assert process.ask("POST", "/delete", {"ids": victims}) == (401, {"error": "unauthorized"})
    assert process.predict()[1] == before
    assert process.ask("POST", "/delete", {"ids": victims}, token)[1]["deleted"] == victims
    assert process.predict()[1] != before
    assert process.ask("POST", "/predict", {"inputs": ["x" * 2_000_000]})[0] == 413
    for garbage in (
        b"\x00\xff" * 50,
        b"GET /a b HTTP/1.1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\ncontent-length: x\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", process.said["port"]), timeout=60) as raw:
            raw.sendall(garbage)
            assert raw.recv(4096).startswith(b"HTTP/1.1 400")
    assert process.ask("GET", "/status", token=token)[1]["deleted"] == 2
    assert token not in process.arguments()
    process.process.send_signal(signal.SIGTERM)
    code, said = process.end()
    assert code == 0
    assert "POST /delete 401" in said
    assert token not in said
    assert not any(name in said for name in victims)
    assert "Traceback" not in said
    assert len(said.splitlines()) == 8, said
    _holds(process.run, tiny, victims)


def test_a_service_that_cannot_start_says_why(copied: Callable[[], Path], tmp_path: Path) -> None:
    run = copied()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"127.0.0.1:{port} cannot be listened on" in refused("serve", run, "--port", port)
    assert "cannot be listened on" in refused("serve", run, "--host", "no.such.host.invalid")
    assert "there is no run at" in refused("serve", tmp_path / "none", "--port", "0")
    assert "lies inside the run's folder" in refused("serve", run, "--port", "0", "--token-file", run / "token")
    assert "seconds=0.0 is no limit" in refused("serve", run, "--port", "0", "--body-seconds", "0")
    path = tmp_path / "open"
    path.write_text("sixteen-or-more-letters")
    path.chmod(0o644)
    line = refused("serve", run, "--port", "0", "--token-file", path)
    assert "is open to others (mode 0644)" in line
    assert "sixteen" not in line
    assert not list(tmp_path.glob("*.token"))


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_without_the_extra_one_line_says_what_to_install(
    python: Callable[..., Any], copied: Callable[[], Path], missing: str
) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from s3t.cli import main; main()"
    done = python("-c", code, "serve", str(copied()), "--port", "0")
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: serving needs {missing}; pip install 's3t[serve]'"
