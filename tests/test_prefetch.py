"""Batches made by a thread: the same ones, in order, not too many ahead, and no thread left behind."""

import threading
import time

import pytest
import torch

from kecae_training.prefetch import pin, prefetch


def threads():
    return [t for t in threading.enumerate() if t.name == "kecae-aug batches"]


def test_the_same_batches_in_the_same_order():
    """One generator drawn from by the thread alone gives what a plain loop draws."""

    def drawn():
        generator = torch.Generator().manual_seed(0)
        for _ in range(50):
            yield torch.rand(3, generator=generator)

    with prefetch(drawn()) as made:
        assert all(torch.equal(a, b) for a, b in zip(made, drawn(), strict=True))
    assert not threads()


def test_the_next_batch_is_made_meanwhile():
    """Two ahead and one in the making, no more: a data set is not read into memory."""
    made_so_far = []

    def slow():
        for i in range(20):
            made_so_far.append(i)
            yield i

    with prefetch(slow()) as made:
        assert next(made) == 0
        deadline = time.monotonic() + 5
        while len(made_so_far) < 4 and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.05)
        assert made_so_far == [0, 1, 2, 3]
        assert list(made) == list(range(1, 20))


def test_making_and_using_overlap():
    """30 ms to make and 30 ms to use, eight times: near eight times 30, not 60."""

    def slow():
        for i in range(8):
            time.sleep(0.03)
            yield i

    start = time.perf_counter()
    with prefetch(slow()) as made:
        for _ in made:
            time.sleep(0.03)
    assert time.perf_counter() - start < 0.42


def test_an_error_comes_where_its_batch_would_have_come():
    """Batches before it are handed out first; its traceback shows where it happened."""

    def broken():
        yield 1
        raise RuntimeError("the third knee is torn")

    with prefetch(broken()) as made:
        assert next(made) == 1
        with pytest.raises(RuntimeError, match="third knee") as caught:
            next(made)
    assert caught.traceback[-1].name == "broken"
    assert not threads()


def test_a_loop_that_is_left_ends_the_thread():
    """By break, by an error, by Ctrl-C: also while the queue is full."""

    def endless():
        while True:
            yield 0

    def left_by(error):
        with prefetch(endless()) as made:
            next(made)
            raise error

    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error):
            left_by(error)
        assert not threads()


def test_pinned_only_for_cuda():
    """On other devices it is the tensor itself."""
    x = torch.zeros(2)
    assert pin(x, torch.device("cpu")) is x
    assert pin(x, torch.device("mps")) is x
