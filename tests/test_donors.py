"""Who gives a key to whom: every pair once, the same pair everywhere, and never one's own grade."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kecae_aug.donors import draw_donors, pair_at
from kecae_aug.permutation import permute

batches = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.booleans()), max_size=40)


@given(st.integers(1, 3000), st.text(max_size=8))
@settings(deadline=None)
def test_permute_is_a_bijection(n, key):
    """Every position once, whatever the length; a Python int and a tensor agree."""
    out = permute(torch.arange(n), n, key)
    assert torch.equal(out.sort().values, torch.arange(n))
    assert permute(n // 2, n, key) == out[n // 2]


@given(st.integers(2, 2**61), st.data())
def test_permute_of_long_epochs_agrees_between_int_and_tensor(n, data):
    """int64 products wrap in a tensor and not in Python: both must come out the same."""
    i = data.draw(st.integers(0, n - 1))
    assert 0 <= permute(i, n, "k") < n
    assert permute(i, n, "k") == int(permute(torch.tensor([i]), n, "k")[0])


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 9), st.integers(0, 9), st.data())
@settings(deadline=None)
def test_an_epoch_visits_different_pairs_and_every_epoch_the_same(first, second, seed, epoch, data):
    """Section IV: N pairs sampled without replacement; the epoch changes their order only."""
    n = data.draw(st.integers(1, first * second))
    cells = []
    for e in (epoch, epoch + 1):
        a, b = pair_at(torch.arange(n), first, second, seed, e, n)
        assert ((a >= 0) & (a < first) & (b >= 0) & (b < second)).all()
        cells.append(a * second + b)
        assert len(cells[-1].unique()) == n
    assert torch.equal(cells[0].sort().values, cells[1].sort().values)


def test_the_paper_grid_is_sampled_evenly():
    """100,000 of 2286 x 1516 pairs: every image of both grades occurs about equally often."""
    first, second = pair_at(torch.arange(100_000), 2286, 1516, seed=0, n_pairs=100_000)
    for rows, n in ((first, 2286), (second, 1516)):
        counts = torch.bincount(rows, minlength=n).double()
        chi2 = ((counts - 100_000 / n) ** 2 / (100_000 / n)).sum()
        assert abs(float(chi2) - n) < 6 * (2 * n) ** 0.5


def test_another_seed_gives_other_pairs_and_another_epoch_another_order():
    """Otherwise repetitions would not be repetitions."""
    base = pair_at(torch.arange(500), 100, 100, 0, 0, 500)
    for seed, epoch in ((1, 0), (0, 1)):
        other = pair_at(torch.arange(500), 100, 100, seed, epoch, 500)
        assert (base[0] == other[0]).float().mean() < 0.1


@pytest.mark.parametrize("bad", [-1, 10])
def test_positions_outside_the_epoch(bad):
    """Silence here would wrap around to another pair."""
    with pytest.raises(IndexError):
        pair_at(bad, 5, 2, 0)
    with pytest.raises(ValueError, match="n_pairs=11"):
        pair_at(0, 5, 2, 0, n_pairs=11)


@given(batches, st.booleans(), st.integers(0, 99))
@settings(deadline=None)
def test_donors_have_another_label_and_patient(batch, same_patient, seed):
    """And a row has no donor only if no row qualifies."""
    labels, patients = (torch.tensor([row[i] for row in batch], dtype=torch.int64) for i in (0, 1))
    eligible = torch.tensor([row[2] for row in batch], dtype=torch.bool)
    donors = draw_donors(
        labels,
        patients=patients,
        same_patient=same_patient,
        eligible=eligible,
        generator=torch.Generator().manual_seed(seed),
    )
    for i, d in enumerate(donors.tolist()):
        candidates = [
            j
            for j in range(len(labels))
            if labels[i] != labels[j]
            and eligible[i]
            and eligible[j]
            and (same_patient or patients[i] != patients[j])
        ]
        assert (d in candidates) if candidates else d == -1


def test_donors_are_uniform():
    """Each candidate as often as the other: chi-square over 20,000 draws."""
    labels = torch.tensor([0, 1, 1, 1, 2])
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([draw_donors(labels, generator=generator) for _ in range(5000)])
    counts = torch.bincount(draws[:, 0], minlength=5)
    assert counts[0] == 0
    assert ((counts[1:] - 1250.0) ** 2 / 1250).sum() < 16.3  # 0.999 quantile, 3 degrees of freedom
