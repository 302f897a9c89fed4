"""Batches made by a thread while the step before is at work: what a loop takes is what it would have made itself."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch")


@contextmanager
def prefetched(batches: Iterable[Batch], depth: int = 2) -> Generator[Generator[Batch]]:
    """An iterator over the same batches, in the same order, at most ``depth`` of them made ahead.

    Where the random numbers of a batch come from a generator of its own, or of ``batches`` alone, they are those of a loop
    without a thread. An error in ``batches`` is raised where its batch would have been taken. The thread ends with the
    ``with`` block, however that is left.
    """
    made: queue.Queue[tuple[Batch | None, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(batch: Batch | None, error: BaseException | None) -> None:
        while not stop.is_set():
            try:
                made.put((batch, error), timeout=0.1)
                break
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch in batches:
                put(batch, None)
                if stop.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:  # raised again by the loop
            put(None, error)

    def taken() -> Generator[Batch]:
        while True:
            batch, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield batch  # type: ignore[misc]  # None comes with an error only

    thread = threading.Thread(target=work, name="kecae-aug batches", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        stop.set()
        thread.join()


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """The CPU tensor, in pinned memory where it will be copied to CUDA, so that ``to(non_blocking=True)`` does not wait."""
    return tensor.pin_memory() if device.type == "cuda" else tensor
