"""Arguments of the transform: their types for an editor, and what is refused when one is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from kecae_aug.engine.batch import LabelsGetter
from kecae_aug.engine.exchange import Detail, Exchanger, check_detail
from kecae_aug.engine.labels import LABEL_MODES, LabelMode
from kecae_aug.engine.options import EngineOptions
from kecae_aug.engine.params import strength_range
from kecae_aug.names import class_names

if TYPE_CHECKING:
    from kecae_aug.bank import LatentBank
    from kecae_aug.gate import Gate


class AugmentOptions(TypedDict, total=False):
    """Keyword arguments of :class:`~kecae_aug.KeyExchangeAugment`, for functions that hand them on."""

    p: float
    strength: float | tuple[float, float]
    detail: Detail
    append: bool | int
    classes: Sequence[str | int] | None
    value_range: tuple[float, float] | None
    mean: float | Sequence[float] | None
    std: float | Sequence[float] | None
    label_mode: LabelMode
    bank: LatentBank | None
    same_patient: bool
    labels_getter: LabelsGetter
    gate: Gate | None
    engine: EngineOptions | None


def check_values(
    p: float,
    strength: float | tuple[float, float],
    detail: str,
    append: bool | int,
    label_mode: str,
    labels_getter: LabelsGetter,
) -> None:
    """Refuse values that no call could use.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p={p}: accepted is a probability from 0 to 1")
    strength_range(strength)
    check_detail(detail)
    if label_mode not in LABEL_MODES:
        raise ValueError(f"label_mode={label_mode!r}: accepted are {', '.join(map(repr, LABEL_MODES))}")
    if not isinstance(append, bool) and (not isinstance(append, int) or append < 1):
        raise ValueError(
            f"append={append!r}: accepted are True, False, and 1 or more rows to add to every batch"
        )
    if labels_getter is not None and labels_getter != "default" and not callable(labels_getter):
        raise ValueError(
            f"labels_getter={labels_getter!r}: accepted are 'default', a function from a batch to its labels, and None"
        )


def check_classes(
    classes: Sequence[str | int] | None, exchanger: Exchanger, bank: LatentBank | None, gate: Gate | None
) -> tuple[str, ...]:
    """The caller's classes, which weights, bank and gate must know.

    Raises:
        ValueError: fewer than two of the weights' classes, a bank of others, a gate that does not know them.
    """
    exchangeable = exchanger.config.classes
    own = exchangeable if bank is None else bank.classes
    names = class_names(own if classes is None else classes)
    known = [c for c in exchangeable if c in names]
    if len(known) < 2:
        raise ValueError(
            f"classes={names}: these weights exchange {exchangeable}; at least two of them must be among your classes, by "
            "name"
        )
    if bank is not None:
        bank.check_weights(*exchanger.hashes)
        if not set(bank.labels) & set(known):
            raise ValueError(
                f"bank: the bank has rows of {sorted(set(bank.labels))}, none of which weights of "
                f"{exchangeable} exchange between your classes={names}; build it of these classes"
            )
    if gate is not None and set(known) - set(gate.classes):
        raise ValueError(
            f"gate: its oracles know {gate.classes}, not {sorted(set(known) - set(gate.classes))}, which are exchanged; "
            "give its classes by name, of oracles that know all of them"
        )
    return names
