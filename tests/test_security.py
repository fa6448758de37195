"""Secrets and hostile files: key files are their owner's, keys are nowhere else, and nothing runs what it reads."""

from __future__ import annotations

import ast
import base64
import os
import re
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from command_line import said
from cryptography.hazmat.primitives import serialization

from benchmarks.services import Listening

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("s3t", "baselines", "verify", "benchmarks")


def _forms(secret: bytes) -> dict[str, re.Pattern[bytes]]:
    """Return what finds ``secret``: raw, in hex, and in base64 wherever it begins within what is encoded."""
    found = {"raw": re.compile(re.escape(secret)), "hex": re.compile(secret.hex().encode(), re.IGNORECASE)}
    for shift in range(3):
        for name, encode in (("base64", base64.b64encode), ("urlsafe base64", base64.urlsafe_b64encode)):
            inner = encode(bytes(shift) + secret)[4 if shift else 0 :].rstrip(b"=")
            found[f"{name} from {shift}"] = re.compile(re.escape(inner[: len(inner) - 1]))
    return found


def _seed(pem: Path) -> bytes:
    key = serialization.load_pem_private_key(pem.read_bytes(), password=None)
    return key.private_bytes(serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption())


def _told(secrets: dict[str, bytes], where: dict[str, bytes]) -> set[tuple[str, str]]:
    """Return which secret is found where."""
    return {
        (name, place)
        for name, secret in secrets.items()
        for pattern in _forms(secret).values()
        for place, content in where.items()
        if pattern.search(content)
    }


@pytest.fixture
def open_umask() -> Iterator[None]:
    """Files are made for all to read and write, unless the code says otherwise."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("secret", [bytes(range(200, 232)), b"a-token-of-some-length"])
def test_the_search_finds_a_secret_however_it_is_written(secret: bytes) -> None:
    for shift in range(3):
        text = b"x" * shift + secret + b"yz"
        for written in (text, text.hex().encode(), text.hex().upper().encode(), base64.b64encode(text)):
            assert _told({"key": secret}, {"file": b"before" + written})
        assert _told({"key": secret}, {"file": base64.urlsafe_b64encode(text)})
    assert not _told({"key": secret}, {"file": secret[:-2] + b"  " + secret[2:]})


def test_keys_are_their_owners_and_nowhere_else(
    tmp_path: Path, open_umask: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole life by the command line, everything written and said searched for the three secrets."""
    run, keys, outputs = tmp_path / "run", tmp_path / "keys", {}
    monkeypatch.setenv("S3T_KEYS", str(keys))
    monkeypatch.chdir(tmp_path)
    rows = "\n".join(f"r{i},word{i} of text{i % 5},{'ab'[i % 2]}" for i in range(40))
    (tmp_path / "rows.csv").write_text(f"id,text,label\n{rows}\n")

    def call(*args: object, code: int = 0) -> str:
        found, out, err = said(*args)
        outputs[f"{len(outputs)}: {args[0]}"] = (out + err).encode()
        assert found == code, err
        return out

    layout = ("--shards", 2, "--slices", 2, "--budget", 2)
    call("train", run, "--data", "rows.csv", "--model", "tiny", *layout, "--epochs", 1, "--rank", 2, "--allow-empty")
    call("status", run, "--json")
    call("predict", run, "--input", "rows.csv", "--json")
    call("delete", run, "--any", 1, "--json")
    call("delete", run, "--id", "nobody", code=2)
    call("refresh", run, "--json")
    call("duplicates", run)
    call("verify", run, "--out", "report.json", "--html", "report.html", "--level", "E0", "--json")
    call("certify", run, "--request", "r000001", "--report", "report.json", "--out", "run.cert.json")
    (public,) = keys.glob("*.pub")
    call("check", "run.cert.json", run, "--key", public)
    call("export", run, "--out", "out", "--base", "tiny", "--certificate", "run.cert.json", "--json")
    call("check-export", "out", run, "--json")

    service = Listening(run, ("--access-log",))
    token = service.token
    with closing(service.client()) as client:
        for asked in (
            ("POST", "/predict", {"inputs": ["a word"]}, ""),
            ("POST", "/delete", {"ids": ["r7"]}, token),
            ("POST", "/delete", {"ids": ["r7"]}, token[:-1]),
            ("POST", "/delete", {"ids": [token]}, token),
            ("GET", "/status", None, token),
            ("GET", "/health", None, ""),
            ("GET", f"/{token}", None, ""),
        ):
            if token not in str(asked[1:3]):
                outputs[f"{len(outputs)}: {asked[1]}"] = str(client.ask(*asked)).encode()
            else:
                client.ask(*asked)
    service.process.terminate()
    outputs["the service"] = "".join(service.process.communicate(timeout=120)).encode()
    assert b"/delete" in outputs["the service"], "its access log is searched too"

    secrets = {
        "slot key": bytes.fromhex((run / "secret.key").read_text().strip()),
        "signing key": _seed(keys / "signing.pem"),
        "token": token.encode(),
    }
    files = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    own = {("slot key", "run/secret.key"), ("token", "run.token"), ("signing key", "keys/signing.pem")}
    assert _told(secrets, files | outputs) == own
    for path, mode in (
        (run / "secret.key", 0o600),
        (tmp_path / "run.token", 0o600),
        (keys / "signing.pem", 0o600),
        (keys, 0o700),
    ):
        assert stat.S_IMODE(path.stat().st_mode) == mode, path


FORBIDDEN_MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml")
ALLOWED = {
    ("s3t/data/digits.py", "pickle"): "a pinned file, SHA-256 verified before; its unpickler makes nothing but arrays",
    ("verify/power.py", "pickle"): "what a child of this process wrote a moment ago, in a folder of its own",
    ("verify/conditions.py", "torch.load"): "bytes in memory that it wrote itself, with weights_only=True",
}


def _name(node: ast.expr) -> str:
    return ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""


def _literal(call: ast.Call, name: str) -> object:
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value.value if isinstance(keyword.value, ast.Constant) else "computed"
    return None


def _dangers(tree: ast.AST) -> Iterator[str]:
    """Yield what in a module could run what it reads, or write where an archive says."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (name.split(".")[0] for name in names if name.split(".")[0] in FORBIDDEN_MODULES)
        if not isinstance(node, ast.Call):
            continue
        called = _name(node.func)
        if called in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"):
            yield called
        if called == "torch.load" or called.endswith((".extractall", ".extract", ".read_pickle", ".unpack_archive")):
            yield called
        for option in ("allow_pickle", "trust_remote_code", "shell"):
            if _literal(node, option) not in (None, False):
                yield option


def _found() -> set[tuple[str, str]]:
    return {
        (path.relative_to(ROOT).as_posix(), danger)
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for danger in _dangers(ast.parse(path.read_text()))
    }


def test_nothing_runs_what_it_reads() -> None:
    assert _found() == set(ALLOWED), "each exception is there, with its reason, and no other"


def test_torch_loads_weights_alone() -> None:
    tree = ast.parse((ROOT / "verify/conditions.py").read_text())
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and _name(n.func) == "torch.load"]
    assert calls and all(_literal(call, "weights_only") is True for call in calls)


@pytest.mark.parametrize(
    "code",
    [
        *("import pickle", "from pickle import loads", "import yaml.constructor", "torch.load(f, weights_only=True)"),
        *("eval('1')", "exec(text)", "np.load(f, allow_pickle=True)", "np.load(f, allow_pickle=given)"),
        *("AutoModel.from_pretrained(name, trust_remote_code=True)", "tarred.extractall(path)", "zipped.extract(name)"),
        *("subprocess.run(line, shell=True)", "os.system(line)", "pd.read_pickle(path)", "shutil.unpack_archive(path)"),
    ],
)
def test_dangers_are_seen(code: str) -> None:
    assert len(list(_dangers(ast.parse(code)))) == 1


@pytest.mark.parametrize("code", ["model.eval()", "np.load(f, allow_pickle=False)", "re.compile('x')", "load(f)"])
def test_what_is_no_danger(code: str) -> None:
    assert list(_dangers(ast.parse(code))) == []
