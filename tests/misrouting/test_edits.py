import numpy as np
import pytest

from moe_jax.gating import GateConfig
from moe_jax.misrouting.edits import make_edit
from moe_jax.misrouting.specs import Spec

_GATE = GateConfig(num_experts=8, k=2)


def _target(*cells: tuple[int, int]) -> np.ndarray:
    target = np.zeros((3, 8), bool)
    for cell in cells:
        target[cell] = True
    return target


@pytest.mark.parametrize(
    ("name", "leaf", "value"),
    [
        ("suppress", "suppress", True),
        ("exclude", "exclude", True),
        ("zero", "zero", True),
        ("force", "force", True),
        ("bias", "bias", 0.25),
        ("scale", "scale", 0.25),
        ("steer", "steer", 0.25),
    ],
)
def test_an_edit_acts_on_the_target_and_nothing_else(name, leaf, value):
    target = _target((0, 1), (2, 5))
    edit = make_edit(_GATE, Spec(name, 0.25, "all"), target, seed=0)
    none = make_edit(_GATE, Spec(name, 0.25, "all"), _target(), seed=0)
    for field in edit._fields:
        mine, plain = np.asarray(getattr(edit, field)), np.asarray(getattr(none, field))
        if field == leaf:
            assert np.all(mine[:, 0][target] == value)
            np.testing.assert_array_equal(mine[:, 0][~target], plain[:, 0][~target])
        else:
            np.testing.assert_array_equal(mine, plain)


@pytest.mark.parametrize(
    ("name", "leaf"), [("random", "random_k"), ("rank_shift", "rank_shift"), ("gumbel", "gumbel")]
)
def test_an_edit_of_layers_acts_where_experts_are_selected(name, leaf):
    edit = make_edit(_GATE, Spec(name, 1.0, "all"), _target((0, 1), (2, 5)), seed=0)
    on = np.asarray(getattr(edit, leaf))[:, 0].astype(bool)
    np.testing.assert_array_equal(on, [True, False, True])


def test_steering_below_and_above():
    down, up = (
        make_edit(_GATE, Spec("steer", amount, "all"), _target((0, 1)), seed=0).steer[0, 0, 1]
        for amount in (-0.5, 0.5)
    )
    assert (float(down), float(up)) == (-0.5, 0.5)
