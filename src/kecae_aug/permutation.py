"""Pseudo-random numbers that a position and a text key alone decide, so that nothing has to be stored.

Every worker, rank and restart finds the same value at the same position.
"""

from __future__ import annotations

import functools
import hashlib
import math
from typing import TypeVar

import torch
from torch import Tensor

Index = TypeVar("Index", int, Tensor)
ROUNDS = 6  # of the Feistel network; each mixes both halves once


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
