"""Arms of T against T': what a step of each holds, measured on phantoms with the bundled phantom weights."""

from dataclasses import replace

import pytest
import torch

from kecae_aug import load_weights
from kecae_aug.phantom import PhantomKnees
from kecae_bench.tvt.added import Tools
from kecae_bench.tvt.arms import ARMS, USED, ExchangeOptions
from kecae_bench.tvt.augmentation import Augmentation
from kecae_bench.tvt.batches import Batches
from kecae_bench.tvt.draws import BalancedIndices, generator, seeded
from kecae_bench.tvt.knees import Knees
from kecae_training.images import to_uint8

SIZE, STEPS = 6, 4
ADDING = {name for name, arm in ARMS.items() if arm.added not in ("none", "paper")}


def some_knees(n: int = 8, grades=(0, 2)) -> Knees:
    data = PhantomKnees(n, grades, image_size=64, grade_correlation=0.0)
    files = tuple(f"train/{i}.png" for i in range(len(data)))
    images = to_uint8(data, progress=False)
    return Knees(images, torch.tensor(data.targets), tuple(data.patients), files, tuple(data.classes))


class Says(torch.nn.Module):
    """An oracle that gives every image the same chances."""

    def __init__(self, *chances: float) -> None:
        super().__init__()
        self.logits = torch.tensor(chances).log()

    def forward(self, x):
        return self.logits.expand(len(x), -1)


@pytest.fixture(scope="module")
def of() -> Knees:
    return some_knees()


@pytest.fixture(scope="module")
def model():
    return load_weights("phantom")


@pytest.fixture(scope="module")
def others() -> Knees:
    """Knees outside T, and none of its patients."""
    found = some_knees(20).select(range(16, 40))
    return replace(found, patients=tuple(f"other {p}" for p in found.patients))


@pytest.fixture(scope="module")
def make(of, model, others, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")

    def make(
        arm: str, seed: int = 0, oracles=None, n_pairs: int = 4, augmentation=None, **options
    ) -> Batches:
        tools = Tools(model, oracles or [Says(0.5, 0.5)], None, n_pairs, others, work)
        return Batches(ARMS[arm], of, seed, SIZE, STEPS, ExchangeOptions(**options), tools, augmentation)

    return make


def hosts_and_donors(of, model, batches, step, new, *, same_grade: bool, detail: str = "decoder"):
    """For each image in ``new``, whether it is X' of its host and a donor of the right kind; paper: hN + hK'."""
    rows = batches.indices(step)
    x, y = of.floats(rows), of.labels[rows]
    found = []
    with torch.no_grad():
        for i, image in enumerate(new):
            for j in range(len(rows)):
                if (y[i] == y[j]) != same_grade or of.patients[rows[i]] == of.patients[rows[j]]:
                    continue
                wanted = model.exchange(x[i : i + 1], x[j : j + 1])
                if detail == "host":
                    wanted = (x[i : i + 1] + wanted - model(x[i : i + 1])).clamp(-1, 1)
                if torch.allclose(wanted[0], image, atol=2e-3):
                    found.append(i)
                    break
    return found


@pytest.mark.parametrize("augmentation", [None, Augmentation()], ids=["plain", "augmented"])
@pytest.mark.parametrize("arm", ARMS)
def test_real_knees_are_the_same_in_all_arms_of_a_seed(arm, augmentation, make):
    """Same rows, same pixels, same standard augmentation, same labels; added knees stand beside them."""
    batches, plain = (make(name, augmentation=augmentation) for name in (arm, "T"))
    for step in range(2):
        x, y, real = batches.batch(step)
        wanted = plain.batch(step)
        assert torch.equal(batches.indices(step), plain.indices(step))
        assert x.dtype == torch.float32
        assert bool(x.isfinite().all())
        assert float(x.abs().max()) <= 1 + 1e-6
        assert real == SIZE
        if ARMS[arm].mix:
            assert y.shape == (SIZE, 2)
            torch.testing.assert_close(y.sum(1), torch.ones(SIZE))
            assert not torch.equal(x, wanted.images)
            continue
        if ARMS[arm].added == "paper":
            continue
        assert torch.equal(x[:real], wanted.images)
        assert torch.equal(y[:real], wanted.labels)
        assert len(x) == len(y) == SIZE + (batches.per_step if arm in ADDING else 0)


def test_a_step_is_a_function_of_seed_and_number(make):
    """Whatever ran before in the process, and in whatever order; another seed has other knees."""
    for arm in ("T'", "T' from pairs", "T + MixUp", "paper"):
        torch.manual_seed(1)
        first = make(arm, augmentation=Augmentation())
        before = torch.get_rng_state()
        wanted = first.batch(3)
        assert torch.equal(before, torch.get_rng_state())
        torch.manual_seed(2)
        again = make(arm, augmentation=Augmentation())
        again.batch(0)
        assert torch.equal(again.batch(3).images, wanted.images)
        assert torch.equal(again.batch(3).labels, wanted.labels)
        assert not torch.equal(make(arm, seed=1).batch(3).images, wanted.images)


def test_batches_are_balanced_and_every_knee_of_a_grade_comes_before_one_comes_twice():
    rows = BalancedIndices([list(range(10)), [10, 11, 12]], 0, "real")
    drawn = torch.cat([rows.batch(step, 4) for step in range(15)]).tolist()
    assert [sum(r >= 10 for r in drawn[i : i + 4]) for i in range(0, 60, 4)] == [2] * 15
    first = [r for r in drawn if r < 10]
    assert all(sorted(first[i : i + 10]) == list(range(10)) for i in range(0, 30, 10))
    rare = [r for r in drawn if r >= 10]
    assert all(sorted(rare[i : i + 3]) == [10, 11, 12] for i in range(0, 30, 3))
    assert first[:10] != first[10:20]
    with pytest.raises(ValueError, match="no knees of class 1"):
        BalancedIndices([[0], []], 0)


def test_reconstructions_have_their_own_labels(of, model, make):
    batches = make("T + X^", strength=2.0, detail="host")  # which play no part in it
    x, y, real = batches.batch(0)
    rows = batches.indices(0)[: len(x) - real]
    assert torch.equal(y[real:], of.labels[rows])
    with torch.no_grad():
        torch.testing.assert_close(x[real:], model(of.floats(rows)), atol=2e-3, rtol=0)


@pytest.mark.parametrize("detail", ["decoder", "host"])
def test_exchanged_knees_have_the_other_label_and_another_patients_key(detail, of, model, make):
    batches = make("T'", detail=detail, added=4)
    x, y, real = batches.batch(0)
    assert torch.equal(y[real:], 1 - of.labels[batches.indices(0)[:4]])
    found = hosts_and_donors(of, model, batches, 0, x[real:], same_grade=False, detail=detail)
    assert found == [0, 1, 2, 3]


def test_same_grade_control_exchanges_within_the_grade(of, model, make):
    """A key of another patient of the same grade, the own label; only the order differs (grade by grade)."""
    batches = make("T + X' same grade", detail="decoder", added=4)
    x, y, real = batches.batch(0)
    order = of.labels[batches.indices(0)[:4]].argsort(stable=True)
    assert torch.equal(y[real:], of.labels[batches.indices(0)[:4]][order])
    new = torch.empty_like(x[real:])
    new[order] = x[real:]
    assert hosts_and_donors(of, model, batches, 0, new, same_grade=True) == [0, 1, 2, 3]


def test_permuted_control_has_the_same_images_with_other_labels(make):
    permuted, exchanged = make("T + X' permuted labels", added=6), make("T'", added=6)
    a, b = permuted.batch(1), exchanged.batch(1)
    assert torch.equal(a.images, b.images)
    assert sorted(a.labels.tolist()) == sorted(b.labels.tolist())


def test_permuted_labels_say_nothing_of_host_or_key(of, make, monkeypatch):
    """Over many steps a label agrees with the host's, and with the key's, in half of the cases; in 6 SD."""
    batches = make("T + X' permuted labels", added=6)
    monkeypatch.setattr(batches._adds, "_exchange_in_batch", lambda x, y, rows, step: (x[:6], 1 - y[:6]))
    agree = [
        (batches._adds.make(of.floats(rows), of.labels[rows], rows, s)[1] == of.labels[rows][:6])
        .float()
        .mean()
        for s in range(400)
        for rows in [batches.indices(s)]
    ]
    assert abs(float(torch.stack(agree).mean()) - 0.5) < 6 * 0.5 / (2400 / 2) ** 0.5
    assert len({round(float(a), 3) for a in agree}) > 1  # permuted anew in every step


def test_offline_adds_out_of_n_pairs_that_stay(make):
    """Four pairs: every step adds two of them to all of its real knees, and there are never more than four."""
    batches = make("T' from pairs", n_pairs=4)
    images = [x[real:] for x, _, real in (batches.batch(step) for step in range(STEPS))]
    assert all(len(x) == batches.per_step == 2 for x in images)
    assert len({x.numpy().tobytes() for step in images for x in step}) == 4
    assert batches.report()["added"] == 8
    other = make("T' from pairs", seed=1, n_pairs=4).batch(0)  # another seed is another sampling
    assert other.images[-1].numpy().tobytes() not in {x.numpy().tobytes() for s in images for x in s}


def test_gate_decides_what_is_added(make):
    """An oracle that says 2 of everything lets the exchanges to 2 through, and counts the others."""
    batches = make("T' gated", oracles=[Says(0.1, 0.9)])
    for step in range(2):
        _, y, real = batches.batch(step)
        assert 0 < len(y) - real <= batches.per_step
        assert (y[real:] == 1).all()
    counts = batches.report()["gate"]
    assert counts["accepted as 2"] == counts["offered as 2"] > 0
    assert counts["rejected by the oracles"] == counts["offered as 0"] > 0
    nothing = make("T' gated", oracles=[Says(0.5, 0.5)], min_probability=0.6)
    assert len(nothing.batch(0).images) == SIZE  # all rejected: the step is that of T
    assert "gate" not in make("T'").report()


def test_paper_trains_on_t_and_x_prime_for_equal_epochs(of, make):
    """T' is (16 + 48) / 16 = 4 times T, and so are the steps; its batches hold real and exchanged knees."""
    batches = make("paper", n_pairs=48, strength=2.0, detail="host")
    assert batches.steps == 4 * STEPS
    real = {x.numpy().tobytes() for x in of.floats(list(range(len(of))))}
    drawn = [x.numpy().tobytes() for step in range(batches.steps) for x in batches.batch(step).images]
    fraction = sum(x in real for x in drawn) / len(drawn)
    assert 0.1 < fraction < 0.45
    assert sorted(batches.batch(0).labels.tolist()) == [0, 0, 0, 1, 1, 1]


def test_early_ends_the_exchange_and_only_that(make):
    batches = make("T'", early=0.5)
    assert [len(batches.batch(step).images) for step in range(STEPS)] == [8, 8, 6, 6]
    control = make("T + X^", early=0.5)
    assert [len(control.batch(step).images) for step in range(STEPS)] == [8, 8, 6, 6]


def test_p_replaces_instead_of_adding(make, of):
    batches = make("T'", p=1.0)
    x, y, real = batches.batch(0)
    assert len(x) == real == SIZE
    assert torch.equal(y, 1 - of.labels[batches.indices(0)])
    assert batches.report()["added"] == SIZE


def test_labels_by_strength_by_oracles_and_smoothed(make):
    soft = make("T'", labels="soft", strength=0.75).batch(0)
    assert soft.labels[SIZE:].max(1).values.tolist() == [0.75, 0.75]
    assert soft.labels[:SIZE].max(1).values.tolist() == [1.0] * SIZE
    asked = make("T'", labels="oracles", oracles=[Says(0.2, 0.8), Says(0.4, 0.6)]).batch(0)
    torch.testing.assert_close(asked.labels[SIZE:], torch.tensor([[0.3, 0.7]] * 2))
    smooth = make("T'", smoothing=0.2).batch(0)
    torch.testing.assert_close(smooth.labels[SIZE:].max(1).values, torch.tensor([0.9, 0.9]))
    assert smooth.labels[:SIZE].max(1).values.tolist() == [1.0] * SIZE


def test_donors_of_a_bank_are_training_knees(make, of):
    x, y, real = make("T'", donors="bank").batch(0)
    assert len(x) == SIZE + 2
    assert torch.equal(y[real:], 1 - y[:2])


def test_unlabelled_hosts_are_outside_t_and_get_a_key_and_a_label_of_t(make, of, others, model):
    """Every X' is decode(hN of a knee outside T + hK of a knee of T), its label that knee's; no label of a host is read."""
    batches = make("T' unlabelled hosts", detail="decoder", added=4)
    blank = Batches(
        batches.arm, of, 0, SIZE, STEPS, batches.options,
        replace(batches.tools, others=replace(others, labels=torch.zeros_like(others.labels))), None,
    )  # fmt: skip
    for step in range(2):
        x, y, real = batches.batch(step)
        assert sorted(y[real:].tolist()) == [0, 0, 1, 1]
        assert torch.equal(x, blank.batch(step).images)
        assert torch.equal(y, blank.batch(step).labels)
        with torch.no_grad():
            non_keys = model.encode(others.floats(range(len(others)))).non_key
            keys = [model.encode(of.floats(rows)).key for rows in of.members]
            for image, label in zip(x[real:], y[real:].tolist(), strict=True):
                made = model.decode((non_keys[:, None] + keys[label][None]).flatten(0, 1))
                assert float((made - image).abs().amax((1, 2, 3)).min()) < 2e-3


def test_control_of_unlabelled_hosts_is_the_same_images_with_permuted_labels(make):
    ours, control = (
        make(arm, added=4) for arm in ("T' unlabelled hosts", "T + X' unlabelled hosts, permuted labels")
    )
    moved = 0
    for step in range(STEPS):
        x, y, real = ours.batch(step)
        images, labels, _ = control.batch(step)
        assert torch.equal(images, x)
        assert torch.equal(labels[:real], y[:real])
        assert sorted(labels[real:].tolist()) == sorted(y[real:].tolist())
        moved += int((labels != y).sum())
    assert moved


@pytest.mark.parametrize(
    ("arm", "tools", "options", "message"),
    [
        ("T'", Tools(), {}, "needs weights"),
        ("T' from pairs", Tools(n_pairs=None), {}, "needs a number of pairs"),
        ("T' gated", Tools(), {}, "needs --oracles"),
        ("T'", Tools(), {"donors": "bank"}, "--work"),
        ("T' unlabelled hosts", Tools(), {}, "--fractions below 1"),
    ],
)
def test_arms_without_what_they_need(arm, tools, options, message, of, model):
    found = tools if message == "needs weights" else Tools(model, n_pairs=tools.n_pairs)
    with pytest.raises(ValueError, match=message):
        Batches(ARMS[arm], of, 0, SIZE, STEPS, ExchangeOptions(**options), found)


@pytest.mark.parametrize(
    "wrong",
    [
        {"added": 0}, {"p": 0.0}, {"strength": -1.0}, {"strength": (2.0, 1.0)}, {"detail": "x"}, {"labels": "x"},
        {"smoothing": 1.0}, {"early": 0.0}, {"donors": "x"}, {"p": 0.5, "added": 3},
    ],
)  # fmt: skip
def test_bad_options_are_named(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}"):
        ExchangeOptions(**wrong)


def test_options_that_play_no_part_do_not_make_another_run():
    assert {arm.added for arm in ARMS.values()} == set(USED)
    a, b = ExchangeOptions(strength=1.5, detail="host"), ExchangeOptions(strength=1.0, detail="decoder")
    assert a.select_used("x_hat") == b.select_used("x_hat")
    assert a.select_used("none") == {}
    assert a.select_used("exchanged") != b.select_used("exchanged")


# --- standard augmentation --------------------------------------------------------------------------------------


def test_augmentation_of_nothing_is_nothing(of):
    x = of.floats([0, 1])
    off = Augmentation(0, 0, 0, 0, 0, 0)
    torch.testing.assert_close(off(x, generator("a")), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        Augmentation(0, 0, 0, 0, 0, 1)(x, generator("a")), x.flip(-1), atol=1e-5, rtol=0
    )


def test_augmentation_is_drawn_for_each_image_and_does_not_depend_on_the_others(of):
    """So real knees look the same in arms whose batches are of other lengths only if they are drawn apart; here the
    same image twice in a batch comes out twice differently, and the ranges are kept.
    """
    x = of.floats([0, 0, 0, 0])
    out = Augmentation()(x, generator("a"))
    assert len({image.numpy().tobytes() for image in out}) == 4
    assert float(out.min()) >= -1
    assert float(out.max()) <= 1
    assert 0.01 < float((out - x).abs().mean()) < 0.4


def test_shift_is_a_fraction_of_the_side():
    """A shift of exactly 25 % moves a dot by a quarter of the side."""
    x = torch.full((1, 1, 64, 64), -1.0)
    x[0, 0, 31:33, 31:33] = 1
    moves = []
    for i in range(40):
        out = Augmentation(0, 0.25, 0, 0, 0)(x, generator("shift", i))
        at = (out[0, 0] + 1).sum(0)
        moves.append(float((at * torch.arange(64)).sum() / at.sum()) - 31.5)
    assert 13 < max(map(abs, moves)) <= 16.5


def test_bad_ranges_are_refused():
    with pytest.raises(ValueError, match="augmentation"):
        Augmentation(scale=1.0)


def test_seeded_restores_the_global_generator():
    before = torch.get_rng_state()
    with seeded("x", 1):
        a = torch.rand(3)
    with seeded("x", 1):
        assert torch.equal(a, torch.rand(3))
    assert torch.equal(before, torch.get_rng_state())
