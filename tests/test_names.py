"""One spelling for each class and each patient, whoever spells it: a wrong one shifts labels or hides a leak."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kecae_aug.device import amp_dtype, choose_device
from kecae_aug.names import by_value, class_name, class_names, patient_id, patient_ids

NOTHING = [
    None,
    "",
    "  ",
    float("nan"),
    np.float32("nan"),
    torch.tensor(math.nan),
    "nan",
    "NaN",
    "None",
    "<NA>",
    "N/A",
]


@pytest.mark.parametrize(
    "value", [2, 2.0, "2", "2.0", " 2 ", "2.", "02", b"2", np.int8(2), np.float32(2), np.str_("2.0")]
)
def test_one_grade_has_one_name_however_it_is_spelt(value: object) -> None:
    assert class_name(value) == "2"


@pytest.mark.parametrize(
    "value", [torch.tensor(9001), torch.tensor([9001.0]), np.array(9001), 9001, 9001.0, "9001.0"]
)
def test_one_patient_has_one_id_however_it_is_stored(value: object) -> None:
    assert patient_id(value) == "9001"


@pytest.mark.parametrize("value", NOTHING)
def test_a_missing_value_is_no_class_and_no_patient(value: object) -> None:
    assert class_name(value) is None
    assert patient_id(value) is None
    with pytest.raises(ValueError, match="not a class"):
        class_names(["0", value])


def test_none_in_lower_case_is_a_grade() -> None:
    assert class_names(["none", "mild"]) == ("none", "mild")


@given(st.integers(-(10**18), 10**18))
def test_numbers_are_their_value_as_text_and_as_float(number: int) -> None:
    assert class_name(number) == class_name(str(number)) == class_name(f"{number}.0") == str(number)
    if abs(number) < 2**53:
        assert class_name(float(number)) == str(number)
        assert patient_id(float(number)) == patient_id(number) == patient_id(str(number))


@given(st.text(max_size=8))
def test_a_name_is_its_own_name(text: str) -> None:
    name = class_name(text)
    assert name is None or class_name(name) == name
    who = patient_id(text)
    assert who is None or patient_id(who) == who


def test_a_class_that_is_spelt_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="one"):
        class_names(["2", 2.0])


@given(st.permutations(["0.5", "9", "10", "KL2", "a", "b"]))
def test_classes_are_ordered_by_value_whatever_order_they_come_in(names: list[str]) -> None:
    assert sorted(names, key=by_value) == ["0.5", "9", "10", "KL2", "a", "b"]


def test_leading_zeros_of_text_are_kept_and_told_where_both_spellings_occur() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert patient_ids(["0012", "0013"]) == ["0012", "0013"]
    with pytest.warns(UserWarning, match="leading zeros"):
        assert patient_ids(["0012", 12]) == ["0012", "12"]


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ValueError, match="accepted are auto, cpu, cuda, mps"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="it has cpu"):
            choose_device("cuda")
    assert amp_dtype("32-true") is None
    with pytest.raises(ValueError, match="accepted are 32-true"):
        amp_dtype("bf16")
