import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.errors import UserError
from moe_jax.misrouting.specs import ON_EXPERTS, ON_LAYERS, SCOPES, Spec, parse_spec

_WITH_AMOUNT = ("steer", "bias", "scale", "gumbel")


@given(
    st.sampled_from(ON_EXPERTS + ON_LAYERS),
    st.sampled_from(SCOPES),
    st.floats(-8, 8).map(lambda x: float(f"{x:g}")),
)
def test_a_spec_is_what_its_text_says(name, scope, amount):
    scope = "prompt" if name == "replay" else scope
    amount = {"gumbel": abs(amount) or 1.0, "steer": amount or 1.0}.get(name, amount)
    spec = Spec(name, amount if name in _WITH_AMOUNT else math.nan, scope)
    got = parse_spec(str(spec))
    assert got[::2] == spec[::2]
    assert got.amount == spec.amount or (math.isnan(got.amount) and math.isnan(spec.amount))


def test_defaults_of_a_spec():
    assert parse_spec("scale") == Spec("scale", 0.5, "all")
    assert parse_spec("bias@answer") == Spec("bias", 2.0, "answer")
    assert parse_spec("steer@prompt") == Spec("steer", -0.01, "prompt")
    assert parse_spec("gumbel") == Spec("gumbel", 1.0, "all")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("supress", r"'supress'.*did you mean suppress\?"),
        ("suppress@anwser", r"scope 'anwser'.*did you mean answer\?"),
        ("scale=much", "'much' is not a number"),
        ("scale=nan", "'nan' is not a number"),
        ("scale=", "'' is not a number"),
        ("zero=1", "zero takes no amount"),
        ("steer=0", "the amount must not be 0"),
        ("replay@answer", "'replay@answer': records are of the prompts' tokens"),
        ("gumbel=-1", "the temperature must be above 0"),
        ("", "intervention ''"),
    ],
)
def test_a_wrong_spec_is_named(text, says):
    with pytest.raises(UserError, match=says):
        parse_spec(text)
