"""The table of docs/paper.md: what default.yaml does otherwise than the paper, why, and what that does.

An effect is the ablation's base less the row that undoes the one deviation, with the same seed. Phantoms have three seeds:
where these disagree in sign, or the mean rounds to it, the cell is 0. Knees have one.
"""

from __future__ import annotations

import statistics
from typing import NamedTuple

from kecae_bench.ablation.table import Line, group_rows, group_studies
from kecae_bench.record import RESULTS, read_lines
from kecae_bench.report.tables import render_table


class Deviation(NamedTuple):
    """An option of ``kecae-aug train`` that default.yaml sets otherwise than paper.yaml."""

    option: str
    paper: str
    default: str
    why: str
    row: str = ""  # of rows.yaml: the base with this option as in the paper; empty: not measured alone


DEVIATIONS = (
    Deviation("`model.preset`", "`paper`, 299 px", "`compact`, 128 px", "trains on a CPU, fits a wheel"),
    Deviation("`model.latent`", "`vector`", "`spatial`, 8x8x128", "sharper images", "vector 128"),
    Deviation(
        "`model.key_size`", "as hN", "16", "16 numbers cannot carry a donor's knee", "key as wide as the latent"
    ),
    Deviation("`loss.terms.sup_host`", "0", "0.04", "J_SUP also on X + X' − X^", "sup_host 0"),
    Deviation("`loss.terms.lda`", "0.001", "0", "J_LDA has no lower bound, see below", "J_LDA, eps 0"),
    Deviation("`loss.terms.same_grade`", "0", "0.5", "a key of the same grade returns the host", "same_grade 0"),
    Deviation("`loss.terms.grade_free_non_key`", "0", "0.05", "hN does not encode the grade", "grade_free_non_key 0"),
    Deviation("`loss.terms.grade_in_key`", "0", "0.02", "hK encodes the grade without the discriminator"),
    Deviation(
        "`loss.terms.feature_match`", "0", "0.1", "X^ keeps what the discriminator reads in X", "feature_match 0"
    ),
    Deviation(
        "`loss.discriminator_shift`, `_noise`, `_blur`", "0", "2 px, 0.1, 1 px",
        "no pattern of single pixels satisfies the discriminator", "discriminator sees X' as it is",
    ),
    Deviation(
        "`loss.discriminator_from`", "0", "step 800", "the discriminator costs half a step",
        "discriminator from the start",
    ),
    Deviation("`optim.key_warmup`", "0", "1,400 steps", "the key learns the grade first", "key not warm"),
    Deviation("`optim.freeze_key`", "off", "on", "no other term can use the key afterwards", "key not frozen"),
    Deviation("`optim.augment`", "0", "0.5", "affine and exposure against overfitting", "augment 0"),
    Deviation("`optim.ema`", "off", "0.995", "averaged weights", "ema off"),
    Deviation("`optim.lr`, `schedule`", "1e-4, constant", "2e-3, cosine", "thousands of steps, not millions"),
    Deviation("`optim.gradient_clip`", "off", "1", "one bad batch does not end a run"),
    Deviation("`data.mirror_right`, `fix_inverted`", "off", "on", "one side, bone bright"),
)  # fmt: skip
PHANTOM = {"PSNR, dB": ("psnr",), "X' host": ("host",), "moved": ("moved_0->2", "moved_2->0")}
KNEE = {"knees: X' host": ("host",)}


def make_block() -> str:
    """The table, from the newest study of phantoms and of knees."""
    studies = {name: _read_newest(name) for name in ("phantom", "knee")}
    lines = []
    for one in DEVIATIONS:
        cells = [_spell(studies["phantom"], one.row, names) for names in PHANTOM.values()]
        cells += [_spell(studies["knee"], one.row, names) for names in KNEE.values()]
        lines.append([one.option, one.paper, one.default, one.why, *cells])
    return render_table(["option", "paper", "default", "why", *PHANTOM, *KNEE], lines)


def _read_newest(study: str) -> dict[str, dict[int, Line]]:
    return group_rows(group_studies(read_lines(RESULTS / f"ablation-{study}.jsonl"))[0])


def _spell(runs: dict[str, dict[int, Line]], row: str, names: tuple[str, ...]) -> str:
    """The mean over seeds, and over the names, of what the deviation adds."""
    if row not in runs:
        return "-"
    pairs = [(runs["base"][seed]["figures"], line["figures"]) for seed, line in runs[row].items()]
    effects = [statistics.mean(base[n] - undone[n] for n in names) for base, undone in pairs]
    if min(effects) < 0 < max(effects):
        return "0"
    text = f"{statistics.mean(effects):+.{1 if names == ('psnr',) else 2}f}"
    return text if float(text) else "0"
