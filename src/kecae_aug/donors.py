"""Who may give a key to whom.

Within a batch, :func:`random_donors` draws a donor of another label (and patient) for each row. For a
training set, :func:`pair_at` numbers the paper's grid of pairs, "every KL-0 image with every KL-2 image"
(Section IV), so that position and epoch alone give the pair: no list of millions of pairs, no state.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from kecae_aug.names import patient_id

Index = TypeVar("Index", int, Tensor)
ROUNDS = 6  # of the Feistel network; each mixes both halves once


def random_donors(
    labels: Tensor,
    *,
    patients: Tensor | Sequence[Hashable] | None = None,
    same_patient: bool = False,
    eligible: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """For each row a donor row, uniform among the rows of another label.

    Exactly B random numbers are drawn, whatever the labels.

    Args:
        labels: (B,) integers.
        patients: (B,) integers, or a sequence of B ids such as strings; a row's donor is then of another patient. A row
            whose id is missing (None, NaN, "") counts as a patient of its own.
        same_patient: whether a patient may give to himself all the same (the other knee).
        eligible: (B,) bool, the rows that take part, as host or as donor; all of them by default.
        generator: a CPU generator; by default torch's global one, which a DataLoader seeds for each worker
            and epoch.

    Returns:
        (B,) int64 on the labels' device: the donor's row, -1 where no row qualifies.

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
        rows = eligible.cpu()
        allowed &= rows[:, None] & rows[None, :]
    draw = torch.rand(n, generator=generator, dtype=torch.float64, device="cpu")
    if n == 0:
        return torch.empty(0, dtype=torch.int64, device=labels.device)
    rank = allowed.cumsum(1)  # rank of each candidate of a row, from 1
    count = rank[:, -1]
    wanted = (draw * count).long().clamp(max=count - 1) + 1
    donors = (rank == wanted[:, None]).long().argmax(1)
    return torch.where(count > 0, donors, -1).to(labels.device)


def patient_numbers(patients: Tensor | Sequence[Any], n: int) -> Tensor:
    """(n,) int64 on the CPU, equal where the patients are (:mod:`kecae_aug.names`); a missing one equals none."""
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
    known: dict[Hashable, int] = {}
    numbers = [
        known.setdefault((i, "missing") if name is None else name, len(known))
        for i, name in enumerate(map(patient_id, values))
    ]
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")


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


def unit_draw(index: int, key: str) -> float:
    """A pseudo-random number in [0, 1) that index and key alone decide."""
    digest = hashlib.blake2b(f"{key}/{index}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def permute(index: Index, n: int, key: str) -> Index:
    """A pseudo-random bijection of [0, n) that ``key`` chooses, applied to positions.

    A Feistel network on the two digits of ``index`` in a base near sqrt(n): each round adds a hash of one
    digit to the other, which can be undone, so it is a bijection of [0, a * b). The few values from n to
    a * b are walked along their cycle until they are back below n.

    Args:
        index: a Python int, or an int64 tensor of any shape; both give the same values.
        n: length, below 2**62.
        key: any string.
    """
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    out = _feistel(index, a, b, key)
    if isinstance(out, int):
        while out >= n:
            out = _feistel(out, a, b, key)
        return out
    while bool((outside := out >= n).any()):
        out = torch.where(outside, _feistel(out, a, b, key), out)
    return out


def _feistel(index: Index, a: int, b: int, key: str) -> Index:
    left, right = index // b, index % b
    for left_key, right_key in _round_keys(key):
        left = (left + _hash(right, left_key) % a) % a
        right = (right + _hash(left, right_key) % b) % b
    return left * b + right


@functools.lru_cache(maxsize=64)
def _round_keys(key: str) -> tuple[tuple[int, int], ...]:
    """Two 63-bit keys a round; blake2b, because Python's own hash differs between processes."""
    raw = b"".join(hashlib.blake2b(f"{key}/{i}".encode(), digest_size=16).digest() for i in range(ROUNDS))
    keys = [int.from_bytes(raw[i : i + 8], "little") >> 1 for i in range(0, len(raw), 8)]
    return tuple(zip(keys[::2], keys[1::2], strict=True))


def _hash(x: Index, key: int) -> Index:
    """The finaliser of splitmix64, less its top bit.

    int64 products wrap by themselves, a Python int is cut to 64 bits; the masks after >> clear the sign
    bits that an arithmetic shift copies.
    """
    x = x ^ key
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ ((x >> shift) & (2 ** (64 - shift) - 1))) * factor
        x = x & (2**64 - 1) if isinstance(x, int) else x
    return (x ^ ((x >> 31) & 0x1FFFFFFFF)) & 0x7FFFFFFFFFFFFFFF
