"""A classifier's own loop with key exchange added, on your folder of graded radiographs.

    python examples/existing_loop.py --data ../shared/data/knee

DIR holds train/<grade>/<patient><L|R>.png and val/<grade>/... The classifier is trained three times with
equal optimiser steps and equal real knees a step: on T, on T with reconstructions added (the control), and
on T' = T with exchanged knees added; all with the same standard augmentation. Progress comes as it goes,
results are appended to --out as JSON lines.

The loop is plain PyTorch; the two lines that key exchange adds are marked.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models.resnet import BasicBlock
from torchvision.transforms import v2

from kecae_aug import KECAE, KeyExchangeAugment, load_weights
from kecae_aug.data import Preprocessing, Radiographs, check_disjoint, open_radiographs
from kecae_aug.device import choose_device
from kecae_aug.sheet import contact_sheet

ARMS = ("T", "T + X^", "T'")


def classifier() -> nn.Module:
    """A ResNet of one block a stage for one-channel images."""
    layers: list[nn.Module] = [
        nn.Conv2d(1, 24, 7, 2, 3, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(inplace=True),
    ]
    before = 24
    for channels in (24, 48, 96, 192):
        shortcut = nn.Sequential(nn.Conv2d(before, channels, 1, 2, bias=False), nn.BatchNorm2d(channels))
        layers.append(BasicBlock(before, channels, 2, shortcut))
        before = channels
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(before, 2)
    )


def read(folder: Radiographs) -> tuple[Tensor, Tensor]:
    """All images and labels at once: a few thousand knees of 128 px fit in memory."""
    loader = DataLoader(folder, batch_size=128, num_workers=1)
    parts = list(loader)
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def train(
    arm: str, images: Tensor, labels: Tensor, model: KECAE, args: argparse.Namespace, seed: int
) -> nn.Module:
    torch.manual_seed(seed)
    net = classifier().to(images.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=args.steps)
    affine = v2.RandomAffine(7, translate=(0.05, 0.05), scale=(0.92, 1.08), fill=-1)
    balanced = 1.0 / torch.bincount(labels.cpu())[labels.cpu()].double()

    augment = KeyExchangeAugment(model, p=1.0, detail=args.detail, value_range=(-1, 1))  # <- added once

    for _ in range(args.steps):
        rows = torch.multinomial(balanced, args.batch_size).to(images.device)
        x, y = images[rows], labels[rows]
        added = torch.arange(args.batch_size, device=images.device) < args.added
        if arm == "T'":
            new_x, new_y = augment(x, y)  # <- added: exchanged knees with their donors' labels
        elif arm == "T + X^":
            with torch.no_grad():
                new_x, new_y = x.clone(), y
                new_x[added] = model(x[added])
        if arm != "T":
            x, y = torch.cat([x, new_x[added]]), torch.cat([y, new_y[added]])
        x = torch.stack([affine(image) for image in x])  # a draw for each image, in all arms
        loss = F.cross_entropy(net(x.contiguous(memory_format=torch.channels_last)), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--weights", default="knee-kl02", help="of two grades: bundled name, folder or Hub id"
    )
    parser.add_argument("--detail", default="host", choices=("decoder", "host"))
    parser.add_argument("--steps", type=int, default=400, help="optimiser steps of each arm")
    parser.add_argument("--batch-size", type=int, default=48, help="real knees a step")
    parser.add_argument(
        "--added", type=int, default=16, help="reconstructed or exchanged knees added to each step"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=None, help="file for JSON lines")
    parser.add_argument(
        "--sheet", type=Path, default=None, help="contact sheet of exchanged knees (shows your images)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")
    args = parser.parse_args()

    device = choose_device(args.device)
    model = load_weights(args.weights).to(device)
    if len(model.config.classes) != 2:
        parser.error(
            f"--weights {args.weights}: exchange {model.config.classes}; this loop compares two grades, as knee-kl02 has"
        )
    prepare, grades = Preprocessing.of(model), list(model.config.classes)
    sets = {s: open_radiographs(args.data, s, grades=grades, preprocessing=prepare) for s in ("train", "val")}
    check_disjoint(**{name: folder.patients for name, folder in sets.items()})
    print("\n".join(map(str, sets.values())), flush=True)
    (images, labels), (val_images, val_labels) = (
        [part.to(device) for part in read(sets[name])] for name in ("train", "val")
    )

    if args.sheet:
        hosts, donors = val_images[val_labels == 0][:6], val_images[val_labels == 1][:6]
        with torch.no_grad():
            columns = {
                "KL-0 host": hosts,
                "its X^": model(hosts),
                "with the KL-2 key": model.exchange(hosts, donors),
                "KL-2 host": donors,
                "its X^ ": model(donors),
                "with the KL-0 key": model.exchange(donors, hosts),
            }
        contact_sheet(columns, cell=192, path=args.sheet)

    for seed in args.seeds:
        for arm in ARMS:
            start = time.perf_counter()
            net = train(arm, images, labels, model, args, seed)
            with torch.no_grad():
                logits = torch.cat([net(part) for part in val_images.split(128)])
            right = logits.argmax(1) == val_labels
            margin = logits[:, 1] - logits[:, 0]
            pairs = (margin[val_labels == 1, None] - margin[None, val_labels == 0]).sign()
            line = {
                "arm": arm,
                "seed": seed,
                "weights": args.weights,
                "detail": args.detail,
                "steps": args.steps,
                "batch_size": args.batch_size,
                "added": 0 if arm == "T" else args.added,
                "auroc": round(float((pairs.mean() + 1) / 2), 4),
                "accuracy": round(float(right.float().mean()), 4),
                "balanced_accuracy": round(
                    float(sum(right[val_labels == c].float().mean() for c in (0, 1)) / 2), 4
                ),
                "recall": {
                    g: round(float(right[val_labels == c].float().mean()), 4) for c, g in enumerate(grades)
                },
                "seconds": round(time.perf_counter() - start),
            }
            print(json.dumps(line), flush=True)
            if args.out:
                with args.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
