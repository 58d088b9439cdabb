"""Classes on the command line: by name, by number, none, and each once."""

import pytest

from varlit.cli.sampling.sample import class_name, parse_classes
from varlit.errors import UserError


def test_none_is_no_class_even_where_a_class_is_called_so():
    assert parse_classes("none,1", 3, []) == [3, 1]
    assert parse_classes("none,1", 2, ["some", "none"]) == [2, 1]
    assert parse_classes("None", 2, ["some", "None"]) == [1]
    assert class_name(3, [], 3) == "no class"


def test_a_number_is_meant_where_a_class_is_called_like_another_number():
    assert parse_classes("1,#1", 2, ["1", "bee"]) == [0, 1]
    with pytest.raises(UserError, match=r"got `#2`, expected 0\.\.1"):
        parse_classes("#2", 2, ["1", "bee"])


@pytest.mark.parametrize("text", ["3,3", "3,dogs", "Dogs, dogs", "none,none", "1,2,#1"])
def test_a_class_given_twice_is_refused(text: str):
    with pytest.raises(UserError, match="is given twice and would draw the same pictures"):
        parse_classes(text, 4, ["ant", "bee", "cow", "dogs"])


def test_classes_are_read_by_number_and_by_name():
    assert parse_classes("2,bee", 3, ["ant", "bee", "cow"]) == [2, 1]
    assert parse_classes("", 3, []) == [0, 1, 2]
    with pytest.raises(UserError, match=r"expected 0\.\.2"):
        parse_classes("3", 3, [])


def test_names_of_classes_are_found_whatever_their_case():
    names = ["Dogs", "cats", "Crane", "crane"]
    assert parse_classes("dogs, CATS", 4, names) == [0, 1]
    assert parse_classes("Dogs", 4, names) == [0]
    assert parse_classes("crane,Crane", 4, names) == [3, 2]
    with pytest.raises(UserError, match=r"got `CRANE`, expected 0\.\.3 or names such as Dogs"):
        parse_classes("CRANE", 4, names)
