import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.errors import UserError
from moe_jax.misrouting.context import Context
from moe_jax.misrouting.routes import Routes, by_part, check_recorded, donors, of_prompt


def _rows(*experts: int) -> np.ndarray:
    """Routes of one layer and one choice [t 1 1]."""
    return np.asarray(experts, np.int32).reshape(-1, 1, 1)


_ROUTES = Routes(_rows(5, 6), _rows(7), _rows(8, 9))


def test_a_token_takes_the_route_of_its_number_within_its_part():
    part = np.array([0, 0, 0, 1, 1, 2])
    assert _ROUTES.along(part).ravel().tolist() == [5, 6, -1, 7, -1, 8]
    assert _ROUTES.along(part[:0]).shape == (0, 1, 1)


def test_tokens_that_are_yet_to_come():
    assert _ROUTES.after("answer", 1, 3).ravel().tolist() == [9, -1, -1]
    assert _ROUTES.after("answer", 5, 2).ravel().tolist() == [-1, -1]
    assert _ROUTES.after("explanation", 0, 1).ravel().tolist() == [7]
    assert _ROUTES.after("explanation", 0, 0).shape == (0, 1, 1)


@given(st.lists(st.integers(0, 2), max_size=12), st.integers(0, 12), st.integers(0, 3))
def test_what_is_read_at_once_is_what_is_read_later(parts, split, more):
    """Tokens of a part take the same routes in one reading and in a second that goes on."""
    part = np.sort(np.asarray(parts, int))
    routes = Routes(_rows(*range(3)), _rows(*range(10, 12)), _rows(*range(20, 24)))
    whole = np.concatenate([part, np.full(more, 2)])
    later = routes.after("answer", int(np.sum(part == 2)), more)
    joined = np.concatenate([routes.along(part), later])
    np.testing.assert_array_equal(routes.along(whole), joined)


def test_a_text_takes_its_own_routes():
    expert = np.arange(12).reshape(6, 2, 1)
    context = Context(np.zeros(6, int), np.array([0, 0, 1, 1, 1, 2]))
    routes = by_part(context, expert)
    assert [len(part) for part in routes] == [2, 3, 1]
    np.testing.assert_array_equal(routes.along(context.part), expert)
    with pytest.raises(ValueError, match="no experts"):
        by_part(context, None)


def test_layers_that_are_left_out_are_routed_as_usual():
    expert = np.arange(8).reshape(2, 2, 2)
    routes = of_prompt(expert).within(np.array([False, True]))
    np.testing.assert_array_equal(routes.prompt[:, 0], -1)
    np.testing.assert_array_equal(routes.prompt[:, 1], expert[:, 1])
    assert routes.explanation.shape == routes.answer.shape == (0, 2, 2)


@given(st.lists(st.integers(1, 3), min_size=6, max_size=20), st.booleans(), st.integers(0, 9))
def test_donors_are_others_of_the_same_difficulty_or_of_another(levels, peers, seed):
    level = np.asarray([*levels, 1, 1, 2, 2, 3, 3], float)
    found = donors(level, np.random.default_rng(seed), peers=peers)
    assert not np.any(found == np.arange(len(level)))
    assert np.all((level[found] == level) == peers)


def test_donors_are_drawn_among_all_that_fit():
    level = np.array([1.0, 1.0, 2.0, 2.0, 2.0])
    drawn = {int(donors(level, np.random.default_rng(s), peers=False)[0]) for s in range(40)}
    assert drawn == {2, 3, 4}


@pytest.mark.parametrize(
    ("levels", "peers", "says"),
    [
        (
            [1, 1, 2],
            True,
            "donor_peer needs a prompt of the same difficulty.*none for difficulty 2",
        ),
        ([3, 3, 3], False, "donor needs a prompt of another difficulty.*none for difficulty 3"),
    ],
)
def test_prompts_without_a_donor(levels, peers, says):
    with pytest.raises(UserError, match=says):
        donors(np.asarray(levels, float), np.random.default_rng(0), peers=peers)


def test_records_must_be_of_the_prompts_tokens():
    contexts = [Context(np.zeros(n, int), np.zeros(n, int)) for n in (3, 2)]
    check_recorded([_rows(0, 1, 2), _rows(0)], contexts, [0, 1])
    for rows in (_rows(), _rows(0, 1, 2)):
        with pytest.raises(UserError, match=rf"prompt 7 has 2 tokens here, its record {len(rows)}"):
            check_recorded([_rows(0, 1, 2), rows], contexts, [4, 7])
