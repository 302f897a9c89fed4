r"""`kecae-aug search`: weights of loss terms, by the paper's grid or by evolution; every trial is a short training.

    kecae-aug search --method grid --phantoms 200 --steps 100 --config paper --out runs/fig3
    kecae-aug search --method cmaes --trials 40 --data DIR --discriminator runs/discriminator --oracles runs/oracle \
        --out runs/cmaes
    kecae-aug search --method nsga2 --trials 60 --terms sup same_grade ... --loss.terms.lda 0

``grid`` is Fig. 3: accuracy of an RBF SVM on hK over a grid of lambda_1 (the term sup) and lambda_2 (lda). ``cmaes`` and
``nsga2`` are the evolution that the paper leaves for later, evaluated by what the weights have not seen: *flip*, the
held-out oracles' AUROC on X' for the new label over their AUROC on real knees, and *identity*, the fraction of the variance
of X' that follows the host. CMA-ES has one objective, flip - 5 max(0, criterion - identity); NSGA-II has both.

Flags that are not listed are those of `kecae-aug train`. The same command goes on where it stopped, a trial that was cut
off goes on from its checkpoint, and a larger --trials adds to what is there.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kecae_aug.device import DEVICES, PRECISIONS, choose_device
from kecae_aug.errors import reporting
from kecae_training.config import TrainConfig, parse
from kecae_training.losses import TERMS, hint
from kecae_training.search.report import write_outputs
from kecae_training.search.short import DivergedError, Figures, beside_defaults, run
from kecae_training.search.study import Study, folder_study, phantom_study
from kecae_training.search.trials import METHODS, Trials, Values, alone
from kecae_training.train import model_config

FLIP, IDENTITY = "decoder", "host_fraction"  # of kecae_training.search.short.figures
PENALTY = 5.0  # of one below the criterion: an identity of 0.2 less costs as much as the whole flip
SHORT_FLAGS = (
    "--optim.ema",
    "null",
)  # an average over 500 steps, as in default.yaml, is nearly all of a trial
PHANTOM_FLAGS = ("--model.preset", "tiny", "--optim.batch_size", "12")


@dataclass
class SearchConfig:
    """What is searched, and how.

    Args:
        out: folder of the search: study.db, trials.jsonl, the report, and a folder for every trial.
        train: of every trial, but for the searched terms.
        method: ``"grid"``, ``"cmaes"`` or ``"nsga2"``.
        terms: whose weights are searched, names of `kecae_training.losses.TERMS`.
        low: least weight, above 0: all ranges are logarithmic.
        high: largest weight.
        points: of the grid, for each term.
        trials: of an evolution, over all calls.
        population: of NSGA-II.
        identity_criterion: of CMA-ES; 0.8 is a host that counts four times as much as the donor.
        seed: of the samplers; trainings have ``train.run.seed``.
    """

    out: Path
    train: TrainConfig
    method: str = "grid"
    terms: list[str] = field(default_factory=lambda: ["sup", "lda"])
    low: float = 1e-5
    high: float = 1.0
    points: int = 5
    trials: int = 40
    population: int = 10
    identity_criterion: float = 0.8
    seed: int = 0

    def check(self) -> None:
        """Raise one ValueError that lists all that is wrong."""
        problems = []
        wrong = [hint(term) for term in self.terms if term not in TERMS]
        if wrong:
            problems.append(f"terms: {', '.join(wrong)}; accepted are {', '.join(TERMS)}")
        if len(set(self.terms)) != len(self.terms):
            problems.append(f"terms: {', '.join(self.terms)}; each may be named once")
        if self.method not in METHODS:
            problems.append(f"method={self.method!r}: accepted are {', '.join(METHODS)}")
        if self.method == "cmaes" and len(self.terms) < 2:
            problems.append(
                "terms: CMA-ES needs two or more; for one take --method grid (a curve) or --method nsga2"
            )
        if not 0 < self.low < self.high < math.inf:
            problems.append(
                f"low={self.low}, high={self.high}: 0 < low < high is needed, ranges are logarithmic"
            )
        if self.points < 2 or self.trials < 1 or self.population < 2:
            problems.append(
                f"points={self.points}, trials={self.trials}, population={self.population}: at least 2, 1 and 2"
            )
        if problems:
            raise ValueError("; ".join(problems))

    def settings(self, study: Study) -> dict[str, Any]:
        """What a search that goes on must agree with."""
        by_method = {"grid": ("points",), "cmaes": ("identity_criterion",), "nsga2": ("population",)}[
            self.method
        ]
        names = ("method", "terms", "low", "high", "seed", *by_method)
        searched = [f"loss.terms.{term}" for term in self.terms]
        training = {k: v for k, v in beside_defaults(self.train).items() if k not in searched}
        own = {name: getattr(self, name) for name in names}
        plain: dict[str, Any] = json.loads(
            json.dumps({**own, "train": training, "train.seed": self.train.run.seed, "data": study.name})
        )
        return plain


def search(config: SearchConfig, study: Study, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Run or resume a search.

    Returns:
        The lines of trials.jsonl: ``values`` by term, ``figures`` (:func:`~kecae_training.search.short.figures`;
        None where it diverged), ``scores`` (what is maximised), ``seconds``.

    Raises:
        ValueError: ``config`` is wrong, or ``out`` holds something else, or another search.
        ImportError: optuna or cmaes is not installed.
    """
    config.check()
    with alone(config.out):
        trials = Trials(config.out, config.settings(study), config.trials)
        while left := trials.left():
            trial, values = trials.ask()
            start = time.perf_counter()
            try:
                figures = _train(config, study, values)
                scores = objectives(config.method, figures, config.identity_criterion)
                result = "  ".join(f"{k} {figures[k]:.3f}" for k in ("svm_key", "psnr", FLIP, IDENTITY))
            except DivergedError:
                figures, scores, result = None, None, "diverged"
            seconds = round(time.perf_counter() - start, 1)
            plain: dict[str, float | None] | None = None
            if figures is not None:
                plain = {k: None if math.isnan(v) else v for k, v in figures.items()}
            trials.tell(trial, scores, {"values": values, "figures": plain, "seconds": seconds})
            shown = "  ".join(f"{term} {value:g}" for term, value in values.items())
            minutes = (left - 1) * seconds / 60
            say(f"{left - 1} left (about {minutes:.0f} min)  {shown}:  {result}  ({seconds} s)")
        trials.write()
        rows = trials.rows()
        for line in write_outputs(config.out, config.method, config.terms, rows):
            say(line)
    return rows


def objectives(method: str, figures: Figures, criterion: float) -> list[float]:
    """What a method maximises."""
    flip, identity = figures[FLIP], figures[IDENTITY]
    if method == "nsga2":
        return [flip, identity]
    if method == "cmaes":
        return [flip - PENALTY * max(0.0, criterion - identity)]
    return [figures["svm_key"]]


def _train(config: SearchConfig, study: Study, values: Values) -> Figures:
    """One trial. Its folder is named by its values, so that one that was cut off goes on there."""
    out = config.out / "trials" / "_".join(f"{term}={weight:g}" for term, weight in values.items())
    loss = config.train.loss.weighing(**values)
    technical = replace(config.train.run, progress=False, samples_every=0, checkpoint_every=100)
    training = replace(config.train, out=out, loss=loss, run=technical)
    training.check()
    return run(training, study)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: ``kecae-aug search`` or ``python -m kecae_training.search.__main__``."""
    parser = argparse.ArgumentParser(
        prog="kecae-aug search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    own = SearchConfig(Path(), TrainConfig())
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the search; goes on with one that is there"
    )
    parser.add_argument("--terms", nargs="+", default=own.terms, help="default: %(default)s")
    parser.add_argument("--low", type=float, default=own.low, help="least weight (default: %(default)s)")
    parser.add_argument("--high", type=float, default=own.high, help="largest weight (default: %(default)s)")
    parser.add_argument(
        "--points", type=int, default=own.points, help="of the grid, a term (default: %(default)s)"
    )
    parser.add_argument(
        "--trials", type=int, default=own.trials, help="of cmaes, nsga2 (default: %(default)s)"
    )
    parser.add_argument(
        "--population", type=int, default=own.population, help="of nsga2 (default: %(default)s)"
    )
    parser.add_argument(
        "--identity-criterion",
        type=float,
        default=own.identity_criterion,
        help="of cmaes (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=own.seed, help="of the samplers (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="of each training (default: %(default)s)")
    parser.add_argument("--config", default="default", help="of `kecae-aug train` (default: %(default)s)")
    parser.add_argument("--phantoms", type=int, metavar="N", help="train on the knees of N phantom patients")
    parser.add_argument(
        "--data", type=Path, help="or on radiographs: DIR/split/grade/name.png, or a table.csv"
    )
    parser.add_argument("--split", default="val", help="held-out patients of --data (default: %(default)s)")
    parser.add_argument(
        "--oracles", type=Path, nargs="+", default=[], help="with --data: folders of held-out oracles"
    )
    parser.add_argument(
        "--discriminator", type=Path, nargs="+", default=[], help="with --data: folders of discriminators"
    )
    parser.add_argument("--device", choices=DEVICES, help="of trainings and oracles (default: auto)")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default=None, help="of the trainings (default: that of --config)"
    )
    parser.add_argument(
        "--work", type=Path, help="images, and discriminators of phantoms (default: OUT.study)"
    )
    args, flags = parser.parse_known_args(argv)
    if bool(args.phantoms) == bool(args.data):
        parser.error("give either --phantoms N or --data DIR")
    if args.phantoms and (args.oracles or args.discriminator):
        parser.error(
            "--oracles and --discriminator go with --data; on phantoms they are trained by the search itself"
        )
    with reporting("kecae-aug search", "interrupted; the same command goes on where it stopped"):
        config, study = _set_up(args, flags)
        search(config, study, lambda line: print(line, flush=True))


def _set_up(args: argparse.Namespace, flags: list[str]) -> tuple[SearchConfig, Study]:
    """Everything is checked before anything is drawn or trained."""
    phantom = PHANTOM_FLAGS if args.phantoms else ("--data.root", str(args.data))

    def training(discriminators: list[Path]) -> TrainConfig:
        discriminator = (
            ("--discriminator", json.dumps([str(path) for path in discriminators])) if discriminators else ()
        )
        steps = ("--optim.max_steps", str(args.steps))
        # default.yaml brings the discriminator after more steps than most trials have
        late = ("--loss.discriminator_from", str(args.steps // 4)) if args.config == "default" else ()
        machine = ["--device", args.device] if args.device else []
        machine += ["--precision", args.precision] if args.precision else []
        ours = ["--config", args.config, *SHORT_FLAGS, *steps, *late, *phantom, *discriminator]
        return parse([*ours, *machine, *flags])

    config = SearchConfig(
        train=training([Path("resnet")] if args.phantoms else args.discriminator),
        **{
            name: getattr(args, name) for name in vars(SearchConfig(Path(), TrainConfig())) if name != "train"
        },
    )
    config.check()
    work, size = (
        args.work or args.out.with_name(f"{args.out.name}.study"),
        model_config(config.train).image_size,
    )
    accelerator = config.train.run.accelerator
    device = choose_device(accelerator if accelerator in DEVICES else "auto")  # Fabric knows more names
    if args.phantoms:
        study = phantom_study(work, args.phantoms, min(200, max(20, args.phantoms // 2)), size, device=device)
        assert study.discriminator_of is not None
        config.train = training([study.discriminator_of("resnet")])
    else:
        study = folder_study(work, config.train, size, args.oracles, args.split, device=device)
    return config, study


if __name__ == "__main__":
    main()
