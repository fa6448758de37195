"""Bits of a run's files that are not as they were written: never a wrong answer, never a deletion of the wrong slot.

Whatever is changed, the run says so when it is used, or answers exactly as before; and what it does not need, the audit sees.
Bytes of a database that mean nothing (free space) may change unseen. A file of a trained node is no reason to refuse: the
answers are those of what is intact.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from s3t import S3T
from s3t.analytic.head import AnalyticHead
from s3t.analytic.store import CHECK, FEATURES
from s3t.analytic.store import HEADER as FEATURES_HEADER
from s3t.backbone import Backbone
from s3t.ensembling import combine
from s3t.errors import RunError, S3TError
from s3t.graph import Node
from s3t.partition import slot, tag
from s3t.plan import s3t_plan
from s3t.records import Layout, Recipe, Record
from s3t.rows import HEADER, MAGIC
from s3t.system import System
from verify import derive
from verify.audit import audit
from verify.evidence import read_evidence
from verify.report import Verdict
from verify.state import derive_state, without

KEY = bytes(range(32))
LAYOUT = Layout(2, 2, 2)
RECORDS = [Record(f"row-{i:02d}", {"text": f"secret{i:02d} cat {i % 3}"}, i % 2) for i in range(24)]
ASKED = [{"text": "the cat"}, {"text": "number 7"}]
WANTED = "row-07"
"""The record whose deletion is tried on a damaged run."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: Backbone) -> Path:
    """A run with a past: deletions before and after a refresh, and slots that never were hit."""
    path = tmp_path_factory.mktemp("corruption") / "run"
    recipe = Recipe(rank=1, epochs=1.0, batch_size=8)
    held_out = ([], [Record("probe", {"text": "cat"}, 0)])
    with closing(
        S3T(path, LAYOUT, classes=("a", "b"), model=tiny, recipe=recipe, key=KEY, evaluation=held_out)
    ) as made:
        made.fit(RECORDS)
        made.delete(["row-03"])
        made.refresh()
        made.delete(["row-05"])
    return path


@pytest.fixture(scope="module")
def answers(run: Path, tiny: Backbone) -> np.ndarray:
    with closing(System.open(run, tiny)) as system:
        return np.asarray(system.predict(ASKED))


@dataclass(frozen=True)
class Harm:
    """What happens to one file: bit ``at`` is flipped, or (``how``) it is cut in half, emptied, zeroed, or gone."""

    file: str
    how: str
    at: int = 0

    def to(self, path: Path) -> None:
        file = path / self.file
        content = bytearray(file.read_bytes())
        if self.how == "flip":
            content[self.at // 8] ^= 1 << self.at % 8
        elif self.how == "cut":
            del content[len(content) // 2 :]
        elif self.how == "zeros":
            content[:] = bytes(len(content))
        if self.how == "gone":
            file.unlink()
        else:
            file.write_bytes(b"" if self.how == "empty" else content)

    def means_nothing(self, path: Path, before: Path) -> bool:
        """Say whether what the file tells is unchanged: a database's rows, a key in capital letters, or from where on rows are
        erased once more."""
        if self.file.endswith(".sqlite"):
            return _dump(path / self.file) == _dump(before / self.file)
        if self.file == "secret.key" and self.how == "flip":
            told = [(folder / self.file).read_bytes().lower() for folder in (path, before)]
            return told[0] == told[1]
        return self.file == "records.bin" and self.how == "flip" and len(MAGIC) <= self.at // 8 < HEADER


def _dump(path: Path) -> list[str] | None:
    try:
        with closing(sqlite3.connect(path)) as db:
            return [*db.iterdump(), *map(str, db.execute("SELECT rowid FROM sqlite_master"))]
    except (sqlite3.DatabaseError, UnicodeDecodeError):
        return None


def harms(run: Path, flips: int, seed: int) -> Iterator[Harm]:
    """Every file of a run in turn: so many flipped bits, and each of the other harms."""
    draw = random.Random(seed)
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        file, bits = str(path.relative_to(run)), 8 * path.stat().st_size
        yield from (Harm(file, "flip", draw.randrange(bits)) for _ in range(flips))
        yield from (Harm(file, how) for how in ("cut", "empty", "zeros", "gone"))


@pytest.fixture(scope="module")
def left(run: Path, tmp_path_factory: pytest.TempPathFactory, tiny: Backbone) -> dict[str, list[np.ndarray]]:
    """What a run answers that never had a node, by the node's key: before, and after the deletion of WANTED."""
    found = {}
    for node, survivor in derive_state(read_evidence(run)).survivors.items():
        path = tmp_path_factory.mktemp("left") / "run"
        shutil.copytree(run, path)
        answers = []
        with closing(System.open(path, tiny)) as system:
            for wanted in ((), (WANTED,)):
                system.delete(wanted)
                chains = without(derive_state(read_evidence(path)), [node]).chains
                facts = system._opened()[1]
                facts.alive = {n: fact for n, fact in facts.alive.items() if (n.shard, n.prefix) != node}
                facts._chains.clear()
                answers.append(np.asarray(system.predict(ASKED)))
                models = system.served().models
                shown = {shard: [fact.key for fact in chain.nodes] for shard, (chain, _) in models.items()}
                assert shown == {chain.shard: [one.key for one in chain.nodes] for chain in chains}
        found[survivor.key] = answers
    return found


def degrade(path: Path, tiny: Backbone, key: str, left: dict[str, list[np.ndarray]]) -> None:
    """Use a run with a file of node ``key`` harmed: it answers as one that never had the node, and names it."""
    name = next(node for node, fact in derive_state(read_evidence(path)).survivors.items() if fact.key == key)
    with closing(System.open(path, tiny)) as system:
        assert np.array_equal(np.asarray(system.predict(ASKED)), left[key][0])
        assert list(system.status().damaged) == [Node(*name).name]
        receipt = system.delete([WANTED])
        assert receipt.slots == (slot(KEY, WANTED, LAYOUT),)
        assert np.array_equal(np.asarray(system.predict(ASKED)), left[key][1])
        assert list(system.status().damaged) == [Node(*name).name] * (key not in receipt.nodes_dropped)


def use(path: Path, tiny: Backbone, answers: np.ndarray) -> bool:
    """Predict with a run that may be damaged, and delete a record; say whether it refused. Anything wrong fails."""
    try:
        with closing(System.open(path, tiny)) as system:
            assert np.array_equal(np.asarray(system.predict(ASKED)), answers), "another answer than before"
            system.delete([WANTED])
            (request,) = system._opened()[0].ledger.entries("request", after=system._opened()[0].ledger.head() - 1)
            assert request.body["slots"] == [list(slot(KEY, WANTED, LAYOUT))], "another slot than the record's"
    except S3TError:
        return True
    return False


def survives(
    run: Path, tmp_path: Path, tiny: Backbone, answers: np.ndarray, left: dict[str, list[np.ndarray]], harm: Harm
) -> bool:
    """Do ``harm`` to a copy, use it, and audit another copy unless it refused; say whether it was noticed."""
    path = tmp_path / "harmed"
    shutil.copytree(run, path)
    try:
        harm.to(path)
        if harm.means_nothing(path, run):
            return False
        other = tmp_path / "audited"
        shutil.copytree(path, other)
        try:
            folder, key = Path(harm.file).parts[0], Path(harm.file).parent.name
            if folder == "nodes":
                degrade(path, tiny, key, left)
            elif use(path, tiny, answers):
                return True
            with closing(System.open(other, tiny)) as system:
                verdict = audit(system, other, levels=("E0",)).verdict
            assert verdict is not Verdict.HOLDS, f"nobody notices {harm}"
            assert verdict is Verdict.UNDECIDED or folder != "nodes", f"nobody is at fault for {harm}"
            return True
        finally:
            shutil.rmtree(other)
    finally:
        shutil.rmtree(path)


def test_every_file_harmed_in_turn(
    run: Path, tmp_path: Path, tiny: Backbone, answers: np.ndarray, left: dict[str, list[np.ndarray]]
) -> None:
    assert any(not np.array_equal(before, answers) for before, _ in left.values())
    found = [survives(run, tmp_path, tiny, answers, left, harm) for harm in harms(run, 1, 0)]
    assert len(found) > 80 and sum(found) > 0.9 * len(found)


@pytest.mark.slow
def test_every_file_harmed_at_many_places(
    run: Path, tmp_path: Path, tiny: Backbone, answers: np.ndarray, left: dict[str, list[np.ndarray]]
) -> None:
    found = [survives(run, tmp_path, tiny, answers, left, harm) for harm in harms(run, 25, 1)]
    assert len(found) > 600 and sum(found) > 0.6 * len(found)


@pytest.mark.parametrize("column", ["tag", "shard", "slice", "split", "commitment", "start", "length", "check"])
def test_a_row_of_the_index_that_was_changed_is_never_used(
    run: Path, tmp_path: Path, tiny: Backbone, column: str
) -> None:
    """A record whose slot was changed would be deleted from the wrong one; a group's would be passed over."""
    path = tmp_path / "run"
    shutil.copytree(run, path)
    with closing(sqlite3.connect(path / "records.sqlite")) as db, db:
        value = {"shard": "1 - shard", "slice": "1 - slice", "start": "start - 1", "length": "length + 1"}
        new = value.get(column, "'validation'" if column == "split" else f"'{'0' * 64}'")
        assert db.execute(f'UPDATE records SET "{column}" = {new} WHERE tag = ?', (tag(KEY, WANTED),)).rowcount == 1
    with closing(System.open(path, tiny)) as system:
        before = system._opened()[0].ledger.head()
        with pytest.raises(S3TError):
            system.delete([WANTED])
        assert system._opened()[0].ledger.head() == before
        with pytest.raises(RunError, match="the run's records are damaged"):
            system._opened()[0].records.slot_ids(slot(KEY, WANTED, LAYOUT))


def test_a_slot_that_is_not_the_ids_is_refused_even_with_a_check_that_fits(
    run: Path, tmp_path: Path, tiny: Backbone
) -> None:
    path, mark = tmp_path / "run", tag(KEY, WANTED)
    shutil.copytree(run, path)
    with closing(sqlite3.connect(path / "records.sqlite")) as db, db:
        db.execute("UPDATE records SET slice = 1 - slice WHERE tag = ?", (mark,))
        columns = "tag, shard, slice, split, commitment, start, length"
        fields = db.execute(f"SELECT {columns} FROM records WHERE tag = ?", (mark,)).fetchone()
        db.execute('UPDATE records SET "check" = ? WHERE tag = ?', (derive.index_check(fields), mark))
    with closing(System.open(path, tiny)) as system:
        before = system._opened()[0].ledger.head()
        with pytest.raises(RunError, match="another slot than the id's"):
            system.delete([WANTED])
        assert system._opened()[0].ledger.head() == before


def test_a_row_that_is_gone_from_the_index(run: Path, tmp_path: Path, tiny: Backbone) -> None:
    path = tmp_path / "run"
    shutil.copytree(run, path)
    place = slot(KEY, "row-10", LAYOUT)
    with closing(sqlite3.connect(path / "records.sqlite")) as db, db:
        db.execute("DELETE FROM records WHERE tag = ?", (tag(KEY, "row-10"),))
    with (
        closing(System.open(path, tiny)) as system,
        pytest.raises(RunError, match=rf"rows of slot \({place[0]}, {place[1]}\)"),
    ):
        system._opened()[0].records.slot_ids(place)


@pytest.mark.parametrize("column", ["shard", "slice", "seq"])
def test_an_index_of_hits_that_contradicts_the_requests(run: Path, tmp_path: Path, tiny: Backbone, column: str) -> None:
    path = tmp_path / "run"
    shutil.copytree(run, path)
    with closing(sqlite3.connect(path / "ledger.sqlite")) as db, db:
        db.execute("DROP TRIGGER hits_UPDATE")
        new = "seq - 1" if column == "seq" else f"1 - {column}"
        db.execute(f"UPDATE hits SET {column} = {new} WHERE seq = (SELECT max(seq) FROM hits)")
    with (
        pytest.raises(RunError, match="the ledger is damaged: its index says"),
        closing(System.open(path, tiny)) as system,
    ):
        system.predict(ASKED)


def test_another_slot_key(run: Path, tmp_path: Path, tiny: Backbone) -> None:
    path = tmp_path / "run"
    shutil.copytree(run, path)
    (path / "secret.key").write_text(bytes(32).hex())
    with pytest.raises(RunError, match=r"secret\.key is not the key that the ledger was opened with; restore it"):
        System.open(path, tiny)


def test_features_of_an_analytic_head_harmed_in_turn(tmp_path: Path, tiny: Backbone) -> None:
    """Bits of records, checks and erased rows, and the file as a whole: the chains answer alone, or nothing does, or the
    audit does not hold; an answer of a head that is not the records' is never given."""
    path, recipe = tmp_path / "run", Recipe(rank=1, epochs=1.0, batch_size=8)
    plan = s3t_plan(LAYOUT, recipe, tiny.layers).with_head(AnalyticHead(layers=(5,)), 0.5)
    with closing(System.create(path, plan, recipe, model=tiny, classes=("a", "b"), key=KEY)) as made:
        made.fit(RECORDS)
        made.delete(["row-03"])
        outputs, weights = made.served().outputs(ASKED)
        chains = combine(outputs.chains, weights, recipe.ensemble)
        wanted = np.asarray(made.predict(ASKED))
    width, size = 2 * 32 + CHECK, (path / FEATURES).stat().st_size
    assert size == FEATURES_HEADER + len(RECORDS) * width
    erased = FEATURES_HEADER + 3 * width
    draw = random.Random(3)
    found = [Harm(FEATURES, "flip", draw.randrange(8 * size)) for _ in range(40)]
    found += [Harm(FEATURES, "flip", 8 * at) for at in (0, 15, erased, erased + width - 1)]
    found += [Harm(FEATURES, how) for how in ("cut", "empty", "zeros", "gone")]
    refused = left_out = 0
    for harm in found:
        other = tmp_path / "harmed"
        shutil.copytree(path, other)
        harm.to(other)
        try:
            with closing(System.open(other, tiny)) as system:
                answers = np.asarray(system.predict(ASKED))
                verdict = audit(system, other, levels=("E0",)).verdict
            in_erased = harm.how == "flip" and erased <= harm.at // 8 < erased + width
            assert np.array_equal(answers, wanted if in_erased else np.asarray(chains)), harm
            assert verdict is not Verdict.HOLDS, f"nobody notices {harm}"
            left_out += not in_erased
        except RunError:
            refused += 1
        shutil.rmtree(other)
    assert refused >= 5 and left_out >= 30
