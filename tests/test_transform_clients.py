"""KeyExchangeAugment among others: appended rows, eval mode, ranks, precisions, containers, torchvision's own mixing."""

import copy

import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from test_transform import MODEL, batch
from torch import nn
from torchvision.transforms import v2

from kecae_aug import EngineOptions, KeyExchangeAugment


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(0, 9),
    p=st.sampled_from([0.0, 0.5, 1.0]),
    one_hot=st.booleans(),
    soft=st.booleans(),
    seed=st.integers(0, 99),
)
def test_append_is_the_batch_and_then_the_exchanged(n, p, one_hot, soft, seed):
    """T' = T and X': the batch's own rows come first, untouched; every other entry gets the hosts' rows."""
    images, labels = batch(n, seed=seed)
    given_labels = nn.functional.one_hot(labels, 2) if one_hot else labels
    options = {"p": p, "label_mode": "soft" if soft else "key"}
    augment = KeyExchangeAugment(MODEL, append=True, **options)
    names = [f"k{i}" for i in range(n)]
    torch.manual_seed(seed)
    out = augment({"label": given_labels, "image": images, "name": names, "age": torch.arange(n), "epoch": 3})
    rows = augment.params.rows
    assert torch.equal(out["image"][:n], images)
    assert len(out["image"]) == len(out["label"]) == len(out["name"]) == len(out["age"]) == n + len(rows)
    assert out["name"][n:] == [names[i] for i in rows]
    assert torch.equal(out["age"][n:], rows)
    assert out["epoch"] == 3
    new = out["label"] if out["label"].ndim == 1 else out["label"].argmax(1)
    assert torch.equal(new[:n], labels)
    assert torch.equal(new[n:], 1 - labels[rows])
    torch.manual_seed(seed)
    replaced, _ = KeyExchangeAugment(MODEL, **options)(images, given_labels)
    torch.testing.assert_close(out["image"][n:], replaced[rows], atol=1e-5, rtol=0)


def test_append_in_a_list_and_a_namedtuple_like_batch():
    """(images, labels, paths, weights) keeps its rows together."""
    images, labels = batch(4)
    augment = KeyExchangeAugment(MODEL, p=1.0, append=True)
    out = augment([images, labels, ("a", "b", "c", "d"), torch.ones(4)])
    assert isinstance(out, list)
    assert out[2] == ("a", "b", "c", "d") * 2
    assert len(out[3]) == 8


def test_eval_mode_passes_through():
    """As part of a model in eval(), nothing is exchanged; a replay still does what it is told."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.augment = KeyExchangeAugment(MODEL, p=1.0)

    net = Net().eval()
    images, labels = batch()
    assert net.augment(images, labels)[0] is images
    assert not torch.equal(net.train().augment(images, labels)[0], images)
    params = net.augment.params
    assert not torch.equal(net.eval().augment.replay(images, labels, params=params)[0], images)


def test_what_moves_and_casts_modules_leaves_it_alone():
    """.to(), .half(), apply() of whatever holds it: the transform has no parameters, and must not take the call."""
    augment = KeyExchangeAugment(MODEL, p=1.0)
    net = nn.Sequential(augment, nn.Identity()).to(torch.float64).half().cpu().apply(lambda module: None)
    net.requires_grad_(False).zero_grad()
    images, labels = batch()
    assert torch.equal(augment(images, labels)[1], 1 - labels)


def rank(number, port, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=2
    )
    torch.manual_seed(0)  # as seed_everything does on every rank
    augment = KeyExchangeAugment(MODEL, p=0.5)
    draws = []
    for _ in range(3):
        augment(*batch(16))
        draws.append((augment.params.rows.tolist(), augment.params.donors.tolist()))
    queue.put((number, draws))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_that_were_seeded_alike_draw_differently():
    """Two processes under DDP: rank 0 as without DDP, rank 1 otherwise."""
    context = mp.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=rank, args=(i, 29737, queue)) for i in range(2)]
    for process in processes:
        process.start()
    draws = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    torch.manual_seed(0)
    augment = KeyExchangeAugment(MODEL, p=0.5)
    alone = []
    for _ in range(3):
        augment(*batch(16))
        alone.append((augment.params.rows.tolist(), augment.params.donors.tolist()))
    assert draws[0] == alone
    assert all(a != b for a, b in zip(draws[0], draws[1], strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inside(dtype):
    """Above 40 dB from float32, in the dtype that came, with the rest of the batch bit-identical."""
    images, labels = batch()
    plain = KeyExchangeAugment(MODEL, p=0.5)
    wanted, _ = plain(images, labels)
    half, _ = KeyExchangeAugment(MODEL, engine=EngineOptions(amp_dtype=dtype)).replay(
        images, labels, params=plain.params
    )
    assert half.dtype == torch.float32
    assert 10 * torch.log10(1 / (half - wanted).square().mean()) > 40
    kept = torch.ones(len(images), dtype=torch.bool)
    kept[plain.params.rows] = False
    assert torch.equal(half[kept], images[kept])


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("inside", [False, True])
def test_memory_format_inside_does_not_come_out(memory, inside):
    """channels_last is the transform's own business: what comes out lies as what came in."""
    images, labels = batch(6, channels=3)
    images = images.contiguous(memory_format=memory)
    out, _ = KeyExchangeAugment(MODEL, p=1.0, engine=EngineOptions(channels_last=inside))(images, labels)
    assert out.stride() == images.stride()


@pytest.mark.slow
def test_compiled_network_gives_the_same():
    """compile=True changes speed only (backend inductor, which needs a C++ compiler)."""
    images, labels = batch(6)
    plain = KeyExchangeAugment(MODEL, p=1.0)
    wanted, _ = plain(images, labels)
    compiled = KeyExchangeAugment(MODEL, p=1.0, engine=EngineOptions(compile=True))
    got, _ = compiled.replay(images, labels, params=plain.params)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


def test_metatensor_stays_one():
    """MONAI's tensors keep their type and meta data, whether or not a row was chosen."""
    monai = pytest.importorskip("monai.data")
    images, labels = batch(6)
    meta = monai.MetaTensor(images, meta={"spacing": 0.1})
    for p in (0.0, 1.0):
        out, _ = KeyExchangeAugment(MODEL, p=p)(meta, labels)
        assert isinstance(out, monai.MetaTensor)
        assert out.meta["spacing"] == 0.1


@pytest.mark.parametrize("mix", [v2.MixUp, v2.CutMix])
def test_torchvisions_mixing_after_the_exchange(mix):
    """Integer labels stay integer, so MixUp and CutMix take them; their soft labels sum to one."""
    pipeline = v2.Compose([KeyExchangeAugment(MODEL, p=1.0), mix(num_classes=2)])
    images, labels = batch(8)
    out, soft = pipeline(images, labels)
    assert out.shape == images.shape
    torch.testing.assert_close(soft.sum(1), torch.ones(8))


def test_copies_share_nothing_that_is_drawn():
    """A deep copy works by itself; state_dict is empty, so checkpoints of either are free of the model."""
    augment = KeyExchangeAugment(MODEL, p=1.0)
    other = copy.deepcopy(augment)
    images, labels = batch()
    torch.manual_seed(1)
    a, _ = augment(images, labels)
    torch.manual_seed(1)
    b, _ = other(images, labels)
    assert torch.equal(a, b)
    assert augment.state_dict() == other.state_dict() == {}
    other.load_state_dict({})


def test_draws_do_not_depend_on_what_a_batch_needs():
    """One number of the global generator a call: the loop's other draws stay the same, exchanged or not."""
    images, labels = batch()
    after = []
    for p, y in ((0.0, labels), (1.0, labels), (0.5, labels * 0)):
        torch.manual_seed(0)
        KeyExchangeAugment(MODEL, p=p)(images, y)
        after.append(torch.rand(1).item())
    assert len(set(after)) == 1
