"""The token's file: made for its owner alone, refused if anybody else can read it, and never quoted."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from s3t.errors import ServiceError
from s3t.service.tokens import Token, default_path, read_token

SECRET = "sixteen-or-more-letters"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder that stands for a run."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def _file(path: Path, content: str = SECRET, mode: int = 0o600) -> Path:
    path.write_text(content)
    path.chmod(mode)
    return path


def test_a_file_is_made_for_its_owner_alone(run: Path) -> None:
    before = os.umask(0)
    try:
        token = read_token(default_path(run), run)
    finally:
        os.umask(before)
    path = run.parent / "run.token"
    secret = path.read_text().strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", secret)
    assert token.allows(f"Bearer {secret}")
    assert read_token(path, run).allows(f"bearer {secret}"), "the same one the next time"
    assert sorted(run.parent.iterdir()) == [run, path], "no draft is left, and nothing is in the run"
    assert secret not in repr(vars(token))
    other = read_token(run.parent / "other.token", run)
    assert not other.allows(f"Bearer {secret}")


def test_a_file_of_ones_own_is_read(run: Path) -> None:
    token = read_token(_file(run.parent / "mine", f"  {SECRET}\n"), run)
    assert token.allows(f"Bearer {SECRET}")
    for header in ("", "Bearer ", SECRET, f"Bearer {SECRET}x", f"Basic {SECRET}", f"Bearer {SECRET.upper()}"):
        assert not token.allows(header)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644, 0o666])
def test_a_file_that_is_open_to_others_is_refused(run: Path, mode: int) -> None:
    with pytest.raises(ServiceError, match=rf"open to others \(mode {mode:04o}\).*chmod 600") as caught:
        read_token(_file(run.parent / "token", mode=mode), run)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["", "\n", "short", "two words and more", f"{SECRET}\n{SECRET}", "é" * 20, "x" * 15]
)
def test_what_is_no_token_is_refused(run: Path, content: str) -> None:
    with pytest.raises(ServiceError, match="holds no usable token") as caught:
        read_token(_file(run.parent / "token", content), run)
    assert not content.strip() or content.strip() not in str(caught.value)


def test_a_place_inside_the_run_is_refused(run: Path) -> None:
    (run.parent / "link").symlink_to(run)
    for path in (run / "token", run / "nodes" / "token", run.parent / "link" / "token"):
        with pytest.raises(ServiceError, match="lies inside the run's folder"):
            read_token(path, run)
    assert not list(run.iterdir())


def test_what_is_no_plain_file_is_refused(run: Path) -> None:
    os.mkfifo(run.parent / "pipe", 0o600)
    with pytest.raises(ServiceError, match="is no plain file"):
        read_token(run.parent / "pipe", run)
    for path in (run.parent, run.parent / "no" / "such" / "folder", run.parent / "dangling"):
        (run.parent / "dangling").unlink(missing_ok=True)
        (run.parent / "dangling").symlink_to(run.parent / "nowhere")
        with pytest.raises(ServiceError, match=r"cannot be used|is no plain file"):
            read_token(path, run)


def test_somebody_elses_file_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _file(run.parent / "token")
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(ServiceError, match="belongs to user"):
        read_token(path, run)


def test_of_two_that_make_it_one_holds(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run.parent / "token"
    monkeypatch.setattr(Path, "exists", lambda _: False)
    first, second = (read_token(path, run) for _ in range(2))
    header = f"Bearer {path.read_text().strip()}"
    assert first.allows(header)
    assert second.allows(header)


def test_a_token_shows_itself_nowhere() -> None:
    assert SECRET not in f"{Token(SECRET)!r} {Token(SECRET)} {vars(Token(SECRET))}"
