"""The knee phantom as a dataset: patients with two knees each, whose truth is known.

    from kecae_aug.phantom import PhantomKnees, render

    knees = PhantomKnees(n_patients=100, grades=(0, 2), image_size=128, seed=0)
    image, label = knees[0]                                 # (1, 128, 128) in [-1, 1], class index
    host, donor = knees.truth(0), knees.truth(5)
    wanted = render(host.with_key(donor.key), 128)          # the exchange as it should be

Parameters and resemblance to real knees: docs/evaluate.md.
"""

from kecae_aug.phantom.knees import PhantomKnees, write_phantoms
from kecae_aug.phantom.render import joint_region, render
from kecae_aug.phantom.truth import KneeKey, KneeNuisance, KneeTruth, sample_truth

__all__ = [
    "KneeKey",
    "KneeNuisance",
    "KneeTruth",
    "PhantomKnees",
    "joint_region",
    "render",
    "sample_truth",
    "write_phantoms",
]
