"""T against T': training, what chooses a checkpoint, the store, and both command lines, on phantoms."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kecae_aug import load_weights
from kecae_aug.phantom import PhantomKnees, write_phantoms
from kecae_bench.classifiers import CLASSIFIERS
from kecae_bench.stats import METRICS, measure
from kecae_bench.tvt import __main__ as t_vs_tprime
from kecae_bench.tvt import loop as study_loop
from kecae_bench.tvt import run as study_run
from kecae_bench.tvt import store as study_store
from kecae_bench.tvt.arms import ARMS, ExchangeOptions
from kecae_bench.tvt.batches import Batches
from kecae_bench.tvt.ground import Ground
from kecae_bench.tvt.knees import Knees
from kecae_bench.tvt.plan import ALL_ARMS, FRACTIONS, PAIR, SEVERAL, RunSpec, plan_budget
from kecae_bench.tvt.run import Protocol, perform
from kecae_bench.tvt.seen import Seen
from kecae_bench.tvt.split import Split
from kecae_bench.tvt.store import Store, run_id
from kecae_bench.tvt.training import DivergedError, Loop, scores_of, train
from kecae_training.images import to_uint8


class Small(nn.Module):
    """A classifier with all that can go wrong: statistics of batches, dropout, losses of its own."""

    def __init__(self, classes: int, image_size: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 5, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
            nn.Dropout(0.2), nn.Linear(64, classes),
        )  # fmt: skip

    def forward(self, x):
        return self.body(x)


@dataclass(frozen=True)
class Recipe:
    """As a classifier's, with few knees a step."""

    optimiser: str = "adamw"
    lr: float = 1e-2
    weight_decay: float = 0.0
    batch_size: int = 6

    def make(self, parameters):
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A classifier ``small`` beside the seven of Table II, through the same interface."""
    spec = replace(CLASSIFIERS["resnet18"], name="small", make=Small, recipe=Recipe())
    monkeypatch.setitem(CLASSIFIERS, "small", spec)


@pytest.fixture(scope="module")
def of() -> Knees:
    data = PhantomKnees(24, image_size=64, grade_correlation=0.0)
    files = tuple(f"train/{i}.png" for i in range(len(data)))
    images = to_uint8(data, progress=False)
    return Knees(images, torch.tensor(data.targets), tuple(data.patients), files, tuple(data.classes))


@pytest.fixture(scope="module")
def ground(of) -> Ground:
    split = Split(tuple(range(20)), tuple(range(20, 34)), tuple(range(34, 48)))
    return Ground(of, split, load_weights("phantom"), "phantom", Seen("weights phantom", None))


PROTOCOL = Protocol(steps=4, loop=Loop(validations=2, progress=False))
SPEC = RunSpec("small", "T", 0)


def trained(of, arm="T", seed=0, steps=6, validations=3, build=Small, **loop):
    batches = Batches(ARMS[arm], of.select(range(20)), seed, 6, steps)
    loop = Loop(validations=validations, progress=False, **loop)
    return train(build, study_run.training_loss, Recipe(), batches, of.select(range(20, 48)), loop)


# --- training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_is_a_function_of_its_seed(of, precision):
    torch.manual_seed(1)
    first = trained(of, precision=precision)
    before = torch.get_rng_state()
    torch.rand(5)
    again = trained(of, precision=precision)
    assert again.curve == first.curve
    assert np.array_equal(again.scores, first.scores)
    assert trained(of, seed=1, precision=precision).curve != first.curve
    torch.set_rng_state(before)


def test_the_best_validation_is_kept_and_is_what_is_scored(of):
    found = trained(of, validations=6)
    steps, _, accuracy, auroc = zip(*found.curve, strict=True)
    assert steps == (1, 2, 3, 4, 5, 6)
    best = auroc.index(max(auroc))
    assert found.best_step == steps[best]
    assert (found.validation["accuracy"], found.validation["auroc"]) == (accuracy[best], auroc[best])
    again = scores_of(found.model, of.images[20:], Loop(progress=False))
    assert np.array_equal(again, found.scores)
    assert not found.model.training


def test_every_arm_makes_the_same_number_of_steps_and_validations(of):
    """Counted in the network itself; only "paper" has more steps (equal epochs), and its validations are as many."""
    counts = {}
    for arm in ("T", "T + further real", "T + MixUp"):
        seen = []

        class Counting(Small):
            def forward(self, x, seen=seen):
                seen.append((self.training, len(x)))
                return super().forward(x)

        curve = trained(of, arm, steps=7, validations=3, build=Counting).curve
        counts[arm] = (sum(t for t, _ in seen), sum(not t for t, _ in seen), [c[0] for c in curve])
        assert {n for t, n in seen if t} == {8 if arm == "T + further real" else 6}
    assert set(map(str, counts.values())) == {str((7, 3, [2, 5, 7]))}
    assert Loop(validations=3).validation_steps(700)[-1] == 700
    assert len(Loop(validations=3).validation_steps(700)) == 3


def test_a_network_that_learns_nothing_keeps_the_first_of_equal_validations(of):
    class Constant(Small):
        def forward(self, x):
            return super().forward(x) * 0

    assert trained(of, build=Constant).best_step == 2


def test_divergence_is_an_error_not_a_result(of):
    class Broken(Small):
        def forward(self, x):
            return super().forward(x) * float("nan")

    with pytest.raises(DivergedError, match="loss nan at step 1"):
        trained(of, build=Broken)


# seconds a step: one arm of them, since test_classifiers has the losses of both kinds of labels
HEAVY = ("vgg11", "densenet201", "siamese_gap", "sspe_vit")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CLASSIFIERS))
def test_every_classifier_learns_from_hard_and_from_soft_labels(name, ground, tmp_path):
    """A step of each, from T' with labels that are smoothed and from MixUp's; then all is stored.

    In half precision once; not the largest, which take most of a minute where the CPU has none.
    """
    precisions = {"T": "float32", "T'": "bfloat16", "T + MixUp": "float32"}
    if name in HEAVY:
        precisions = {"T'": "float32"}
        few = Split(ground.split.train, ground.split.validation[:6], ground.split.test[:6])
        ground = replace(ground, split=few)
    for arm, precision in precisions.items():
        protocol = Protocol(
            steps=1, loop=Loop(validations=1, precision=precision, progress=False), batch_size=4
        )
        spec = RunSpec(name, arm, 0, options=ExchangeOptions(smoothing=0.1))
        line, _ = perform(spec, ground, protocol, Store(tmp_path / "runs.jsonl"))
        assert line["run_steps"] == 1
        assert 0 <= line["test"]["accuracy"] <= 1


@pytest.mark.parametrize("wrong", [{"validations": 0}, {"precision": "float16"}])
def test_bad_loops_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Loop(**wrong)


# --- metrics ----------------------------------------------------------------------------------------------------


def test_metrics_of_known_answers():
    labels = np.array([0, 0, 0, 1])
    scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    found = measure(scores, labels)
    wanted = {"accuracy": 0.75, "balanced_accuracy": 5 / 6, "precision": 0.5, "recall": 1.0, "auroc": 1.0}
    assert {k: found[k] for k in wanted} == pytest.approx(wanted, abs=1e-5)
    assert set(found) == set(METRICS) == {*wanted, "ece"}
    with pytest.raises(ValueError, match="diverged"):
        measure(scores * np.nan, labels)


# --- runs and their store ---------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "results" / "runs.jsonl")


def test_a_line_holds_all_of_a_run(ground, store):
    line, now = perform(replace(SPEC, arm="T'"), ground, PROTOCOL, store)
    assert now
    assert store.lines() == [json.loads(json.dumps(line))]
    said, chosen = (store.predictions(part)[line["id"]] for part in ("test", "validation"))
    tested = dict(zip(ground.knees.files[34:], ground.knees.patients[34:], strict=True))
    assert dict(zip(said.files.tolist(), said.patients.tolist(), strict=True)) == tested
    assert said.files.tolist() == sorted(tested)
    assert measure(said.scores.astype(float), said.labels) == line["test"]
    assert measure(chosen.scores.astype(float), chosen.labels) == line["validation"]
    assert line["run_steps"] == PROTOCOL.steps
    assert line["exchange"]["added"] == 2 * PROTOCOL.steps
    assert line["options"]["added"] == 2
    assert line["weights"]["sha256"] == ground.model.metadata["weights"]["sha256"]
    assert line["weights"]["patients"] is None  # not known, and the line says so
    assert line["counts"]["test"]["images"] == 14
    wanted = "kind id classifier arm seed fold fraction n_pairs options settings weights code best_step"
    wanted += " validation test curve classes seconds date environment"
    assert set(wanted.split()) <= set(line)


def test_a_finished_run_is_not_run_again(ground, store, monkeypatch):
    line, _ = perform(SPEC, ground, PROTOCOL, store)
    monkeypatch.setattr(study_run, "train", lambda *_: pytest.fail("was run again"))
    again, now = perform(SPEC, ground, PROTOCOL, store)
    assert not now
    assert again == json.loads(json.dumps(line))
    assert len(store.lines()) == 1
    # T does not depend on weights or on how X' is used
    other = replace(ground, model=None, name="")
    options = ExchangeOptions(strength=2.0)
    assert perform(replace(SPEC, options=options), other, PROTOCOL, store)[0]["id"] == line["id"]


def test_what_a_run_depends_on_makes_another_run(ground, store, monkeypatch):
    monkeypatch.setattr(study_run, "train", lambda *_: pytest.fail("new"))
    known = study_run.identity(SPEC, ground, PROTOCOL)
    ident = study_run.id_of(known)
    flipped = replace(ground, knees=replace(ground.knees, labels=1 - ground.knees.labels))
    others = [
        (replace(SPEC, seed=1), ground, PROTOCOL),
        (replace(SPEC, fraction=0.5), ground, PROTOCOL),
        (replace(SPEC, arm="T + MixUp"), ground, PROTOCOL),
        (SPEC, ground, replace(PROTOCOL, augmentation=None)),
        (SPEC, flipped, PROTOCOL),
        (SPEC, ground, replace(PROTOCOL, steps=5)),
        (SPEC, ground, replace(PROTOCOL, lr=1e-3)),
        (SPEC, ground, replace(PROTOCOL, loop=Loop(validations=3, progress=False))),
        (replace(SPEC, arm="T'"), ground, PROTOCOL),
        (replace(SPEC, arm="T'", options=ExchangeOptions(strength=2.0)), ground, PROTOCOL),
        (replace(SPEC, arm="T' from pairs", n_pairs=3), ground, PROTOCOL),
        (replace(SPEC, arm="T' from pairs", n_pairs=4), ground, PROTOCOL),
    ]
    found = {study_run.id_of(study_run.identity(*other)) for other in others}
    assert len(found) == len(others)
    assert ident not in found
    assert run_id({"a": 1, "b": 2}) == run_id({"b": 2, "a": 1})


def test_torn_last_line_and_lost_predictions_are_run_again(ground, store):
    first, _ = perform(SPEC, ground, PROTOCOL, store)
    second, _ = perform(replace(SPEC, seed=1), ground, PROTOCOL, store)
    whole = store.path.read_text().splitlines()
    store.path.write_text(whole[0] + "\n" + whole[1][:150])  # cut off while it was written
    assert perform(SPEC, ground, PROTOCOL, store)[1] is False
    again, now = perform(replace(SPEC, seed=1), ground, PROTOCOL, store)
    assert now
    assert again["test"] == second["test"]
    assert [line["id"] for line in store.lines()] == [first["id"], second["id"]]
    (store.unpacked / f"{first['id']}.npz").unlink()
    assert perform(SPEC, ground, PROTOCOL, store)[1] is True


def test_runs_are_packed_into_one_file_and_read_the_same(ground, store):
    """Packed, unpacked or both: the same runs are finished and say the same; new runs come beside the packed ones."""
    first, _ = perform(SPEC, ground, PROTOCOL, store)
    loose = store.predictions()
    assert store.pack() == 1
    assert not store.unpacked.exists()
    second, _ = perform(replace(SPEC, arm="T'"), ground, PROTOCOL, store)
    assert set(store.finished()) == {first["id"], second["id"]}
    assert perform(SPEC, ground, PROTOCOL, store)[1] is False
    both = {part: store.predictions(part) for part in ("test", "validation")}
    assert store.pack() == 1
    assert store.pack() == 0
    for part, of in both.items():
        packed = store.predictions(part)
        assert list(packed) == list(of) == [first["id"], second["id"]]
        for ident, said in of.items():
            assert all(
                np.array_equal(a, b)
                for a, b in zip(vars(said).values(), vars(packed[ident]).values(), strict=True)
            )
    assert np.array_equal(loose[first["id"]].scores, packed_scores(store, first))
    assert [path.name for path in store.path.parent.iterdir()] == ["runs.jsonl", "runs.npz"]


def packed_scores(store, line):
    return store.predictions()[line["id"]].scores


def test_packing_is_for_one_process_and_loses_nothing_when_cut_off(ground, store, monkeypatch):
    line, _ = perform(SPEC, ground, PROTOCOL, store)
    store.path.with_suffix(".lock").touch()
    with pytest.raises(FileExistsError, match="another process is packing"):
        store.pack()
    store.path.with_suffix(".lock").unlink()

    def full(*_args, **_more):
        raise OSError("no space left")

    monkeypatch.setattr(study_store.np.lib.format, "write_array", full)
    with pytest.raises(OSError, match="no space"):
        store.pack()
    monkeypatch.undo()
    assert set(store.predictions()) == {line["id"]}
    study_store.main([str(store.path)])
    assert set(store.finished()) == {line["id"]}
    assert sorted(path.name for path in store.path.parent.iterdir()) == ["runs.jsonl", "runs.npz"]


@pytest.mark.parametrize(
    ("arm", "donors"),
    [("T", "batch"), ("T'", "batch"), ("T'", "bank"), ("T' from pairs", "batch"), ("paper", "batch"),
     ("T' unlabelled hosts", "batch")],
)  # fmt: skip
def test_training_and_selection_never_see_the_test_set(arm, donors, ground, store, tmp_path):
    """Garbage in the place of the test knees and their labels: the same curve, checkpoint and validation figures.

    So no test knee is a host or a donor either.
    """
    n_pairs = 8 if ARMS[arm].uses_pairs else None
    fraction = 0.5 if ARMS[arm].uses_others else 1.0
    spec = replace(SPEC, arm=arm, fraction=fraction, n_pairs=n_pairs, options=ExchangeOptions(donors=donors))
    protocol = replace(PROTOCOL, work=tmp_path / "work")
    wanted, _ = perform(spec, ground, protocol, store)
    knees, test = ground.knees, list(ground.split.test)
    images, labels = knees.images.clone(), knees.labels.clone()
    images[test] = torch.randint(0, 256, images[test].shape, dtype=torch.uint8)
    labels[test] = 1 - labels[test]
    garbage = replace(ground, knees=replace(knees, images=images, labels=labels))
    found, now = perform(spec, garbage, protocol, store)
    assert now
    assert found["test"] != wanted["test"]
    for name in ("best_step", "curve", "validation"):
        assert found[name] == wanted[name]


def test_scarce_labels_say_what_the_weights_know_besides(ground, store):
    """At half of the patients the weights' other patients are counted: their labels came in with the weights."""
    everybody = {ground.knees.patients[row] for row in ground.split.train}
    knowing = replace(ground, seen=Seen("weights phantom", frozenset(everybody)))
    line, _ = perform(replace(SPEC, arm="T'", fraction=0.5), knowing, PROTOCOL, store)
    assert line["counts"]["train"]["patients"] == len(everybody) / 2
    assert line["weights"]["patients"] == len(everybody)
    assert line["weights"]["patients_outside_T"] == len(everybody) / 2


def test_unlabelled_hosts_are_the_training_knees_that_t_leaves_out(ground, store, monkeypatch):
    made = []
    monkeypatch.setattr(study_run, "Batches", lambda *args: made.append(args) or Batches(*args))
    perform(replace(SPEC, fraction=0.5), ground, PROTOCOL, store)
    ((_, training, *_, tools, _),) = made
    assert sorted((*training.files, *tools.others.files)) == sorted(
        ground.knees.select(ground.split.train).files
    )
    assert not set(training.patients) & set(tools.others.patients)


# --- plans ------------------------------------------------------------------------------------------------------


def test_budget_has_every_part_without_repetitions():
    specs = plan_budget(list(CLASSIFIERS), "resnet18", ALL_ARMS, numbers=[10])
    assert len(specs) == len(set(specs))
    assert {s.classifier for s in specs[: 2 * len(CLASSIFIERS)]} == set(CLASSIFIERS)
    for name in SEVERAL:
        assert {s.seed for s in specs if s.classifier == name and s.arm == PAIR[1]} == {0, 1, 2, 3, 4}
    assert {s.arm for s in specs if s.classifier == "resnet18" and s.seed == 2} == set(ALL_ARMS)
    few = [s for s in specs if s.fraction < 1]
    assert {s.fraction for s in few} == set(FRACTIONS) - {1}
    assert {s.arm for s in few} == set(PAIR)


def test_several_numbers_of_pairs_are_fig_5():
    """T, which is N = 0, once a seed; then every N."""
    flags = [
        "--classifiers",
        "small",
        "--arms",
        "T",
        "T' from pairs",
        "--n-pairs",
        "5",
        "9",
        "--seeds",
        "0",
        "1",
    ]
    specs = t_vs_tprime.plan_runs(t_vs_tprime.parse(flags))
    assert [(s.arm, s.n_pairs, s.seed) for s in specs[:4]] == [
        ("T", None, 0), ("T' from pairs", 5, 0), ("T' from pairs", 9, 0), ("T", None, 1),
    ]  # fmt: skip


# --- command lines ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    return write_phantoms(
        tmp_path_factory.mktemp("d") / "d", train_patients=40, val_patients=10, image_size=64
    )


def flags(phantoms, tmp_path, *more: str) -> list[str]:
    given = {
        "--data": phantoms, "--weights": "phantom", "--classifiers": "small", "--image-size": 64, "--steps": 2,
        "--validations": 1, "--results": tmp_path / "out.jsonl", "--work": tmp_path / "work",
    }  # fmt: skip
    return [str(part) for pair in given.items() for part in pair] + ["--trust-weights", *more]


def test_study_is_run_interrupted_and_goes_on(phantoms, tmp_path, monkeypatch, capsys):
    arms = ("T", "T'", "T + X^")
    command = flags(phantoms, tmp_path, "--seeds", "0", "--arms", *arms)
    t_vs_tprime.main([*command, "--dry-run"])
    out = capsys.readouterr().out
    assert out.count("to do  small") == 3
    assert "3 of 3 runs to do, about" in out
    assert not (tmp_path / "out.jsonl").exists()

    whole, calls = study_loop.perform, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(study_loop, "perform", interrupted)
    with pytest.raises(SystemExit, match="goes on where it stopped"):
        t_vs_tprime.main(command)
    monkeypatch.setattr(study_loop, "perform", whole)
    capsys.readouterr()
    t_vs_tprime.main(command)
    out = capsys.readouterr().out
    assert "3 runs in the plan, 1 are there" in out
    assert "(was there)" in out
    assert "precision" not in out  # no test figure is shown while a study runs
    assert "min left" in out
    assert "NOT KNOWN whom they were trained on" in out
    lines = [json.loads(text) for text in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["arm"] for line in lines] == list(arms)
    assert len({json.dumps(line["settings"]) for line in lines}) == 1
    assert [line["weights"] is None for line in lines] == [True, False, False]
    t_vs_tprime.main([*command, "--dry-run"])
    assert "0 of 3 runs to do" in capsys.readouterr().out


def test_a_failed_run_does_not_stop_the_others(phantoms, tmp_path, capsys):
    """5 % of 34 patients are two; there a grade may have too few, which is said, and the rest is run."""
    command = flags(phantoms, tmp_path, "--seeds", "0", "--arms", "T", "--fractions", "0.01", "1")
    with pytest.raises(SystemExit, match="1 runs failed"):
        t_vs_tprime.main(command)
    assert "FAILED, not stored: 1% of training set" in capsys.readouterr().out
    lines = [json.loads(text) for text in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["fraction"] for line in lines] == [1.0]


def test_unknown_weights_are_not_trusted_by_themselves(phantoms, tmp_path):
    command = [flag for flag in flags(phantoms, tmp_path) if flag != "--trust-weights"]
    with pytest.raises(SystemExit, match="not known which patients"):
        t_vs_tprime.main(command)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        ["--classifiers", "nothing"], ["--arms", "T''"], ["--seeds", "1", "1"], ["--fractions", "2"], ["--one", "x"],
        ["--fold", "1"], ["--n-pairs", "1"],
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        t_vs_tprime.parse(wrong)
    assert wrong[0] in capsys.readouterr().err


def test_arms_without_what_they_need_are_left_out_and_said(capsys):
    specs = t_vs_tprime.plan_runs(t_vs_tprime.parse(["--plan", "all", "--classifiers", "small"]))
    said = capsys.readouterr().out
    assert "left out: T' gated (needs --oracles or --max-distance)" in said
    assert "left out: T' unlabelled hosts (needs --fractions below 1)" in said
    assert "left out: T + X' unlabelled hosts, permuted labels (needs --fractions below 1)" in said
    assert {s.arm for s in specs} == {
        n for n, arm in ARMS.items() if arm.added != "gated" and not arm.uses_others
    }
    both = t_vs_tprime.parse(
        [
            "--fractions",
            "0.5",
            "1",
            "--arms",
            "T",
            "T' unlabelled hosts",
            "--seeds",
            "0",
            "--classifiers",
            "small",
        ]
    )
    assert [(s.arm, s.fraction) for s in t_vs_tprime.plan_runs(both)] == [
        ("T", 0.5), ("T' unlabelled hosts", 0.5), ("T", 1.0),
    ]  # fmt: skip
