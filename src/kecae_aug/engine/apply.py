"""A plan carried out on images that are on their device; nothing here waits for a GPU but a gate's verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kecae_aug.engine.exchange import Detail, Exchanger
from kecae_aug.engine.intensity import Intensity
from kecae_aug.engine.plan import Plan
from kecae_aug.engine.rows import concatenate, wrap_like
from kecae_aug.engine.transfer import send

if TYPE_CHECKING:
    from kecae_aug.bank import LatentBank
    from kecae_aug.gate import Gate


def exchange_rows(
    images: Tensor,
    plan: Plan,
    exchanger: Exchanger,
    *,
    detail: Detail,
    intensity: Intensity,
    bank: LatentBank | None,
) -> Tensor:
    """(k, C, H, W) exchanged knees in the images' dtype and scale; repeats of rows that have no donor."""
    params, device = plan.params, images.device
    has = params.donors >= 0
    hosts, donors = params.rows[has], params.donors[has]
    made = exchanger.exchange(
        images,
        hosts,
        donors,
        params.strengths[has],
        detail=detail,
        intensity=intensity,
        donor_keys=None if bank is None else bank.keys(donors),
    )
    if bool(has.all()):
        return made
    out = images[send(params.rows, device)]
    out[send(has.nonzero()[:, 0], device)] = made
    return out


def ask_gate(
    gate: Gate,
    images: Tensor,
    new: Tensor,
    plan: Plan,
    *,
    classes: Sequence[str],
    intensity: Intensity,
    fixed: bool,
) -> tuple[Tensor, Plan]:
    """Without the rows that the gate rejects; a fixed number of rows keeps them, as their hosts."""
    offered = (plan.params.donors >= 0).nonzero()[:, 0]  # repeats are not
    if not len(offered):
        return new, plan
    device = images.device
    hosts = images[send(plan.params.rows, device)]
    names = [classes[i] for i in plan.key_class.tolist()]
    there = send(offered, device)
    knees, host = (intensity.to_engine(x[there]) for x in (new, hosts))
    verdict = torch.ones(len(names), dtype=torch.bool, device=device)
    verdict[there] = gate(knees, host, [names[i] for i in offered.tolist()])
    accepted = verdict.cpu()
    if fixed:
        return torch.where(verdict[:, None, None, None], new, hosts), plan.repeat_hosts(accepted)
    return new[verdict], plan.drop(accepted)


def put_rows(given: Tensor, new: Tensor, rows: Tensor, append: bool, left: list[str]) -> Tensor:
    """The batch's images with the exchanged ones after them or in their hosts' place, in the container that came.

    Args:
        given: (B, C, H, W) as it came.
        new: (k, C, H, W).
        rows: (k,) int64 on the CPU, the hosts.
        append: whether ``new`` comes after.
        left: see :func:`kecae_aug.engine.rows.add_rows`.
    """
    images = given.as_subclass(Tensor)
    if not len(rows):
        # a MetaTensor's metadata must not be the caller's, whether or not a row was drawn
        has_facts = type(given) is not Tensor and bool(vars(given))
        return wrap_like(images, given) if has_facts else given
    if append:
        return wrap_like(concatenate(images, new), given, rows, left)
    out = images.clone()  # keeps the memory format
    out[send(rows, out.device)] = new
    return wrap_like(out, given)
