"""Networks on another device than the images: "meta" stands for a GPU, as it too refuses to be mixed with the CPU.

A meta tensor has no values; where a program brings numbers back with ``.cpu()`` it gets noise here.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch
from evaluation_models import knees

from kecae_aug.engine.model import KECAE
from kecae_aug.phantom import write_phantoms
from kecae_training.discriminator import Discriminator, DiscriminatorConfig, predict, train_discriminator
from kecae_training.evaluate import realism
from kecae_training.evaluate.entrants import Entrant, TrainingKnees
from kecae_training.evaluate.evaluation import evaluate
from kecae_training.evaluate.identity import ShrunkImages, shrink
from kecae_training.evaluate.oracles import Bench
from kecae_training.evaluate.realism import by_network, penultimate
from kecae_training.images import to_bytes
from kecae_training.losses import TERMS, LossConfig, StepOutputs, hybrid_loss
from kecae_training.reader_study import build as building
from kecae_training.search import short
from kecae_training.search.study import Images, Study
from kecae_training.step import KeyExchange
from kecae_training.views import look_through


@pytest.fixture(autouse=True)
def another_device(monkeypatch):
    """Numbers come back from "meta" as noise, and only where they are asked for."""
    on_cpu, generator = torch.Tensor.cpu, torch.Generator().manual_seed(0)

    def back(tensor, *args, **kwargs):
        if not tensor.is_meta:
            return on_cpu(tensor, *args, **kwargs)
        noise = torch.rand(tensor.shape, generator=generator, device="cpu")
        return (noise * 2 - 1 if tensor.is_floating_point() else noise).to(tensor.dtype)

    monkeypatch.setattr(torch.Tensor, "cpu", back)
    autocast = torch.autocast  # which does not know "meta"
    monkeypatch.setattr(
        torch, "autocast", lambda kind, *a, **k: autocast("cpu" if kind == "meta" else kind, *a, **k)
    )


def oracle(network="vgg"):
    torch.manual_seed(0)
    return Discriminator(DiscriminatorConfig(network=network, image_size=64, grades=("0", "2"))).freeze()


def test_the_stand_in_refuses_to_be_mixed():
    """Or none of these tests could fail."""
    with pytest.raises(RuntimeError, match="device"):
        oracle().to("meta")(torch.zeros(1, 1, 64, 64))
    with pytest.raises(TypeError, match="numpy"):
        torch.zeros(1, device="meta").numpy()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_predictions_and_features_come_back(precision):
    """Images on the CPU, the network elsewhere, results on the CPU in float32."""
    images = knees(12).images
    found = predict(oracle().to("meta"), images, precision=precision)
    assert (found.device.type, found.dtype, found.shape) == ("cpu", torch.float32, (12, 2))
    assert penultimate(oracle().to("meta"), images).shape == (12, 192)


def test_a_discriminator_is_trained_there():
    """Batches are made on the CPU and go to the device; the discriminator that is returned is on the CPU."""
    data = knees(24)
    config = DiscriminatorConfig(network="vgg", image_size=64, grades=("0", "2"), epochs=1, batch_size=8)
    config = replace(config, adversarial_radius=0.2)
    discriminator = train_discriminator(
        to_bytes(data.images), data.labels.tolist(), config, progress=False, device="meta"
    )
    assert {p.device.type for p in discriminator.parameters()} == {"cpu"}


def test_every_part_of_an_evaluation(monkeypatch):
    """Exchanges, oracles, discriminator, probes, identity, robustness, realism: networks there, figures here."""
    monkeypatch.setattr(realism, "by_network", partial(by_network, steps=1))
    monkeypatch.setattr(realism, "DIVISIONS", 1)
    data = knees(16)
    model = KECAE.from_preset("tiny").eval()
    training = TrainingKnees(
        ShrunkImages(shrink(data.images), data.files), data.images[:8], data.patients[:8]
    )
    found = evaluate(
        {"a": Entrant(model, {"one": oracle(), "two": oracle("resnet")}, oracle())},
        data,
        strengths=[1.0],
        realism=True,
        training={"a": training},
        device="meta",
    )
    assert {"realism", "probes", "identity", "training_images", "robustness"} <= set(found.figures)
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_the_two_sample_network():
    """It is trained where it is told, on images of the CPU."""
    images = knees(16).images
    scores = by_network(images, images.flip(0), steps=2, pairs=2, device="meta")
    assert scores(torch.arange(8).numpy(), torch.arange(8, 16).numpy()).shape == (2, 8)


def test_every_term_of_a_step():
    """All terms on: nothing in the loss is on another device than its images."""
    # fisher_key asks which labels there are, which "meta" cannot say
    loss = LossConfig(terms=dict.fromkeys(TERMS, 0.5) | {"fisher_key": 0}, discriminator_shift=1)
    modules = KeyExchange(KECAE.from_preset("tiny", key_size=4), loss).to("meta")
    images, labels = torch.zeros(8, 1, 64, 64, device="meta"), torch.tensor([0] * 4 + [1] * 4, device="meta")
    outputs = StepOutputs(images, labels, **modules(images, torch.arange(8, device="meta")))
    panel = [oracle().to("meta")]
    for target in ("label", "posterior"):
        look_through(panel[0], outputs, replace(loss, sup_target=target), panel)
    total = hybrid_loss(outputs, loss)["total"]
    total.backward()
    assert total.is_meta


def test_the_figures_of_a_search():
    """Of a short training: encoded and decoded there."""
    data = knees(24)
    images = Images(to_bytes(data.images), data.labels.tolist(), data.patients)
    bench = Bench({"one": oracle().to("meta")}, data.images, data.labels, data.patients)
    donors = torch.arange(24).roll(1)
    study = Study("toy", images, images, images, donors, bench)
    assert study.device.type == "meta"
    found = short.figures(KECAE.from_preset("tiny").eval().to("meta"), study, [oracle().to("meta")])
    assert "discriminator_gap" in found


def test_a_reader_study(tmp_path, monkeypatch):
    """Pictures are made of what came back."""
    data = write_phantoms(tmp_path / "data", train_patients=4, val_patients=8, image_size=64)
    monkeypatch.setattr(building, "choose_device", lambda name: torch.device("meta"))
    config = building.BuildConfig(data, ["phantom"], n=4, real=2, repeat=0, image_size=64, allow_seen=True)
    built = building.build(config, tmp_path / "study", say=lambda line: None)
    assert len(list((built.folder / "images").iterdir())) == 6
