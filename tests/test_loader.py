"""KeyExchangeLoader: the exchange after any DataLoader, and what happens at its ends."""

import contextlib
import gc
import multiprocessing
import time
import types

import pretend_cuda
import pytest
import torch
from test_bank import MODEL, Knees
from torch.utils.data import ConcatDataset, DataLoader, DistributedSampler, Subset
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


def test_labels_of_another_order_are_refused():
    """The data set's class 0 read as the transform's class 1 would exchange keys under wrong labels, in silence."""
    knees = Knees()
    knees.classes = ("2", "0")
    with pytest.raises(ValueError, match=r"classes=\('0', '2'\): Knees lists \('2', '0'\)"):
        KeyExchangeLoader(DataLoader(Subset(knees, [0, 1])), KeyExchangeAugment(MODEL))
    KeyExchangeLoader(DataLoader(knees), KeyExchangeAugment(MODEL, classes=knees.classes))
    knees.classes = ("healthy", "ill")  # other names for the transform's classes
    KeyExchangeLoader(DataLoader(knees), KeyExchangeAugment(MODEL))


class Counting:
    """Notes each epoch that it is told."""

    def __init__(self, **parts):
        self.told = []
        vars(self).update(parts)

    def set_epoch(self, epoch):
        self.told.append(epoch)

    def __len__(self):
        return 6

    def __iter__(self):
        return iter(range(6))

    def __getitem__(self, i):
        return Knees()[i]


def test_set_epoch_reaches_every_part_once():
    """Samplers, data sets inside Subset and ConcatDataset, loaders around loaders; one that is found twice is told once."""
    train = KeyExchangeDataset(Knees(), MODEL, 4)
    sampler = DistributedSampler(train, num_replicas=2, rank=0)
    wrapped = KeyExchangeLoader(DataLoader(train, batch_size=6, sampler=sampler), KeyExchangeAugment(MODEL))
    wrapped.set_epoch(3)
    assert sampler.epoch == 3
    assert train.epoch == 3

    inner, other, sampler = Counting(), Counting(), Counting()
    both = ConcatDataset([Subset(inner, [0, 1]), other, inner])
    plain = DataLoader(both, batch_size=2, sampler=sampler)  # its batch sampler holds the sampler too
    around = Counting(loader=plain, dataset=both)
    augment = KeyExchangeAugment(MODEL)
    KeyExchangeLoader(KeyExchangeLoader(around, augment), augment).set_epoch(7)
    assert [part.told for part in (inner, other, sampler, around)] == [[7]] * 4
    batches = Counting(sampler=sampler)
    KeyExchangeLoader(DataLoader(other, batch_sampler=batches), augment).set_epoch(8)
    assert [part.told for part in (other, sampler, batches)] == [[7, 8], [7, 8], [8]]


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


class Clock:
    """A CUDA stream that only knows until when it is busy; stands for one where there is none."""

    def __init__(self, *_):
        self.busy_until = 0

    def wait_stream(self, other):
        self.busy_until = max(self.busy_until, other.busy_until)

    def record_event(self):
        event = Clock()
        event.busy_until = self.busy_until
        return event

    wait_event = wait_stream


class Clocks:
    """Stands for torch.cuda: a loop's stream, and whichever streams are made."""

    Stream = Clock

    def __init__(self):
        self.loop = self.current = Clock()

    def current_stream(self, device=None):
        return self.current

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before


class OnCuda(torch.Tensor):
    """A CPU tensor that says it is on CUDA, and notes the streams that it is recorded on."""

    is_cuda = True
    recorded = ()

    def record_stream(self, stream):
        self.recorded = (*self.recorded, stream)


@pytest.fixture
def clocks(monkeypatch):
    clocks = Clocks()
    monkeypatch.setattr(loader_module, "torch", types.SimpleNamespace(**{**vars(torch), "cuda": clocks}))
    return clocks


def ahead(clocks, n, exchange, step, note=lambda *_: None):
    """Runs a loop over n batches whose exchange and whose step take so long; when it ends."""
    wrapped = KeyExchangeLoader([[OnCuda(), i] for i in range(n)], lambda batch: batch, device="cpu")
    wrapped.device = torch.device("cuda")

    def exchanged(batch):
        clocks.current.busy_until += exchange
        batch[0].made = clocks.current.busy_until
        return batch

    wrapped._exchanged = exchanged
    for batch in wrapped:
        assert clocks.loop.busy_until >= batch[0].made, "a step began before its batch was made"
        note(batch, clocks)
        clocks.loop.busy_until += step
    return clocks.loop.busy_until


@pytest.mark.parametrize(("exchange", "step"), [(5, 10), (1, 10), (10, 10), (20, 10)])
def test_exchange_and_step_overlap(clocks, exchange, step):
    """The device is as long busy as the longer of the two takes; one after the other they take the sum."""
    first_and_last = exchange + step
    assert ahead(clocks, 100, exchange, step) <= 100 * max(exchange, step) + first_and_last


def test_memory_is_not_reused_while_the_loop_reads_it(clocks):
    """Handed out tensors are recorded on the loop's stream, CUDA input on the side's; that one waits for the loop."""
    begun = []

    def note(batch, clocks):
        assert batch[0].recorded[-1] is clocks.loop
        assert len(batch[0].recorded) == 2
        assert batch[0].recorded[0] is not clocks.loop
        begun.append((batch[1], batch[0].made, clocks.loop.busy_until))

    ahead(clocks, 6, 5, 10, note)
    assert [number for number, *_ in begun] == list(range(6))
    for (_, _, earlier), (_, made, _) in zip(begun, begun[2:], strict=False):
        assert made >= earlier + 10 + 5  # after the step before the one that it overlaps


def test_params_are_those_of_the_batch_in_hand(clocks):
    """One batch ahead, the transform has made the next one by the time the loop gets this one."""
    augment = KeyExchangeAugment(MODEL, p=0.5)
    wrapped = KeyExchangeLoader(loader(), augment)
    torch.manual_seed(0)
    ahead = [(x, augment.params) for x, _ in wrapped._ahead(iter(loader()))]
    torch.manual_seed(0)
    wanted = [(augment(x, y)[0], augment.params) for x, y in loader()]
    for (x, params), (a, expected) in zip(ahead, wanted, strict=True):
        assert torch.equal(x, a)
        assert torch.equal(params.rows, expected.rows)
        assert torch.equal(params.donors, expected.donors)


def test_batches_are_pinned_before_they_are_copied_to_cuda(monkeypatch):
    """A copy from pageable memory would wait for the device; towards a CPU nothing may run ahead."""

    class Copied(torch.Tensor):
        def pin_memory(self):
            return self.as_subclass(Pinned)

        def to(self, device, non_blocking=False):
            return (type(self).__name__, device.type, non_blocking)

    class Pinned(Copied):
        def is_pinned(self):
            return True

        def pin_memory(self):
            raise AssertionError("pinned already")

    plain, pinned = torch.zeros(2).as_subclass(Copied), torch.zeros(2).as_subclass(Pinned)
    cuda = loader_module._moved({"image": plain, "label": [pinned, "text"]}, torch.device("cuda"))
    assert cuda == {"image": ("Pinned", "cuda", True), "label": [("Pinned", "cuda", True), "text"]}
    assert loader_module._moved((plain,), torch.device("cpu")) == (("Copied", "cpu", False),)


def test_a_subclass_keeps_its_forward():
    """The exchange is planned and applied in two steps only where nobody replaced the whole."""

    class Halved(KeyExchangeAugment):
        def forward(self, *inputs, **options):
            images, labels = super().forward(*inputs, **options)
            return images / 2, labels

    for images, _ in KeyExchangeLoader(loader(), Halved(MODEL, p=1.0), device="cpu"):
        assert images.max() <= 0.5


def test_post_gives_an_image_for_each():
    """Labels would no longer be of their images."""
    wrapped = KeyExchangeLoader(loader(), KeyExchangeAugment(MODEL), post=lambda x: x.repeat(2, 1, 1, 1))
    with pytest.raises(ValueError, match="post: gave 12 images for 6"):
        next(iter(wrapped))


def test_an_iterator_is_refused():
    """It would be empty in the second epoch, in silence."""
    with pytest.raises(TypeError, match="empty after one epoch"):
        KeyExchangeLoader(iter(loader()), KeyExchangeAugment(MODEL))


@pytest.mark.parametrize(
    "options", [{}, {"append": True}, {"detail": "host", "strength": (0.5, 1.5)}, {"mean": 0.05, "std": 0.9}]
)
def test_a_step_waits_for_nothing_on_the_device(options):
    """Neither a value from the device nor a blocking copy to it; the images are those of the CPU."""
    augment = KeyExchangeAugment(MODEL, p=0.7, **options)
    augment._exchanger._copies[pretend_cuda.CUDA] = pretend_cuda.Network(augment._exchanger.fast)
    here, there = (KeyExchangeLoader(loader(), augment, device=where) for where in ("cpu", "cuda:0"))
    for batch in loader():
        torch.manual_seed(0)
        wanted, labels = here._exchanged(batch)
        torch.manual_seed(0)
        with pretend_cuda.pretend() as watch, torch.no_grad():
            got, there_labels = there._exchanged(batch)
        assert watch.waits == []
        torch.testing.assert_close(got.inner, wanted)
        assert torch.equal(there_labels.inner, labels)
