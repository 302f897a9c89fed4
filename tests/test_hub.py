"""The real Hub client against a Hub on loopback: what is downloaded, kept, resumed, refused and published."""

import shutil
import socket
import time

import huggingface_hub.constants
import pytest
import torch
from hub_server import Repo, serve
from huggingface_hub import ModelCard

from kecae_aug import KECAE, KeyExchangeAugment, load_weights, save_weights
from kecae_aug.weights.hub import PushError, push_weights, save_with_card
from kecae_aug.weights.io import WeightsError, weights_sha256

torch.manual_seed(0)
MODEL = KECAE.from_preset("tiny").eval()
FILES = ("config.json", "model.safetensors")


def point_to(monkeypatch, url):
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    # Xet, the Hub's chunked storage, has a protocol of its own that is not emulated here: plain LFS instead.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture
def hub(monkeypatch):
    with serve() as server:
        point_to(monkeypatch, server.url)
        yield server


@pytest.fixture
def options(tmp_path):
    return {"cache_dir": tmp_path / "cache"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_weights(MODEL, tmp_path_factory.mktemp("hub") / "w", metadata={"origin": "test"})


def published(hub, saved, name="owner/knees", **extra):
    repo = hub.repos.setdefault(name, Repo())
    return repo.commit({**{f: (saved / f).read_bytes() for f in FILES}, **extra})


def downloads(hub):
    return [line for line in hub.log if line.startswith("GET") and "/resolve/" in line]


def test_download_and_cache(hub, saved, options):
    """Equal weights and metadata; the second time, and offline, no file is fetched; other files never are."""
    sha = published(hub, saved, **{"pytorch_model.bin": b"pickle", "../evil.py": b"x", "notes.txt": b"y"})
    model = load_weights("owner/knees", **options)
    assert weights_sha256(model) == weights_sha256(MODEL)
    assert model.metadata["origin"] == "test"
    assert model.metadata["weights"]["revision"] == sha
    assert sorted(line.rsplit("/", 1)[1] for line in downloads(hub)) == list(FILES)
    hub.log.clear()
    load_weights("owner/knees", **options)
    assert not downloads(hub)
    hub.log.clear()
    offline = load_weights("owner/knees", local_files_only=True, **options)
    assert not hub.log
    assert weights_sha256(offline) == weights_sha256(MODEL)
    augment = KeyExchangeAugment(offline, p=0.25)
    assert repr(augment) == "KeyExchangeAugment('owner/knees', p=0.25)"


def test_offline_variable(hub, saved, options, monkeypatch):
    """HF_HUB_OFFLINE is honoured: from the cache, or an error at once."""
    published(hub, saved)
    load_weights("owner/knees", **options)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.log.clear()
    load_weights("owner/knees", **options)
    with pytest.raises(WeightsError, match="could not be reached"):
        load_weights("owner/others", **options)
    assert not hub.log


def test_pinned_revision(hub, saved, options, tmp_path):
    """A commit, a tag and a branch give their own weights, whatever main has become."""
    old = published(hub, saved)
    torch.manual_seed(1)
    newer = save_weights(KECAE.from_preset("tiny"), tmp_path / "new", metadata={})
    new = published(hub, newer)
    hub.repos["owner/knees"].refs |= {"v1": old, "next": new}
    for revision, commit in ((old, old), ("v1", old), (None, new), ("main", new), ("next", new)):
        model = load_weights("owner/knees", revision=revision, **options)
        assert model.metadata["weights"]["revision"] == commit
        assert (weights_sha256(model) == weights_sha256(MODEL)) is (commit == old)
    with pytest.raises(WeightsError, match="no revision 'v9'"):
        load_weights("owner/knees", revision="v9", **options)


def test_a_cut_download_goes_on(hub, saved, options, monkeypatch):
    """The connection breaks in the middle of the file: what came is kept, the rest is asked for by range."""
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # what is written at once
    published(hub, saved)
    hub.cut_after = 1_000_000
    try:
        model = load_weights("owner/knees", **options)  # the client may go on by itself
    except WeightsError as error:
        assert "goes on where it stopped" in str(error)  # noqa: PT017
        model = load_weights("owner/knees", **options)
    assert hub.ranges
    assert int(hub.ranges[0].split("=")[1].split("-")[0]) > 0
    assert weights_sha256(model) == weights_sha256(MODEL)


def test_altered_on_the_way(hub, saved, options):
    """Right length, wrong bytes: refused, with the way to get rid of what the cache has kept."""
    published(hub, saved)
    hub.altered = {"model.safetensors"}
    for _ in range(2):
        with pytest.raises(WeightsError, match="force_download=True"):
            load_weights("owner/knees", **options)
    hub.altered = set()
    assert weights_sha256(load_weights("owner/knees", force_download=True, **options)) == weights_sha256(
        MODEL
    )


def test_a_repository_without_safetensors(hub, saved, options):
    """Only a pickle there: it is not fetched, and the error says what is missing."""
    hub.repos["owner/old"] = Repo()
    hub.repos["owner/old"].commit(
        {"config.json": (saved / "config.json").read_bytes(), "pytorch_model.bin": b"x"}
    )
    with pytest.raises(WeightsError, match=r"model\.safetensors is missing.*never loaded"):
        load_weights("owner/old", **options)
    assert not any("pytorch_model" in line for line in hub.log)


def test_unknown_private_and_forbidden(hub, saved, options):
    """No repository, and a private one without or with a wrong token, say so; the right token opens it."""
    published(hub, saved, "owner/secret")
    hub.repos["owner/secret"].private = True
    for name, token in (("owner/nothing", None), ("owner/secret", None), ("owner/secret", "hf_wrong")):
        with pytest.raises(WeightsError, match="no such repository, or it is private"):
            load_weights(name, token=token, **options)
    load_weights("owner/secret", token="hf_right", **options)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_with_a_fault(hub, saved, options, status):
    """Reported as the Hub's, at once; what is in the cache still serves."""
    published(hub, saved)
    load_weights("owner/knees", **options)
    hub.status = status
    start = time.monotonic()
    with pytest.raises(WeightsError, match=f"{status}"):
        load_weights("owner/others", **options)
    load_weights("owner/knees", **options)
    assert time.monotonic() - start < 10


def test_no_network(monkeypatch, options):
    """Connection refused: an error within seconds, not after half a minute of retries."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    point_to(monkeypatch, url)
    start = time.monotonic()
    with pytest.raises(WeightsError, match="check the network"):
        load_weights("owner/knees", **options)
    assert time.monotonic() - start < 5


def test_a_mistyped_folder_is_not_asked_of_the_hub(hub, saved, options, tmp_path, monkeypatch):
    """Paths stay on this machine; owner/name goes to the Hub, and says that there was no folder either."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved, tmp_path / "runs" / "knee" / "weights")
    for name in ("./knee", "runs/knee/weight", "~/weights", str(tmp_path / "w"), tmp_path / "owner"):
        with pytest.raises(WeightsError):
            load_weights(name, **options)
    assert not hub.log
    with pytest.raises(WeightsError, match="Did you mean 'runs/knee/weights'"):
        load_weights("runs/knee/weight", **options)
    load_weights("runs/knee/weights", **options)
    with pytest.raises(WeightsError, match="no local folder of this name"):
        load_weights("owner/knees", **options)
    assert hub.log


def test_push_and_back(hub, options):
    """One commit with weights, config and card; what comes back is what went, under the pinned commit."""
    torch.manual_seed(2)
    model = KECAE.from_preset("tiny").eval()
    model.metadata = {"preprocessing": {"image_size": 64}, "weights": {"source": "elsewhere"}}
    url = push_weights(model, "owner/mine", token="hf_right", license="cc-by-4.0", private=False)
    commit = url.rsplit("/", 1)[1]
    files = hub.repos["owner/mine"].commits[commit]
    assert sorted(files) == ["README.md", *FILES]
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "cc-by-4.0"
    assert card.data.library_name == "kecae-aug"
    assert "Nothing: this card was generated" in card.text
    assert 'from_pretrained("owner/mine")' in card.text
    back = load_weights("owner/mine", revision=commit, **options)
    assert weights_sha256(back) == weights_sha256(model)
    assert back.metadata["preprocessing"] == {"image_size": 64}
    push_weights(
        model, "owner/mine", token="hf_right", card="---\nlicense: mit\n---\n# measured", figures={"seed": 0}
    )
    latest = hub.repos["owner/mine"]
    assert latest.commits[latest.refs["main"]]["README.md"].endswith(b"# measured")
    assert latest.commits[latest.refs["main"]]["figures.json"] == b'{"seed": 0}\n'


def test_push_errors(hub, options):
    """No token, a bad name, a server with a fault: each with the way out."""
    with pytest.raises(PushError, match="hf auth login"):
        push_weights(MODEL, "owner/mine", token="hf_wrong")
    with pytest.raises(ValueError, match="owner/name"):
        push_weights(MODEL, "mine", token="hf_right")
    hub.status = 500
    with pytest.raises(PushError, match="500"):
        push_weights(MODEL, "owner/mine", token="hf_right")


def test_a_folder_with_its_card_overwrites_nothing(tmp_path):
    """Weights, config and card; an existing folder only with a word for it."""
    folder = save_with_card(MODEL, tmp_path / "w", license="mit")
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", *FILES]
    assert weights_sha256(load_weights(folder)) == weights_sha256(MODEL)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_with_card(MODEL, folder)
    save_with_card(MODEL, folder, overwrite=True)
