"""An analytic head and its share, chosen on validation alone: no training record has a say; and training takes both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import sklearn.metrics
from command_line import call, refused

from baselines.methods import METHODS
from s3t import tuning
from s3t.analytic.choosing import FOLDS, RIDGES, choose, folds, read
from s3t.analytic.features import Reader
from s3t.analytic.head import AnalyticHead, Form
from s3t.backbone import Backbone
from s3t.errors import DataError, ModelError, RecipeError
from s3t.floors import SHARES, TunedHead, tune_head, tune_share
from s3t.records import Dataset, Layout, Recipe, Record, grouped
from s3t.system import System

RECIPE = Recipe(rank=2, epochs=1.0, batch_size=8, max_length=16)
LAYOUT = Layout(2, 2, 1)
FORMS = get_args(Form)
WORDS = ("the cat saw a dog", "how many are there", "a city by the river")


class Shut(tuple[Record, ...]):
    """Training records that can be counted, and once they are shut not looked at."""

    shut = False

    def _open(self) -> None:
        assert not self.shut, "a training record was looked at"

    def __iter__(self) -> Iterator[Record]:
        self._open()
        return super().__iter__()

    def __getitem__(self, place: Any) -> Any:
        self._open()
        return super().__getitem__(place)


def records(prefix: str, count: int, flip: int = 0) -> tuple[Record, ...]:
    """Every seventh record is labelled wrongly, so that the choice is no matter of course."""
    return tuple(
        Record(f"{prefix}-{i:03d}", {"text": f"{WORDS[i % 3]} {i % 5}"}, (i + flip + (i % 7 == 0)) % 3)
        for i in range(count)
    )


def data(train: tuple[Record, ...] = records("train", 60), validation: int = 48, name: str = "pets") -> Dataset:
    """Test records hold nothing that the model could read: whoever asks for them fails."""
    return Dataset(name, ("a", "b", "c"), train, records("val", validation), (Record("test-0", {}, 0),), "pets.csv")


def shut(count: int = 60) -> Dataset:
    made = data(Shut(records("other", count, flip=1)))
    made.train.shut = True  # type: ignore[attr-defined]
    return made


def chosen(case: tuning.Case, head: AnalyticHead = AnalyticHead(), **how: Any) -> TunedHead:  # noqa: B008
    return tune_head(case, head, RECIPE, FORMS, RIDGES, **how)


def test_no_training_record_has_a_say_in_the_head(tiny: Backbone) -> None:
    """Not one is looked at; all others, and others' labels, change no bit; their number alone counts, unless it is said."""
    seeds = (3,)
    for head in (AnalyticHead(), AnalyticHead(poolings=("mean", "max"), random=16)):
        found = chosen(tuning.Case(data(), tiny, seeds), head)
        assert found == chosen(tuning.Case(shut(), tiny, seeds), head)
    more = chosen(tuning.Case(shut(600), tiny, seeds), head)
    assert more.best.ridge == found.best.ridge and more.records == 600
    assert more.best.head.ridge == pytest.approx(found.best.head.ridge / 10) and more != found
    assert chosen(tuning.Case(shut(600), tiny, seeds), head, records=60) == found
    assert replace(more, records=60, choices=found.choices) == found


def test_every_form_is_chosen_by_the_metric_of_the_data(tiny: Backbone) -> None:
    case = tuning.Case(data(name="glue/cola"), tiny)
    assert case.metric == "matthews"
    found, validation = chosen(case, records=96), case.data.validation
    part = read(Reader(tiny, AnalyticHead(), 0), tiny, validation, case.data.classes, RECIPE.max_length)
    for form in FORMS:
        wanted = choose(
            AnalyticHead(form=form),
            part,
            3,
            RIDGES,
            lambda scores, answers: float(sklearn.metrics.matthews_corrcoef(answers, scores.argmax(axis=1))),
            folds(validation),
        )
        assert found.choices[form].ridge == wanted.ridge and found.choices[form].scores == pytest.approx(wanted.scores)
        assert found.choices[form].head == replace(wanted.head, ridge=wanted.ridge * 32 / 96)
    assert found.best.score == max(choice.score for choice in found.choices.values()) > 0.3
    tied = replace(found, choices={form: replace(found.best, head=AnalyticHead(form=form)) for form in FORMS[::-1]})
    assert tied.best.head.form == FORMS[-1], "of equals the first"


def test_numbers_and_groups(tiny: Backbone) -> None:
    numbers = [Record(f"{r.id}-n", r.inputs, r.label * 2.0) for r in records("val", 30)]
    case = tuning.Case(Dataset("pets", ("0.0:9.0",), tuple(numbers[:3]), tuple(numbers[3:]), ()), tiny)
    found = tune_head(case, AnalyticHead(temperature=2.0), RECIPE, ("ridge",), RIDGES)
    assert case.metric == "pearson" and found.best.head.temperature == 2.0 and found.best.cross_entropy is None
    assert json.loads(json.dumps(found.to_json()))["forms"]["ridge"]["cross_entropy"] is None
    alone = tuple(replace(r, id=grouped("ann", r.id)) for r in records("val", 30))
    case = tuning.Case(replace(data(), validation=alone), tiny, alone=True)
    with pytest.raises(DataError, match=r"a head cannot be chosen on 30 validation records .* in 1 of 3 folds"):
        chosen(case)
    with pytest.raises(DataError, match="the validation records of 'pets' are of one group, so they cannot be split"):
        case.split()


def test_too_small_a_validation_split(tiny: Backbone) -> None:
    with pytest.raises(DataError, match="a head cannot be chosen on 5 validation records with 3 different answers"):
        chosen(tuning.Case(data(validation=5), tiny))


def test_trials_on_validation_alone(tiny: Backbone) -> None:
    """A third judges what the rest has trained, and no training record has a say; where trials are not alone, they do."""

    def scores(made: Dataset, **how: Any) -> Any:
        return tuning.tune(
            tuning.Case(made, tiny, (0, 1), **how), {"s3t": (LAYOUT, METHODS["s3t"])}, {"s3t": [RECIPE]}
        )[0].scores

    trained, judged = tuning.Case(shut(), tiny, alone=True).split()
    assert trained == tuple(r for i, r in enumerate(data().validation) if i % FOLDS)
    assert judged == data().validation[::FOLDS] and len(judged) == 16
    assert scores(data(), alone=True) == scores(shut(), alone=True)
    assert scores(data()) != scores(data(records("other", 60, flip=1)))


def test_the_share_is_chosen_beside_chains_of_validation_alone(tiny: Backbone, tmp_path: Path) -> None:
    """The scores are those of systems that are trained with each share on two thirds and asked the last third."""
    case = tuning.Case(shut(), tiny, (0, 1), alone=True)
    head, made = chosen(case), (LAYOUT, METHODS["s3t"])
    recipe = replace(RECIPE, lr=5e-3, ensemble="mean-probabilities")
    found = tune_share(case, made, recipe, head, (0.05, 0.6, 1.0))
    assert found == tune_share(replace(case, data=data()), made, recipe, head, (0.05, 0.6, 1.0))
    trained, judged = case.split()
    beside = replace(head.best.head, ridge=head.best.ridge * head.best.records / len(trained))
    for share, wanted in found.items():
        reached = []
        for seed in case.seeds:
            with tuning.fitted(
                case, METHODS["s3t"](LAYOUT, recipe, tiny.layers).with_head(beside, share), recipe, seed
            ) as it:
                assert it.ids() == sorted(record.id for record in trained)
                answers = it.predict([record.inputs for record in judged]).argmax(axis=1)
            reached.append(sum(a == r.label for a, r in zip(answers, judged, strict=True)) / len(judged))
        assert wanted == pytest.approx(sum(reached) / 2)
    assert len(set(found.values())) > 1
    with pytest.raises(
        RecipeError, match="beside chains of training records depends on them; tune on validation alone"
    ):
        tune_share(replace(case, alone=False), made, recipe, head)
    with_shares = replace(head, shares={"s3t": {0.1: 0.5, 0.5: 0.75, 0.9: 0.75}})
    assert with_shares.share("s3t") == 0.9 and with_shares.to_json()["shares"]["s3t"]["best"] == 0.9
    assert list(SHARES) == sorted(SHARES) and SHARES[0] > 0 and SHARES[-1] < 1


def test_a_file_of_another_kind_or_model(tiny: Backbone, tmp_path: Path) -> None:
    case, path = tuning.Case(data(), tiny), tmp_path / "tuned.json"
    head = chosen(case)
    told = tuning.write(path, case, [], {"analytic": Layout(1, 1, 1)}, head)
    assert tuning.read_head(path, "tiny", tiny.digest) == head.best.head
    assert tuning.read_best(path, "analytic") == RECIPE and told["trained_on"] == "validation"
    with pytest.raises(RecipeError, match="has no recipe for 's3t'; it has analytic"):
        tuning.read_best(path, "s3t")
    with pytest.raises(RecipeError, match="has an analytic head for features of 'tiny', not of 'minilm' as it is here"):
        tuning.read_head(path, "minilm", "00")
    for content, said in (
        (
            {"format": 1, "best": {"s3t": {}}},
            "has no analytic head, only s3t; give a file of `s3t tune --method analytic`",
        ),
        ({"format": 2, "best": {}}, "cannot be read as a file of `s3t tune`"),
        ({**told, "head": {}}, r"cannot be read as a file of `s3t tune` \(KeyError\('chosen'\)\)"),
        ({**told, "head": {"chosen": {"ridgee": 1}}}, "an analytic head has no 'ridgee'"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(RecipeError, match=said):
            tuning.read_head(path, "tiny", tiny.digest)


def test_texts_have_no_head(small_llama: Path) -> None:
    from s3t.backbone import load

    made = tuple(Record(f"t-{i}", {"text": "red dog", "answer": "done"}, 0) for i in range(20))
    case = tuning.Case(Dataset("said", ("text",), made[:5], made[5:], ()), load(f"lm:{small_llama}"))
    with pytest.raises(ModelError, match="an analytic head answers with classes or numbers"):
        chosen(case)


def write(path: Path, made: tuple[Record, ...]) -> Path:
    path.write_text("\n".join(["key,text,label", *(f"{r.id},{r.inputs['text']},{'abc'[int(r.label)]}" for r in made)]))
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[tuple[str, ...]]:
    """Data options for two sets that share no training record, and have the same validation records."""
    kept = [("--" + name, str(write(tmp_path / f"{name}.csv", records(name, 45)))) for name in ("validation", "test")]
    made = [write(tmp_path / "one.csv", records("train", 60)), write(tmp_path / "two.csv", records("other", 60, 1))]
    return [("--data", str(path), "--id", "key", "--model", "tiny", *kept[0], *kept[1]) for path in made]


def test_the_command_and_training_with_the_head(files: list[tuple[str, ...]], tmp_path: Path) -> None:
    out, layout = tmp_path / "tuned.json", ("--shards", "2", "--slices", "2")
    how = (
        *("--method", "analytic", "--method", "s3t", "--floor", "--validation-alone", "--grid", "lr=0.002,0.005"),
        *("--grid", "form=balanced,prototypes", "--head", "poolings=mean,max", "--recipe", "epochs=1"),
        *("--recipe", "max_length=16", "--precision", "float32", *layout),
    )
    shown = call("tune", out, *files[0], *how)
    told = json.loads(out.read_text())
    other = json.loads(call("tune", tmp_path / "other.json", *files[1], *how, "--json"))
    assert told["data"] != other["data"] and (told["head"], told["best"]) == (other["head"], other["best"])
    assert [t["scores"] for t in told["trials"]] == [t["scores"] for t in other["trials"]]
    found = told["head"]["chosen"]
    assert list(told["head"]["forms"]) == ["balanced", "prototypes"] and found["poolings"] == ["mean", "max"]
    assert len(told["head"]["forms"]["balanced"]["scores"]) == len(RIDGES)
    assert list(told["head"]["shares"]) == ["s3t"] and told["trained_on"] == "validation"
    assert f"analytic: form={found['form']} ridge={found['ridge']:.4g} temperature=" in shown
    assert f"s3t with --floor {told['head']['shares']['s3t']['best']}" in shown

    def trained(name: str, *more: object) -> Any:
        call("train", tmp_path / name, *files[0], *more)
        return json.loads((tmp_path / name / "run.json").read_text())

    run = trained("head", "--method", "analytic", "--tuned", out)
    assert run["plan"]["head"] == found and run["recipe"]["max_length"] == 16
    with closing(System.open(tmp_path / "head")) as system:
        assert system.predict([{"text": "the cat"}]).shape == (1, 3)
    run = trained("both", *layout, "--tuned", out, "--floor", "0.25", "--head", f"@{out}", "--head", "ridge=0.5")
    assert run["plan"]["head"] == {**found, "ridge": 0.5} and run["plan"]["share"] == 0.25
    assert run["recipe"] == told["best"]["s3t"]

    never = ("train", tmp_path / "never", *files[0])
    assert "give one file" in refused(*never, "--method", "analytic", "--tuned", out, "--head", f"@{out}")
    assert "if its share is given" in refused(*never, "--head", f"@{out}")
    assert "has no recipe for 'sequential'" in refused(*never, "--method", "sequential", "--tuned", out)
    assert "absent.json cannot be read" in refused(*never, "--floor", "0.5", "--head", f"@{tmp_path / 'absent.json'}")


def test_a_declared_number_of_records_and_of_ridges(files: list[tuple[str, ...]], tmp_path: Path) -> None:
    how = ("--method", "analytic", "--grid", "ridge=0.3", "--grid", "form=ridge")
    said = [
        json.loads(call("tune", tmp_path / f"{i}.json", *files[0], *how, *more, "--json"))
        for i, more in enumerate(((), ("--records", "300")))
    ]
    ridges = [told["head"]["chosen"]["ridge"] for told in said]
    assert ridges == [pytest.approx(0.3 * 30 / 60), pytest.approx(0.3 * 30 / 300)]
    assert [told["head"]["carried_to"] for told in said] == [60, 300] and said[0]["trials"] == []


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            ("--method", "s3t", "--grid", "ridge=0.1"),
            "ridge is for an analytic head; tune one too, with --method analytic",
        ),
        (("--method", "s3t", "--head", "random=4"), "random=4 is for an analytic head"),
        (("--method", "s3t", "--floor", "--validation-alone"), "--floor is for an analytic head"),
        (("--method", "s3t", "--records", "9"), "--records 9 is for an analytic head"),
        (("--method", "analytic", "--grid", "lr=0.1"), "lr is for methods that train, and analytic is none"),
        (("--method", "analytic", "--trials", "2"), "--trials is for methods that train"),
        (("--method", "analytic", "--floor"), "--floor is for methods that train"),
        (("--method", "analytic", "--validation-alone"), "--validation-alone is for methods that train"),
        (
            ("--method", "analytic", "--method", "s3t", "--floor"),
            "would make the share depend on them; say --validation-alone",
        ),
        (
            ("--method", "analytic", "--head", "ridge=1"),
            "--head ridge=1 declares what is chosen here; say --grid ridge=1",
        ),
        (
            ("--method", "analytic", "--head", "temperature=1"),
            "--head temperature=1 declares what is chosen here; leave it",
        ),
        (("--method", "analytic", "--head", "@tuned.json"), "--head '@tuned.json' is not NAME=VALUE"),
        (("--method", "analytic", "--grid", "ridge=0.1,-1"), "ridge=-1 is not a positive number"),
        (("--method", "analytic", "--grid", "form=rigde"), r"form='rigde' is unknown (did you mean 'ridge'?)"),
    ],
)
def test_what_does_not_go_together(how: tuple[str, ...], message: str, tmp_path: Path) -> None:
    """Each is said before any data or model is loaded."""
    assert message in refused("tune", tmp_path / "tuned.json", "--data", "absent", "--model", "absent", *how)
