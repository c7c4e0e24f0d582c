"""Checks say what is wrong in one wording and one line; what is right passes."""

import dataclasses

import pytest

from moe_jax.common import checks
from moe_jax.errors import UserError

NAN, INF = float("nan"), float("inf")


@dataclasses.dataclass
class Inner:
    size: int = 1

    def validate(self, path: str = "") -> None:
        checks.whole(path, "size", self.size, 1)


@pytest.mark.parametrize(
    ("check", "value", "more", "message"),
    [
        ("whole", 0, {"low": 1}, "a.b=0: must be at least 1"),
        ("whole", 9, {"low": 1, "high": 8}, "a.b=9: must be from 1 to 8"),
        ("whole", 9, {"high": 8}, "a.b=9: must be at most 8"),
        ("whole", True, {"low": 1}, "a.b=True: must be a whole number, at least 1"),
        ("whole", 2.0, {"low": 1}, "a.b=2.0: must be a whole number, at least 1"),
        ("whole", None, {"low": 1}, "a.b=None: must be a whole number, at least 1"),
        ("whole", "3", {}, "a.b='3': must be a whole number"),
        ("whole", 0, {"low": 1, "none": "all"}, "a.b=0: must be at least 1 (None: all)"),
        ("whole", 0, {"low": 1, "why": "or -1"}, "a.b=0: must be at least 1 (or -1)"),
        (
            "whole",
            0,
            {"low": 1, "none": "all", "why": "as it is"},
            "a.b=0: must be at least 1 (None: all; as it is)",
        ),
        ("number", NAN, {}, "a.b=nan: must be a finite number"),
        ("number", INF, {"low": 0}, "a.b=inf: must be a finite number, at least 0"),
        ("number", True, {"above": 0}, "a.b=True: must be a finite number, more than 0"),
        ("number", "1", {"above": 0}, "a.b='1': must be a finite number, more than 0"),
        ("number", 10**400, {}, f"a.b=1{'0' * 76}...: must be a finite number"),
        ("number", -0.5, {"low": 0}, "a.b=-0.5: must be at least 0"),
        ("number", 0, {"above": 0}, "a.b=0: must be more than 0"),
        ("number", 1.0, {"low": 0, "below": 1}, "a.b=1.0: must be at least 0 and less than 1"),
        ("number", 1.5, {"above": 0, "high": 1}, "a.b=1.5: must be more than 0 and at most 1"),
        (
            "number",
            0.001,
            {"low": 0.01, "none": "off"},
            "a.b=0.001: must be at least 0.01 (None: off)",
        ),
        ("flag", 1, {}, "a.b=1: must be True or False"),
        ("text", 3, {}, "a.b=3: must be a text"),
        ("text", "", {}, "a.b='': must be a text that isn't empty"),
        ("one_of", "z", {"allowed": ("x", "y")}, "a.b='z': must be one of x, y"),
        ("one_of", ["x"], {"allowed": ("x", "y")}, "a.b=['x']: must be one of x, y"),
        ("several", 3, {}, "a.b=3: must be a tuple"),
        ("several", "ab", {}, "a.b='ab': must be a tuple"),
        ("nested", [1], {"kind": Inner}, "a.b=[1]: must be of type Inner"),
        ("nested", Inner(0), {"kind": Inner}, "a.b.size=0: must be at least 1"),
    ],
)
def test_what_is_wrong_is_said_with_path_and_value(check, value, more, message):
    with pytest.raises(UserError) as caught:
        getattr(checks, check)("a", "b", value, **more)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("check", "value", "more"),
    [
        ("whole", 1, {"low": 1}),
        ("whole", 8, {"low": 1, "high": 8}),
        ("whole", -(10**30), {}),
        ("whole", None, {"low": 1, "none": "all"}),
        ("number", 1, {"low": 0, "high": 1}),
        ("number", 0.0, {"low": 0, "below": 1}),
        ("number", -1e300, {}),
        ("number", None, {"above": 0, "none": "off"}),
        ("flag", False, {}),
        ("text", "x", {}),
        ("text", "", {"empty": True}),
        ("one_of", "x", {"allowed": {"x": 1}}),
        ("several", (), {}),
        ("several", [1], {}),
        ("nested", Inner(), {"kind": Inner}),
    ],
)
def test_what_is_right_passes(check, value, more):
    getattr(checks, check)("a", "b", value, **more)


def test_fields_alone_have_no_dot():
    assert checks.joined("", "b") == "b"
    assert str(checks.wrong("", "b", (1,), "be less than c=2")) == "b=(1,): must be less than c=2"
    with pytest.raises(UserError, match=r"^b\.size=0: must"):
        checks.nested("", "b", Inner(0), Inner)
