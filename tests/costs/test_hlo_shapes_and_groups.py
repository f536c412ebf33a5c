"""Reading the parts of HLO text: shapes, brackets, and the forms of replica groups."""

import numpy as np
import pytest

from dbjax.costs.collectives import groups
from dbjax.costs.hlo import Shape, pieces, shape


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("f32[]", 4),
        ("f32[3,5]{1,0}", 60),
        ("bf16[3,5]{1,0:T(8,128)(2,1)}", 30),
        ("f32[3,5]{1,0:T(8,128)S(1)}", 60),
        ("pred[7]{0}", 7),
        ("f8e4m3fn[7]{0}", 7),
        ("f8e5m2[7]", 7),
        ("s4[7]{0:E(4)}", 4),
        ("s4[7]{0}", 7),
        ("c64[2]", 16),
        ("c128[2]", 32),
        ("f32[<=10,2]{1,0}", 80),
        ("f32[0,5]", 0),
        ("token[]", 0),
        ("()", 0),
        ("(f32[2]{0}, bf16[3]{0})", 14),
        ("((f32[2], f32[3]{0:T(256)}), (u32[], token[]), u8[5])", 29),
    ],
)
def test_sizes_of_shapes(text, size_bytes):
    assert shape(text).size_bytes == size_bytes


def test_a_shape_has_a_type_and_dims():
    assert shape("bf16[3,5]{1,0}") == Shape("bf16", (3, 5), 16)
    assert shape("bf16[3,5]{1,0}") != shape("f16[3,5]{1,0}")
    assert shape("(f32[2], (s8[3]))").parts[1].parts == (Shape("s8", (3,), 8),)


@pytest.mark.parametrize("text", ["f32", "f32[a]", "f32[?]", "float[3]", "(f32[2]", "f32[2] x"])
def test_what_is_no_shape_is_refused(text):
    with pytest.raises(ValueError, match=r"HLO|bracket"):
        shape(text)


def test_pieces_are_cut_outside_brackets_and_strings():
    text = 'a={1,2}, b="x, \\"(y", c=[d, (e, f)]'
    assert list(pieces(text)) == ["a={1,2}", 'b="x, \\"(y"', "c=[d, (e, f)]"]
    assert list(pieces(" ")) == []


@pytest.mark.parametrize(
    ("text", "device_ids", "expected"),
    [
        ("{{0,1},{2,3}}", "", [(0, 1), (2, 3)]),
        ("{{0, 2}, {1, 3}}", "", [(0, 2), (1, 3)]),
        ("{}", "", [(0, 1, 2, 3, 4, 5, 6, 7)]),
        ("[2,4]<=[8]", "", [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ("[4,2]<=[2,4]T(1,0)", "", [(0, 4), (1, 5), (2, 6), (3, 7)]),
        ("[2,4]<=[2,2,2]T(1,0,2)", "", [(0, 1, 4, 5), (2, 3, 6, 7)]),
        ("mesh['x'=8] {'x'}", "", [(0, 1, 2, 3, 4, 5, 6, 7)]),
        ("mesh['a'=2,'b'=4] {'b'}", "", [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ("mesh['a'=2,'b'=4] {'a'}", "", [(0, 4), (1, 5), (2, 6), (3, 7)]),
        ("mesh['a'=2,'b'=2,'c'=2] {'c','a'}", "", [(0, 4, 1, 5), (2, 6, 3, 7)]),
        ("mesh['a'=2,'b'=4]", "([4,2]T(1,0)) {'b'}", [(0, 2, 4, 6), (1, 3, 5, 7)]),
        ("mesh['a'=2,'b'=2]", "(3,1,2,0) {'b'}", [(3, 1), (2, 0)]),
        ("mesh['a'=8] {'a':(1)2}", "", [(0, 4), (1, 5), (2, 6), (3, 7)]),
        ("mesh['a'=8] {'a':(2)2}", "", [(0, 2), (1, 3), (4, 6), (5, 7)]),
        ("mesh['a'=8] {'a':(4)2,'a':(1)2}", "", [(0, 4, 1, 5), (2, 6, 3, 7)]),
    ],
)
def test_forms_of_groups(text, device_ids, expected):
    assert groups(text, device_ids, 8) == tuple(expected)


@pytest.mark.parametrize(
    "text", ["", "{0,1}", "{{0,1}", "[2,4]<=8", "[3,4]<=[8]", "mesh['a'=8]", "mesh['a'=8] {'b'}"]
)
def test_what_are_no_groups_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 - numpy's, for sizes that do not fit
        groups(text, "", 8)


def test_iota_groups_are_a_reshaped_transpose():
    expected = np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1).reshape(6, 4)
    found = groups("[6,4]<=[2,3,4]T(2,0,1)", "", 24)
    assert np.array_equal(found, expected)
    assert not np.array_equal(groups("[6,4]<=[2,3,4]T(1,0,2)", "", 24), expected)
