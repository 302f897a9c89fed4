"""The recipes in examples/ run as their users would run them, offline on phantoms."""

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from kecae_aug import KeyExchangeAugment, KeyExchangeLoader
from kecae_aug.phantom import write_phantoms

ROOT = Path(__file__).parents[1]
LIBRARIES = ("kornia", "monai", "torchio")


@pytest.fixture(autouse=True)
def no_accelerator_stays():
    """accelerate's state is one a process: other tests shall not find it."""
    yield
    if (state := sys.modules.get("accelerate.state")) is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


@pytest.fixture(scope="module")
def recipes(tmp_path_factory) -> dict[str, subprocess.Popen[str]]:
    """All that can run, started at once: most of their time is the import of their library."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    cwd = tmp_path_factory.mktemp("recipes")
    pipe = subprocess.PIPE
    started = {
        library: subprocess.Popen(
            [sys.executable, str(ROOT / f"examples/with_{library}.py")],
            env=env, cwd=cwd, stdout=pipe, stderr=pipe, text=True,
        )
        for library in LIBRARIES
        if importlib.util.find_spec(library) is not None
    }  # fmt: skip
    yield started
    for process in started.values():
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("library", LIBRARIES)
def test_recipe(library, recipes):
    """Each ends, exchanges some knees, and is short enough to be read."""
    if library not in recipes:
        pytest.skip(f"{library} is not installed")
    assert len((ROOT / f"examples/with_{library}.py").read_text().splitlines()) <= 65
    out, err = recipes[library].communicate(timeout=250)
    assert recipes[library].returncode == 0, err
    exchanged = [int(n) for n in re.findall(r"(\d+) exchanged", out)]
    assert len(exchanged) >= 3
    assert sum(exchanged) > 0


def test_the_key_says_the_grade(tmp_path, monkeypatch, capsys):
    """examples/read_the_key.py on drawn knees: better than always saying one grade."""
    data = write_phantoms(tmp_path / "d", train_patients=60, val_patients=60, image_size=64)
    monkeypatch.setattr(sys, "argv", ["read_the_key.py", "--data", str(data), "--weights", "phantom"])
    runpy.run_path(str(ROOT / "examples/read_the_key.py"), run_name="__main__")
    out = capsys.readouterr().out
    macro = re.search(r"macro avg +\S+ +(\S+)", out)  # mean recall; 0.5 is chance
    assert macro is not None
    assert float(macro[1]) > 0.65, out


def test_the_plain_loop_wants_two_grades(tmp_path, monkeypatch, capsys):
    """examples/existing_loop.py has a network of two logits: weights of five grades are refused, with a way out."""
    argv = ["existing_loop.py", "--data", str(tmp_path), "--weights", "knee-kl04"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "examples/existing_loop.py"), run_name="__main__")
    assert (
        "knee-kl04: exchange ('0', '1', '2', '3', '4'); this loop compares two grades"
        in capsys.readouterr().err
    )


def test_the_line_of_the_readme():
    """The first snippet, as it stands, adds about a third of the batch."""
    code = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)
    assert code is not None
    knees = torch.rand(64, 1, 96, 96, generator=torch.Generator().manual_seed(0))
    names = {"loader": [(knees, torch.arange(64) % 2)]}
    torch.manual_seed(0)
    exec(code[1], names)
    images, labels = names["images"], names["labels"]
    assert torch.equal(images[:64], knees)
    assert 64 + 8 < len(images) == len(labels) < 64 + 35


BLOCKS = re.findall(
    r"^## (.+?)\n.*?^```python\n(.*?)^```", (ROOT / "docs/integrations.md").read_text(), re.S | re.M
)
LIBRARIES = ("timm", "lightning", "albumentations", "monai", "kornia", "torchio", "accelerate")
FIRST, *COMPANIONS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/using.md").read_text(), re.S | re.M)


@pytest.mark.parametrize(("title", "code"), BLOCKS, ids=[title for title, _ in BLOCKS])
def test_block_of_the_integrations(title, code, tmp_path, monkeypatch):
    """The first block of each section of docs/integrations.md runs as it stands."""
    for library in (*LIBRARIES, "transformers"):
        if f"import {library}" in code or f"from {library}" in code:
            pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, f"docs/integrations.md: {title}", "exec"), {"__name__": "recipe"})


def test_an_evaluation_of_the_hugging_face_recipe_sees_no_exchanged_label():
    """The recipe's model, in a Trainer's two modes: rows are exchanged in training, and only there."""
    code = dict(BLOCKS)["Hugging Face Trainer"]
    names: dict[str, Any] = {"torch": torch, "nn": torch.nn}
    exec(code[code.index("class Grader") : code.index("\naugment = ")], names)
    augment = KeyExchangeAugment.from_pretrained("phantom", append=True, p=1.0)
    model = names["Grader"](augment)
    images, labels = torch.rand(8, 1, 64, 64), torch.arange(8) % 2
    assert len(model.train()(images, labels)["logits"]) == 16
    assert len(model.train()(images)["logits"]) == 8
    assert len(model.eval()(images, labels)["logits"]) == 8
    assert not [name for name in model.state_dict() if "augment" in name]


def test_a_real_trainers_metrics_are_of_the_given_labels(tmp_path, monkeypatch):
    """transformers' own Trainer with the recipe: trained on exchanged knees, evaluated on none."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    code = dict(BLOCKS)["Hugging Face Trainer"]
    names: dict[str, Any] = {"__name__": "recipe"}
    exec(code[: code.index("\narguments = ")], names)
    seen = []
    trainer = transformers.Trainer(
        names["Grader"](names["augment"]),
        transformers.TrainingArguments(
            "t", max_steps=2, eval_strategy="steps", eval_steps=1, report_to=[], use_cpu=True
        ),
        train_dataset=names["Items"](),
        eval_dataset=names["Items"](),
        compute_metrics=lambda given: seen.append(given.label_ids.tolist()) or {},
    )
    trainer.train()
    assert len(names["augment"].params.rows)
    assert seen == [names["knees"].targets] * 2


def test_accelerate_says_what_it_passes_by(recwarn):
    """prepare() shards DataLoaders only: a wrapped one comes back as it is, exchanges, and says what it lacks; wrapped
    after prepare() it exchanges the shard."""
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    images, labels = torch.rand(8, 1, 64, 64), torch.arange(8) % 2
    plain = DataLoader(TensorDataset(images, labels), batch_size=4)
    augment = KeyExchangeAugment.from_pretrained("phantom", p=1.0)
    for warns, loader in (
        (True, accelerator.prepare(KeyExchangeLoader(plain, augment))),
        (False, KeyExchangeLoader(accelerator.prepare(plain), augment)),
    ):
        recwarn.clear()
        for _ in range(2):
            assert all(
                torch.equal(y, 1 - wanted) for (_, y), wanted in zip(loader, labels.split(4), strict=True)
            )
        said = [w for w in recwarn if "Wrap after preparing" in str(w.message)]
        assert len(said) == warns


def test_torchvisions_reference_loop(tmp_path):
    """The three lines, where references/classification/train.py has its loader: an ImageFolder, its presets' normalising,
    log_every's len() and train_one_epoch's steps are as they were."""
    folder = write_phantoms(tmp_path / "knees", train_patients=6, val_patients=1, image_size=64) / "train"
    norm = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    preset = v2.Compose(
        [v2.PILToTensor(), v2.ToDtype(torch.float, scale=True), v2.Normalize(**norm), v2.ToPureTensor()]
    )
    dataset = ImageFolder(str(folder), preset)
    sampler = torch.utils.data.RandomSampler(dataset)
    data_loader = DataLoader(dataset, batch_size=4, sampler=sampler, collate_fn=default_collate)
    device = torch.device("cpu")

    augment = KeyExchangeAugment.from_pretrained("phantom", classes=dataset.classes, **norm)
    data_loader = KeyExchangeLoader(data_loader, augment, device=device)

    model, steps, changed = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64 * 64, 2)), 0, 0
    assert len(data_loader) == len(dataset) // 4
    assert data_loader.sampler is sampler
    for image, target in data_loader:
        image, target = image.to(device), target.to(device)
        torch.nn.functional.cross_entropy(model(image), target, label_smoothing=0.1).backward()
        assert augment.params is not None
        steps, changed = steps + 1, changed + len(augment.params.rows)
    assert steps == len(data_loader)
    assert changed > 0


@pytest.mark.parametrize("code", COMPANIONS, ids=range(len(COMPANIONS)))
def test_block_of_the_companions(code, tmp_path, monkeypatch):
    """Every block of docs/using.md runs after the page's first one."""
    monkeypatch.chdir(tmp_path)
    exec(compile(FIRST + code, "docs/using.md", "exec"), {"__name__": "recipe"})


def test_every_library_has_a_block():
    """None is forgotten when one is added."""
    titles = [title.lower() for title, _ in BLOCKS]
    wanted = (
        "plain pytorch",
        "collate_fn",
        "v2.compose",
        "torchvision's reference script",
        "hugging face trainer",
        *LIBRARIES,
    )
    assert all(any(name in title for title in titles) for name in wanted)
