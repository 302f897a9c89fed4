"""Key exchange between TorchIO subjects: SubjectsDataset -> SubjectsLoader -> exchange -> TorchIO again.

    pip install kecae-aug torchio
    python examples/with_torchio.py           # phantom knees, offline, seconds

TorchIO keeps 2D images as (channels, width, height, 1); the exchange wants (batch, channels, height, width).
"""

import argparse

import torch
import torchio as tio

from kecae_aug import KeyExchangeAugment
from kecae_aug.device import choose_device
from kecae_aug.phantom import PhantomKnees

torch.manual_seed(0)
parser = argparse.ArgumentParser()
parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
device = choose_device(parser.parse_args().device)
knees = PhantomKnees(n_patients=12, grades=(0, 2), image_size=64)
subjects = [
    tio.Subject(
        image=tio.ScalarImage(tensor=image.transpose(1, 2).unsqueeze(-1)),  # (1, H, W) -> (1, W, H, 1)
        label=label,
        patient=knees.patients[i],
    )
    for i, (image, label) in enumerate(knees[i] for i in range(len(knees)))
]
dataset = tio.SubjectsDataset(subjects, transform=tio.RescaleIntensity((0, 1), in_min_max=(-1, 1)))
loader = tio.SubjectsLoader(dataset, batch_size=8, shuffle=True)
exchange = KeyExchangeAugment.from_pretrained("phantom", p=0.5, classes=knees.classes)
after = tio.RandomAffine(scales=0.05, degrees=(0, 0, 0, 0, -7, 7), translation=(-3, 3, -3, 3, 0, 0))

for step, batch in enumerate(loader):
    volumes = batch["image"][tio.DATA]
    images = volumes.squeeze(-1).transpose(2, 3)
    images, labels = exchange(images.to(device), batch["label"], patients=batch["patient"])
    changed = (labels != batch["label"]).sum()

    batch["image"][tio.DATA], batch["label"] = images.cpu().transpose(2, 3).unsqueeze(-1), labels
    back = [
        tio.Subject(image=tio.ScalarImage(tensor=data, affine=affine), label=int(label))
        for data, affine, label in zip(
            batch["image"][tio.DATA], batch["image"][tio.AFFINE], labels, strict=True
        )
    ]
    back = [after(subject) for subject in back]
    print(f"step {step}: {len(back)} subjects {tuple(back[0].image.shape)}, {int(changed)} exchanged")
