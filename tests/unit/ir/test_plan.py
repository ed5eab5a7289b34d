"""Plans are values: ordered, immutable, with a fingerprint of what they say."""

import numpy as np
import pytest

from modelmill.ir import Plan, Point
from modelmill.numerics import QuantSpec, choose_encoding

U8 = QuantSpec(8, signed=False, symmetric=False)
NUMBERS = choose_encoding(U8, -1, 1)


def test_order_does_not_matter():
    a = Plan({Point("x"): U8, Point("w", "n", 1): NUMBERS})
    b = Plan({Point("w", "n", 1): NUMBERS, Point("x"): U8})
    assert list(a) == list(b) == [Point("w", "n", 1), Point("x")]
    assert a.fingerprint() == b.fingerprint()


def test_the_fingerprint_sees_every_number():
    plans = [
        Plan(), Plan({Point("x"): U8}), Plan({Point("y"): U8}), Plan({Point("x", "n", 0): U8}),
        Plan({Point("x"): NUMBERS}), Plan({Point("x"): choose_encoding(U8, -1, 1.0001)}),
        Plan({Point("x"): choose_encoding(QuantSpec(7, False, False), -1, 1)}),
    ]  # fmt: skip
    assert len({p.fingerprint() for p in plans}) == len(plans)


def test_changes_make_new_plans():
    plan = Plan({Point("x"): U8, Point("y"): U8}, [[Point("y"), Point("x")]])
    changed = plan.replace({Point("x"): NUMBERS, Point("z"): U8})
    assert plan[Point("x")] == U8 and changed[Point("x")] == NUMBERS and Point("z") in changed
    assert changed.ties == plan.ties == ((Point("x"), Point("y")),)
    less = changed.without({Point("y")})
    assert set(less) == {Point("x"), Point("z")} and less.ties == ((Point("x"),),)
    with pytest.raises(TypeError):
        plan[Point("x")] = U8


def test_the_point_of_a_node_goes_before_the_value():
    plan = Plan({Point("x"): U8, Point("x", "n", 0): NUMBERS})
    assert plan.at("x", "n", 0) == NUMBERS
    assert plan.at("x", "n", 1) == plan.at("x", "m", 0) == U8
    assert plan.at("y", "n", 0) is None


def test_specs_and_encodings():
    plan = Plan({Point("x"): U8, Point("y"): NUMBERS})
    assert plan.spec(Point("x")) == plan.spec(Point("y")) == U8
    with pytest.raises(ValueError, match=r"1 points of the plan have no encoding yet.* x"):
        plan.encodings()
    assert plan.replace({Point("x"): NUMBERS}).encodings() == dict.fromkeys(
        [Point("x"), Point("y")], NUMBERS
    )


def test_points_in_words():
    assert str(Point("x")) == "x" and str(Point("x", "conv", 1)) == "x -> conv[1]"
    assert np.array_equal(sorted([Point("b"), Point("a", "n", 1), Point("a")])[0].value, "a")
