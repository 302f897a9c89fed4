"""benchmarks/reconstruction_control.py on phantoms: goes on where it stopped, reuses T, keeps the arms comparable."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from kecae_aug import KECAE
from kecae_aug.data import PatientOverlapError
from kecae_aug.data.phantom import PhantomKnees, write_phantoms
from kecae_aug.inference import FastKECAE
from kecae_aug.weights import save_weights
from kecae_training.images import to_float, to_uint8
from kecae_training.validity.measures import psnr

control = importlib.import_module("kecae_bench.reconstruction_control")
paired = importlib.import_module("kecae_bench.paired")

TINY = control.Recipe(steps=3, batch_size=8, added=4)


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    """Of the bootstrap; enough where its width is not looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paired, "DRAWS", 10)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_phantoms(
        tmp_path_factory.mktemp("phantoms") / "d", train_patients=12, val_patients=6, image_size=32
    )


def weights(folder: Path, seed: int) -> str:
    """Untrained weights of 32 px are weights like others."""
    torch.manual_seed(seed)
    model = KECAE.from_preset("tiny", image_size=32, width=4, latent_channels=8)
    save_weights(model, folder / str(seed), metadata={})
    return str(folder / str(seed))


def knees(n=12, grades=(0, 2)):
    data = PhantomKnees(n, grades, image_size=32)
    return control.Knees(to_uint8(data, progress=False), torch.tensor(data.targets), list(data.patients))


def decoded(of, n_classes=2):
    torch.manual_seed(0)
    model = KECAE.from_preset(
        "tiny", image_size=32, width=4, latent_channels=8, classes=tuple(map(str, range(n_classes)))
    )
    return model.eval(), control.Decoded(FastKECAE(model.eval()), of)


@pytest.fixture(scope="module")
def first(data, tmp_path_factory):
    """A whole study of one seed, and its file."""
    out = tmp_path_factory.mktemp("out") / "control.jsonl"
    folder = tmp_path_factory.mktemp("weights")
    summary = control.study(weights(folder, 0), data, out, control.ARMS, [0], TINY)
    return summary, out, folder


def lines(out):
    return [json.loads(text) for text in out.read_text().splitlines()]


def test_study_says_what_it_found(first):
    summary, out, _ = first
    runs = [line for line in lines(out) if line["kind"] == "run"]
    assert [run["arm"] for run in runs] == list(control.ARMS)
    assert "weights" not in runs[0]["settings"]
    assert all(len(run["scores"]) == summary["val"]["images"] for run in runs)
    assert lines(out)[-1] == summary
    text = control.told(summary)
    assert "T + X^ minus T" in text
    assert "1 seeds, 12 val knees of 6 patients, 32 px" in text
    assert "below the bar of 34" in text  # untrained weights reconstruct nothing


def test_interrupted_study_goes_on_with_the_same_numbers(first, data, tmp_path, monkeypatch):
    """Cut after the first run, in the middle of the second's line: T is kept, the others come out the same."""
    summary, out, folder = first
    cut = tmp_path / "cut.jsonl"
    whole = out.read_text().splitlines()
    cut.write_text(whole[0] + "\n" + whole[1][:200])
    trained = []
    train = control.train
    monkeypatch.setattr(control, "train", lambda arm, *args: (trained.append(arm), train(arm, *args))[1])
    again = control.study(str(folder / "0"), data, cut, control.ARMS, [0], TINY)
    assert trained == ["T + X^", "T'"]
    assert again == summary
    kept = [text for text in cut.read_text().splitlines() if text != whole[1][:200]]
    runs = [json.loads(text) for text in kept if json.loads(text)["kind"] == "run"]
    assert [r["scores"] for r in runs] == [r["scores"] for r in lines(out) if r["kind"] == "run"]


def test_other_weights_take_t_from_the_file(first, data, tmp_path, monkeypatch):
    """T is trained once; other weights, more images or another recipe are other runs."""
    _, out, folder = first
    copy = tmp_path / "copy.jsonl"
    copy.write_text(out.read_text())
    trained = []
    monkeypatch.setattr(control, "train", lambda arm, *args: trained.append(arm) or _constant())
    monkeypatch.setattr(control, "scores_of", lambda net, images: np.full((len(images), 2), 0.5))
    other = weights(tmp_path, 1)
    control.study(other, data, copy, control.ARMS, [0], TINY)
    assert trained == ["T + X^", "T'"]
    trained.clear()
    control.study(
        other, data, copy, control.ARMS, [0], control.Recipe(steps=3, batch_size=8, added=4, strength=2.0)
    )
    assert trained == ["T'"]
    trained.clear()
    control.study(other, data, copy, ("T",), [0, 1], TINY)
    assert trained == ["T"]  # of seed 1
    trained.clear()
    control.study(str(folder / "0"), data, copy, ("T",), [0], control.Recipe(steps=4, batch_size=8, added=4))
    assert trained == ["T"]


def _constant():
    return torch.nn.Identity()


def test_patients_of_both_splits_are_refused(tmp_path):
    root = write_phantoms(tmp_path / "d", train_patients=4, val_patients=3, image_size=32)
    stolen = next((root / "train" / "0").glob("*L.png"))
    (root / "val" / "0" / stolen.name).write_bytes(stolen.read_bytes())
    with pytest.raises(PatientOverlapError, match="train and val share 1"):
        control.study(weights(tmp_path, 0), root, tmp_path / "out.jsonl", ("T",), [0], TINY)
    assert not (tmp_path / "out.jsonl").exists()


def test_arms_share_their_real_knees_and_differ_in_what_is_added(monkeypatch):
    """What the network sees: the same first rows in all arms, then X^ with its label, or X' with its donor's."""
    of = knees()
    _, latents = decoded(of)
    seen = {}

    def spy(arm):
        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.bias = torch.nn.Parameter(torch.zeros(2))

            def forward(self, x):
                seen.setdefault(arm, []).append(x.detach().clone())
                return self.bias.expand(len(x), 2)

        return Net()

    targets = {}
    cross_entropy = torch.nn.functional.cross_entropy
    for arm in control.ARMS:
        monkeypatch.setattr(control, "build", lambda *_, arm=arm: spy(arm))
        monkeypatch.setattr(
            control.F,
            "cross_entropy",
            lambda logits, y, arm=arm: (targets.setdefault(arm, []).append(y), cross_entropy(logits, y))[1],
        )
        control.train(arm, 0, of, latents, TINY)
    for t, x_hat, x_new in zip(*(seen[arm] for arm in control.ARMS), strict=True):
        assert len(t) == 8
        assert len(x_hat) == len(x_new) == 12
        torch.testing.assert_close(x_hat[:8], t)
        torch.testing.assert_close(x_new[:8], t)
        assert not torch.equal(x_hat[8:], x_new[8:])
    for t, x_hat, x_new in zip(*(targets[arm] for arm in control.ARMS), strict=True):
        assert torch.equal(x_hat, torch.cat([t, t[:4]]))
        assert torch.equal(x_new, torch.cat([t, 1 - t[:4]]))  # of two grades, the other one


@pytest.mark.parametrize("detail", ["decoder", "host"])
def test_exchange_is_the_model_s(detail):
    """From latents in memory, at any strength, the same images as KECAE.exchange; host detail adds its change."""
    of = knees(3)
    model, latents = decoded(of)
    rows, donors = torch.tensor([0, 3]), torch.tensor([2, 1])
    real = to_float(of.images)
    with torch.no_grad():
        wanted = model.exchange(real[rows], real[donors], 1.5)
        if detail == "host":
            wanted = (real[rows] + wanted - model(real[rows])).clamp(-1, 1)
        torch.testing.assert_close(latents.exchanged(rows, donors, detail, 1.5), wanted, atol=2e-3, rtol=0)
        assert latents.psnr == pytest.approx(float(psnr(model(real), real).mean()), abs=0.01)


def test_donors_are_of_another_grade_and_patient():
    """Of five grades too, each other grade about equally often."""
    of = knees(40, grades=(0, 1, 2, 3, 4))
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(80).repeat(10)
    donors = control.donors_of(rows, of, generator)
    assert (of.labels[donors] != of.labels[rows]).all()
    assert all(of.patients[d] != of.patients[r] for d, r in zip(donors.tolist(), rows.tolist(), strict=True))
    counts = torch.bincount(of.labels[donors[of.labels[rows] == 0]], minlength=5)
    assert counts[0] == 0
    assert counts[1:].min() > 0.6 * counts[1:].max()


def test_a_knee_without_donor_is_an_error():
    of = control.Knees(torch.zeros(2, 1, 32, 32, dtype=torch.uint8), torch.tensor([0, 1]), ["a", "a"])
    with pytest.raises(ValueError, match="no donor of another patient"):
        control.donors_of(torch.tensor([0]), of, torch.Generator())


def test_five_grades_train_and_are_scored():
    of = knees(10, grades=(0, 1, 2, 3, 4))
    _, latents = decoded(of, 5)
    net = control.train(
        "T'", 0, of, latents, control.Recipe(steps=1, batch_size=6, added=6, precision="bfloat16")
    )
    scores = control.scores_of(net, of.images)
    assert scores.shape == (20, 5)
    assert all(0 <= metric(scores, of.labels.numpy()) <= 1 for metric in paired.METRICS.values())


def test_difference_of_known_cases(monkeypatch):
    """Equal arms differ by nothing; an arm that is right where T is wrong, in a fifth of the knees, by 0.2."""
    monkeypatch.setattr(paired, "DRAWS", 200)
    labels = np.tile([0, 1], 100)
    patients = [str(i // 2) for i in range(200)]
    right = np.eye(2)[labels]
    wrong = right.copy()
    wrong[:40] = 1 - wrong[:40]
    same = paired.difference([wrong, right], [wrong, right], labels, patients, paired.accuracy)
    assert same == {"mean": 0, "low": 0, "high": 0}
    gain = paired.difference([right] * 3, [wrong] * 3, labels, patients, paired.accuracy)
    assert gain["mean"] == pytest.approx(0.2)
    assert 0.08 < gain["low"] < 0.2 < gain["high"] < 0.35
    swings = paired.difference([right, wrong], [wrong, right], labels, patients, paired.accuracy)
    assert swings["mean"] == 0
    assert swings["low"] < -0.15  # two seeds that contradict each other: the interval is of seeds too
    assert swings["high"] > 0.15


def test_verdict_follows_the_interval():
    """The bar of issue 4: the interval of the accuracy includes 0 or is above it."""
    base = {
        "mean": {}, "psnr": {"train": 35.0, "val": 29.0}, "seeds": [0, 1, 2],
        "val": {"images": 9, "patients": 5}, "settings": {"image_size": 128, **vars(control.Recipe())},
    }  # fmt: skip
    for low, high, verdict in (
        (-0.03, -0.01, "costs accuracy"),
        (-0.02, 0.01, "neither a loss nor a gain"),
        (0.01, 0.02, "helps"),
    ):
        found = {"accuracy": {"mean": (low + high) / 2, "low": low, "high": high}}
        assert verdict in control.told({**base, "minus_T": {"T + X^": found}})
    assert "35.0 dB, at or above the bar of 34" in control.told({**base, "minus_T": {}})
    assert "29.0 dB, below the bar of 30" in control.told({**base, "minus_T": {}})


@pytest.mark.parametrize(
    "wrong", [["--added", "99"], ["--steps", "0"], ["--seeds", "1", "1"], ["--arms", "X"]]
)
def test_bad_arguments_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        control.parse(wrong)
    assert wrong[0] in capsys.readouterr().err
