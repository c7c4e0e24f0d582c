"""Sampling against a loop in float64, and against the frequencies that it should have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from moe_jax.errors import UserError
from moe_jax.models import SamplingConfig
from moe_jax.models.sampling import kept, sample


def kept_by_loop(logits, top_k, top_p):
    """The tokens that stay, and how far the decision is from the other one."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    order = order[:top_k] if top_k else order
    p = np.exp(np.float64([logits[i] for i in order]) - np.float64(logits).max())
    p /= p.sum()
    stay, total, margin = set(), 0.0, 1.0
    for i, share in zip(order, p, strict=True):
        if stay and total >= top_p:
            break
        stay.add(i)
        total += share
        margin = min(margin, abs(total - top_p))
    return stay, margin


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    top_k=st.integers(0, 14),
    top_p=st.sampled_from([0.05, 0.3, 0.5, 0.77, 0.9, 0.99, 1.0]),
    levels=st.sampled_from([3, 1000]),
)
def test_kept_is_that_of_the_loop(seed, top_k, top_p, levels):
    random = np.random.RandomState(seed)
    logits = (random.randint(0, levels, (3, 12)) * (6.0 / levels)).astype(np.float32)
    found = kept(jnp.asarray(logits), top_k=top_k, top_p=top_p)
    for row in range(3):
        stay, margin = kept_by_loop(logits[row], top_k, top_p)
        if margin > 1e-5 or top_p == 1:
            assert set(np.flatnonzero(found[row])) == stay


def test_kept_by_hand_and_per_row():
    logits = jnp.log(jnp.asarray([[0.1, 0.5, 0.3, 0.1]] * 5))
    found = kept(logits, top_k=jnp.asarray([0, 1, 3, 2, 0]), top_p=jnp.asarray([1, 1, 1, 0.6, 0.7]))
    wanted = [[1, 1, 1, 1], [0, 1, 0, 0], [1, 1, 1, 0], [0, 1, 0, 0], [0, 1, 1, 0]]
    # Row 3: of the two kept by top_k the first has 0.5 / 0.8 = 0.625, which reaches 0.6.
    np.testing.assert_array_equal(found, np.bool_(wanted))


def test_nothing_is_cut_by_rounding():
    logits = jnp.zeros((1, 100_003)).at[0, 0].set(30.0)
    assert bool(kept(logits).all())
    assert int(kept(logits, top_p=1e-6).sum()) == 1


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 3, 1.0), (1.0, 0, 0.8), (1.3, 4, 0.7)],
)
def test_frequencies(temperature, top_k, top_p, key):
    logits = np.float32([1.0, -0.5, 2.0, 0.3, 1.4, -2.0])
    n = 20_000
    run = jax.jit(
        lambda z, key: sample(z, temperature=temperature, top_k=top_k, top_p=top_p, key=key)
    )
    found = run(jnp.tile(logits, (n, 1)), key)
    stay, _ = kept_by_loop(logits / temperature, top_k, top_p)
    p = np.where([i in stay for i in range(6)], np.exp(np.float64(logits) / temperature), 0)
    p /= p.sum()
    counts = np.bincount(found.ids, minlength=6)
    assert not counts[p == 0].any()
    assert stats.chisquare(counts[p > 0], n * p[p > 0]).pvalue > 1e-4
    logp = np.float64(logits) - np.log(np.exp(np.float64(logits)).sum())
    np.testing.assert_allclose(found.logprob, logp[np.asarray(found.ids)], atol=1e-5)


def test_greedy_takes_the_lowest_of_equals(key):
    logits = jnp.asarray([[0.0, 2.0, 2.0], [-jnp.inf, -1.0, -jnp.inf], [1.0, 1.0, 1.0]])
    found = sample(logits, key=key)
    np.testing.assert_array_equal(found.ids, [1, 1, 0])
    np.testing.assert_allclose(
        found.logprob, [logits[0, 1] - np.log(1 + 2 * np.e**2), 0, -np.log(3)], atol=1e-5
    )


def test_rows_draw_by_themselves(key):
    logits = jax.random.normal(key, (7, 50))
    whole = sample(logits, temperature=1.0, key=key).ids
    np.testing.assert_array_equal(sample(logits[:3], temperature=1.0, key=key).ids, whole[:3])
    same = sample(jnp.zeros((200, 50)), temperature=1.0, key=key).ids
    assert len(set(same.tolist())) > 30
    heat = jnp.asarray([0.0, 1.0] * 3 + [0.0])
    mixed = sample(logits, temperature=heat, key=key).ids
    np.testing.assert_array_equal(mixed, np.where(heat > 0, whole, logits.argmax(1)))
    other = sample(jnp.zeros((200, 50)), temperature=1.0, key=jax.random.key(1)).ids
    assert (same != other).any()


def test_extreme_temperatures_and_logits(key):
    logits = jnp.asarray([[-1e30, 3e38, 2.9e38], [5.0, -jnp.inf, 4.0]])
    cold = sample(logits, temperature=1e-6, top_p=0.9, key=key)
    np.testing.assert_array_equal(cold.ids, [1, 0])
    keys = jax.random.split(key, 400)
    hot = jax.vmap(lambda k: sample(logits[1:], temperature=1e30, key=k).ids[0])(keys)
    assert set(hot.tolist()) == {0, 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -0.1}, r"sampling.temperature=-0.1: must be at least 0 \(0: greedy\)"),
        ({"temperature": 1e-9}, "sampling.temperature=1e-09: must be at least 1e-06, or 0"),
        ({"temperature": float("nan")}, "sampling.temperature=nan: must be"),
        ({"temperature": float("inf")}, "sampling.temperature=inf: must be"),
        ({"top_k": 0}, r"sampling.top_k=0: must be at least 1 \(None: all\)"),
        ({"top_k": True}, "sampling.top_k=True: must be a whole number"),
        ({"top_p": 0.0}, "sampling.top_p=0.0: must be more than 0 and at most 1"),
        ({"top_p": 1.5}, "sampling.top_p=1.5: must be"),
        ({"top_p": float("nan")}, "sampling.top_p=nan: must be"),
    ],
)
def test_settings_that_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        SamplingConfig(**changes).validate("sampling")


def test_settings_that_are_taken():
    SamplingConfig().validate()
    SamplingConfig(temperature=1.0, top_k=1, top_p=1.0).validate()
