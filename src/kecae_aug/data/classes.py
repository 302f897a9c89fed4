"""Class names and labels of a map-style Dataset of somebody else's, read part by part.

The parts of a ConcatDataset may list their classes in different orders: labels are brought together by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import ConcatDataset

from kecae_aug.data.parts import (
    Part,
    changing_wrappers,
    find_link,
    find_parts,
    gives_its_labels,
    name_of,
    own_targets,
    read_item,
    targets_of,
    to_scalar,
    unwrap,
)
from kecae_aug.names import by_value, class_name, class_names

Names = tuple[str, ...]


def labels_of(dataset: Any, classes: Sequence[str | int] | None = None) -> tuple[Names, list[int]]:
    """Class names in the order of the indices, and the class index of every row.

    Parts that list other classes, or the same ones in another order, are brought together by name. Targets are read from
    ``.targets``, or from every item where a part has none; class names among them are taken by name.

    Args:
        dataset: any map-style Dataset.
        classes: all names that the data set has, and maybe more, in the order of the indices that come out; or new names
            for its classes, one each; of a data set without ``.classes`` the names of its label indices. By default the
            data set's own: of parts that differ all of them, numbers by value.

    Raises:
        ValueError: no classes, parts that cannot be brought together, a label that is missing or no index of a class.
    """
    found = find_parts(dataset, own_targets, gives_its_labels)
    values = [
        [(w, to_scalar(read_item(p.owner, r)[1] if p.value is None else p.value[r])) for w, r in p.rows]
        for p in found
    ]
    lists = [_class_list(part) for part in found]
    unlisted = [
        f"part {i} ({name_of(part.owner)})"
        for i, part in enumerate(found)
        if lists[i] is None and not all(isinstance(v, str) for _, v in values[i])
    ]
    given = None if classes is None else class_names(classes)
    if given is None and isinstance(dataset, ConcatDataset) and getattr(dataset, "classes", None) is not None:
        given = _own_classes(dataset)
    names, own, new = _bring_together(dataset, given, lists, unlisted)
    at = {name: i for i, name in enumerate(names)}
    targets = [0] * len(dataset)
    for part_names, labels in zip(own, values, strict=True):
        for row, value in labels:
            name = part_names[_index(value, part_names, row)]
            targets[row] = at[new.get(name, name)]
    return names, targets


def check_order(dataset: Any, classes: Names) -> None:
    """Refuse a data set that lists a class of ``classes`` at another index, so that its labels would be read as others.

    Classes that the two do not share are no contradiction: a caller may rename them. Nothing is read of wrappers of
    somebody's own, which may change the labels.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        return
    for part in find_parts(dataset, lambda one: getattr(one, "classes", None)):
        if changing_wrappers(part) or part.value is None:
            continue
        names = _own_classes(part.owner) or ()
        if any(name in classes and classes.index(name) != i for i, name in enumerate(names)):
            raise ValueError(
                f"classes={classes}: {name_of(part.owner)} lists {names}, so that its labels would be read as other "
                "classes; give the transform classes=dataset.classes"
            )


def _bring_together(
    dataset: Any, given: Names | None, lists: list[Names | None], unlisted: list[str]
) -> tuple[Names, list[Names], dict[str, str]]:
    """Names of all classes, those that each part's indices are of, and new names for some."""
    present = list(dict.fromkeys(one for one in lists if one is not None))
    all_of_them = tuple(sorted({name for one in present for name in one}, key=by_value))
    if given is None:
        if not present:
            raise ValueError(
                f"classes: {name_of(dataset)} has no .classes; give their names in the order of the label indices, "
                "for instance classes=('0', '2')"
            )
        if unlisted:
            raise ValueError(
                f"classes: {', '.join(unlisted)} has no .classes beside parts that have; give it a list, so that labels "
                "can be matched by name"
            )
        names = present[0] if len(present) == 1 else all_of_them
        return names, [one or names for one in lists], {}
    new: dict[str, str] = {}
    if not set(all_of_them) <= set(given):
        moved = any(name in given and given.index(name) != i for i, name in enumerate(present[0]))
        if len(present) > 1 or moved or len(present[0]) != len(given):
            missing = [name for name in all_of_them if name not in given] or list(all_of_them)
            who = "the parts of the data set have" if len(present) > 1 else "the data set has"
            raise ValueError(
                f"classes={given}: {who} {missing} too; give all of its names "
                f"{present[0] if len(present) == 1 else all_of_them}, or leave classes out. To rename its classes "
                "give a new name for each"
            )
        new = dict(zip(present[0], given, strict=True))
    return given, [one or given for one in lists], new


def _class_list(part: Part) -> Names | None:
    """The names that a part's labels are indices of: those of the outermost data set that has any."""
    own = [
        names
        for one in part.chain
        if not isinstance(one, ConcatDataset)
        if (names := _own_classes(one)) is not None
    ]
    if own:
        return own[0]
    inner, owner = unwrap(part.owner), part.owner
    if inner is not None and part.value is not None and (link := find_link(owner, inner)) is not None:
        known = targets_of(
            inner
        )  # a wrapper that lists other targets than what it wraps has other classes, too
        if known is not None and all(
            to_scalar(known[i]) == to_scalar(v) for i, v in zip(link, part.value, strict=True)
        ):
            under = {one.value for one in find_parts(inner, _own_classes)}
            return under.pop() if len(under) == 1 else None
    around = (_own_classes(one) for one in reversed(part.chain) if isinstance(one, ConcatDataset))
    return next((names for names in around if names is not None), None)


def _own_classes(dataset: Any) -> Names | None:
    """``dataset.classes``, in accord with torchvision's ``class_to_idx``.

    Raises:
        ValueError: names that are missing or double, or an accord that is none.
    """
    found, places = getattr(dataset, "classes", None), getattr(dataset, "class_to_idx", None)
    places = places if isinstance(places, Mapping) else None
    if found is None and places is not None:
        found = sorted(places, key=lambda name: places[name])
    if found is None or callable(found):
        return None
    what = f"{name_of(dataset)}.classes"
    if isinstance(found, Mapping):
        raise ValueError(f"{what}: got a dict, accepted is a list of names in the order of the label indices")
    if _changes_targets(dataset):
        return None
    names = class_names(found.tolist() if hasattr(found, "tolist") else found, what)
    if places is not None and [places.get(name) for name in found] != list(range(len(names))):
        raise ValueError(
            f"{what}: {names} is not the order of its class_to_idx {dict(places)}; make them agree"
        )
    return names


def _changes_targets(dataset: Any) -> bool:
    """Whether torchvision's ``target_transform`` makes other labels than those that ``.classes`` is of."""
    before = getattr(dataset, "targets", None)
    if not callable(getattr(dataset, "target_transform", None)) or before is None:
        return False
    after = own_targets(dataset) or []
    return any(to_scalar(a) != to_scalar(b) for a, b in zip(before, after, strict=True))


def _index(value: Any, names: Names, row: int) -> int:
    """A label as an index into ``names``."""
    if isinstance(value, (str, bytes)) and class_name(value) in names:
        return names.index(str(class_name(value)))
    label = int(value) if isinstance(value, float) and value.is_integer() else value
    whole = hasattr(label, "__index__") and not isinstance(label, bool)
    if not whole or not 0 <= int(label) < len(names):
        why = f"a missing label ({value})" if not whole and class_name(value) is None else repr(value)
        raise ValueError(
            f"labels: row {row} has {why}, accepted are class indices from 0 to {len(names) - 1}, or names, of "
            f"classes={names}"
        )
    return int(label)
