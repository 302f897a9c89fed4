"""The runs of a plan one after another: progress, remaining time, a dry run."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from kecae_bench.classifiers import build, training_loss
from kecae_bench.machine import of_device, synchronize
from kecae_bench.tvt.arms import ARMS
from kecae_bench.tvt.draws import seeded
from kecae_bench.tvt.flags import protocol_of
from kecae_bench.tvt.ground import Ground, open_grounds
from kecae_bench.tvt.plan import RunSpec
from kecae_bench.tvt.run import Protocol, batches_of, id_of, identity, perform
from kecae_bench.tvt.split import SplitError, fraction_of
from kecae_bench.tvt.store import Store
from kecae_bench.tvt.training import DivergedError, learn


def carry_out(specs: Sequence[RunSpec], args: argparse.Namespace, folds: int | None = None) -> None:
    """Run a plan, or with ``--dry-run`` say what it would be; failed runs end the command with their number."""
    protocol, store = protocol_of(args), Store(args.results)
    grounds = open_grounds(args, folds)
    if args.dry_run:
        dry_run(specs, grounds, protocol, store)
    elif failed := run_all(specs, grounds, protocol, store):
        raise SystemExit(f"{failed} runs failed, see above; the others are stored")


def run_all(
    specs: Sequence[RunSpec], grounds: dict[int | None, Ground], protocol: Protocol, store: Store
) -> int:
    """Run what is not in the store yet; a line and the remaining time after each run.

    The line shows validation figures only: whoever tunes while it runs has seen no test figure.

    Returns:
        How many runs failed; the others are not stopped by them.
    """
    ids = [id_of(identity(spec, grounds[spec.fold], protocol)) for spec in specs]
    done = store.finished()
    print(f"{len(specs)} runs in the plan, {sum(i in done for i in ids)} are there: {store.path}", flush=True)
    warned = failed = 0
    for number, spec in enumerate(specs, 1):
        ground = grounds[spec.fold]
        start = time.perf_counter()
        try:
            line, now = perform(spec, ground, protocol, store)
        except (DivergedError, SplitError) as error:
            failed += 1
            print(f"[{number}/{len(specs)}] {spec}: FAILED, not stored: {error}", flush=True)
            continue
        said = ", ".join(f"{name} {line['validation'][name]:.3f}" for name in ("accuracy", "auroc"))
        seconds = f"{time.perf_counter() - start:.0f} s" if now else "was there"
        print(f"[{number}/{len(specs)}] {spec}: validation {said} ({seconds})", flush=True)
        if now and (line["weights"] or {}).get("patients_outside_T") and not warned:
            warned = 1
            print(
                f"    note: these weights know {line['weights']['patients_outside_T']} patients who are not among this "
                "run's training patients: a gain is of what they know too (patients_outside_T in the line)",
                flush=True,
            )
        done = store.finished()
        rest = [other for other, ident in zip(specs[number:], ids[number:], strict=True) if ident not in done]
        left = remaining(rest, protocol, store, ground)
        if left is not None and rest:
            print(f"    about {duration(left)} left", flush=True)
    return failed


def remaining(
    specs: Sequence[RunSpec],
    protocol: Protocol,
    store: Store,
    ground: Ground,
    rates: dict[str, float] | None = None,
) -> float | None:
    """Seconds that these runs will take, by what runs of their classifiers took; None where none has been run."""
    rates = dict(rates or {})
    for name in {spec.classifier for spec in specs} - set(rates):
        settings = {
            "image_size": ground.knees.images.shape[-1],
            "batch_size": protocol.recipe(name).batch_size,
            "precision": protocol.loop.precision,
            **of_device(protocol.loop.device),
        }
        found = store.seconds_a_step(name, settings)
        if found is not None:
            rates[name] = found
    if not rates:
        return None
    mean = sum(rates.values()) / len(rates)  # of a classifier that has not been run yet
    return sum(rates.get(spec.classifier, mean) * steps_of(spec, protocol, ground) for spec in specs)


def steps_of(spec: RunSpec, protocol: Protocol, ground: Ground) -> int:
    """Steps of a run, without making its batches."""
    if ARMS[spec.arm].added != "paper":
        return protocol.steps
    real = max(1.0, spec.fraction * len(ground.split.train))
    return round(protocol.steps * (real + (spec.n_pairs or 0)) / real)


def dry_run(
    specs: Sequence[RunSpec], grounds: dict[int | None, Ground], protocol: Protocol, store: Store
) -> None:
    """Print every run, whether it is there, and an estimate of the rest, from two timed steps a classifier."""
    left, done = [], store.finished()
    for spec in specs:
        there = id_of(identity(spec, grounds[spec.fold], protocol)) in done
        print(f"{'done' if there else 'to do'}  {spec}")
        left += [] if there else [spec]
    first = next(iter(grounds.values()))
    rates = {name: time_a_step(name, first, protocol) for name in dict.fromkeys(s.classifier for s in left)}
    for name, seconds in rates.items():
        print(f"{name}: {seconds:.2f} s a step of T, by two steps; X' takes more", flush=True)
    seconds = remaining(left, protocol, Store(Path(os.devnull)), first, rates) or 0.0
    print(
        f"{len(left)} of {len(specs)} runs to do, about {duration(seconds)} without the validations",
        flush=True,
    )


def time_a_step(classifier: str, ground: Ground, protocol: Protocol, steps: int = 2) -> float:
    """Seconds of a training step of T on this machine, now; the first step is not counted."""
    training = ground.knees.select(fraction_of(ground.knees, ground.split.train, 1.0, 0))
    recipe = protocol.recipe(classifier)
    batches = batches_of(RunSpec(classifier, "T", 0), ground, protocol, training)
    with seeded("timing"):
        model = build(classifier, len(ground.knees.classes), ground.knees.images.shape[-1]).train()
        model.to(protocol.loop.device)
        optimiser = recipe.make(model.parameters())
        start = 0.0
        for step in range(steps + 1):
            if step == 1:
                synchronize(protocol.loop.device)
                start = time.perf_counter()
            learn(model, optimiser, training_loss, batches.batch(step), protocol.loop)
        synchronize(protocol.loop.device)
    return (time.perf_counter() - start) / steps


def duration(seconds: float) -> str:
    """Hours and minutes, in words."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
