"""kecae-aug generate: what is on disk is what the manifest says, whatever happened on the way."""

import io
import json
import os
import platform
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from test_bank import MODEL, Knees
from torch.utils.data import ConcatDataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from kecae_aug import (
    KECAE,
    EngineOptions,
    Gate,
    KeyExchangeAugment,
    KeyExchangeDataset,
    LatentBank,
    load_weights,
)
from kecae_aug.cli import main
from kecae_aug.data import Preprocessing, RadiographFolder
from kecae_aug.generate import GenerateError, generate
from kecae_aug.phantom import write_phantoms
from kecae_training.discriminator import Discriminator, DiscriminatorConfig, save_discriminator


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    return write_phantoms(
        tmp_path_factory.mktemp("phantoms") / "knees", train_patients=12, val_patients=2, image_size=64
    )


def exchanged(n=23, **options):
    return KeyExchangeDataset(Knees(), MODEL, n, real=False, **options)


def same_but_for_rounding(out, wanted):
    """The same files; other batch sizes and threads may round a pixel to the next grey level."""
    got = files(out)
    assert got.keys() == wanted.keys()
    for name, data in wanted.items():
        if name.endswith(".png"):
            a, b = (np.asarray(Image.open(io.BytesIO(x))).astype(int) for x in (got[name], data))
            assert abs(a - b).max() <= 1, name
        elif name == "manifest.jsonl":
            assert got[name] == data


def quiet(line):
    pass


def entries(out):
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def files(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def test_folder_manifest_and_dataset_agree(tmp_path):
    """Every line has its image, in its grade's folder, equal to the data set's; hosts and donors are as told."""
    data = exchanged(strength=(0.4, 1.0))
    path = generate(data, tmp_path / "x", unit=10, say=quiet)
    lines = entries(tmp_path / "x")
    assert path == tmp_path / "x" / "manifest.jsonl"
    assert [line["index"] for line in lines] == list(range(23))
    assert not list((tmp_path / "x").glob("manifest-*"))
    for line in lines:
        image, label = data[line["index"]]
        stored = np.asarray(Image.open(tmp_path / "x" / line["file"]))
        assert abs(stored / 255 - image[0].numpy()).max() < 0.003
        assert line["file"].split("/")[0] == line["label"] == data.classes[label]
        origin = data.origin(line["index"])
        assert (line["host"], line["donor"]) == origin[:2]
        assert line["host_label"] != line["donor_label"]
    folder = ImageFolder(tmp_path / "x")
    assert Counter(folder.classes[t] for _, t in folder.samples) == Counter(line["label"] for line in lines)


def test_webdataset_shards(tmp_path):
    """Each shard is read by the webdataset package, or as a tar; the same images as in the folder format."""
    generate(exchanged(), tmp_path / "f", unit=10, say=quiet)  # units of one size round alike
    generate(exchanged(), tmp_path / "w", format="webdataset", unit=10, say=quiet)
    shards = sorted((tmp_path / "w").glob("*.tar"))
    assert [s.name for s in shards] == ["shard-00000.tar", "shard-00001.tar", "shard-00002.tar"]
    seen = {}
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar.getmembers():
                seen[member.name] = tar.extractfile(member).read()
    for line in entries(tmp_path / "f"):
        name = f"{line['index']:08d}"
        assert seen[f"{name}.png"] == (tmp_path / "f" / line["file"]).read_bytes()
        assert int(seen[f"{name}.cls"]) == ["0", "2"].index(line["label"])
        assert json.loads(seen[f"{name}.json"])["host"] == line["host"]
    wds = pytest.importorskip("webdataset")
    urls = [str(s) for s in shards]
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("png", "cls"))
    assert len(samples) == 23
    assert samples[0][0].size == (60, 70)


def test_interrupted_anywhere_it_goes_on(tmp_path):
    """An exception at any write: the second run makes what is missing and the result is the straight run's, byte by byte."""
    generate(exchanged(), tmp_path / "straight", unit=6, batch_size=4, say=quiet)
    wanted = files(tmp_path / "straight")
    for stop in (1, 5, 9, 17):
        data, calls = exchanged(), [0]
        inner = data.__getitems__

        def breaks(indices, calls=calls, stop=stop, inner=inner):
            calls[0] += len(indices)
            if calls[0] > stop:
                raise KeyboardInterrupt
            return inner(indices)

        data.__getitems__ = breaks
        out = tmp_path / f"stop{stop}"
        with pytest.raises(KeyboardInterrupt):
            generate(data, out, unit=6, batch_size=4, say=quiet)
        generate(exchanged(), out, unit=6, batch_size=4, say=quiet)
        assert files(out) == wanted
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "straight").rglob("*.png")}
    generate(
        exchanged(), tmp_path / "straight", unit=6, batch_size=4, say=quiet
    )  # complete: nothing is touched
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_another_plan_and_foreign_folders_are_refused(tmp_path):
    """Nothing of the user's is written to, and a run is never mixed with another."""
    generate(exchanged(), tmp_path / "x", say=quiet)
    for other in (exchanged(24), exchanged(seed=1), exchanged(detail="decoder")):
        with pytest.raises(GenerateError, match="holds another run"):
            generate(other, tmp_path / "x", say=quiet)
    with pytest.raises(GenerateError, match="format was 'folder'"):
        generate(exchanged(), tmp_path / "x", format="webdataset", say=quiet)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(GenerateError, match="nothing of others is written to"):
        generate(exchanged(), tmp_path / "mine", say=quiet)
    with pytest.raises(ValueError, match="real=False"):
        generate(KeyExchangeDataset(Knees(), MODEL, 4), tmp_path / "y", say=quiet)


def test_a_gate_decides_what_is_written(tmp_path):
    """Rejected knees are in the manifest with their scores and without a file."""

    def oracle(images):  # sure of the second class where the image is bright
        bright = images.mean((1, 2, 3)) > images.mean()
        return torch.where(bright[:, None], torch.tensor([-3.0, 3.0]), torch.tensor([3.0, -3.0]))

    gate = Gate([oracle], classes=("0", "2"), max_distance=0.9)
    generate(exchanged(), tmp_path / "x", gate=gate, say=quiet)
    lines = entries(tmp_path / "x")
    kept = [line for line in lines if line["file"]]
    assert 0 < len(kept) < 23
    assert all(line["oracles"][0] >= 0.5 for line in kept)
    assert all(line["oracles"][0] < 0.5 for line in lines if not line["file"])
    assert all(0 < line["distance"] < 0.9 for line in lines)
    assert len(ImageFolder(tmp_path / "x").samples) == len(kept)
    assert gate.counts["offered"] == 23
    assert f"{len(kept)} of 23 accepted" in gate.report()


@pytest.mark.parametrize(
    ("low", "high", "dtype"), [(-1, 1, torch.float32), (0, 255, torch.float32), (0, 255, torch.uint8)]
)
def test_grey_levels_of_any_scale(tmp_path, low, high, dtype):
    """The same files, whatever range the images come in."""

    class Scaled(Knees):
        value_range = (low, high) if dtype == torch.float32 else (0, 1)

        def __getitem__(self, i):
            image, label = super().__getitem__(i)
            image = (image * 255).round()
            return (image if high == 255 else image / 127.5 - 1).to(dtype), label

    generate(KeyExchangeDataset(Scaled(), MODEL, 4, real=False), tmp_path / "x", say=quiet)
    generate(exchanged(4), tmp_path / "y", say=quiet)
    for line in entries(tmp_path / "y"):
        a, b = (np.asarray(Image.open(tmp_path / f / line["file"])).astype(int) for f in "xy")
        assert abs(a - b).max() <= 2


def test_a_transform_is_refused_since_files_hold_the_knees_own_range(tmp_path):
    """After Normalize the bytes wrapped around; even a harmless transform would be applied again where they are read."""
    for change in (v2.Normalize([0.5], [0.25]), lambda x: x * 3, lambda x: (x * 255).to(torch.uint8)):
        with pytest.raises(ValueError, match=r"has a transform .* give transform=None here"):
            generate(exchanged(transform=change), tmp_path / "x", say=quiet)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("residual", [True, False])
def test_a_gate_oracles_knees_of_a_bank_alone(tmp_path, residual):
    """Without the images, hosts are what the bank holds of them: X with residuals, else X^."""
    bank = LatentBank.build(Knees(), MODEL, tmp_path / "bank", residual=residual, dtype=torch.float32)
    data = KeyExchangeDataset(None, MODEL, 6, bank=bank, real=False, detail="host" if residual else "decoder")
    generate(data, tmp_path / "x", gate=Gate([], classes=("0", "2"), max_distance=0.9), say=quiet)
    for line in entries(tmp_path / "x"):
        host = data.hosts([line["host"]])
        assert line["distance"] == pytest.approx(
            float((data[line["index"]][0] - host[0]).abs().mean()), abs=1e-4
        )
        if residual:
            x = KeyExchangeAugment(MODEL)._exchanger.fit(Knees()[line["host"]][0][None] * 2 - 1)
            torch.testing.assert_close(host, (x + 1) / 2, atol=1e-4, rtol=0)


def test_files_of_other_processes_are_left_alone(tmp_path):
    """Ending a run, a process deletes what killed ones of this machine left; not what another one is writing."""
    out = tmp_path / "x"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    generate(exchanged(), out, unit=10, world_size=2, rank=1, say=quiet)
    host = platform.node()
    left = out / f".shard.tar.{host}.{dead.pid}.0123abcd.tmp"
    others = [
        out / f".{name}.{where}.{pid}.0123abcd.tmp"
        for name in ("manifest-00000.jsonl", "manifest.jsonl", "shard-00000.tar")
        for where, pid in ((host, os.getppid()), ("another-host", dead.pid))
    ]
    for path in (left, *others):
        path.write_text("half of it")
    assert generate(exchanged(), out, unit=10, world_size=2, rank=0, say=quiet)
    assert not left.exists()
    assert all(path.exists() for path in others)
    assert not list(out.glob("manifest-*"))


def test_another_size_or_precision_is_another_plan(phantoms, tmp_path):
    """The folder of a run knows what it was made of."""

    def made(way=None, **options):
        knees = RadiographFolder(phantoms, "train", preprocessing=way or Preprocessing(64))
        return KeyExchangeDataset(knees, load_weights("phantom"), 4, real=False, **options)

    out = tmp_path / "x"
    generate(made(), out, say=quiet)
    for other, says in (
        (made(Preprocessing(64, mirror_right=True)), "data: preprocessing: mirror_right was False, now True"),
        (made(Preprocessing(32)), "images was"),
        (made(strength=0.7), "strength"),
        (made(balanced=True), "balanced was"),
        (made(engine=EngineOptions(amp_dtype=torch.bfloat16)), "precision was"),
    ):
        with pytest.raises(GenerateError, match=says):
            generate(other, out, say=quiet)


def test_classes_as_folders(tmp_path):
    """What would be another folder, or one that readers pass over, is refused; the others are read back."""
    for name in ("1/2", "..", ".a", "__a", "a\\b", "Mild"):
        classes = (name, "mild")
        model = KECAE(replace(MODEL.config, classes=classes))
        data = KeyExchangeDataset(Knees(), model, 2, real=False, classes=classes)
        with pytest.raises(ValueError, match="cannot be names of folders"):
            generate(data, tmp_path / "x", say=quiet)
    generate(data, tmp_path / "w", format="webdataset", say=quiet)
    floats = Knees()
    floats.classes = ["0.0", "2.0"]
    generate(KeyExchangeDataset(floats, MODEL, 6, real=False), tmp_path / "x", say=quiet)
    back = RadiographFolder(tmp_path / "x", preprocessing=Preprocessing(64))
    lines = {line["file"]: line["label"] for line in entries(tmp_path / "x")}
    assert dict(zip(back.files, (back.classes[t] for t in back.targets), strict=True)) == lines
    assert back[0][0].shape == (1, 64, 64)


def test_names_of_two_sites_are_told_apart(tmp_path):
    """A host is a path below the root where there is one root; whole where there are two."""
    sites = [
        write_phantoms(tmp_path / s, train_patients=4, val_patients=1, image_size=64) for s in ("n", "s")
    ]
    parts = [RadiographFolder(site, "train", preprocessing=Preprocessing(64)) for site in sites]
    model = load_weights("phantom")
    for i, data in enumerate((ConcatDataset(parts), Subset(parts[0], range(6)))):
        generate(KeyExchangeDataset(data, model, 8, real=False), tmp_path / f"x{i}", say=quiet)
        for line in entries(tmp_path / f"x{i}"):
            path = Path(line["host"])
            assert path.is_absolute() == (i == 0)
            assert (sites[0] / path).is_file()


@pytest.mark.slow
def test_the_command_a_kill_and_two_processes(phantoms, tmp_path):
    """SIGKILL in the middle, then two torchrun processes finish it: the result is the straight run's."""
    options = ["--data", str(phantoms), "--split", "train", "--weights", "phantom"]
    options += ["--unit", "10", "-n", "120"]
    main(["generate", *options, "--out", str(tmp_path / "straight")])
    wanted = files(tmp_path / "straight")
    assert len(wanted) == 122

    command = [
        sys.executable,
        "-m",
        "kecae_aug.cli",
        "generate",
        *options,
        "--out",
        str(tmp_path / "x"),
    ]
    process = subprocess.Popen([*command, "--batch-size", "2"], stdout=subprocess.DEVNULL)
    while len(list((tmp_path / "x").glob("manifest-*"))) < 2 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "29731",
    ]
    done = subprocess.run(
        [*torchrun, "-m", *command[2:]],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rank 1: unit 1 of" in done.stdout
    same_but_for_rounding(tmp_path / "x", wanted)
    hosts = {line["host"] for line in entries(tmp_path / "x")}
    assert all((phantoms / host).is_file() for host in hosts)

    with pytest.raises(SystemExit, match="unit was 10, now 20"):
        main(["generate", *options, "--unit", "20", "--out", str(tmp_path / "x")])


@pytest.mark.slow
def test_scikit_learn_reads_it(phantoms, tmp_path):
    """The folder is an ordinary data set: a linear model learns from it."""
    options = ["--data", str(phantoms), "--split", "train", "--weights", "phantom", "-n", "60"]
    main(["generate", *options, "--out", str(tmp_path / "x")])
    folder = ImageFolder(tmp_path / "x")
    x = np.stack([np.asarray(image.convert("L"), dtype=np.float32).ravel() / 255 for image, _ in folder])
    model = LogisticRegression(max_iter=200).fit(x, folder.targets)
    assert model.score(x, folder.targets) > 0.9
    assert (
        Image.open(io.BytesIO((tmp_path / "x" / entries(tmp_path / "x")[0]["file"]).read_bytes())).mode == "L"
    )


@pytest.mark.slow
def test_oracles_of_the_training_package_gate_the_command(phantoms, tmp_path, capsys):
    """--oracle takes a folder of `kecae-aug discriminator`; without agreement nothing is written but the
    manifest's lines."""
    discriminator = Discriminator(DiscriminatorConfig(network="vgg", image_size=64, grades=("0", "2")))
    oracle = save_discriminator(discriminator, tmp_path / "oracle", patients=["1"], data={})
    options = ["--data", str(phantoms), "--split", "train", "--weights", "phantom", "-n", "20"]
    options += ["--oracle", str(oracle)]
    main(["generate", *options, "--min-probability", "0.4", "--out", str(tmp_path / "x")])
    assert "accepted" in capsys.readouterr().out
    assert all(len(line["oracles"]) == 1 and 0 <= line["oracles"][0] <= 1 for line in entries(tmp_path / "x"))
    main(["generate", *options, "--min-probability", "0.9999", "--out", str(tmp_path / "y")])
    assert "gate: 0 of 20 accepted" in capsys.readouterr().out
    assert not list((tmp_path / "y").rglob("*.png"))
