"""KeyExchangeLoader: the exchange as a device stage after any DataLoader.

    loader = KeyExchangeLoader(loader, augment, device="cuda", post=v2.RandomCrop(224))
    for images, labels in loader: ...

Workers cannot hold the model (a paper-size network on two CPU threads takes seconds a batch, and CUDA cannot be
used in forked workers). So workers load, and the exchange runs on the device, one batch ahead of the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from kecae_aug._batch import parse
from kecae_aug.transform import KeyExchangeAugment


class KeyExchangeLoader:
    """Batches of a DataLoader, on the device, exchanged, and then transformed by ``post``.

    On CUDA everything runs on one side stream for the life of the loader, one batch ahead: while the loop
    trains on a batch, the next one is copied and exchanged. The side stream waits for the loop's stream
    before it reuses memory, the loop's stream waits for the side stream before it gets a batch, and the
    tensors that are handed out are recorded on it. On CPUs batches are made when they are asked for.

    Args:
        loader: gives batches that the transform takes: (images, labels, ...) or a dict.
        augment: called on each batch.
        device: where batches go; by default they stay where they are.
        post: applied to the images of each batch after the exchange: crop, flip, normalise.
        prefetch: False makes batches when they are asked for on CUDA too.

    Attributes not found here are the wrapped loader's (``dataset``, ``batch_size``, ``sampler``, ...).
    """

    def __init__(
        self,
        loader: Iterable[Any],
        augment: KeyExchangeAugment,
        *,
        device: str | torch.device | None = None,
        post: Callable[[Tensor], Tensor] | None = None,
        prefetch: bool = True,
    ) -> None:
        if not callable(augment):
            raise TypeError(f"augment: got {type(augment).__name__}, accepted is a KeyExchangeAugment")
        if isinstance(loader, Iterator):
            raise TypeError(
                f"loader: got an iterator ({type(loader).__name__}), which is empty after one epoch; accepted is a "
                "DataLoader, or another iterable that starts anew"
            )
        if post is not None and not callable(post):
            raise TypeError(f"post: got {type(post).__name__}, accepted is a function of images (B, C, H, W)")
        self.loader, self.augment, self.post, self.prefetch = loader, augment, post, prefetch
        self.device = None if device is None else torch.device(device)
        self._stream: Any = None

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        try:
            if self.prefetch and self.device is not None and self.device.type == "cuda":
                yield from self._ahead(batches)
            else:
                for batch in batches:
                    yield self._exchanged(batch)
        finally:
            # On break, and on an exception here or in the loop: stop the workers now, not when somebody
            # collects the garbage. DataLoader's own iterator does it when its last reference goes.
            shutdown = getattr(batches, "_shutdown_workers", None)
            if shutdown is not None and not getattr(self.loader, "persistent_workers", False):
                shutdown()
            del batches

    def set_epoch(self, epoch: int) -> None:
        """To every part of the wrapped loader that takes it: data set, sampler, batch sampler, loader."""
        for part in (
            self.loader,
            getattr(self.loader, "dataset", None),
            getattr(self.loader, "sampler", None),
            getattr(self.loader, "batch_sampler", None),
            getattr(getattr(self.loader, "batch_sampler", None), "sampler", None),
        ):
            if callable(setter := getattr(part, "set_epoch", None)):
                setter(epoch)

    def _ahead(self, batches: Iterator[Any]) -> Iterator[Any]:
        """One batch ahead on the side stream."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        waiting: Any = None
        for batch in batches:
            made = self._on_stream(batch)
            if waiting is not None:
                yield self._handed_out(waiting)
            waiting = made
        if waiting is not None:
            yield self._handed_out(waiting)

    def _on_stream(self, batch: Any) -> Any:
        # What the loop's stream still reads may be freed memory to this one: wait for it first.
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            return self._exchanged(batch)

    def _handed_out(self, batch: Any) -> Any:
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        for tensor in _tensors(batch):
            if tensor.is_cuda:
                tensor.record_stream(current)  # its memory is not reused before the loop is done with it
        return batch

    def _exchanged(self, batch: Any) -> Any:
        batch = self.augment(_moved(batch, self.device))
        if self.post is None:
            return batch
        parts = parse((batch,))
        return parts.rebuild(self.post(parts.images), parts.labels)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "loader":  # not set yet, while being unpickled
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stream": None}

    def __repr__(self) -> str:
        return f"KeyExchangeLoader({type(self.loader).__name__}, {self.augment!r}, device={self.device})"


def _moved(value: Any, device: torch.device | None) -> Any:
    """Tensors of a structure on the device; everything else as it is."""
    if device is None:
        return value
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {k: _moved(v, device) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_moved(v, device) for v in value))
    return type(value)(_moved(v, device) for v in value) if isinstance(value, (list, tuple)) else value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
