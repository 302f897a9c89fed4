"""Runs timm's ``train.py`` unchanged, with key exchange between its training loader and its loop.

``train.py`` makes no Mixup unless it is asked to, and with its prefetcher mixes in the workers, before any
batch is on the device. So the launcher replaces neither: it wraps what ``timm.data.create_loader`` returns for
training, and where timm would mix while collating, mixes after the exchange instead.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import timm.data as _data
import timm.data.loader as _loader
from torch import Tensor

from kecae_aug.bank import LatentBank
from kecae_aug.device import PRECISIONS, amp_dtype
from kecae_aug.integrations.timm import KeyExchangeMixup
from kecae_aug.model import KECAE
from kecae_aug.transform import KeyExchangeAugment
from kecae_aug.weights import load_weights

USAGE = (
    "python -m kecae_aug.integrations.timm TRAIN.PY --key-exchange-weights NAME [...] [TRAIN.PY's arguments]"
)
PREFIX = "--key-exchange-"
timm_data: Any = _data  # timm is annotated in part only
timm_loader: Any = _loader


class ExchangedLoader:
    """A timm loader whose batches come exchanged; everything else is the loader's own.

    Args:
        loader: gives (images, targets).
        augment: called as ``augment(images, targets)``.
        device: where batches go first; None leaves them where they are.

    Attributes:
        seen: real images that went through, of all epochs.
        exchanged: knees that were exchanged or added.
    """

    def __init__(self, loader: Any, augment: KeyExchangeAugment | KeyExchangeMixup, device: Any) -> None:
        self.loader, self.augment, self.device = loader, augment, device
        self.seen = self.exchanged = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        exchange = self.augment.exchange if isinstance(self.augment, KeyExchangeMixup) else self.augment
        for images, targets in self.loader:
            if self.device is not None:
                images = images.to(self.device, non_blocking=True)
                targets = targets.to(self.device, non_blocking=True)
            new = self.augment(images, targets)
            self.seen += len(images)
            if exchange.params is not None:  # on the CPU: nothing is waited for
                self.exchanged += int((exchange.params.donors >= 0).sum())
            yield new

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not set yet, while being unpickled
            raise AttributeError(name)
        return getattr(self.loader, name)

    @property
    def mixup_enabled(self) -> bool:
        """What train.py reads and sets at ``--mixup-off-epoch``."""
        return isinstance(self.augment, KeyExchangeMixup) and bool(self.augment.mixup_enabled)

    @mixup_enabled.setter
    def mixup_enabled(self, value: bool) -> None:
        if isinstance(self.augment, KeyExchangeMixup):
            self.augment.mixup_enabled = value


def exchanging(
    create_loader: Callable[..., Any], model: KECAE, options: dict[str, Any], classes: Sequence[str] | None
) -> Callable[..., Any]:
    """``create_loader`` that wraps loaders made for training.

    Args:
        create_loader: timm's.
        model: with trained weights.
        options: of :class:`~kecae_aug.KeyExchangeAugment`.
        classes: names in the order of the indices; the data set's own if None.
    """
    signature = inspect.signature(create_loader)

    def create(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        device = call.arguments.get("device")
        call.apply_defaults()
        if not call.arguments["is_training"]:
            return create_loader(*args, **kwargs)
        _check(call.arguments)
        collate = call.arguments["collate_fn"]
        mixing = isinstance(collate, timm_data.FastCollateMixup)
        if mixing:
            call.arguments["collate_fn"] = None
        loader = create_loader(*call.args, **call.kwargs)
        names = tuple(classes or _classes(call.arguments["dataset"]))
        mean, std = _normalisation(loader, call.arguments)
        every = {**options, "classes": names, "mean": mean, "std": std}
        augment = _mixup(collate, model, every) if mixing else KeyExchangeAugment(model, **every)
        prefetched = isinstance(loader, timm_loader.PrefetchLoader)
        print(f"key exchange in the training loader: {augment!r}", file=sys.stderr, flush=True)
        return ExchangedLoader(loader, augment, None if prefetched else device)

    return create


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see :data:`USAGE`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if arguments[:1] in (["-h"], ["--help"]):
        parser.parse_args(["--help"])
    if not arguments or arguments[0].startswith("-"):
        parser.error(
            f"TRAIN.PY: got {arguments[:1]}, accepted is the path of timm's train.py before all options"
        )
    script = Path(arguments[0])
    if not script.is_file():
        parser.error(f"TRAIN.PY: {str(script)!r} is no file; timm's is in its repository, not in its wheel")
    known = {option for action in parser._actions for option in action.option_strings}
    given = [a.partition("=")[0] for a in arguments if a.startswith(PREFIX)]
    if unknown := [a for a in given if a not in known]:
        accepted = ", ".join(sorted(option for option in known if option.startswith(PREFIX)))
        parser.error(f"{unknown[0]}: accepted are {accepted}")
    ours, theirs = parser.parse_known_args(arguments[1:])
    run(script, theirs, ours)


def run(script: Path, arguments: list[str], ours: argparse.Namespace) -> None:
    """Run ``script`` as if it had been started with ``arguments``, with exchanged training batches."""
    options = {
        "p": ours.p,
        "strength": ours.strength,
        "detail": ours.detail,
        "append": ours.append,
        "chunk_size": ours.chunk_size,
        "compile": ours.compile,
        "amp_dtype": amp_dtype(ours.precision),
    }
    model = load_weights(ours.weights, revision=ours.revision)
    if ours.donors is not None:
        options["donors"] = LatentBank(ours.donors, model)
    made: list[ExchangedLoader] = []
    create = exchanging(timm_data.create_loader, model, options, ours.classes)

    def create_and_note(*args: Any, **kwargs: Any) -> Any:
        loader = create(*args, **kwargs)
        made.extend([loader] * isinstance(loader, ExchangedLoader))
        return loader

    try:
        with (
            _instead(create_loader=create_and_note, create_naflex_loader=_no_naflex),
            _started_as(script, arguments),
        ):
            runpy.run_path(str(script), run_name="__main__")
    finally:  # an interrupted run says it too
        seen, exchanged = (sum(getattr(loader, name) for loader in made) for name in ("seen", "exchanged"))
        print(f"key exchange: exchanged {exchanged} of {seen} images", file=sys.stderr, flush=True)
    if not made:
        raise SystemExit(
            f"key exchange: {script} made no training loader with timm.data.create_loader, so nothing was exchanged; "
            "use kecae_aug.integrations.timm.KeyExchangeMixup in its loop"
        )
    if not exchanged:
        raise SystemExit(
            f"key exchange: {script} ended, and no image was exchanged: "
            + (
                "it asked for no training batch (an epoch of less than a batch is dropped; lower --batch-size, or it was an "
                "evaluation)"
                if not seen
                else f"{PREFIX}p is {ours.p}, and a batch needs two of the classes {model.config.classes} by name"
            )
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage=USAGE, allow_abbrev=False, description="timm's train.py with key exchange."
    )
    add = parser.add_argument
    add(
        PREFIX + "weights",
        dest="weights",
        required=True,
        metavar="NAME",
        help="bundled name, folder or Hub id",
    )
    add(PREFIX + "p", dest="p", type=float, default=0.5, help="chance of each row (default 0.5)")
    add(
        PREFIX + "strength",
        dest="strength",
        type=_strength,
        default=1.0,
        help="a number, or LOW,HIGH (default 1)",
    )
    add(PREFIX + "detail", dest="detail", default="decoder", choices=("decoder", "host"))
    add(
        PREFIX + "append",
        dest="append",
        nargs="?",
        type=int,
        const=True,
        default=False,
        metavar="K",
        help="add exchanged knees to each batch instead of replacing rows; with K just so many",
    )
    add(
        PREFIX + "donors",
        dest="donors",
        default=None,
        metavar="BANK",
        help="folder of a LatentBank of donors",
    )
    add(PREFIX + "revision", dest="revision", default=None, help="of a Hub id: a commit")
    add(PREFIX + "precision", dest="precision", default="32-true", choices=PRECISIONS, help="of the exchange")
    add(PREFIX + "compile", dest="compile", action="store_true", help="torch.compile the exchange")
    add(PREFIX + "chunk-size", dest="chunk_size", type=int, default=None, help="knees at once (default all)")
    add(
        PREFIX + "classes",
        dest="classes",
        type=lambda text: text.split(","),
        default=None,
        help="names in the order of the labels, A,B,... (default: the data set's folders)",
    )
    return parser


def _strength(text: str) -> float | tuple[float, ...]:
    values = tuple(float(part) for part in text.split(","))
    return values[0] if len(values) == 1 else values


def _check(arguments: dict[str, Any]) -> None:
    """Refuse what would come before the exchange and spoil it; warn of what weakens it."""
    erasing = arguments["re_prob"] > 0 and not arguments["no_aug"]
    if erasing:
        raise ValueError(
            f"re_prob={arguments['re_prob']}: timm erases before the exchange, which needs whole knees; accepted is "
            "0 (--reprob 0)"
        )
    if arguments["num_aug_splits"]:
        raise ValueError(
            f"num_aug_splits={arguments['num_aug_splits']}: several versions of an image in one batch cannot be "
            "exchanged; accepted is 0 (--aug-splits 0)"
        )
    if arguments["no_aug"]:
        return
    scale = tuple(arguments["scale"] or (0.08, 1.0))
    before = {
        f"crops of {scale[0]:.0%} (--scale 1 1 --ratio 1 1)": scale[0] < 0.8,
        "horizontal flips, though weights that mirror right knees know one side only (--hflip 0)": arguments[
            "hflip"
        ],
        "vertical flips (--vflip 0)": arguments["vflip"],
        f"--aa {arguments['auto_augment']}": arguments["auto_augment"],
        "colour jitter (--color-jitter 0)": arguments["color_jitter"],
        "grey conversion (--grayscale-prob 0)": arguments.get("grayscale_prob"),
        "blur (--gaussian-blur-prob 0)": arguments.get("gaussian_blur_prob"),
    }
    if found := [name for name, on in before.items() if on]:
        warnings.warn(
            "timm does these before the exchange, which was trained on whole, upright knees as they are: "
            f"{'; '.join(found)}. Turn them off, or give --no-aug and augment what the exchange returns",
            stacklevel=3,
        )


def _classes(dataset: Any) -> Sequence[str]:
    """Names in the order of the indices, of a timm or torchvision data set."""
    found = getattr(getattr(dataset, "reader", dataset), "class_to_idx", None)
    if not found:
        raise ValueError(
            f"classes: {type(dataset).__name__} does not tell its class names; give them as "
            f"{PREFIX}classes A,B,... in the order of the labels"
        )
    return sorted(found, key=lambda name: int(found[name]))


def _normalisation(loader: Any, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """Mean and std as applied: timm's prefetcher adapts them to the number of channels."""
    if isinstance(loader, timm_loader.PrefetchLoader):
        mean, std = ((v.flatten().float() / 255).tolist() for v in (loader.mean, loader.std))
        return mean, std
    return arguments["mean"], arguments["std"]


def _mixup(collate: Any, model: KECAE, options: dict[str, Any]) -> KeyExchangeMixup:
    """The mixing that timm would have done while collating, for after the exchange."""
    names = (
        "mixup_alpha",
        "cutmix_alpha",
        "cutmix_minmax",
        "switch_prob",
        "mode",
        "correct_lam",
        "label_smoothing",
        "num_classes",
    )
    own = {name: getattr(collate, name) for name in names}
    own["mode"] = {"half": "elem"}.get(
        own["mode"], own["mode"]
    )  # the collate function alone can halve a batch
    rest = {name: value for name, value in options.items() if name != "p"}
    mixup = KeyExchangeMixup(prob=collate.mix_prob, weights=model, exchange_prob=options["p"], **own, **rest)
    mixup.mixup_enabled, mixup.multi_label = collate.mixup_enabled, getattr(collate, "multi_label", False)
    return mixup


def _no_naflex(*args: Any, **kwargs: Any) -> Any:
    raise ValueError(
        "--naflex-loader: images of a batch differ in size there and cannot exchange; leave it out"
    )


@contextlib.contextmanager
def _instead(**functions: Callable[..., Any]) -> Iterator[None]:
    """Functions of timm.data replaced, wherever a script may import them from."""
    places = [(m, n) for m in (timm_data, timm_loader) for n in functions if hasattr(m, n)]
    before = [getattr(module, name) for module, name in places]
    try:
        for module, name in places:
            setattr(module, name, functions[name])
        yield
    finally:
        for (module, name), function in zip(places, before, strict=True):
            setattr(module, name, function)


@contextlib.contextmanager
def _started_as(script: Path, arguments: list[str]) -> Iterator[None]:
    """The argv and import path of ``python script arguments``."""
    argv, path = sys.argv, list(sys.path)
    sys.argv, sys.path[:0] = [str(script), *arguments], [str(script.resolve().parent)]
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path
