"""KeyExchangeLoader: the exchange as a device stage after any DataLoader.

    loader = KeyExchangeLoader(loader, augment, device="cuda", post=v2.RandomCrop(224))
    for images, labels in loader: ...

Workers cannot hold the model (a paper-size network on two CPU threads takes seconds a batch, and CUDA cannot be
used in forked workers). So workers load, and the exchange runs on the device, one batch ahead of the loop.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kecae_aug.data.classes import check_order
from kecae_aug.engine.batch import parse
from kecae_aug.engine.tree import iterate_leaves, map_leaves
from kecae_aug.transform import KeyExchangeAugment


class KeyExchangeLoader:
    """Batches of a DataLoader, on the device, exchanged, and then transformed by ``post``.

    On CUDA everything runs on one side stream for the life of the loader, one batch ahead: batch n + 1 is copied and
    exchanged while the loop trains on batch n. Donors are drawn on the CPU before a batch is moved, so that no step
    waits for the device, and batches that are not in pinned memory are pinned. The side stream waits for what the
    loop's stream has been given so far before it reuses memory, the loop's stream waits for its own batch only, and
    the tensors that are handed out are recorded on it. ``augment.params`` is that of the batch that was handed out;
    what is switched in the loop (``augment.enabled``, ``augment.eval()``) holds one batch later. On other devices
    batches are made when they are asked for.

    Args:
        loader: gives batches that the transform takes: (images, labels, ...) or a dict.
        augment: called on each batch. Its ``classes`` must be in the order of ``loader.dataset.classes``, where it has them.
        device: where batches go; by default they stay where they are.
        post: applied to the images of each batch after the exchange: crop, flip, normalise. It is given the images
            alone, so that masks beside them stay as they are, and it gives as many back.
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
        if isinstance(augment, KeyExchangeAugment):
            check_order(getattr(loader, "dataset", None), augment.classes)
        self.loader, self.augment, self.post, self.prefetch = loader, augment, post, prefetch
        self.device = None if device is None else torch.device(device)
        self._stream: Any = None
        self._has_warned = False

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        self._warn_of_accelerate()
        batches = iter(self.loader)
        try:
            if self.prefetch and self.device is not None and self.device.type == "cuda":
                yield from self._ahead(batches)
            else:
                for batch in batches:
                    yield self._exchange(batch)
        finally:
            # On break, and on an exception here or in the loop: stop the workers now, not when somebody
            # collects the garbage. DataLoader's own iterator does it when its last reference goes.
            shutdown = getattr(batches, "_shutdown_workers", None)
            if shutdown is not None and not getattr(self.loader, "persistent_workers", False):
                shutdown()
            del batches

    def set_epoch(self, epoch: int) -> None:
        """To every part of the wrapped loader that takes it, once each.

        Parts are the loader, its data set, sampler and batch sampler, and what these wrap (``Subset``,
        ``ConcatDataset``, a loader around a loader).
        """
        found: dict[int, Any] = {}
        parts: list[Any] = [self.loader]
        while parts:
            part = parts.pop()
            if part is None or id(part) in found:
                continue
            found[id(part)] = part
            if isinstance(part, KeyExchangeLoader):
                parts.append(part.loader)  # its set_epoch would reach parts that are reached from here too
                continue
            if callable(setter := getattr(part, "set_epoch", None)):
                setter(epoch)
            parts += [getattr(part, name, None) for name in _WRAPPED]
            several = getattr(part, "datasets", None)  # of ConcatDataset; of StackDataset maybe a dict
            several = list(several.values()) if isinstance(several, Mapping) else several
            parts += several if isinstance(several, (list, tuple)) else ()

    def _warn_of_accelerate(self) -> None:
        """``Accelerator.prepare`` returns what is no DataLoader as it is, without a word."""
        state, loaders = sys.modules.get("accelerate.state"), sys.modules.get("accelerate.data_loader")
        if state is None or loaders is None or self._has_warned or not state.is_initialized():
            return
        if isinstance(self.loader, DataLoader) and not isinstance(self.loader, loaders.DataLoaderStateMixin):
            self._has_warned = True
            warnings.warn(
                "KeyExchangeLoader: accelerate is in use and has not preprocessed the loader inside, "
                "so that every process sees "
                "all images, and batches go to device= only. Wrap after preparing: "
                "KeyExchangeLoader(accelerator.prepare(loader), augment)",
                stacklevel=3,
            )

    def _ahead(self, batches: Iterator[Any]) -> Iterator[Any]:
        """One batch ahead on the side stream.

        What follows a ``yield`` runs when the loop asks for the next batch, and its step is queued by then. So batch n + 1
        is queued before batch n is given, or it would wait for step n.
        """
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        ahead: _Queued | None = None
        for batch in batches:
            queued = self._on_stream(batch)
            if ahead is not None:
                yield self._hand_out(ahead)
            ahead = queued
        if ahead is not None:
            yield self._hand_out(ahead)

    def _on_stream(self, batch: Any) -> _Queued:
        # What the loop's stream still reads may be freed memory to this one: wait for it first.
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        for tensor in _tensors(batch):
            if tensor.is_cuda:
                tensor.record_stream(self._stream)  # the wrapped loader's own, which it may drop at once
        with torch.cuda.stream(self._stream):
            made = self._exchange(batch)
            return _Queued(made, self._stream.record_event(), getattr(self.augment, "params", None))

    def _hand_out(self, queued: _Queued) -> Any:
        current = torch.cuda.current_stream(self.device)
        current.wait_event(queued.event)  # not for the whole stream: it holds the next batch already
        for tensor in _tensors(queued.batch):
            if tensor.is_cuda:
                tensor.record_stream(current)  # its memory is not reused before the loop is done with it
        if isinstance(self.augment, KeyExchangeAugment):
            self.augment.params = queued.params
        return queued.batch

    def _exchange(self, batch: Any) -> Any:
        """Planned where it came, moved, exchanged, and through ``post``."""
        augment: Any = self.augment
        if getattr(type(augment), "forward", None) is KeyExchangeAugment.forward:
            plan = augment.plan_batch(batch)
            batch = augment.apply_plan(plan, _move(batch, self.device))
        else:  # another callable, or a subclass whose forward must not be passed by
            batch = augment(_move(batch, self.device))
        if self.post is None:
            return batch
        parts = parse((batch,), getattr(augment, "labels_getter", "default"))
        images = self.post(parts.images)
        if len(images) != len(parts.images):
            raise ValueError(
                f"post: gave {len(images)} images for {len(parts.images)}; accepted is a function that gives one for each, "
                "since the labels stay as they are"
            )
        return parts.rebuild(images, parts.labels)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "loader":  # not set yet, while being unpickled
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stream": None}

    def __repr__(self) -> str:
        return f"KeyExchangeLoader({type(self.loader).__name__}, {self.augment!r}, device={self.device})"


_WRAPPED = ("dataset", "sampler", "batch_sampler", "loader")


class _Queued(NamedTuple):
    """A batch that the side stream is making, the event after it, and the ``params`` of its exchange."""

    batch: Any
    event: Any
    params: Any


def _move(value: Any, device: torch.device | None) -> Any:
    """Tensors of a structure on the device; everything else as it is."""
    if device is None:
        return value

    def move_leaf(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if device.type != "cuda" or leaf.is_cuda:
            return leaf.to(device)  # towards the CPU without blocking, values would be read before they came
        # Of memory that is not pinned the copy would block until the device is done with all before it.
        return (leaf if leaf.is_pinned() else leaf.pin_memory()).to(device, non_blocking=True)

    return map_leaves(move_leaf, value)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for _, leaf in iterate_leaves(value) if isinstance(leaf, Tensor)]
