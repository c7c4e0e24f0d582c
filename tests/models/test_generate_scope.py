"""Edits of a prompt at some of its tokens, against reading it alone, padded on the other side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_jax.gating import GateConfig, RoutingEdit
from moe_jax.models import CausalConfig, CausalLM, ExpertsConfig, generate
from tests.edits import side_by_side

GATE = GateConfig(num_experts=4, k=2, renormalise=True)
PROMPTS = [[5, 7, 9, 11, 2], [3], [8, 1, 30]]
WHERE = [np.array([0, 1, 0, 1, 1], bool), np.array([1], bool), np.array([1, 0, 0], bool)]


@pytest.fixture(scope="module")
def mixture():
    model = CausalLM(
        CausalConfig(
            vocab_size=40,
            d_model=16,
            num_layers=2,
            d_ff=24,
            max_length=64,
            num_kv_heads=2,
            experts=ExpertsConfig(gate=GATE, d_expert=12, layers=(0, 1)),
        ),
        rngs=nnx.Rngs(0),
    )
    nnx.update(model, jax.tree.map(lambda a: a * 6 if a.ndim > 1 else a, nnx.state(model)))
    return model


def suppressed(expert, tokens=None):
    one = RoutingEdit.make(GATE, suppress=[expert], tokens=tokens)
    return jax.tree.map(lambda *a: jnp.stack(a), one, one)


@nnx.jit
def read(model, ids, where, edit):
    return model(ids, where, edit=edit)


def run(model, **changes):
    return generate(model, PROMPTS, max_new_tokens=1, **changes)


def assert_same(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.logprob, b.logprob)
        for x, y in zip(a.routing, b.routing, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("shared", [True, False])
def test_masks_act_as_the_tokens_of_an_edit_without_padding(mixture, shared):
    experts = (1, 1, 1) if shared else (0, 1, 2)
    edit = suppressed(1) if shared else side_by_side(*map(suppressed, experts))
    found = run(mixture, edit_prompt=edit, edit_where=WHERE)
    for expert, prompt, where, mine in zip(experts, PROMPTS, WHERE, found, strict=True):
        n = len(prompt)
        ids, inside, on = np.zeros((1, 8), np.int32), np.arange(8)[None] < n, np.zeros(8, bool)
        ids[0, :n], on[:n] = prompt, where
        whole = read(mixture, ids, inside, suppressed(expert, on)).routing
        np.testing.assert_array_equal(mine.routing.expert[:n], whole.expert[0, :n])
        np.testing.assert_allclose(mine.routing.weight[:n], whole.weight[0, :n], atol=1e-5)
        assert not (mine.routing.expert[:n][where] == expert).any()
    missed = [m.routing.expert[: len(w)][~w] for m, w in zip(found, WHERE, strict=True)]
    assert any((m == e).any() for m, e in zip(missed, experts, strict=True))


def test_everywhere_and_nowhere(mixture):
    everywhere = [np.ones(len(p), bool) for p in PROMPTS]
    nowhere = [np.zeros(len(p), bool) for p in PROMPTS]
    base = run(mixture)
    assert_same(run(mixture, edit_where=WHERE), base)
    for edit in (suppressed(0), side_by_side(*map(suppressed, (0, 1, 2)))):
        plain = run(mixture, edit_prompt=edit)
        assert any(
            (a.routing.expert != b.routing.expert).any() for a, b in zip(plain, base, strict=True)
        )
        assert_same(run(mixture, edit_prompt=edit, edit_where=everywhere), plain)
        assert_same(run(mixture, edit_prompt=edit, edit_where=nowhere), base)


def test_the_tokens_of_the_edit_count_too(mixture):
    off = suppressed(0)._replace(tokens=jnp.zeros((2, 1), bool))
    first_only = side_by_side(suppressed(0), off, off)
    found = run(mixture, edit_prompt=first_only, edit_where=WHERE)
    only = [WHERE[0], np.zeros(1, bool), np.zeros(3, bool)]
    assert_same(
        found, run(mixture, edit_prompt=side_by_side(*[suppressed(0)] * 3), edit_where=only)
    )


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (WHERE[:2], "edit_where has 2 masks for 3 prompts"),
        ([WHERE[0], WHERE[2], WHERE[2]], r"edit_where\[1\] is bool \(3,\); prompt 1 has 1 tokens"),
    ],
)
def test_masks_that_do_not_fit(mixture, where, message):
    with pytest.raises(ValueError, match=message):
        run(mixture, edit_prompt=suppressed(0), edit_where=where)


def routes(rng, tokens):
    """Two different experts of each token and layer [t l k], some left as routed (-1)."""
    drawn = np.argsort(rng.random((tokens, 2, 4)), axis=2)[:, :, :2]
    drawn[rng.random((tokens, 2)) < 0.3] = -1
    return drawn


def replayed(drawn):
    """Leaves [l 1 ...], but `replay` [l t k]."""
    return suppressed(0)._replace(
        suppress=jnp.zeros((2, 1, 4), bool),
        replay=jnp.moveaxis(jnp.asarray(drawn, jnp.int32), 1, 0),
    )


def test_edits_of_single_prompts_act_at_their_tokens(mixture):
    """A prompt's list of routes is what its tokens take, then its new tokens theirs."""
    rng = np.random.default_rng(0)
    before = [routes(rng, len(p)) for p in PROMPTS]
    after = [routes(rng, 5) for _ in PROMPTS]
    found = generate(
        mixture,
        PROMPTS,
        max_new_tokens=6,
        edit_prompt=[replayed(r) for r in before],
        edit_generated=[replayed(r) for r in after],
    )
    for prompt, given, later, mine in zip(PROMPTS, before, after, found, strict=True):
        wanted = np.concatenate([given, later])
        assert len(mine.routing.expert) == len(wanted)
        set_by = wanted >= 0
        np.testing.assert_array_equal(mine.routing.expert[set_by], wanted[set_by])
        # All of it read once more, alone, under the same routes.
        ids = np.array([[*prompt, *mine.ids[:-1]]])
        out = read(mixture, ids, np.ones(ids.shape, bool), replayed(wanted))
        np.testing.assert_array_equal(mine.routing.expert, out.routing.expert[0])
        np.testing.assert_allclose(mine.routing.weight, out.routing.weight[0], atol=1e-5)
        np.testing.assert_array_equal(out.logits[0, len(prompt) - 1 :].argmax(-1), mine.ids)


def test_a_list_says_what_rows_say(mixture):
    """Edits for all tokens of their prompt; masks bear on lists too."""
    edits = [suppressed(e) for e in (0, 1, 2)]
    plain = run(mixture, edit_prompt=side_by_side(*edits), edit_where=WHERE)
    assert_same(run(mixture, edit_prompt=edits, edit_where=WHERE), plain)
    some = [suppressed(e, w) for e, w in zip((0, 1, 2), WHERE, strict=True)]
    assert_same(run(mixture, edit_prompt=some), plain)


def test_lists_that_do_not_fit(mixture):
    edits = [suppressed(e) for e in (0, 1, 2)]
    with pytest.raises(ValueError, match="edit_prompt is a list of 2 edits for 3 prompts"):
        run(mixture, edit_prompt=edits[:2])
    with pytest.raises(
        ValueError, match=r"edit_prompt\[1\].tokens has shape \(2, 5\).*the 1 tokens"
    ):
        run(mixture, edit_prompt=[edits[0], suppressed(1, WHERE[0]), edits[2]])
    long = replayed(routes(np.random.default_rng(0), 3))
    with pytest.raises(ValueError, match=r"edit_generated\[2\].replay has shape .*the 0 tokens"):
        run(mixture, edit_generated=[*edits[:2], long])
    other = edits[2]._replace(seed=edits[2].seed + 1)
    with pytest.raises(ValueError, match=r"edit_prompt\[2\].seed differs from edit_prompt\[0\]'s"):
        run(mixture, edit_prompt=[*edits[:2], other])
