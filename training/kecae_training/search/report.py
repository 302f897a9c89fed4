"""What a search leaves for people: a heat map of a grid of two terms, a table of the best trials or of the Pareto front."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kecae_aug.files import replacing, write_whole

Row = dict[str, Any]
PANELS = {
    "svm_key": "RBF SVM on hK: balanced accuracy (Fig. 3)",
    "decoder": "X': oracles' AUROC over real",
    "host_fraction": "X': variance that follows the host",
    "psnr": "X^: PSNR, dB",
}


def write_outputs(out: Path, method: str, terms: list[str], rows: list[Row]) -> list[str]:
    """Write the report's files; returns lines to show."""
    good = [row for row in rows if row["figures"] is not None]
    if not good:
        return ["all trials diverged: lower --high, or give --loss.lda_eps 0.1"]
    scores = [tuple(row["scores"]) for row in good]
    if method == "nsga2":
        title, picked = "Pareto front of flip and identity", [good[i] for i in pareto(scores)]
    else:
        title = "Best by the SVM on hK" if method == "grid" else "Best by flip less what identity lacks"
        picked = good
    picked = sorted(picked, key=lambda row: -float(row["scores"][0]))[: None if method == "nsga2" else 10]
    table = _table(terms, picked)
    text = f"# {title}\n\n{len(rows)} trials, {len(rows) - len(good)} diverged.\n\n{table}\n"
    write_whole(out / "report.md", text)
    lines = [table, str(out / "report.md")]
    if method == "grid" and len(terms) == 2:
        lines.append(str(heat_map(out / "heatmap.png", terms, rows)))
    return lines


def pareto(points: list[tuple[float, ...]]) -> list[int]:
    """Indices of the points that no other one equals or beats in every coordinate (larger is better)."""

    def beaten(p: tuple[float, ...]) -> bool:
        return any(q != p and all(b >= a for a, b in zip(p, q, strict=True)) for q in points)

    return [i for i, p in enumerate(points) if not beaten(p)]


def heat_map(path: Path, terms: list[str], rows: list[Row]) -> Path:
    """One panel a figure over both weights; crossed out where the training diverged."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ImportError("matplotlib is not installed; pip install 'kecae-aug[train,search]'") from None
    across, up = (sorted({row["values"][term] for row in rows}) for term in reversed(terms))
    figure = Figure(figsize=(10.4, 4.4 * len(PANELS) / 2), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(len(PANELS) // 2, 2).flat, PANELS.items(), strict=True):
        grid = np.full((len(up), len(across)), np.nan)
        for row in rows:
            value = (row["figures"] or {}).get(name)
            at = up.index(row["values"][terms[0]]), across.index(row["values"][terms[1]])
            grid[at] = np.nan if value is None else value
        image = axes.imshow(grid, origin="lower", cmap="viridis", aspect="auto")
        figure.colorbar(image, ax=axes)
        middle = (np.nanmin(grid) + np.nanmax(grid)) / 2 if np.isfinite(grid).any() else 0
        for (i, j), value in np.ndenumerate(grid):
            text = f"{value:.1f}" if name == "psnr" else f"{value:.2f}"
            shown = text if np.isfinite(value) else "x"
            axes.text(j, i, shown, ha="center", va="center", color="white" if value < middle else "black")
        axes.set_xticks(range(len(across)), [f"{v:.2g}" for v in across])
        axes.set_yticks(range(len(up)), [f"{v:.2g}" for v in up])
        axes.set(title=title, xlabel=terms[1], ylabel=terms[0])
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=110)
    return path


def _table(terms: list[str], rows: list[Row]) -> str:
    names = {"svm_key": "SVM on hK", "decoder": "flip", "host_fraction": "identity", "psnr": "PSNR of X^"}
    lines = [f"| {' | '.join([*terms, *names.values()])} |", "|---|" + "---|" * (len(terms) + len(names) - 1)]
    for row in rows:
        values = [f"{row['values'][term]:g}" for term in terms]
        figures = [f"{row['figures'][name]:.3f}" for name in names]
        lines.append(f"| {' | '.join([*values, *figures])} |")
    return "\n".join(lines)
