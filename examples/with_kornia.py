"""Key exchange, then kornia's augmentations, both on the batch and its device.

    pip install kecae-aug kornia
    python examples/with_kornia.py            # phantom knees, offline, seconds

Exchange first: it wants whole knees in their known grey range, and kornia's geometry would turn them.
kornia augments in eval() too, so neither belongs into the model's forward().
"""

import argparse

import kornia.augmentation as K
import torch
from torch import nn
from torch.utils.data import DataLoader

from kecae_aug import KeyExchangeAugment
from kecae_aug.device import choose_device
from kecae_aug.phantom import PhantomKnees

torch.manual_seed(0)
parser = argparse.ArgumentParser()
parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
device = choose_device(parser.parse_args().device)
knees = PhantomKnees(n_patients=24, grades=(0, 2), image_size=64)  # images in [-1, 1]
loader = DataLoader(knees, batch_size=16, shuffle=True, drop_last=True)

exchange = KeyExchangeAugment.from_pretrained(
    "phantom", p=0.5, append=True, classes=knees.classes, value_range=(-1, 1)
)
standard = K.AugmentationSequential(
    K.RandomAffine(degrees=7.0, translate=(0.05, 0.05), scale=(0.9, 1.1), padding_mode="border", p=1.0),
    K.RandomHorizontalFlip(p=0.5),
    data_keys=["input"],
    same_on_batch=False,  # a draw for each knee
)

net = nn.Sequential(nn.Conv2d(1, 8, 5, 4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)).to(device)
optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
for step, (images, labels) in enumerate(loader):
    images, labels = images.to(device), labels.to(device)
    given = len(images)
    images, labels = exchange(images, labels)  # T' = T and X', with the donors' labels
    images = standard(images)
    loss = nn.functional.cross_entropy(net(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(
        f"step {step}: {given} knees + {len(images) - given} exchanged, on {images.device}, loss {loss.item():.3f}"
    )
