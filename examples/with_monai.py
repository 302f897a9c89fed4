"""Key exchange on MONAI's dict batches: LoadImaged ... -> ThreadDataLoader -> exchange -> RandAffined.

    pip install kecae-aug "monai[pillow]"
    python examples/with_monai.py             # phantom knees, offline, seconds

LoadImaged gives (width, height) images: without the Transposed, knees lie on their side and the exchange,
which was trained on upright ones, makes little of them.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from monai.data import Dataset, MetaTensor, ThreadDataLoader, decollate_batch
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    RandAffined,
    ScaleIntensityRanged,
    Transposed,
)

from kecae_aug import KeyExchangeAugment
from kecae_aug.device import choose_device
from kecae_aug.phantom import PhantomKnees

torch.manual_seed(0)
parser = argparse.ArgumentParser()
parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
device = choose_device(parser.parse_args().device)
folder = PhantomKnees(n_patients=12, grades=(0, 2), image_size=64).write(tempfile.mkdtemp())
classes = sorted(p.name for p in folder.iterdir())
items = [
    {"image": path, "label": classes.index(path.parent.name), "patient": path.stem[:-1]}
    for path in sorted(Path(folder).glob("*/*.png"))
]
before = Compose(
    [
        LoadImaged("image", reader="PILReader"),
        EnsureChannelFirstd("image"),
        Transposed("image", (0, 2, 1)),
        ScaleIntensityRanged(
            "image", 0, 255, 0, 1
        ),  # the exchange must know the range: no NormalizeIntensityd here
    ]
)
after = RandAffined("image", prob=1.0, rotate_range=0.12, padding_mode="border")

# with worker processes too, the exchange stays here: after the loader, on the batch and its device
loader = ThreadDataLoader(Dataset(items, before), batch_size=8, shuffle=True, num_workers=0)
exchange = KeyExchangeAugment.from_pretrained("phantom", p=0.5, classes=classes)

for step, batch in enumerate(loader):
    files = batch["image"].meta["filename_or_obj"]
    batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    new = exchange(batch)  # {"image", "label", "patient"}: no patient gives a key to himself
    image = MetaTensor(torch.Tensor(new["image"])).copy_meta_from(batch["image"])  # metadata of the hosts
    new = {**new, "image": image}
    knees = [after(knee) for knee in decollate_batch(new)]
    assert all(isinstance(knee["image"], MetaTensor) for knee in knees)
    assert [knee["image"].meta["filename_or_obj"] for knee in knees] == list(files)
    changed = (new["label"] != batch["label"]).sum()
    print(f"step {step}: {len(knees)} MetaTensors {tuple(knees[0]['image'].shape)}, {int(changed)} exchanged")
