"""Who may give a key to whom: every donor policy, and one rule for a patient whose id is missing.

:func:`draw_donors` draws within a batch, :func:`draw_from_bank` among the images of a bank, :func:`candidates` lists who
may give to one host. :class:`PairPlan` numbers the paper's grid of pairs, "every KL-0 image with every KL-2 image"
(Section IV), with :func:`pair_at`, so that position and epoch alone give the pair: no list of millions, no state.

A donor has another label than its host, and is another patient (:func:`is_same_patient`).
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kecae_aug.names import class_name, class_names, patient_id
from kecae_aug.permutation import Index, permute, unit_draw

if TYPE_CHECKING:
    from kecae_aug.bank import LatentBank


def is_same_patient(first: str | None, second: str | None) -> bool:
    """Whether two ids are of one patient. A missing id (None) is a patient of its own, so it equals none."""
    return first is not None and first == second


def ids_of(patients: Tensor | Sequence[Any], n: int) -> list[str | None]:
    """The ids of n images as :func:`kecae_aug.names.patient_id` writes them, None where one is missing.

    Raises:
        ValueError: not one id an image.
    """
    if isinstance(patients, (str, bytes, Mapping, set)) or not hasattr(patients, "__len__"):
        raise ValueError(f"patients: got {type(patients).__name__}, accepted is one id a row ({n} of them)")
    if getattr(patients, "ndim", 1) != 1:  # of a tensor, an array or a table
        raise ValueError(
            f"patients: got shape {tuple(getattr(patients, 'shape', ()))}, accepted is ({n},), one id a row"
        )
    values = patients.tolist() if hasattr(patients, "tolist") else list(patients)
    if len(values) != n:
        raise ValueError(f"patients: got {len(values)} ids for {n} rows, accepted is one id a row")
    wrong = next((v for v in values if isinstance(v, (Mapping, list, tuple, set))), None)
    if wrong is not None:
        raise ValueError(f"patients: got a {type(wrong).__name__} for a row, accepted are texts and numbers")
    return [patient_id(value) for value in values]


def patient_numbers(patients: Tensor | Sequence[Any], n: int) -> Tensor:
    """(n,) int64 on the CPU, equal where the patients are (:func:`is_same_patient`). Errors are those of :func:`ids_of`."""
    known: dict[Hashable, int] = {}
    numbers = [
        known.setdefault((i, "missing") if name is None else name, len(known))
        for i, name in enumerate(ids_of(patients, n))
    ]
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")


def candidates(
    label: str | None,
    labels: Sequence[str | None],
    patient: str | None = None,
    patients: Sequence[str | None] | None = None,
) -> list[int]:
    """Indices of all images that may give their key to one host.

    Args:
        label: class name of the host; None where it takes no part.
        labels: class name of every image, None for one that takes no part.
        patient: id of the host.
        patients: id of every image; by default all are other patients than the host.
    """
    if label is None:
        return []
    others = [i for i, other in enumerate(labels) if other is not None and other != label]
    return others if patients is None else [i for i in others if not is_same_patient(patient, patients[i])]


def draw_donors(
    labels: Tensor,
    *,
    patients: Tensor | Sequence[Hashable] | None = None,
    same_patient: bool = False,
    eligible: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw a donor for each image of a batch, uniformly among those of another label.

    Exactly B random numbers are drawn, whatever the labels.

    Args:
        labels: (B,) integers.
        patients: (B,) integers, or a sequence of B ids such as strings; a donor is then another patient than its host.
            An image whose id is missing (None, NaN, "") counts as a patient of its own.
        same_patient: whether a host's own patient (the other knee) may be its donor all the same.
        eligible: (B,) bool, the images that take part, as host or as donor; all of them by default.
        generator: a CPU generator; by default torch's global one, which a DataLoader seeds for each worker
            and epoch.

    Returns:
        (B,) int64 on the labels' device: the donor's index in the batch, -1 where no image qualifies.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(f"labels: got {tuple(labels.shape)} {labels.dtype}, accepted are class indices (B,)")
    n, on_cpu = len(labels), labels.cpu()
    allowed = on_cpu[:, None] != on_cpu[None, :]
    if patients is not None and not same_patient:
        ids = patient_numbers(patients, n)
        allowed &= ids[:, None] != ids[None, :]
    if eligible is not None:
        if eligible.shape != (n,) or eligible.dtype != torch.bool:
            raise ValueError(
                f"eligible: got {tuple(eligible.shape)} {eligible.dtype}, accepted is ({n},) torch.bool"
            )
        able = eligible.cpu()
        allowed &= able[:, None] & able[None, :]
    draw = torch.rand(n, generator=generator, dtype=torch.float64, device="cpu")
    if n == 0:
        return torch.empty(0, dtype=torch.int64, device=labels.device)
    rank = allowed.cumsum(1)  # of each candidate of a host, from 1
    count = rank[:, -1]
    place = (draw * count).long().clamp(max=count - 1) + 1
    donors = (rank == place[:, None]).long().argmax(1)
    return torch.where(count > 0, donors, -1).to(labels.device)


def draw_from_bank(
    bank: LatentBank,
    labels: Sequence[str | None],
    classes: Sequence[str],
    patients: Sequence[Hashable] | Tensor | None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw for each host an image of a bank, uniformly among those of another label and patient.

    Exactly B random numbers are drawn, whatever the labels.

    Args:
        bank: of the donors.
        labels: class names of the B hosts; None for one that takes no part.
        classes: names that the caller knows; images of others are not drawn.
        patients: ids of the hosts (:mod:`kecae_aug.names`), whose own images are not drawn; a missing id equals none.
            Needs a bank with patients.
        generator: a CPU generator; by default torch's global one.

    Returns:
        (B,) int64 indices into the bank; -1 where no image qualifies.

    Raises:
        BankError: patients, and a bank that has none.
        ValueError: patients that are not one id a host.
    """
    ids: list[str | None] = [None] * len(labels)
    if patients is not None:
        bank.check_patients()
        ids = ids_of(patients, len(labels))
    draws = torch.rand(len(labels), generator=generator, dtype=torch.float64, device="cpu").tolist()
    donors, names = [], class_names(classes)
    for label, who, draw in zip(labels, ids, draws, strict=True):
        others, places = _bank_candidates(bank, class_name(label), names) if label is not None else ([], {})
        own = places.get(who, [])  # stepped over, not searched for: a bank may hold a hundred thousand images
        at = int(draw * (len(others) - len(own)))
        for place in own:
            at += at >= place
        donors.append(others[at] if len(others) > len(own) else -1)
    return torch.tensor(donors, dtype=torch.int64, device="cpu")


@functools.lru_cache(maxsize=64)  # a loop asks for the same few labels in every step
def _bank_candidates(
    bank: LatentBank, label: str | None, classes: tuple[str, ...]
) -> tuple[list[int], dict[str | None, list[int]]]:
    """Who may give to a host of this label, and the places among them of each patient's images, in order."""
    exchangeable = set(classes) & bank.exchangeable
    others = candidates(label, [own if own in exchangeable else None for own in bank.labels])
    places: dict[str | None, list[int]] = {}
    for place, index in enumerate(others):
        who = bank.patients[index] if bank.patients else None
        if who is not None:
            places.setdefault(who, []).append(place)
    return others, places


def pair_at(
    index: Index, n_first: int, n_second: int, seed: int, epoch: int = 0, n_pairs: int | None = None
) -> tuple[Index, Index]:
    """The pair at a position of an epoch, from the grid of ``n_first`` x ``n_second`` pairs.

    An epoch of N positions visits N different pairs. Which N pairs depends on ``seed`` only (the paper's
    sampling of 50 k to 1 M pairs out of 3.3 M, Section IV); their order on ``seed`` and ``epoch``. Every
    worker and every rank finds the same pair at the same position. Memory is O(1) a position.

    Args:
        index: a position in [0, N), or an int64 tensor of them, of any shape.
        n_first: images of the first class.
        n_second: images of the second class.
        seed: any integer.
        epoch: any integer.
        n_pairs: N, from 1 to ``n_first * n_second``; by default the whole grid.

    Returns:
        (first, second): indices in [0, n_first) and [0, n_second), of the type and shape of ``index``.

    Raises:
        ValueError: sizes that make no grid, or N beyond it.
        IndexError: a position outside [0, N).
    """
    grid = n_first * n_second
    if n_first < 1 or n_second < 1:
        raise ValueError(f"n_first={n_first}, n_second={n_second}: both classes need an image to make a pair")
    n = grid if n_pairs is None else n_pairs
    if not 1 <= n <= grid:
        raise ValueError(
            f"n_pairs={n}: accepted is 1 to {grid}, as many as there are different pairs of "
            f"{n_first} and {n_second} images"
        )
    if isinstance(index, Tensor):
        if index.dtype != torch.int64:
            raise ValueError(f"index: got a {index.dtype} tensor, accepted is torch.int64")
        low, high = (int(index.min()), int(index.max())) if index.numel() else (0, 0)
    else:
        low = high = index
    if low < 0 or high >= n:
        raise IndexError(f"index: got {low} to {high}, accepted is 0 to {n - 1}")
    cell = permute(permute(index, n, f"order/{seed}/{epoch}"), grid, f"pairs/{seed}")
    return cell // n_second, cell % n_second


class PairPlan:
    """Host and donor of each exchanged image of T', a function of (seed, epoch, number) alone.

    The pairs go through the ordered pairs of classes in turn (0 -> 2, 2 -> 0, ...), each with a grid of its own
    (:func:`pair_at`). A pair of one patient gets another donor of the same class, drawn among all other patients.

    Args:
        members: class name -> indices of its images, none empty, in the order of the classes.
        n_pairs: how many pairs an epoch has.
        seed: any integer.
        patients: id of every image, None for one without (:func:`is_same_patient`); None to pair whoever comes.
        counts: class name -> how many images of it there are; the pairs then level these as far as they go.
    """

    def __init__(
        self,
        members: Mapping[str, Sequence[int]],
        n_pairs: int,
        seed: int,
        *,
        patients: Sequence[str | None] | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> None:
        self.members, self.n_pairs, self.seed, self.patients = members, n_pairs, seed, patients
        self.directions = list(itertools.permutations(members, 2))
        self._places = None if counts is None else self._level(dict(counts))
        self._totals = Counter(number for number, _ in self._places or [])

    def direction(self, k: int) -> tuple[str, str]:
        """Class names of the host and of the donor of pair k."""
        return self.directions[self._place(k)[0]]

    def pair(self, k: int, epoch: int = 0) -> tuple[int, int]:
        """Indices of host and donor of pair k.

        Raises:
            ValueError: all images of the donor's class are of the host's patient.
        """
        number, at, an_epoch = self._place(k)
        hosts, donors = (self.members[c] for c in self.directions[number])
        turn, at = divmod(at + epoch * an_epoch, len(hosts) * len(donors))
        a, b = pair_at(at, len(hosts), len(donors), self.seed + 1_000_003 * number, turn)
        host, donor, ids = hosts[a], donors[b], self.patients
        if ids is None or not is_same_patient(ids[host], ids[donor]):
            return host, donor
        others = [d for d in donors if not is_same_patient(ids[host], ids[d])]
        if not others:
            raise ValueError(
                f"patients: all of class {self.directions[number][1]} are of patient {ids[host]}, as is the host; give "
                "more patients, or same_patient=True"
            )
        # drawn anew among all of them: the next one after the patient's own would come twice as often as any other
        return host, others[int(unit_draw(k, f"donor/{self.seed}/{turn}/{epoch}") * len(others))]

    def _place(self, k: int) -> tuple[int, int, int]:
        """Direction of pair k, its position among those of the direction, and how many an epoch has of it."""
        if self._places is not None:
            number, at = self._places[k]
            return number, at, self._totals[number]
        n = len(self.directions)
        return k % n, k // n, (self.n_pairs - k % n + n - 1) // n

    def _level(self, counts: dict[str, int]) -> list[tuple[int, int]]:
        """(direction, how many before it) of every pair, so that the scarcest class is served first."""
        into = {c: [i for i, (_, donor) in enumerate(self.directions) if donor == c] for c in counts}
        used = [0] * len(self.directions)
        places = []
        for _ in range(self.n_pairs):
            scarce = min(counts, key=lambda c: counts[c])  # of equal ones the first
            counts[scarce] += 1
            number = min(into[scarce], key=lambda i: used[i])
            places.append((number, used[number]))
            used[number] += 1
        return places
