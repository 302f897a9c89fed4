"""The folder of a run: resolved config, data fingerprint, log, checkpoint, samples, exported weights.

All that a killed run needs to go on bit for bit is in ``checkpoint.pt``: weights, optimiser, average,
step (which is the position in the pairs) and random state; until its first one, in ``warmup.pt``, the same of the
key's warm-up. Each is written beside its place and moved there, so a kill in mid-write leaves the one before.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.utils import make_grid, save_image

import kecae_aug
from kecae_aug.engine.model import KECAE
from kecae_aug.files import write_whole
from kecae_aug.weights.io import save_weights

if (
    TYPE_CHECKING
):  # a discriminator's training reads its own checkpoints by this module, and a config names discriminators
    from lightning_fabric import Fabric

    from kecae_training.config import TrainConfig


def environment(device: torch.device | None = None) -> dict[str, str]:
    """Versions and machine that a run was made with; on ``device``, else on the GPU where there is one."""
    on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    return {
        "kecae_aug": kecae_aug.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.processor() or "cpu",
    }


def fingerprint(images: Tensor, targets: Any) -> str:
    """sha256 over the preprocessed images (N, 1, S, S) uint8 and their targets: what was really trained on."""
    digest = hashlib.sha256(json.dumps([list(images.shape), [int(t) for t in targets]]).encode())
    digest.update(images.contiguous().numpy().data)
    return digest.hexdigest()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint as it is in its file, on the CPU.

    Raises:
        ValueError: it is damaged, or none.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
    except Exception as error:  # bytes that are no pickle end in errors of any kind
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path}: damaged, or not a checkpoint ({reason}). It is left as it is: put back a whole copy, "
            "or move it away, and the same command begins anew"
        ) from error


def cut_log(path: Path, counter: str, last: int) -> None:
    """Leave out of a log of JSON lines, where there is one, what comes after ``last`` of ``counter``, or is torn."""

    def count(line: str) -> float:
        try:
            return float(json.loads(line)[counter])
        except (ValueError, KeyError):
            return float("inf")  # a line torn by a kill

    if path.exists():
        lines = [line for line in path.read_text().splitlines() if count(line) <= last]
        write_whole(path, "".join(line + "\n" for line in lines))


class RunFolder:
    """Reads and writes the folder of a run; only the first process writes.

    Args:
        config: of this run; compared with the config of the run that is already in the folder.
        fabric: decides who writes.
        data: JSON-able description of the training set, with its ``fingerprint``.
        files: path -> sha256 of every file, written to data.json.
        patients: of the training set, written there too: names of files need not say them.

    Raises:
        ValueError: the folder holds a run of another config or of other data, or something else.
    """

    def __init__(
        self,
        config: TrainConfig,
        fabric: Fabric,
        data: dict[str, Any],
        files: dict[str, str] | None = None,
        patients: Iterable[str] = (),
    ) -> None:
        self.config, self.fabric, self.data = config, fabric, data
        self.path = Path(config.out)
        self._tensorboard: Any = None
        record = {
            "config": config.to_dict(),
            "learned_by": config.learned_by(),
            "data": data,
            "environment": environment(fabric.device),
        }
        self._check(record)
        fabric.barrier()  # all have looked before the first one writes
        if fabric.is_global_zero:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(self.path / "config.json", json.dumps(record, indent=2))
            listed = {**data, "files": files or {}, "patients": sorted(set(patients))}
            write_whole(self.path / "data.json", json.dumps(listed, indent=1))
            if config.run.tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                self._tensorboard = SummaryWriter(str(self.path / "tensorboard"))

    def _check(self, record: dict[str, Any]) -> None:
        old_path = self.path / "config.json"
        if not old_path.exists():
            if self.path.is_dir() and any(self.path.iterdir()):
                raise ValueError(f"out={str(self.path)!r}: not empty and not a run; choose another folder")
            return
        try:
            old = json.loads(old_path.read_text())
        except ValueError as error:
            raise ValueError(
                f"out={str(self.path)!r}: its config.json is damaged ({error}); choose another folder"
            ) from None
        if "learned_by" not in old:
            raise ValueError(
                f"out={str(self.path)!r}: its config.json is not of a training run; choose another folder"
            )
        differ = _differences(old["learned_by"], json.loads(json.dumps(record["learned_by"])))
        if old["data"]["fingerprint"] != record["data"]["fingerprint"]:
            differ.append("data: other images, targets or preprocessing")
        if differ:
            raise ValueError(
                f"out={str(self.path)!r} holds a run of another configuration ({'; '.join(differ)}): "
                "give the old values to go on with it, or another --out to begin anew"
            )

    def log(self, line: dict[str, Any]) -> None:
        """Append one JSON line to log.jsonl."""
        if not self.fabric.is_global_zero:
            return
        with (self.path / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._tensorboard is not None:
            for key, value in line.items():
                self._tensorboard.add_scalar(key, value, line["step"])

    @property
    def has_checkpoint(self) -> bool:
        """Whether steps with pairs have been done, and so the key's warm-up is over."""
        return (self.path / "checkpoint.pt").exists()

    def save(self, state: dict[str, Any]) -> None:
        """Write the checkpoint; the old one stays until the new one is whole."""
        self._save("checkpoint", state)
        if self.fabric.is_global_zero:
            (self.path / "warmup.pt").unlink(missing_ok=True)

    def save_warmup(self, state: dict[str, Any]) -> None:
        """Write the state of the key's warm-up; the first checkpoint takes its place."""
        self._save("warmup", state)

    def _save(self, name: str, state: dict[str, Any]) -> None:
        part = self.path / f"{name}.part"
        self.fabric.save(part, {**state, "rng": torch.get_rng_state()})
        if self.fabric.is_global_zero:
            part.replace(self.path / f"{name}.pt")
        self.fabric.barrier()

    def resume(self, state: dict[str, Any]) -> None:
        """Fill ``state`` from the checkpoint, where there is one, and cut the log back to it.

        Raises:
            ValueError: the file is damaged, or not of these modules, optimiser or averaging, with what differs.
        """
        self._resume("checkpoint", state)
        if self.fabric.is_global_zero:
            cut_log(self.path / "log.jsonl", "step", state["step"])

    def resume_warmup(self, state: dict[str, Any]) -> None:
        """Fill ``state`` from the key's warm-up, where one was begun.

        Raises:
            ValueError: as :meth:`resume`.
        """
        self._resume("warmup", state)

    def _resume(self, name: str, state: dict[str, Any]) -> None:
        path = self.path / f"{name}.pt"
        if path.exists():
            misfits = checkpoint_misfits(read_checkpoint(path), state)
            if misfits:
                more = f" and {len(misfits) - 5} more" if len(misfits) > 5 else ""
                raise ValueError(
                    f"{path}: not of this run ({'; '.join(misfits[:5])}{more}). Put back the checkpoint of this run, give "
                    "the configuration that it was written with, or move it away: the same command then begins anew"
                )
            rest = self.fabric.load(path, state, strict=True, weights_only=True)
            torch.set_rng_state(rest["rng"].cpu())

    def save_grid(self, images: Tensor, step: int, per_row: int) -> None:
        """Images (N, 1, S, S) in [-1, 1] as samples/step_*.png; they show training images."""
        if self.fabric.is_global_zero:
            (self.path / "samples").mkdir(exist_ok=True)
            grid = make_grid(images.float().cpu(), nrow=per_row, normalize=True, value_range=(-1, 1))
            save_image(grid, self.path / "samples" / f"step_{step:06d}.png")

    def export(self, model: KECAE, done: dict[str, int]) -> Path:
        """Write weights/: safetensors, and a config.json that says where they come from."""
        folder = self.path / "weights"
        if self.fabric.is_global_zero:
            config = self.config.to_dict()
            preprocessing = {
                k: config["data"][k] for k in ("mirror_right", "fix_inverted", "contrast", "align")
            }
            metadata = {
                "preprocessing": {"image_size": model.config.image_size, **preprocessing},
                "training": {key: config[key] for key in ("init", "loss", "optim")}
                | {"seed": config["run"]["seed"]}
                | done,
                "data": self.data,
                "environment": environment(self.fabric.device),
            }
            save_weights(
                model,
                folder,
                metadata=metadata,
                dtype=getattr(torch, self.config.run.weights_dtype),
                overwrite=True,
            )
            if self._tensorboard is not None:
                self._tensorboard.close()
        self.fabric.barrier()
        return folder


def checkpoint_misfits(found: Any, state: Mapping[str, Any]) -> list[str]:
    """How a checkpoint differs from what it is to be loaded into; nothing where it fits.

    Args:
        found: as torch.load gives it.
        state: name -> module, optimiser or number.
    """
    if not isinstance(found, dict) or "modules" not in found:
        return ["it holds no modules of a training"]
    if "averaged" in state and "averaged" not in found:
        return ["it has no averaged weights, and optim.ema asks for them"]
    if "averaged" in found and "averaged" not in state:
        return ["it has averaged weights, and optim.ema is null"]
    misfits = [f"it has no {key}" for key in (*state, "rng") if key not in found]
    for key, value in state.items():
        if key in found and isinstance(value, nn.Module):
            misfits += [f"{key}: {m}" for m in _tensor_misfits(found[key], value.state_dict())]
        elif key in found and isinstance(value, torch.optim.Optimizer):
            was, now = (
                [len(g["params"]) for g in s["param_groups"]] for s in (found[key], value.state_dict())
            )
            if was != now:
                misfits.append(f"{key}: of {was} tensors, this run learns {now}")
    return misfits


def _tensor_misfits(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    misfits = [f"{name} is missing" for name in wanted if name not in found]
    misfits += [f"{name} is not of this network" for name in found if name not in wanted]
    both = [name for name in wanted if name in found and found[name].shape != wanted[name].shape]
    return misfits + [f"{n} is {list(found[n].shape)}, here {list(wanted[n].shape)}" for n in both]


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(set(old) | set(new))
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{name}.{k}" if name else k)]
    return [] if old == new else [f"{name} was {old!r}, is {new!r}"]
