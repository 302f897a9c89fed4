"""Runs timm's ``train.py`` unchanged, with key exchange between its training loader and its loop.

``train.py`` makes no Mixup unless it is asked to, and with its prefetcher mixes in the workers, before any
batch is on the device. So the launcher wraps what ``timm.data.create_loader`` returns for training, and where timm
would mix while collating, mixes after the exchange instead. ``timm.data.Mixup`` takes odd batches meanwhile.
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
from kecae_aug.engine.model import KECAE
from kecae_aug.engine.options import EngineOptions
from kecae_aug.integrations.timm import AnyBatchMixup, KeyExchangeMixup
from kecae_aug.loader import KeyExchangeLoader
from kecae_aug.transform import KeyExchangeAugment
from kecae_aug.weights.io import load_weights

USAGE = (
    "python -m kecae_aug.integrations.timm TRAIN.PY --key-exchange-weights NAME [...] [TRAIN.PY's arguments]"
)
PREFIX = "--key-exchange-"
timm_data: Any = _data  # timm is annotated in part only
timm_loader: Any = _loader


class ExchangedLoader(KeyExchangeLoader):
    """A timm loader whose batches come exchanged; everything else is the loader's own.

    Of a prefetching loader it takes over the batches of its workers, before they are normalised: on CUDA nothing waits for
    the device then, as behind timm's own side stream it would, and timm's random erasing follows the exchange.

    Args:
        loader: timm's; its batches are (images, targets).
        augment: what exchanges, and with KeyExchangeMixup what mixes afterwards.
        device: where batches go; a prefetching loader has its own. None leaves them where they are.

    Attributes:
        seen: real images that went through, of all epochs.
        exchanged: knees that were exchanged or added.
    """

    def __init__(self, loader: Any, augment: KeyExchangeAugment | KeyExchangeMixup, device: Any) -> None:
        self.timm_loader, self.mixup = loader, augment if isinstance(augment, KeyExchangeMixup) else None
        self.seen = self.exchanged = 0
        prefetching = isinstance(loader, timm_loader.PrefetchLoader)
        super().__init__(
            loader.loader if prefetching else loader,
            augment.exchange if isinstance(augment, KeyExchangeMixup) else augment,
            device=loader.device if prefetching else device,
            post=self._normalised if prefetching else None,
        )

    def _normalised(self, images: Tensor) -> Tensor:
        """What timm's PrefetchLoader does with the images of its workers."""
        timms = self.timm_loader
        images = images.to(timms.img_dtype).sub_(timms.mean).div_(timms.std)
        if timms.random_erasing is not None:
            images = timms.random_erasing(images)
        return images

    def _exchange(self, batch: Any) -> Any:
        self.augment.params = None  # of this batch, or of none
        images, targets = super()._exchange(batch)
        self.seen += len(batch[0])
        if self.augment.params is not None:  # on the CPU: nothing is waited for
            self.exchanged += int((self.augment.params.donors >= 0).sum())
        return (images, targets) if self.mixup is None else self.mixup.mix(images, targets)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "timm_loader":  # not set yet, while being unpickled
            raise AttributeError(name)
        return getattr(self.timm_loader, name)

    @property
    def mixup_enabled(self) -> bool:
        """What train.py reads and sets at ``--mixup-off-epoch``."""
        return self.mixup is not None and bool(self.mixup.mixup_enabled)

    @mixup_enabled.setter
    def mixup_enabled(self, value: bool) -> None:
        if self.mixup is not None:
            self.mixup.mixup_enabled = value


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
        print(f"key exchange in the training loader: {augment!r}", file=sys.stderr, flush=True)
        if not every.get("same_patient"):
            print(
                f"timm's batches have no patients, so two knees of one person may exchange; {PREFIX}same-patient says that "
                "this is meant",
                file=sys.stderr,
                flush=True,
            )
        return ExchangedLoader(loader, augment, device)

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
        "same_patient": ours.same_patient,
        "engine": EngineOptions(
            amp_dtype=amp_dtype(ours.precision), chunk_size=ours.chunk_size, compile=ours.compile
        ),
    }
    model = load_weights(ours.weights, revision=ours.revision)
    if ours.bank is not None:
        options["bank"] = LatentBank(ours.bank, model)
    made: list[ExchangedLoader] = []
    create = exchanging(timm_data.create_loader, model, options, ours.classes)

    def create_and_note(*args: Any, **kwargs: Any) -> Any:
        loader = create(*args, **kwargs)
        made.extend([loader] * isinstance(loader, ExchangedLoader))
        return loader

    try:
        with (
            _instead(create_loader=create_and_note, create_naflex_loader=_no_naflex, Mixup=AnyBatchMixup),
            _started_as(script, arguments),
        ):
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit as ended:
        if ended.code or {"-h", "--help"} & set(arguments):
            raise
    finally:  # an interrupted run says it too
        seen, exchanged = (sum(getattr(loader, name) for loader in made) for name in ("seen", "exchanged"))
        if made:
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
    add(PREFIX + "detail", dest="detail", default="host", choices=("host", "decoder"))
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
        PREFIX + "same-patient",
        dest="same_patient",
        action="store_true",
        help="two knees of one patient may exchange, which timm's batches cannot tell",
    )
    add(
        PREFIX + "bank",
        dest="bank",
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
        "colour jitter (--color-jitter 0)": arguments["color_jitter"]
        and "3a" in (arguments["auto_augment"] or "3a"),  # other policies switch it off
        "grey conversion (--grayscale-prob 0)": arguments.get("grayscale_prob"),
        "blur (--gaussian-blur-prob 0)": arguments.get("gaussian_blur_prob"),
        "random erasing, which the prefetcher would do after it (--reprob 0)": arguments["re_prob"]
        and not arguments["use_prefetcher"],
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
    mixup = KeyExchangeMixup(prob=collate.mix_prob, weights=model, p=options["p"], **own, **rest)
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


if __name__ == "__main__":
    main()
