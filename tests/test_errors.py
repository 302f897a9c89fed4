"""What a command says when it fails: a line for the user's mistakes, the traceback for everybody else's."""

import errno
import runpy
import sys

import numpy as np
import pytest
import torch

from kecae_aug import cli
from kecae_aug.engine.model import KECAE
from kecae_aug.errors import reporting, users_fault
from kecae_aug.weights.io import load_weights
from kecae_training import train as train_module
from kecae_training.discriminator import DiscriminatorConfig, in_fold


def caught(call):
    try:
        call()
    except Exception as error:
        return error
    return pytest.fail("nothing was raised")


@pytest.mark.parametrize(
    "call",
    [
        lambda: in_fold("1", 3, 3),
        lambda: DiscriminatorConfig(adversarial_radius=-1),
        lambda: KECAE.from_preset("huge"),
        lambda: load_weights("/no/such/folder"),
        lambda: open("/no/such/file"),  # noqa: PTH123, SIM115  (the system's word on a file)
    ],
)
def test_what_we_raise_is_the_users(call):
    """Each of these says what was given and what is accepted."""
    assert users_fault(caught(call))


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.optim.Adam([torch.zeros(1)], lr=-1),
        lambda: in_fold("1", 0, "two"),  # a comparison that fails in our own code
        lambda: int("x"),
        lambda: np.zeros(3).reshape(2, 2),
    ],
)
def test_what_others_raise_is_not(call):
    """Also where it happens inside a call of ours: nobody foresaw it, so the traceback is what helps."""
    assert not users_fault(caught(call))


def test_an_error_keeps_its_place_through_context_managers():
    """The deepest frame decides, whatever the error passed on its way out."""
    from kecae_training.prefetch import prefetch

    def batches():
        yield 1
        in_fold("1", 9, 3)  # raised in the thread, by us
        yield 2

    def through():
        with prefetch(batches()) as made:
            list(made)

    assert users_fault(caught(through))


def test_a_command_reports(monkeypatch):
    """One line for ours, all of it for torch's; Ctrl-C is a line too; KECAE_AUG_DEBUG=1 shows everything."""

    def run(what):
        with reporting("kecae-aug x", "interrupted; go on"):
            what()

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match=r"^kecae-aug x: fold=3: accepted"):
        run(lambda: in_fold("1", 3, 3))
    with pytest.raises(ValueError, match="Invalid learning rate"):
        run(lambda: torch.optim.Adam([torch.zeros(1)], lr=-1))
    with pytest.raises(SystemExit, match="kecae-aug x: interrupted; go on"):
        run(interrupt)
    with pytest.raises(SystemExit, match=errno.errorcode[errno.ENOENT] + "|No such file"):
        run(lambda: open("/no/such/file"))  # noqa: PTH123, SIM115
    monkeypatch.setenv("KECAE_AUG_DEBUG", "1")
    with pytest.raises(ValueError, match="fold=3"):
        run(lambda: in_fold("1", 3, 3))


def test_the_commands_themselves(monkeypatch, tmp_path, capsys):
    """`kecae-aug info` with an error of torch inside, and a training whose optimiser refuses."""

    def broken(name, **_):
        torch.optim.Adam([torch.zeros(1)], lr=-1)

    monkeypatch.setattr("kecae_aug.weights.io.load_weights", broken)
    with pytest.raises(ValueError, match="Invalid learning rate"):
        cli.main(["info", "phantom"])
    monkeypatch.setattr(train_module, "train", lambda config: broken(""))
    with pytest.raises(ValueError, match="Invalid learning rate"):
        cli.main(["train", "--config", "tiny", "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match=r"kecae-aug train: .*discriminator is missing"):
        cli.main(["train", "--config", "default", "--out", str(tmp_path / "run")])


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_as_a_module_it_is_ours_too(monkeypatch):
    """``python -m``: the module's name is __main__ then."""
    wrong = ["--data", "nowhere", "--out", "x", "--adversarial_steps", "0"]
    monkeypatch.setattr(sys, "argv", ["discriminator", *wrong])
    with pytest.raises(SystemExit, match="kecae-aug discriminator: adversarial_steps=0"):
        runpy.run_module("kecae_training.discriminator", run_name="__main__", alter_sys=True)
