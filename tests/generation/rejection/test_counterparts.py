"""Classes of a model and outputs of a classifier find each other by list, name or number."""

import pytest

from varlit.errors import UserError
from varlit.generation.rejection.counterparts import (
    IN_ORDER,
    counterparts,
    parse_outputs,
    told_outputs,
    unmatched,
)

FLOWERS = ("Daisy", "dandelion", "sea_holly")
OUTPUTS = ("crane", "daisy", "crane", "sea holly", "bee")


def test_names_are_found_whatever_their_case_and_a_class_without_one_is_none():
    assert counterparts(3, FLOWERS, 5, OUTPUTS) == (1, None, 3)


def test_a_name_that_the_classifier_has_twice_is_not_guessed():
    assert counterparts(2, ("crane", "bee"), 5, OUTPUTS) == (None, 4)


def test_a_list_goes_before_names():
    assert counterparts(3, FLOWERS, 5, OUTPUTS, [4, None, 0]) == (4, None, 0)


def test_as_many_classes_without_names_are_taken_by_number():
    assert counterparts(3, (), 3, ()) == (0, 1, 2)
    assert counterparts(2, ("n01440764", "n01443537"), 2, ("tench", "goldfish")) == (0, 1)


@pytest.mark.parametrize(
    ("names", "outputs", "given", "said"),
    [
        ((), 5, None, "5 classes and the model 3"),
        (("a", "b", "c"), 5, None, r"the model 3 \(a, b, c\)"),
        (("n02", "n01", "x"), 5, None, "none has the same name"),
        (FLOWERS, 5, [1, 2], "3 classes, none where there is none; got 2"),
        (FLOWERS, 5, [1, 2, 5], "outputs 0..4; got 5"),
    ],
)
def test_what_does_not_go_together_is_refused(names, outputs, given, said):
    with pytest.raises(UserError, match=said):
        counterparts(3, names, outputs, OUTPUTS, given)


def test_named_classes_that_all_differ_are_not_taken_by_number():
    with pytest.raises(UserError, match="none has the same name"):
        counterparts(2, ("cat", "dog"), 2, ("rose", "tulip"))


def test_the_unconditional_class_has_no_counterpart():
    assert unmatched((3, None, 5), [0, 1, 2, 3]) == [1, 3]


def test_outputs_are_read_as_they_are_told():
    assert parse_outputs("") is None
    assert parse_outputs(" 985, -,3") == [985, None, 3]
    assert parse_outputs(told_outputs((985, None, 3))) == [985, None, 3]
    assert told_outputs((0, 1, 2)) == IN_ORDER
    with pytest.raises(UserError, match=r"got `1\.5`"):
        parse_outputs("1.5,2")
