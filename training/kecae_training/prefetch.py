"""Batches made by a thread while the step before is at work: what a loop takes is what it would have made itself."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from typing import TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch")


@contextmanager
def prefetch(batches: Iterable[Batch], depth: int = 2) -> Generator[Generator[Batch]]:
    """An iterator over the same batches, in the same order, at most ``depth`` of them made ahead.

    Random numbers from a generator that only ``batches`` draws from are those of a loop without a thread. An error in
    ``batches`` is raised where its batch would have been taken. The thread ends with the ``with`` block.
    """
    made: queue.Queue[tuple[Batch | None, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(batch: Batch | None, error: BaseException | None = None) -> None:
        while not stop.is_set():
            with suppress(queue.Full):
                made.put((batch, error), timeout=0.1)
                break

    def work() -> None:
        end: BaseException = StopIteration()
        try:
            for batch in batches:
                put(batch)
                if stop.is_set():
                    return
        except BaseException as error:  # raised again by the loop
            end = error
        put(None, end)

    def taken() -> Generator[Batch]:
        while (item := made.get())[1] is None:
            yield item[0]  # type: ignore[misc]  # None comes with an error only
        if not isinstance(item[1], StopIteration):
            raise item[1]

    thread = threading.Thread(target=work, name="kecae-aug batches", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        stop.set()
        thread.join()


def pin(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor, in pinned memory where it goes to CUDA, so that ``to(non_blocking=True)`` does not wait."""
    return tensor.pin_memory() if device.type == "cuda" else tensor
