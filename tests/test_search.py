"""kecae-aug search: grid, CMA-ES and NSGA-II on tiny phantoms, cut off and taken up again; the figures of a trial."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from kecae_aug.data import Preprocessing, RadiographFolder
from kecae_aug.engine.model import KECAE, Latents
from kecae_aug.phantom import write_phantoms
from kecae_training.config import parse
from kecae_training.discriminator import (
    Discriminator,
    DiscriminatorConfig,
    save_discriminator,
    train_discriminator,
)
from kecae_training.images import to_float
from kecae_training.search import __main__ as module
from kecae_training.search import short
from kecae_training.search.__main__ import SearchConfig, main, objectives, search
from kecae_training.search.report import pareto
from kecae_training.search.short import DivergedError, against_truth, beside_defaults, figures, host_fraction
from kecae_training.search.study import folder_study, phantom_study
from kecae_training.search.trials import alone


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return phantom_study(tmp_path_factory.mktemp("study"), 16, 16, epochs=1)


def config(out, study, *flags, **values):
    discriminator = ("--discriminator", str(study.discriminator_of("resnet")))
    small = ("--model.preset", "tiny", "--optim.batch_size", "4", "--optim.max_steps", "3")
    return SearchConfig(out, parse(["--config", "paper", *small, *discriminator, *flags]), **values)


def score(c, study):
    """In place of a training: the SVM likes a weight of sup of 0.01, flips grow with it, identity falls with it."""
    l1, l2 = c.loss.terms["sup"], c.loss.terms["lda"]
    return {"svm_key": 1 / (1 + abs(l1 - 0.01)), "decoder": l1, "host_fraction": 1 - l1, "psnr": 20.0 - l2}


@pytest.mark.slow
def test_grid_cut_off_goes_on(study, tmp_path, monkeypatch):
    """A 2x2 grid of real trainings, interrupted in the third: done once each, the first two as they were."""
    calls = []

    def counting(c, s):
        calls.append((c.loss.terms["sup"], c.loss.terms["lda"]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return short.run(c, s)

    monkeypatch.setattr(module, "run", counting)
    options = config(tmp_path / "out", study, points=2)
    with pytest.raises(KeyboardInterrupt):
        search(options, study, lambda _: None)
    before = [json.loads(x) for x in (tmp_path / "out" / "trials.jsonl").read_text().splitlines()]
    rows = search(options, study, lambda _: None)

    assert len(calls) == 5
    assert calls[2] == calls[3]  # what was cut off comes first
    assert rows[:2] == before
    points = {tuple(row["values"].values()) for row in rows}
    assert points == {(a, b) for a in (1e-5, 1.0) for b in (1e-5, 1.0)}
    assert all(0 <= row["figures"]["svm_key"] <= 1 for row in rows)
    assert (tmp_path / "out" / "heatmap.png").stat().st_size > 10_000
    assert search(options, study, lambda _: None) == rows
    assert len(calls) == 5


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cmaes", "nsga2"])
def test_evolution_of_real_trainings(study, tmp_path, method):
    """Three trials; a larger --trials adds to them, with draws of their own."""
    options = config(tmp_path / "out", study, method=method, trials=2, population=2)
    first = search(options, study, lambda _: None)
    rows = search(replace(options, trials=3), study, lambda _: None)
    assert rows[:2] == first
    assert len({tuple(row["values"].values()) for row in rows}) == len(rows) == 3
    for row in rows:
        assert row["scores"] == objectives(method, row["figures"], 0.8)
        assert all(1e-5 <= v <= 1 for v in row["values"].values())
    assert "3 trials, 0 diverged" in (tmp_path / "out" / "report.md").read_text()


def test_cut_off_evolution_does_the_same_trial_again(study, tmp_path, monkeypatch):
    """The values of a trial that was killed are trained again, in the same folder, and count once."""
    seen, folders = [], []

    def killed(c, s):
        seen.append((c.loss.terms["sup"], c.loss.terms["lda"]))
        folders.append(c.out)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return score(c, s)

    monkeypatch.setattr(module, "run", killed)
    options = config(tmp_path / "out", study, method="nsga2", trials=6, population=3)
    with pytest.raises(KeyboardInterrupt):
        search(options, study, lambda _: None)
    rows = search(options, study, lambda _: None)
    assert len(rows) == 6
    assert len(seen) == 7
    assert seen[3] == seen[4]
    assert folders[3] == folders[4]


@pytest.mark.slow
def test_evolution_finds_what_it_is_asked_for(study, tmp_path, monkeypatch):
    """CMA-ES ends where flip is as large as the criterion on identity lets it; NSGA-II gives a front."""
    monkeypatch.setattr(module, "run", score)
    options = config(tmp_path / "a", study, method="cmaes", trials=60)
    best = max(search(options, study, lambda _: None), key=lambda row: row["scores"][0])
    assert best["values"]["sup"] == pytest.approx(0.2, rel=0.3)  # identity 0.8

    options = config(tmp_path / "b", study, method="nsga2", trials=30, population=6)
    rows = search(options, study, lambda _: None)
    front = pareto([tuple(row["scores"]) for row in rows])
    assert len(front) > 10  # flip + identity = 1 here: none beats another
    assert "Pareto" in (tmp_path / "b" / "report.md").read_text()


def test_pareto_by_hand():
    assert pareto([(0.9, 0.1), (0.5, 0.5), (0.4, 0.5), (0.1, 0.9), (0.1, 0.1)]) == [0, 1, 3]


def test_identity_below_the_bar_costs():
    given = {"decoder": 0.9, "host_fraction": 0.7, "svm_key": 0.6}
    assert objectives("cmaes", given, 0.8) == [pytest.approx(0.4)]
    assert objectives("cmaes", given, 0.6) == [0.9]
    assert objectives("nsga2", given, 0.8) == [0.9, 0.7]
    assert objectives("grid", given, 0.8) == [0.6]


def test_diverged_trials_are_results(study, tmp_path, monkeypatch):
    """They are kept, crossed out, and not tried again."""
    calls = []

    def diverges(c, s):
        calls.append(c)
        if c.loss.terms["lda"] == 1:
            raise DivergedError("not finite")
        return score(c, s)

    monkeypatch.setattr(module, "run", diverges)
    options = config(tmp_path / "out", study, points=2)
    rows = search(options, study, lambda _: None)
    assert [row["figures"] is None for row in rows] == [row["values"]["lda"] == 1 for row in rows]
    assert search(options, study, lambda _: None) == rows
    assert len(calls) == 4
    assert "4 trials, 2 diverged" in (tmp_path / "out" / "report.md").read_text()


def test_training_that_is_not_finite_diverges(study, tmp_path):
    """Found by the training itself, or in the images; other errors stay what they are."""
    options = replace(config(tmp_path, study).train, out=tmp_path / "a")
    with pytest.raises(DivergedError, match="in a row"):
        short.run(replace(options, optim=replace(options.optim, lr=1e30, max_steps=60)), study)
    with pytest.raises(ValueError, match="another configuration") as error:
        short.run(options, study)
    assert not isinstance(error.value, DivergedError)
    model = KECAE.from_preset("tiny").eval()
    with torch.no_grad():
        model.decoder[-2].weight.fill_(torch.nan)
    with pytest.raises(DivergedError, match="not finite"):
        figures(model, study)


def test_other_settings_are_refused(study, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "run", score)
    search(config(tmp_path / "out", study, points=2), study, lambda _: None)
    with pytest.raises(ValueError, match=r"another search \(points was 2, is 3\).*another --out"):
        search(config(tmp_path / "out", study, points=3), study, lambda _: None)
    with pytest.raises(ValueError, match=r"train was .*loss.lda_eps"):
        search(config(tmp_path / "out", study, "--loss.lda_eps", "0.1", points=2), study, lambda _: None)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    with pytest.raises(ValueError, match="not empty and not a search"):
        search(config(tmp_path / "mine", study), study, lambda _: None)
    with alone(tmp_path / "out"), pytest.raises(ValueError, match="another process is searching"):
        search(config(tmp_path / "out", study, points=2), study, lambda _: None)


def test_bad_arguments_are_named_at_once(study, tmp_path):
    wrong = config(tmp_path, study, method="cmaes", terms=["lad"], low=0, points=1)
    with pytest.raises(
        ValueError,
        match=r"(?s)'lad' is no term .did you mean 'lda'.*accepted are mse, sup.*two or more.*low=0.*points=1",
    ):
        wrong.check()
    with pytest.raises(ValueError, match="discriminator_shift"):  # no weight
        config(tmp_path, study, terms=["discriminator_shift"]).check()


def test_without_optuna_the_extra_is_named(study, tmp_path, monkeypatch):
    for package, method in (("optuna", "grid"), ("cmaes", "cmaes")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(ImportError, match=rf"{package} is not installed; pip install .*search"):
                search(config(tmp_path / method, study, method=method), study, lambda _: None)


# the figures of a short training


def test_study_shares_no_patient(study, tmp_path):
    patients = [set(part.patients) for part in (study.train, study.probe, study.test)]
    assert not patients[0] & patients[1]
    assert not (patients[0] | patients[1]) & patients[2]
    labels = study.test.labels
    assert (labels[study.donors] != labels).all()
    again = phantom_study(study.discriminator_of("resnet").parents[1], 16, 16, epochs=1, say=pytest.fail)
    assert torch.equal(again.test.pixels, study.test.pixels)  # read, not drawn


def test_truth_moves_by_one(study):
    """The right exchange moves by exactly 1 and opens the joint by about the gap; none moves by 0."""
    model = SimpleNamespace(config=SimpleNamespace(classes=("0", "2")))
    images = to_float(study.test.pixels)
    right = against_truth(model, study, images, images + study.truth)
    assert right["aim"] == pytest.approx(1, abs=1e-3)
    for direction in ("0->2", "2->0"):
        assert right[f"moved_{direction}"] == pytest.approx(1, abs=1e-3)
        assert right[f"jsw_{direction}"] == pytest.approx(1, abs=0.25)
    none = against_truth(model, study, images, images.clone())
    assert none["moved_0->2"] == none["jsw_0->2"] == none["aim"] == 0
    back = against_truth(model, study, images, images - study.truth / 2)
    assert back["moved_2->0"] == pytest.approx(-0.5, abs=1e-3)


def test_host_share_by_definition():
    """Of X' = a * host + b * donor the host's fraction of the variance is a^2 / (a^2 + b^2)."""
    torch.manual_seed(0)
    knees, labels = torch.randn(80, 1, 8, 8), torch.arange(80) % 2
    for a, b, share in ((1.0, 0.0, 1.0), (2.0, 1.0, 0.8), (0.0, 1.0, 0.0)):
        model = SimpleNamespace(encode=lambda x, a=a, b=b: Latents(b * x, a * x), decode=lambda h: h)
        assert host_fraction(model, knees, labels) == pytest.approx(share, abs=0.03)


def test_probes_read_the_grade_where_it_is(study):
    """A key that holds the label is read without a fault, a non-key of noise at chance."""

    def encode(images):
        g = torch.Generator().manual_seed(len(images))
        labels = lookup[[row.numpy().tobytes() for row in (images * 127.5 + 127.5).round().byte()]]
        return Latents(
            labels.float()[:, None, None, None].repeat(1, 4, 1, 1),
            torch.randn(len(images), 4, 1, 1, generator=g),
        )

    class Lookup(dict):
        def __getitem__(self, keys):
            return torch.tensor([self.get(k) for k in keys])

    lookup = Lookup()
    for part in (study.probe, study.test):
        lookup.update(zip((p.numpy().tobytes() for p in part.pixels), part.targets, strict=True))
    found = short.probes(SimpleNamespace(encode=encode), study)
    assert found["key"] == found["svm_key"] == 1
    assert 0.2 < found["non_key"] < 0.8


def test_new_options_do_not_change_what_a_run_is():
    """Only what differs from the dataclasses' defaults counts, and no folder or seed."""
    flags = ("--out", "a", "--discriminator", "x/resnet", "--run.seed", "3", "--loss.terms.lda", "0")
    assert beside_defaults(parse(["--config", "paper", *flags])) == {
        "loss.terms.lda": 0.0,
        "discriminator": ["resnet"],
    }


# the command


def test_command_on_radiographs(tmp_path, capsys):
    """A folder of phantoms as radiographs: evaluated by a discriminator of other patients, refused where it is not."""
    data = write_phantoms(tmp_path / "data", train_patients=12, val_patients=8, image_size=64)
    options = parse(["--config", "tiny", "--data.root", str(data), "--loss.terms.sup", "0"])
    for name, split in (("oracle", "train"), ("cheat", "val")):
        knees = RadiographFolder(data, split, grades=["0", "2"])
        images = torch.randint(0, 255, (len(knees), 1, 64, 64), dtype=torch.uint8)
        discriminator = train_discriminator(
            images, knees.targets, DiscriminatorConfig("vgg", 64, ("0", "2"), epochs=1), progress=False
        )
        save_discriminator(discriminator, tmp_path / name, patients=knees.patients, data={})
    with pytest.raises(ValueError, match=r"cheat was trained on 8 patients of split 'val'.*not held out"):
        folder_study(tmp_path / "work", options, 64, [tmp_path / "cheat"])
    argv = [
        "--method",
        "grid",
        "--points",
        "2",
        "--steps",
        "2",
        "--terms",
        "same_grade",
        "--config",
        "tiny",
    ]
    argv += ["--data", str(data), "--oracles", str(tmp_path / "oracle"), "--out", str(tmp_path / "out")]
    main([*argv, "--optim.batch_size", "4"])
    rows = [json.loads(line) for line in (tmp_path / "out" / "trials.jsonl").read_text().splitlines()]
    assert [row["values"] for row in rows] == [{"same_grade": 1e-5}, {"same_grade": 1.0}]
    assert "moved_0->2" not in rows[0]["figures"]
    assert "report.md" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="oracles: none given"):
        main([a for a in argv if a not in ("--oracles", str(tmp_path / "oracle"))])


def test_command_refuses_before_it_draws(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--method", "grid", "--out", str(tmp_path / "out")])
    assert "either --phantoms N or --data DIR" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="lambda9"):
        main(
            [
                "--method",
                "grid",
                "--phantoms",
                "20",
                "--terms",
                "lambda9",
                "--out",
                str(tmp_path / "out"),
            ]
        )
    with pytest.raises(SystemExit):
        main(["--method", "grid", "--phantoms", "20", "--out", str(tmp_path / "out"), "--loss.lamda1", "1"])
    assert not list(tmp_path.iterdir())


def test_command_refuses_flags_without_effect_and_devices_that_are_not_there(tmp_path, capsys):
    """On phantoms oracles are trained by the search; a GPU that is not there is named before anything is drawn."""
    argv = ["--method", "grid", "--phantoms", "20", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main([*argv, "--oracles", "a"])
    assert "--oracles and --discriminator go with --data" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"--device cpu and --run\.accelerator cuda"):
        main([*argv, "--device", "cpu", "--run.accelerator", "cuda"])
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="--device cuda: this machine"):
            main([*argv, "--device", "cuda"])
    assert not list(tmp_path.iterdir())


def test_a_study_of_radiographs_refuses_oracles_of_other_images(tmp_path):
    """Size and preprocessing of oracles and discriminators are compared with the study's before an image is read."""
    data = write_phantoms(tmp_path / "data", train_patients=4, val_patients=2, image_size=64)
    options = parse(["--config", "tiny", "--data.root", str(data)])
    for size, preprocessed in ((128, Preprocessing(128)), (64, Preprocessing(64, mirror_right=True))):
        discriminator = Discriminator(DiscriminatorConfig("vgg", size, ("0", "2"))).freeze()
        folder = tmp_path / str(size)
        save_discriminator(discriminator, folder, patients=[], data={"preprocessing": preprocessed.to_dict()})
        told = (
            "128 px, these have 64 px" if size == 128 else "mirror_right=True, these have mirror_right=False"
        )
        with pytest.raises(ValueError, match=told):
            folder_study(tmp_path / "work", options, 64, [folder])
