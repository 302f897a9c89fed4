"""A panel: several discriminators whose mean posterior is calibrated, and speaks for all of them.

    kecae-aug panel --members runs/lite0 runs/lite1 runs/robust --data DIR --out runs/panel

A network that fools one discriminator has to fool others, of another architecture, seed or training, too. A folder with
panel.json takes the place of its members' folders wherever ``--discriminator`` or ``--oracles`` takes a list.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from kecae_aug.data import Preprocessing, check_disjoint, open_radiographs
from kecae_aug.device import DEVICES, Device, choose_device, cpu_by_default
from kecae_aug.errors import reporting
from kecae_aug.files import write_whole
from kecae_training.discriminator.measure import validation_figures
from kecae_training.discriminator.model import Discriminator, load_discriminator, predict, save_discriminator
from kecae_training.images import to_uint8

FORMAT = "kecae-panel-1"
FILE = "panel.json"


class Panel(nn.Module):
    """The calibrated mean posterior of several discriminators.

    Input (B, 1, S, S) in [-1, 1]; output (B, len(classes)) log-probabilities: the mean of the members' posteriors over
    ``classes``, each probability raised to 1 / temperature, normalised.

    Args:
        members: frozen discriminators, restricted to the same classes.
        temperature: above 1 softens, below 1 sharpens.

    Raises:
        ValueError: no member, members of other classes, a temperature that is not above 0.
    """

    def __init__(self, members: Sequence[Discriminator], temperature: float = 1.0) -> None:
        super().__init__()
        if not members:
            raise ValueError("members: none given; accepted are one or more discriminators")
        classes = {member.classes for member in members}
        if len(classes) > 1:
            raise ValueError(
                f"members: of different classes {sorted(classes)}; accepted are those of one list"
            )
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature={temperature}: accepted is above 0")
        self.members = nn.ModuleList(members)
        self.temperature = temperature
        self.classes = members[0].classes
        self.image_size = max(member.image_size for member in members)

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities of ``classes``."""
        mean = torch.stack([member(images).float().softmax(1) for member in self.members]).mean(0)
        return F.log_softmax(mean.clamp_min(1e-12).log() / self.temperature, 1)

    @property
    def patients(self) -> set[str]:
        """Ids of all that a member has seen."""
        return set().union(*(member.patients for member in self.discriminators))

    @property
    def preprocessing(self) -> Preprocessing | None:
        """Of the first member's training images; that of all."""
        return self.discriminators[0].preprocessing

    @property
    def discriminators(self) -> list[Discriminator]:
        """The members, typed."""
        return [member for member in self.members if isinstance(member, Discriminator)]


def fit_temperature(log_probabilities: Tensor, targets: Tensor) -> float:
    """The temperature at which (N, K) log-probabilities have the least cross-entropy with (N,) targets.

    Guo et al. 2017, "On Calibration of Modern Neural Networks"; between 0.05 and 20.
    """

    def cost(log_t: float) -> float:
        return float(F.cross_entropy(log_probabilities.double() / math.exp(log_t), targets))

    found = minimize_scalar(cost, bounds=(math.log(0.05), math.log(20)), method="bounded")
    return math.exp(found.x)


def save_panel(
    folder: str | Path, members: Mapping[str, Discriminator], temperature: float, validation: dict[str, Any]
) -> Path:
    """Write a folder that needs no other: panel.json, and each member in a folder of its name, kernels as float16.

    Args:
        folder: made if need be.
        members: name -> discriminator.
        temperature: of :class:`Panel`.
        validation: anything JSON-able that says how it was calibrated.

    Raises:
        FileExistsError: the folder holds a panel, or a member.
    """
    path = Path(folder) / FILE
    if path.exists():
        raise FileExistsError(
            f"folder={str(folder)!r} already holds a panel: choose another folder or remove it"
        )
    for name, member in members.items():
        save_discriminator(
            member,
            path.parent / name,
            patients=sorted(member.patients),
            data=member.metadata["data"],
            half=True,
        )
    record = {
        "format": FORMAT,
        "members": list(members),
        "temperature": temperature,
        "validation": validation,
    }
    write_whole(path, json.dumps(record, indent=1))
    return path


def members_of(folder: str | Path) -> list[Path]:
    """Folders of a panel's members; of anything else the folder itself.

    Raises:
        ValueError: a damaged panel.json.
    """
    return _read(folder)[0]


def load_panel(folder: str | Path, classes: Sequence[str] | None = None, **checks: Any) -> Panel:
    """Read what :func:`save_panel` wrote; a folder with a single discriminator is a panel of one.

    Args:
        folder: with panel.json, or with discriminator.safetensors.
        classes: in the order of the output; all grades of the members by default.
        checks: ``image_size``, ``preprocessing``, as of :func:`load_discriminator`.

    Raises:
        FileNotFoundError, ValueError: as of :func:`load_discriminator`; a damaged panel.json.
    """
    places, temperature = _read(folder)
    return Panel([load_discriminator(place, classes, **checks) for place in places], temperature)


def _read(folder: str | Path) -> tuple[list[Path], float]:
    """Folders of the members and the temperature; of anything but a panel itself and 1."""
    path = Path(folder) / FILE
    if not path.is_file():
        return [Path(folder)], 1.0
    try:
        record = json.loads(path.read_text())
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']!r}, accepted is {FORMAT!r}")
        return [path.parent / place for place in record["members"]], float(record["temperature"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: damaged or not a panel ({error}); make it anew with `kecae-aug panel`"
        ) from error


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: ``kecae-aug panel``."""
    with reporting("kecae-aug panel", "interrupted; nothing was written"):
        _command(argv)


def _command(argv: Sequence[str] | None) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="kecae-aug panel", description=__doc__)
    add = parser.add_argument
    add("--members", type=Path, nargs="+", required=True, help="folders of kecae-aug discriminator")
    add("--data", type=Path, required=True, help="radiographs: DIR/split/grade/name.png, or a table.csv")
    add("--split", default="val", help="calibrated and measured on it (default: val)")
    add("--out", type=Path, required=True, help="folder for panel.json")
    add("--device", type=Device, default="auto", help=f"{', '.join(DEVICES)} (default: auto)")
    args = parser.parse_args(argv)
    if (args.out / FILE).exists():
        raise FileExistsError(f"--out {args.out}: already holds a panel; choose another folder or remove it")
    names = [folder.name for folder in args.members]
    if len(set(names)) < len(names):
        raise ValueError(
            f"--members: two folders of one name in {names}; accepted are folders of different names"
        )
    with cpu_by_default():
        panel = Panel([load_discriminator(folder) for folder in args.members])
        preprocessing = replace(panel.preprocessing or Preprocessing(), image_size=panel.image_size)
        data = open_radiographs(args.data, args.split, grades=panel.classes, preprocessing=preprocessing)
        check_disjoint(panel=panel.patients, **{args.split: data.patients})
        images, targets = to_uint8(data), torch.tensor(data.targets)
        panel.to(choose_device(args.device))
        posterior = predict(panel, images)
        temperature = fit_temperature(posterior.clamp_min(1e-12).log(), targets)
        figures = {
            "split": args.split,
            "images": len(data),
            "panel": validation_figures(posterior, data.targets, panel.classes),
            "members": {
                name: validation_figures(predict(member, images), data.targets, panel.classes)
                for name, member in zip(names, panel.discriminators, strict=True)
            },
        }
    members = dict(zip(names, panel.discriminators, strict=True))
    path = save_panel(args.out, members, temperature, figures)
    print(f"{path}: temperature {temperature:.2f}")
    for name, found in {"panel": figures["panel"], **figures["members"]}.items():
        print(f"{name:<20}", ", ".join(f"{k} {v:.3f}" for k, v in found.items()))


if __name__ == "__main__":
    main()
