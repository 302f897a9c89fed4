"""kecae_bench.ablation: its rows, a study of tiny runs that goes on where it stopped, and the table made from it."""

import json
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from kecae_bench.ablation import __main__ as ablation
from kecae_bench.ablation.__main__ import STUDIES, Table, main
from kecae_bench.ablation.table import render_all
from kecae_training.config import parse
from kecae_training.search.short import run
from kecae_training.search.study import phantom_study


@pytest.mark.parametrize("kind", STUDIES)
def test_rows_are_configurations(kind):
    """Every row of the file is accepted by `kecae-aug train`, and no two are the same."""
    table = Table.read(kind)
    table = replace(table, base={"discriminator": "{discriminator:discriminator-a}", **table.base})
    rows = [table.resolve(name, 300) for name in table.rows]
    configs = [json.dumps(row.config, sort_keys=True) for row in rows]
    assert len(set(configs)) == len(configs)
    assert all(row.config["optim.max_steps"] == 300 for row in rows)


def test_base_has_the_terms_of_the_default_and_paper_those_of_the_paper():
    table = Table.read("phantom")
    of = {name: parse(table.flags(name, 600)).loss for name in ("base", "paper")}
    default = parse(["--config", "default", "--discriminator", "g"]).loss
    assert of["base"] == replace(
        default, discriminator_from=of["base"].discriminator_from
    )  # a short run has its discriminator sooner
    assert of["paper"] == parse(["--config", "paper", "--discriminator", "g"]).loss


def test_discriminators_of_a_row_are_named_by_network():
    table = Table(
        "phantom",
        "tiny",
        {},
        {"two": {"discriminator": ["{discriminator:vgg}", "{discriminator:resnet}"], "optim.ema": None}},
    )
    flags = table.flags("two", 5, lambda network: Path("work") / network)
    assert '--discriminator=["work/vgg", "work/resnet"]' in flags
    assert "--optim.ema=null" in flags
    assert table.resolve("two", 5).config["discriminator"] == ["vgg", "resnet"]


def test_row_that_train_does_not_know_is_named():
    with pytest.raises(SystemExit, match="row 'typo' is not accepted"):
        Table("phantom", "tiny", {}, {"typo": {"loss.lda_esp": 1}}).resolve("typo", 5)
    with pytest.raises(SystemExit, match=r"row 'typo' is not accepted: .*did you mean 'sup'"):
        Table("phantom", "tiny", {}, {"typo": {"loss.terms.supp": 1}}).resolve("typo", 5)


def test_rows_share_their_data():
    with pytest.raises(SystemExit, match="changes the data"):
        Table("knee", "tiny", {}, {"half": {"data.folds": 2}}).resolve("half", 5)


@pytest.fixture
def brief(monkeypatch):
    """Study and base as they are, less the minutes: small networks, a warm-up of a few steps, oracles of one epoch."""
    table = Table.read("phantom")
    small = {"model.width": 4, "model.latent_channels": 16, "optim.batch_size": 4, "optim.key_warmup": 4}
    base = {**table.base, **small, "loss.discriminator_from": 2}
    monkeypatch.setattr(Table, "read", lambda kind: replace(table, base=base))
    monkeypatch.setattr(ablation, "phantom_study", partial(phantom_study, epochs=1))


@pytest.mark.slow
def test_study_goes_on_and_makes_its_table(brief, tmp_path, monkeypatch, capsys):
    """Two rows and Ctrl-C in the second: a sentence and whole lines. The second call does the second row, the third
    nothing; then the table.

    The discriminator comes for the last step.
    """
    argv = ["--rows", "base", "sup 0", "--seeds", "0", "--steps", "3", "--patients", "16"]
    argv += ["--test-patients", "8", "--precision", "32-true"]  # bf16 takes minutes where the CPU has none
    argv += ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "r.jsonl")]

    def interrupted(config, study):
        if config.loss.terms["sup"] == 0:
            signal.raise_signal(signal.SIGINT)
        return run(config, study)

    with monkeypatch.context() as patch:
        patch.setattr(ablation, "run", interrupted)
        with pytest.raises(SystemExit, match="the same command goes on"):
            main(argv)
    first = (tmp_path / "r.jsonl").read_text()
    assert first.endswith("}\n")
    capsys.readouterr()
    main(argv)
    assert "1 of 2 runs to do" in capsys.readouterr().out
    text = (tmp_path / "r.jsonl").read_text()
    assert text.startswith(first)
    main(argv)
    assert "0 of 2 runs to do" in capsys.readouterr().out
    assert (tmp_path / "r.jsonl").read_text() == text

    base, other = map(json.loads, text.splitlines())
    assert "run.precision" not in base["config"]  # which has what differs from the dataclasses' defaults
    assert (base["row"], other["row"], other["overrides"]) == ("base", "sup 0", {"loss.terms.sup": 0})
    assert {"date", "commit", "seconds", "environment", "seed", "steps", "data"} <= set(base)
    wanted = {
        "psnr",
        "ssim",
        "real",
        "reconstructed",
        "decoder",
        "host",
        "discriminator_gap",
        "moved_0->2",
        "jsw_2->0",
    }
    assert wanted | {"host_fraction", "key", "non_key", "flip_0->2"} <= set(base["figures"])

    main(["table", "--results", str(tmp_path / "r.jsonl")])
    assert "| sup 0 | 1 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*argv, "--rows", "nosuch"])
    assert "'nosuch'" in capsys.readouterr().err


def line(row, seed, psnr, config=None, **other):
    figures = {"psnr": psnr, "real": 0.9, "non_key": 0.5, "key": None}
    base = {"data": "phantoms", "steps": 600, "base": {"a": 1}, "config": config or {"row": row}}
    return {**base, "row": row, "seed": seed, "figures": figures, **other}


def test_table_by_hand():
    """Mean and SD over seeds; differences seed by seed; diverged runs are counted; a row that changed begins anew."""
    lines = [
        line("base", 0, 30.0),
        line("base", 1, 31.0),
        line("paper", 0, 10.0, {"old": 1}),  # the row was changed since
        line("paper", 0, 27.0),
        line("paper", 1, 29.0),
        line("bad", 0, 0.0, figures={"failed": "not finite"}),
        line("base", 0, 99.0, base={"a": 2}),
    ]
    text = render_all(lines)
    newest, older = text.split("**phantoms; 600 steps.**")[1:]
    assert "| base | 1 | 99.0 |" in newest
    assert "| base | 2 | 30.5 ± 0.7 | - / 0.50 ± 0.00 |" in older
    assert "| paper | 2 | -2.5 (-3.0 to -2.0) |" in older
    assert "| bad | 1, 1 diverged | - |" in older
    assert "SSIM" not in text


def test_table_of_results_that_are_not_there(tmp_path, capsys):
    main(["table", "--results", str(tmp_path / "none.jsonl")])
    assert "no results of phantom yet" in capsys.readouterr().out
