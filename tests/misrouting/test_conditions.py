import numpy as np
import pytest

from moe_jax.errors import UserError
from moe_jax.gating import GateConfig
from moe_jax.misrouting.conditions import BASE, check_spec, conditions
from moe_jax.misrouting.specs import parse_spec

_GATE = GateConfig(num_experts=8, k=2)


def _target(*cells: tuple[int, int]) -> np.ndarray:
    target = np.zeros((3, 8), bool)
    for cell in cells:
        target[cell] = True
    return target


def test_interventions_that_would_do_nothing_are_refused():
    with pytest.raises(UserError, match="top_1 changes nothing here"):
        check_spec(GateConfig(num_experts=8, k=1), parse_spec("top_1"), _target((0, 1)))
    with pytest.raises(UserError, match="permute exchanges experts"):
        check_spec(_GATE, parse_spec("permute"), _target((0, 1)))


def _conditions(*specs: str, target=None, controls=20):
    usage = np.tile(np.arange(8.0), (3, 1))
    score = np.tile(np.arange(8.0)[::-1], (3, 1))
    return conditions(
        _GATE,
        [parse_spec(s) for s in specs],
        _target((0, 1), (0, 6)) if target is None else target,
        usage=usage,
        score=score,
        controls=controls,
        seed=0,
    )


def test_experts_get_their_opposite_and_matched_sets_layers_don_t():
    found = _conditions("suppress", "random", "zero@answer")
    assert found[0].spec == BASE
    assert not found[0].target.any()
    names = [f"random-{i:02d}" for i in range(20)]
    keys = [
        f"{spec}/{experts}"
        for spec, sets in (
            ("suppress@all", ["selected", "opposite", *names]),
            ("random@all", ["selected"]),
            ("zero@answer", ["selected", "opposite", *names]),
        )
        for experts in sets
    ]
    assert [c.key for c in found[1:]] == keys
    opposite = next(c for c in found if c.experts == "opposite")
    np.testing.assert_array_equal(np.flatnonzero(opposite.target[0]), [5, 7])
    for one in found:
        if one.is_control:
            np.testing.assert_array_equal(one.target.sum(axis=1), [2, 0, 0])
            assert not one.target[0, [1, 6]].any()
    # All specs meet the same sets, so that they compare.
    for name in names:
        a, b = (c.target for c in found if c.experts == name)
        np.testing.assert_array_equal(a, b)
    assert len({c.scope for c in found if c.spec == "zero@answer"} | {"answer"}) == 1


def test_sets_are_matched_as_finely_as_leaves_enough_of_them():
    """One of 8 in each of 3 layers: halves leave 3 ** 3 = 27 sets, thirds at most 2 ** 3 = 8.

    p = 1 / (sets + 1) is to reach 0.05, so it is halves.
    """
    found = _conditions("zero", target=_target((0, 1), (1, 6), (2, 3)))
    sets = [c.target for c in found if c.is_control]
    assert len({one.tobytes() for one in sets}) == 20
    for one in sets:
        np.testing.assert_array_equal(np.argmax(one, axis=1) // 4, [0, 1, 0])


def test_no_controls_if_none_are_asked_for():
    assert [c.experts for c in _conditions("zero", controls=0)] == [BASE, "selected", "opposite"]


def test_a_target_that_leaves_too_few_experts_is_refused():
    target = np.zeros((3, 8), bool)
    target[0, :5] = True
    with pytest.raises(UserError, match="no controls for the selected experts: layer 0 has 3"):
        _conditions("zero", target=target)
