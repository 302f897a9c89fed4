"""KeyExchangeLoader: the exchange after any DataLoader, and what happens at its ends."""

import gc
import multiprocessing
import time

import pytest
import torch
from test_bank import MODEL, Knees
from torch.utils.data import DataLoader, DistributedSampler
from torchvision.transforms import v2

from kecae_aug import KeyExchangeAugment, KeyExchangeDataset, KeyExchangeLoader
from kecae_aug import loader as loader_module


def loader(**options):
    return DataLoader(Knees(), batch_size=6, **options)


def test_batches_are_the_loaders_exchanged():
    """Length, number, shapes and attributes are the wrapped loader's; with one seed the same as a line in the loop."""
    augment = KeyExchangeAugment(MODEL, p=1.0)
    wrapped = KeyExchangeLoader(loader(), augment, device="cpu")
    assert len(wrapped) == 4
    assert wrapped.batch_size == 6
    torch.manual_seed(0)
    got = list(wrapped)
    torch.manual_seed(0)
    wanted = [augment(x, y) for x, y in loader()]
    for (x, y), (a, b) in zip(got, wanted, strict=True):
        assert torch.equal(x, a)
        assert torch.equal(y, b)
    assert len(list(wrapped)) == 4  # a second epoch


def test_post_sees_exchanged_images_and_the_structure_stays():
    """Crop and normalise after the exchange, in dicts too."""

    class Dicts(Knees):
        def __getitem__(self, i):
            image, label = super().__getitem__(i)
            return {"label": label, "name": f"k{i}", "image": image}

    post = v2.Compose([v2.CenterCrop(32), v2.Normalize([0.5], [0.25])])
    plain = DataLoader(Dicts(), batch_size=6)
    for batch in KeyExchangeLoader(plain, KeyExchangeAugment(MODEL, p=1.0), post=post):
        assert list(batch) == ["label", "name", "image"]
        assert batch["image"].shape[-2:] == (32, 32)


def test_set_epoch_reaches_sampler_and_dataset():
    """One call for the DistributedSampler and for KeyExchangeDataset."""
    train = KeyExchangeDataset(Knees(), MODEL, 4)
    sampler = DistributedSampler(train, num_replicas=2, rank=0)
    wrapped = KeyExchangeLoader(DataLoader(train, batch_size=6, sampler=sampler), KeyExchangeAugment(MODEL))
    wrapped.set_epoch(3)
    assert sampler.epoch == 3
    assert train.epoch == 3


def wait_for_workers(before):
    for _ in range(100):
        left = {p.pid for p in multiprocessing.active_children()} - before
        if not left:
            return
        time.sleep(0.05)
    raise AssertionError(f"workers left behind: {left}")


def test_break_and_exceptions_leave_no_worker():
    """A break, an exception in the loop, in the exchange or in a worker: workers end, and the next epoch works."""
    before = {p.pid for p in multiprocessing.active_children()}
    augment = KeyExchangeAugment(MODEL, p=1.0)
    wrapped = KeyExchangeLoader(loader(num_workers=2), augment)
    for _ in wrapped:
        break
    gc.collect()
    wait_for_workers(before)

    def loop():
        for _ in wrapped:
            raise RuntimeError("loss is NaN")

    with pytest.raises(RuntimeError, match="loss is NaN"):
        loop()
    wait_for_workers(before)

    class Bad(Knees):
        def __getitem__(self, i):
            if i == 9:
                raise OSError("bad file")
            return super().__getitem__(i)

    with pytest.raises(OSError, match="bad file"):
        list(KeyExchangeLoader(DataLoader(Bad(), batch_size=6, num_workers=2), augment))
    wait_for_workers(before)
    with pytest.raises(ValueError, match="value_range"):
        list(KeyExchangeLoader(loader(num_workers=2), KeyExchangeAugment(MODEL, value_range=(5, 6))))
    wait_for_workers(before)
    assert len(list(wrapped)) == 4


class Recorder:
    """Stands for torch.cuda where there is none; writes down the order of waits."""

    def __init__(self):
        self.log = []

    def Stream(self, device):  # noqa: N802
        self.log.append("new stream")
        return FakeStream("side", self.log)

    def current_stream(self, device):
        return FakeStream("loop", self.log)

    def stream(self, stream):
        recorder = self

        class Inside:
            def __enter__(self):
                recorder.log.append("enter side")

            def __exit__(self, *_):
                recorder.log.append("leave side")

        return Inside()


class FakeStream:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


def test_order_of_stream_operations(monkeypatch):
    """One side stream for the loader's life, one batch ahead, waits both ways (CUDA itself has not been run)."""
    recorder = Recorder()
    monkeypatch.setattr(loader_module.torch, "cuda", recorder)
    augment = KeyExchangeAugment(MODEL, p=1.0)
    wrapped = KeyExchangeLoader(loader(), augment)
    handed = []
    for batch in wrapped._ahead(iter(loader())):
        recorder.log.append("step")
        handed.append(batch)
    list(wrapped._ahead(iter(loader())))
    one = ["side waits for loop", "enter side", "leave side"]
    assert recorder.log[: len(one) * 2 + 3] == ["new stream", *one, *one, "loop waits for side", "step"]
    assert recorder.log.count("new stream") == 1
    assert recorder.log.count("step") == len(handed) == 4


def test_an_iterator_is_refused():
    """It would be empty in the second epoch, in silence."""
    with pytest.raises(TypeError, match="empty after one epoch"):
        KeyExchangeLoader(iter(loader()), KeyExchangeAugment(MODEL))
