"""What a file or a flag may hold in the place of a setting."""

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from hypothesis import strategies as st

numbers = st.one_of(
    st.integers(),
    st.sampled_from([2**31, 2**63, 10**30, 10**400, -(10**400)]),
    st.floats(allow_nan=True, allow_infinity=True),
)
junk: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8), st.binary(max_size=4)),
    lambda inside: st.one_of(
        st.lists(inside, max_size=4),
        st.lists(inside, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=4), inside, max_size=3),
    ),
    max_leaves=6,
)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type, small numbers above all: many of them make a sound setting."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(inside)
    if origin in (UnionType, Union):
        return st.one_of(*(values_of(choice) for choice in inside))
    if origin is tuple and inside[1:] == (...,):
        return st.lists(values_of(inside[0]), max_size=5)
    if origin is tuple:
        return st.tuples(*map(values_of, inside)).map(list)
    return {
        bool: st.booleans(),
        int: st.one_of(st.integers(0, 4), st.sampled_from([32, 64, 160, 4096, 50_000])),
        float: st.one_of(st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.floats(0, 1), st.just(1)),
        str: st.sampled_from(["", "var", "constant", "x.npz", "data:val", "é", "a: b", "1e-4"]),
        NoneType: st.none(),
    }[hint]
