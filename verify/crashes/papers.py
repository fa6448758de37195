"""Works that write beside a run and leave it as it is: a certificate with the signer's keys, an export."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from s3t.errors import S3TError
from verify.crashes.bench import MODEL, RUN, Fault, Say, Work, delete_first
from verify.report import Verdict
from verify.small import backbone


class Paper(Work):
    """A work whose outcome is ``made`` below the root: not there, or whole."""

    made: ClassVar[str]

    def start(self) -> Path | None:
        """Return a run with a deletion."""
        return self.bench.start(delete_first)

    def check(self, root: Path, said: int) -> Iterator[Fault]:
        """What is there is whole, what was acknowledged is there, the run is as it was; then it can be made."""
        if (root / self.made).exists():
            yield from (("loss", f"{self.made} is not whole: {problem}") for problem in self.problems(root))
        elif said:
            yield "loss", f"{self.made} is gone, though it was acknowledged"
        yield from self.unchanged(root)
        if (root / self.made).is_dir():
            shutil.rmtree(root / self.made)
        self.do(root, lambda: None)
        yield from (("difference", f"{self.made}, made anew: {problem}") for problem in self.problems(root))
        yield from self.unchanged(root)

    @abstractmethod
    def problems(self, root: Path) -> Iterator[str]:
        """Yield what is wrong with what was made."""

    def unchanged(self, root: Path) -> Iterator[Fault]:
        """Yield a fault if any byte of the run is another than before."""
        start = self.start()
        if start is None or files(start / RUN) != files(root / RUN):
            yield "difference", "the run is not as it was before"


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below ``folder``."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Certify(Paper):
    """``s3t certify`` of the deletion: the keys are made, the run is audited, the certificate is signed and written."""

    name = "certify"
    made = "cert.json"

    def do(self, root: Path, say: Say) -> None:
        """Certify with a structural audit."""
        from s3t.cli.attest import certify

        out, keys = root / self.made, root / "keys"
        with _scratch_in(root), contextlib.redirect_stdout(io.StringIO()):
            certify(root / RUN, "r000001", None, out, ["E0"], "", keys)
        say()

    def problems(self, root: Path) -> Iterator[str]:
        """Yield what the check of the certificate says against it."""
        from verify.attest.check import check

        try:
            told = check((root / self.made).read_bytes(), root / RUN, keys=root / "keys")
        except S3TError as error:
            yield str(error)
            return
        yield from (finding.message for finding in told.findings if finding.verdict is not Verdict.HOLDS)


@contextlib.contextmanager
def _scratch_in(root: Path) -> Iterator[None]:
    """Let temporary folders be made beside ``root``: a process that is cut short leaves them."""
    before, tempfile.tempdir = tempfile.tempdir, str(root.parent)
    try:
        yield
    finally:
        tempfile.tempdir = before


class Export(Paper):
    """``s3t export`` of what serves, into a folder whose parent is made too."""

    name = "export"
    made = "papers/export"

    def do(self, root: Path, say: Say) -> None:
        """Export."""
        from s3t.exporting import export

        export(root / RUN, 0, root / self.made, backbone=backbone(MODEL))
        say()

    def problems(self, root: Path) -> Iterator[str]:
        """Yield what the check of the export says against it, and what is not as in another export of the run."""
        from s3t.exporting import check, export

        start: Any = self.start()
        whole = self.bench.folder / f"export-{self.bench.engine}"
        if not whole.exists():
            export(start / RUN, 0, whole, backbone=backbone(MODEL))
        try:
            check(root / self.made, root / RUN)
        except S3TError as error:
            yield str(error)
            return
        if files(root / self.made) != files(whole):
            yield "its files are not those of another export"
