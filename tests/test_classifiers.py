"""kecae_bench.classifiers: the networks of Table II have the published layers, and train by the losses they say."""

import functools
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import densenet201, resnet18, vgg11_bn

from kecae_bench import classifiers
from kecae_bench.classifiers import CLASSIFIERS, TABLE_2, build, cross_entropy, training_loss
from kecae_bench.classifiers.siamese_gap import Attention
from kecae_bench.classifiers.sspe_vit import jensen_shannon, key_patches
from kecae_bench.classifiers.views import compartments

NAMES = list(CLASSIFIERS)
HEAVY = (
    "vgg11",
    "densenet201",
    "siamese_gap",
    "sspe_vit",
)  # seconds a step on a CPU: with the slow tests where all are tried
SOME_SLOW = [pytest.param(name, marks=[pytest.mark.slow] * (name in HEAVY)) for name in NAMES]
OWN = ["antony", "tiulpin", "siamese_gap", "sspe_vit"]  # written here, not torchvision's


def fresh(name: str, image_size: int = 64, classes: int = 3) -> nn.Module:
    """A network of a known seed, in eval mode."""
    torch.manual_seed(0)
    return build(name, classes, image_size).eval()


network = functools.cache(
    fresh
)  # for tests that leave it as it is; at 64 px only, since VGG-11 takes half a GB


def outline(name: str, image_size: int = 299, classes: int = 2) -> nn.Module:
    """The network without memory for its numbers: sizes and costs."""
    with torch.device("meta"):
        return build(name, classes, image_size).eval()


def images(n: int, side: int, seed: int = 0) -> torch.Tensor:
    """Smooth noise in [-1, 1]."""
    coarse = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# ---- the architectures


@pytest.mark.parametrize("name", NAMES)
def test_the_table_in_the_packages_text_is_true(name):
    row = re.search(rf"\| {name} \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \|", classifiers.__doc__)
    for side, figure in ((128, row[2]), (299, row[3])):
        model = outline(name, side)
        assert parameters(model) == int(row[1].replace(",", ""))
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 1, side, side, device="meta"))
        assert counter.get_total_flops() / 2e9 == pytest.approx(float(figure), abs=1e-3)


def test_parameter_counts_are_the_published_ones():
    millions = {name: parameters(outline(name)) / 1e6 for name in OWN}
    assert millions["tiulpin"] == pytest.approx(0.149, abs=5e-4)
    assert millions["antony"] == pytest.approx(3.1, abs=0.05)
    # 2.71 M are quoted; without the attention of 256 channels whose output no layer reads (256 -> 32 -> 256)
    assert millions["siamese_gap"] + 2 * 256 * 32 / 1e6 == pytest.approx(2.71, abs=5e-3)


TORCHVISION = {
    "densenet201": (densenet201, "features.conv0"),
    "resnet18": (resnet18, "conv1"),
    "vgg11": (vgg11_bn, "features.0"),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_networks_lose_two_input_channels_and_nothing_else(name):
    make, stem = TORCHVISION[name]
    with torch.device("meta"):
        theirs = make(num_classes=5)
    missing = theirs.get_submodule(stem).weight[:, :2].numel()
    assert parameters(outline(name, classes=5)) == parameters(theirs) - missing


@pytest.mark.parametrize("name", TORCHVISION)
def test_one_channel_is_read_as_the_same_radiograph_in_three(name):
    torch.manual_seed(0)
    theirs = TORCHVISION[name][0](num_classes=3).eval()
    x = images(2, 64)
    with torch.no_grad():
        wanted = theirs(x.repeat(1, 3, 1, 1))
        torch.testing.assert_close(network(name)(x), wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


SIZES = {
    "siamese_gap": [126, 124, 61, 59, 57, 28, 26, 24, 22, 10, 8, 6, 4],
    "tiulpin": [63, 61, 59, 27, 25, 10],
    "antony": [(100, 150), *[(49, 74)] * 2, *[(24, 36)] * 2, *[(11, 17)] * 2],
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("side", [128, 299])
def test_maps_have_the_published_sizes_whatever_the_images(name, side):
    model, seen = outline(name, side), []
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):  # 1x1: the attention's
            module.register_forward_hook(lambda _m, _x, out: seen.append(tuple(out.shape[2:])))
    model(torch.empty(1, 1, side, side, device="meta"))
    assert seen == [size if isinstance(size, tuple) else (size, size) for size in SIZES[name]]


def test_siamese_gap_averages_each_block_before_its_attention_and_adds_the_compartments():
    model, outputs, vectors = fresh("siamese_gap"), [], []
    for block in model.blocks:
        block.register_forward_hook(lambda _m, _x, out: outputs.append(out))
    model.head.register_forward_pre_hook(lambda _m, x: vectors.append(x[0]))
    with torch.no_grad():
        model(images(2, 64))
    wanted = torch.cat([out[:2].mean((2, 3)) + out[2:].mean((2, 3)) for out in outputs], 1)
    assert wanted.shape == (2, 480)
    torch.testing.assert_close(vectors[0], wanted)


def test_attention_adds_a_share_of_each_channel():
    attention, x = Attention(16), torch.rand(2, 16, 3, 3)
    with torch.no_grad():
        for p in attention.parameters():
            p.zero_()
        torch.testing.assert_close(attention(x), 1.5 * x)  # sigmoid(0) of it
        first, second = attention.mlp[0].weight, attention.mlp[2].weight
        first[0, 0], second[5, 0] = 1, 1  # channel 5 heeds channel 0
        share = torch.sigmoid(x[:, 0].mean((1, 2)) + x[:, 0].amax((1, 2)))
        torch.testing.assert_close(attention(x)[:, 5], (1 + share[:, None, None]) * x[:, 5])


# ---- what goes in and out


@pytest.mark.parametrize("name", SOME_SLOW)
@pytest.mark.parametrize("side", [128, 299])
def test_images_of_either_size_give_finite_logits_that_depend_on_the_image(name, side):
    with torch.no_grad():
        out = fresh(name, side)(images(2, side))
    assert out.shape == (2, 3)
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    assert not torch.equal(out[0], out[1])


@pytest.mark.parametrize("name", SOME_SLOW)
def test_half_precision_and_channels_last_change_the_logits_little(name):
    x = images(2, 64)
    with torch.no_grad():
        wanted = network(name)(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = network(name)(x.contiguous(memory_format=torch.channels_last))
            loss = training_loss(network(name), x, torch.tensor([0, 2]))
    assert out.dtype == loss.dtype == torch.float32
    assert (out - wanted).abs().max() < 0.1 * wanted.abs().max() + 0.02


@pytest.mark.parametrize("name", SOME_SLOW)
def test_gradients_reach_every_parameter(name):
    # in eval mode: BatchNorm of a batch takes away what a convolution's bias adds, and with it the bias's gradient
    model, x = network(name), images(4, 64)
    model.zero_grad()
    torch.manual_seed(0)
    training_loss(model, x, torch.tensor([0, 1, 2, 1])).backward()
    for of, p in model.named_parameters():
        assert p.grad is not None, of
        assert p.grad.isfinite().all(), of
        assert p.grad.any(), of
    model.zero_grad()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in HEAVY)) for name in OWN]
)
def test_a_few_steps_of_its_recipe_lower_its_loss(name):
    model = fresh(name, classes=2).train()
    recipe = CLASSIFIERS[name].recipe
    optimiser = replace(recipe, lr=recipe.lr / 10).make(model.parameters())  # as where a schedule begins
    x, y, losses = images(3, 64), torch.tensor([0, 1, 1]), []
    for _ in range(8):
        loss = training_loss(model, x, y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-3:]) / 3 < 0.9 * losses[0]


# ---- the two compartments


def test_crops_are_the_published_columns_of_a_299_px_knee():
    x = images(2, 299)
    first, second = compartments(x).chunk(2)
    assert torch.equal(first, x[:, :, 99:227, 0:128])
    assert torch.equal(second, x[:, :, 99:227, 171:299].flip(-1))


@given(side=st.integers(64, 320), seed=st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_mirroring_swaps_the_crops_at_any_size(side, seed):
    x = images(1, side, seed)
    first, second = compartments(x).chunk(2)
    torch.testing.assert_close(compartments(x.flip(-1)), torch.cat([second, first]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", [128, 299])
def test_crops_show_the_same_part_of_the_knee_at_any_size(side):
    ramp = torch.linspace(-1, 1, 2 * side + 1)[
        1::2
    ]  # the position of each pixel's middle, -1 to 1 across the image
    first, second = compartments(ramp.repeat(side, 1)[None, None]).chunk(2)
    for crop, sign in ((first, 1), (second, -1)):
        wanted = sign * torch.linspace(-1, 1, 599)[1::2][:128]
        torch.testing.assert_close(crop[0, 0, 60], wanted, rtol=0, atol=1 / side)


@pytest.mark.parametrize("side", [64, 128, 299])
def test_a_mirrored_knee_has_the_same_logits_in_siamese_gap(side):
    model, x = fresh("siamese_gap", side).double(), images(2, side).double()
    with torch.no_grad():
        out = model(x)
        torch.testing.assert_close(model(x.flip(-1)), out, rtol=0, atol=1e-6)
    assert (out[0] - out[1]).abs().max() > 1e-4  # while another knee has others


def test_a_mirrored_knee_swaps_the_halves_of_tiulpins_vector():
    model, x = fresh("tiulpin").double(), images(1, 64).double()
    linear = model.head[1]
    with torch.no_grad():
        before, mirrored = model(x), model(x.flip(-1))
        linear.weight.copy_(linear.weight.roll(128, 1))
        torch.testing.assert_close(model(x.flip(-1)), before, rtol=0, atol=1e-6)
    assert (mirrored - before).abs().max() > 1e-4  # it knows which compartment is which


def test_antony_sees_the_middle_two_thirds_of_the_rows():
    model, x = fresh("antony", 300), images(1, 300)
    outside, inside = x.clone(), x.clone()
    outside[:, :, :50], outside[:, :, 250:] = 1, -1
    inside[:, :, 50:52] = 1
    with torch.no_grad():
        assert torch.equal(model(outside), model(x))
        assert not torch.equal(model(inside), model(x))


# ---- losses


logits_and_labels = st.integers(2, 5).flatmap(
    lambda k: st.lists(
        st.tuples(st.lists(st.floats(-8, 8), min_size=k, max_size=k), st.integers(0, k - 1)),
        min_size=1,
        max_size=6,
    )
)


@given(rows=logits_and_labels, weighted=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_one_hot_row_costs_what_its_class_costs(rows, weighted):
    logits, y = torch.tensor([row for row, _ in rows]), torch.tensor([label for _, label in rows])
    k = logits.shape[1]
    weights = torch.linspace(0.5, 3, k) if weighted else None
    wanted = F.cross_entropy(logits, y, weights)
    torch.testing.assert_close(cross_entropy(logits, y, weights), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        cross_entropy(logits, F.one_hot(y, k).double(), weights), wanted, rtol=1e-4, atol=1e-5
    )


@given(rows=logits_and_labels, share=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_mixed_labels_cost_the_mix_of_the_losses(rows, share):
    logits, y = torch.tensor([row for row, _ in rows]), torch.tensor([label for _, label in rows])
    k = logits.shape[1]
    first, second = F.one_hot(y, k).float(), F.one_hot((y + 1) % k, k).float()
    wanted = share * cross_entropy(logits, first) + (1 - share) * cross_entropy(logits, second)
    torch.testing.assert_close(
        cross_entropy(logits, share * first + (1 - share) * second), wanted, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 1.0, 2.0])])
def test_hard_and_one_hot_labels_give_the_same_training_loss(name, weights):
    model, x, y = network(name), images(3, 64), torch.tensor([0, 2, 1])
    losses = []
    with torch.no_grad():
        for labels in (y, F.one_hot(y, 3).float()):
            torch.manual_seed(1)  # of the partners in sspe_vit
            losses.append(training_loss(model, x, labels, weights))
    torch.testing.assert_close(losses[0], losses[1])


def test_a_module_from_elsewhere_is_trained_by_cross_entropy():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    x, y = torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 1])
    torch.testing.assert_close(training_loss(model, x, y), F.cross_entropy(model(x), y))


def test_antony_adds_the_squared_error_of_the_grade():
    model, x = fresh("antony"), images(2, 64)
    with torch.no_grad():
        model.regress.weight.zero_()
        model.regress.bias.fill_(1.5)  # the grade it says of every knee
        for y, error in (
            (torch.tensor([0, 2]), (1.5**2 + 0.5**2) / 2),
            (torch.tensor([[0.5, 0.5, 0], [0, 0, 1]]), (1.0**2 + 0.5**2) / 2),
        ):
            extra = training_loss(model, x, y) - cross_entropy(model(x), y)
            assert float(extra) == pytest.approx(error, abs=1e-4)
        extra = training_loss(model, x, torch.tensor([0, 2]), torch.tensor([1.0, 1.0, 3.0])) - cross_entropy(
            model(x), torch.tensor([0, 2]), torch.tensor([1.0, 1.0, 3.0])
        )
        assert float(extra) == pytest.approx((1.5**2 + 3 * 0.5**2) / 4, abs=1e-4)


# ---- SSPE-ViT


def test_key_patches_are_the_rows_of_the_joint():
    rows = key_patches().reshape(14, 14)
    assert rows.all(1).nonzero()[:, 0].tolist() == [5, 6, 7, 8, 9, 10]
    assert int(rows.sum()) == 84


def test_only_patches_outside_the_joint_change_places_and_only_in_training():
    model = fresh("sspe_vit").train()
    order, still = model.order(3), torch.arange(196)
    assert torch.equal(order[:, key_patches()], still[key_patches()].expand(3, -1))
    assert torch.equal(order.sort(1).values, still.expand(3, -1))  # every position once
    assert (order[:, ~key_patches()] != still[~key_patches()]).float().mean() > 0.9
    assert not torch.equal(order[0], order[1])
    assert torch.equal(model.eval().order(3), still.expand(3, -1))


def test_exchanged_key_patches_are_the_joint_of_the_partner_with_its_label(monkeypatch):
    """The loss from sequences equals the loss from pictures whose joints were pasted by hand."""
    model, x, y = fresh("sspe_vit", 224), images(2, 224), torch.tensor([0, 1])
    monkeypatch.setattr(torch, "randperm", lambda n: torch.arange(n).flip(0))
    pasted = x.clone()
    pasted[:, :, 80:176] = x.flip(0)[:, :, 80:176]
    with torch.no_grad():
        own, mixed = model(x), model(pasted)
        wanted = (F.cross_entropy(own, y) + F.cross_entropy(mixed, y.flip(0))) / 2
        wanted += jensen_shannon(own.flip(0), mixed)
        torch.testing.assert_close(training_loss(model, x, y), wanted, rtol=1e-4, atol=1e-5)
        assert (own - mixed).abs().max() > 1e-4


def test_jensen_shannon_is_nothing_between_equals_and_log_2_between_opposites():
    a, b = torch.tensor([[3.0, -1.0], [0.0, 0.5]]), torch.tensor([[60.0, -60.0]])
    assert float(jensen_shannon(a, a + 2)) == pytest.approx(0, abs=1e-6)
    assert float(jensen_shannon(b, -b)) == pytest.approx(0.693147, abs=1e-5)
    assert float(jensen_shannon(a, a.flip(1))) == pytest.approx(float(jensen_shannon(a.flip(1), a)))


# ---- errors say what to do


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet19", 2, 128), "resnet19.*there are densenet201, resnet18"),
        (("resnet18", 1, 128), "classes=1"),
        (("resnet18", 2, 63), "image_size=63.*64 px or more"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(*arguments)


@pytest.mark.parametrize("name", ["resnet18", *OWN])
@pytest.mark.parametrize(
    "x", [images(1, 96), images(1, 64).repeat(1, 3, 1, 1), torch.zeros(1, 1, 64, 64, dtype=torch.uint8)]
)
def test_images_it_was_not_built_for_are_refused(name, x):
    with pytest.raises(ValueError, match=r"built for floats in \[-1, 1\] of shape \(B, 1, 64, 64\)"):
        network(name)(x)
    with pytest.raises(ValueError, match="was built for"):
        training_loss(network(name), x, torch.tensor([0]))


@pytest.mark.parametrize(
    ("y", "weights", "message"),
    [
        (torch.tensor([0, 3]), None, "classes 0 to 3; the network has 0 to 2"),
        (torch.tensor([0.0, 2.0]), None, "class indices or .* probabilities"),
        (torch.tensor([[0.5, 0.5], [0, 1]]), None, r"\(B, 3\) probabilities"),
        (torch.tensor([[0.5, 0.5, 0.5], [0, 0, 1]]), None, "does not sum to 1"),
        (torch.tensor([0, 2]), torch.ones(2), "class_weights"),
    ],
)
def test_labels_that_mean_something_else_are_refused(y, weights, message):
    with pytest.raises(ValueError, match=message):
        cross_entropy(torch.zeros(2, 3), y, weights)


def test_rows_of_the_table_are_the_papers():
    assert TABLE_2 == ("densenet201", "resnet18", "vgg11", "antony", "tiulpin", "siamese_gap", "sspe_vit")
    gains = [CLASSIFIERS[name].paper[1] - CLASSIFIERS[name].paper[0] for name in TABLE_2]
    assert all(0 < gain <= 1.98 + 1e-9 for gain in gains)
    adam = CLASSIFIERS["tiulpin"].recipe.make(network("tiulpin").parameters())
    assert (adam.defaults["lr"], adam.defaults["weight_decay"]) == (1e-3, 5e-5)
