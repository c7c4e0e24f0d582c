"""Scores of options and texts against reading every text alone, without padding or a cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_jax.errors import UserError
from moe_jax.gating import GateConfig
from moe_jax.misrouting import interventions
from moe_jax.models import CausalConfig, CausalLM, ExpertsConfig, score_options, score_text
from tests.edits import side_by_side

GATE = GateConfig(num_experts=4, k=2, renormalise=True)
CONTEXTS = [[5, 7, 9, 11, 2], [3], np.array([8, 1, 30])]
OPTIONS = [[[4], [6, 2, 9]], [[1, 1], [39, 8, 7, 5, 5, 3]], [[2, 3, 4], [4]]]


def small(sparse=True):
    experts = ExpertsConfig(gate=GATE, d_expert=12, layers=(0, 1)) if sparse else None
    sizes = {"vocab_size": 40, "d_model": 16, "num_layers": 2, "d_ff": 24, "max_length": 64}
    model = CausalLM(
        CausalConfig(**sizes, num_kv_heads=2, window=4, experts=experts), rngs=nnx.Rngs(0)
    )
    nnx.update(model, jax.tree.map(lambda a: a * 6 if a.ndim > 1 else a, nnx.state(model)))
    return model


@pytest.fixture(scope="module")
def mixture():
    return small()


@pytest.fixture(scope="module")
def dense():
    return small(sparse=False)


def no():
    return np.zeros((2, 4), bool)


def target(*pairs):
    mask = no()
    for layer, expert in pairs:
        mask[layer, expert] = True
    return mask


@nnx.jit
def read(model, ids, where, edit):
    return model(ids, where, edit=edit)


def alone(model, context, text, target=None, tokens=None, pad=64):
    """(logp of each token of text, experts, weights, whole rows), in float64.

    One text, its padding on the right (none with pad=0), no cache; the edit made for all of it.
    """
    ids = [*map(int, context), *map(int, text)]
    n, start, edit = len(ids), len(ids) - len(text), None
    width = max(n, pad)
    padded, where = np.zeros((1, width), np.int32), np.arange(width)[None] < n
    padded[0, :n] = ids
    if model.config.experts is not None:
        on = np.zeros(width, bool)
        on[:n] = False if tokens is None else tokens
        edit = interventions.suppress(GATE, no() if target is None else target, tokens=on)
    out = read(model, padded, where, edit)
    z = np.asarray(out.logits[0, :n], np.float64)
    top = z.max(1, keepdims=True)
    whole = z - top - np.log(np.exp(z - top).sum(1, keepdims=True))
    logp = np.array([whole[start + j - 1, y] for j, y in enumerate(ids[start:])])
    routing = (None, None) if edit is None else (out.routing.expert, out.routing.weight)
    return logp, *(a if a is None else a[0, :n] for a in routing), whole[start - 1 : n - 1]


@pytest.mark.parametrize("kind", ["mixture", "dense"])
def test_options_as_if_each_were_read_alone(kind, request):
    model = request.getfixturevalue(kind)
    scores = score_options(model, CONTEXTS, OPTIONS, batch_size=2)
    want = [
        [alone(model, c, y)[0].sum() for y in ys] for c, ys in zip(CONTEXTS, OPTIONS, strict=True)
    ]
    np.testing.assert_allclose(scores.logp, want, atol=1e-4, rtol=1e-5)
    np.testing.assert_array_equal(scores.length, [[1, 3], [2, 6], [3, 1]])
    bare = alone(model, CONTEXTS[2], OPTIONS[2][0], pad=0)[0].sum()
    np.testing.assert_allclose(scores.logp[2, 0], bare, atol=1e-4, rtol=1e-5)


def test_options_of_one_token_read_nothing_more(mixture):
    options = [[[4], [6], [9]]] * 3
    strong = interventions.suppress(GATE, target((0, 0), (1, 1)))
    plain = score_options(mixture, CONTEXTS, options, batch_size=2)
    want = [[alone(mixture, c, y)[0].sum() for y in options[0]] for c in CONTEXTS]
    np.testing.assert_allclose(plain.logp, want, atol=1e-4, rtol=1e-5)
    late = score_options(mixture, CONTEXTS, options, batch_size=2, edit_options=strong)
    np.testing.assert_array_equal(late.logp, plain.logp)


def test_options_under_edits_that_differ_by_prompt_and_position(mixture):
    targets = [target((0, 0), (1, 3)), target((1, 1)), target((0, 2), (1, 0))]
    others = [target((0, 1)), target((0, 3), (1, 2)), target((1, 1))]
    where = [np.array([0, 1, 0, 1, 1], bool), np.array([1], bool), np.array([1, 0, 0], bool)]
    found = score_options(
        mixture,
        CONTEXTS,
        OPTIONS,
        edit=side_by_side(*(interventions.suppress(GATE, t) for t in targets)),
        edit_where=where,
        batch_size=2,
    )
    late = score_options(
        mixture,
        CONTEXTS,
        OPTIONS,
        edit_options=side_by_side(*(interventions.suppress(GATE, t) for t in others)),
        batch_size=2,
    )
    for i, (context, options) in enumerate(zip(CONTEXTS, OPTIONS, strict=True)):
        for o, y in enumerate(options):
            on = [*where[i], *(False for _ in y)]
            want = alone(mixture, context, y, targets[i], on)[0].sum()
            np.testing.assert_allclose(found.logp[i, o], want, atol=1e-4, rtol=1e-5)
            on = [*(False for _ in context), *(True for _ in y)]
            want = alone(mixture, context, y, others[i], on)[0].sum()
            np.testing.assert_allclose(late.logp[i, o], want, atol=1e-4, rtol=1e-5)
    plain = score_options(mixture, CONTEXTS, OPTIONS, batch_size=2).logp
    assert (np.abs(found.logp - plain) > 1e-2).any()
    longer = found.length > 1
    assert (np.abs(late.logp - plain)[longer] > 1e-2).any()
    np.testing.assert_array_equal(late.logp[~longer], plain[~longer])


def test_edits_that_change_nothing_change_no_bit(mixture):
    base = score_options(mixture, CONTEXTS, OPTIONS, batch_size=2)
    texts = [y[1] for y in OPTIONS]
    read = score_text(mixture, CONTEXTS, texts, batch_size=2, full=True)
    nothing = interventions.identity(GATE, 2)
    strong = interventions.suppress(GATE, target((0, 0), (1, 1)))
    nowhere = [np.zeros(len(c), bool) for c in CONTEXTS]
    both = [np.zeros(len(c) + len(y), bool) for c, y in zip(CONTEXTS, texts, strict=True)]
    for edit, where, whole in (
        (nothing, None, None),
        (side_by_side(nothing, nothing, nothing), None, None),
        (interventions.bias(GATE, target((0, 0)), 0.0), None, None),
        (strong, nowhere, both),
        (side_by_side(strong, nothing, strong), nowhere, both),
    ):
        found = score_options(mixture, CONTEXTS, OPTIONS, edit=edit, edit_where=where, batch_size=2)
        np.testing.assert_array_equal(found.logp, base.logp)
        again = score_text(
            mixture, CONTEXTS, texts, edit=edit, edit_where=whole, batch_size=2, full=True
        )
        for a, b in zip(again, read, strict=True):
            for x, y in zip(a, b, strict=True):
                np.testing.assert_array_equal(x, y)
    found = score_options(mixture, CONTEXTS, OPTIONS, edit_options=nothing, batch_size=2)
    np.testing.assert_array_equal(found.logp, base.logp)


def test_an_edit_out_of_scope_of_its_own_stays_so(mixture):
    strong = interventions.suppress(GATE, target((0, 0), (1, 1)))
    off = strong._replace(tokens=jnp.zeros((2, 1), bool))
    everywhere = [np.ones(len(c), bool) for c in CONTEXTS]
    base = score_options(mixture, CONTEXTS, OPTIONS, batch_size=2).logp
    for edit in (off, side_by_side(off, off, off)):
        found = score_options(
            mixture, CONTEXTS, OPTIONS, edit=edit, edit_where=everywhere, batch_size=2
        )
        np.testing.assert_array_equal(found.logp, base)


def test_texts_their_routing_and_the_vocabulary(mixture):
    texts = [[4, 6, 2], np.array([], np.int32), list(range(25))]
    targets = [target((0, 0), (1, 3)), target((1, 1)), target((0, 2), (1, 0))]
    random = np.random.default_rng(0)
    where = [random.random(len(c) + len(x)) < 0.5 for c, x in zip(CONTEXTS, texts, strict=True)]
    edit = side_by_side(*(interventions.suppress(GATE, t) for t in targets))
    plain = score_text(mixture, CONTEXTS, texts, batch_size=2, full=True)
    edited = score_text(
        mixture, CONTEXTS, texts, edit=edit, edit_where=where, batch_size=2, full=True
    )
    for i, (context, text) in enumerate(zip(CONTEXTS, texts, strict=True)):
        for found, change in ((plain[i], ()), (edited[i], (targets[i], where[i]))):
            logp, expert, weight, whole = alone(mixture, context, text, *change)
            np.testing.assert_allclose(found.logp, logp, atol=1e-4, rtol=1e-5)
            np.testing.assert_allclose(found.vocabulary, whole, atol=1e-4, rtol=1e-5)
            np.testing.assert_array_equal(found.expert, expert)
            np.testing.assert_allclose(found.weight, weight, atol=1e-5)
        for layer, expert in np.argwhere(targets[i]):
            assert not (edited[i].expert[where[i], layer] == expert).any()
    assert plain[1].vocabulary.shape == (0, 40)
    long = list(range(35))
    (found,) = score_text(mixture, CONTEXTS[:1], [long], batch_size=1)
    assert found.vocabulary is None
    np.testing.assert_allclose(found.logp, alone(mixture, CONTEXTS[0], long)[0], atol=1e-4)


def test_texts_and_options_agree(mixture):
    scores = score_options(mixture, CONTEXTS, OPTIONS, batch_size=2)
    for o in range(2):
        read = score_text(mixture, CONTEXTS, [ys[o] for ys in OPTIONS], batch_size=2, full=True)
        np.testing.assert_allclose(scores.logp[:, o], [r.logp.sum() for r in read], atol=1e-4)


def test_a_dense_model_has_no_routing(dense):
    (found,) = score_text(dense, [[1, 2]], [[3, 4]], batch_size=1)
    np.testing.assert_allclose(found.logp, alone(dense, [1, 2], [3, 4])[0], atol=1e-4)
    assert found.expert is None
    assert found.weight is None
    edit = interventions.identity(GATE, 2)
    with pytest.raises(ValueError, match="edit given to a model without experts"):
        score_text(dense, [[1, 2]], [[3, 4]], edit=edit, batch_size=1)


def test_nothing_to_score(mixture):
    assert score_options(mixture, [], []).logp.shape == (0, 0)
    assert score_options(mixture, [[1], [2]], [[], []]).logp.shape == (2, 0)
    assert score_text(mixture, [], []) == []


@pytest.mark.parametrize(
    ("contexts", "options", "changes", "error", "message"),
    [
        ([[1], []], [[[1]]] * 2, {}, UserError, "context 1 is empty"),
        ([[1], [2]], [[[1]], [[]]], {}, UserError, "option 0 of context 1 is empty"),
        ([[1]], [[[40]]], {}, UserError, "option 0 of context 0 has the id 40"),
        ([[1] * 60], [[[1], [1] * 5]], {}, UserError, "its longest option have 65 tokens"),
        ([[1]], [], {}, ValueError, "options has 0 entries for 1 contexts"),
        ([[1], [2]], [[[1]], [[1], [2]]], {}, ValueError, "context 1 has 2 options, context 0 has"),
        ([[1]], [[[1]]], {"batch_size": 0}, UserError, "batch_size=0: must be at least 1"),
        ([[1]], [[[1]]], {"edit_where": []}, ValueError, "edit_where has 0 masks for 1 prompts"),
        (
            [[1]],
            [[[1]]],
            {"edit_where": [np.ones(2, bool)]},
            ValueError,
            r"edit_where\[0\] is bool \(2,\); prompt 0 has 1 tokens",
        ),
    ],
)
def test_what_is_refused(mixture, contexts, options, changes, error, message):
    plain = {"edit_where": None, "batch_size": 2, **changes}
    with pytest.raises(error, match=message):
        score_options(mixture, contexts, options, **plain)


def test_edits_and_texts_that_do_not_fit(mixture):
    one = interventions.identity(GATE, 2)
    two = side_by_side(one, one)
    for name in ("edit", "edit_options"):
        with pytest.raises(
            ValueError, match=f"{name}.* its second axis must be 1 or the 3 prompts"
        ):
            score_options(mixture, CONTEXTS, OPTIONS, **{name: two})
    short = interventions.identity(GATE, 1)
    with pytest.raises(ValueError, match=r"edit\.tokens has shape"):
        score_options(mixture, CONTEXTS, OPTIONS, edit=short, batch_size=2)
    with pytest.raises(ValueError, match="texts has 1 texts for 3 contexts"):
        score_text(mixture, CONTEXTS, [[1]])
    with pytest.raises(UserError, match="context 0 and its text have 65 tokens"):
        score_text(mixture, [[1] * 60], [[1] * 5])


def test_broken_weights():
    model = small(sparse=False)
    nnx.update(model, jax.tree.map(lambda a: a * jnp.nan, nnx.state(model)))
    with pytest.raises(UserError, match="logits are not numbers for prompt 0"):
        score_options(model, [[1]], [[[1], [2]]], batch_size=1)
    with pytest.raises(UserError, match="logits are not numbers for prompt 0"):
        score_text(model, [[1]], [[1]], batch_size=1)


def routes(rng, tokens):
    """Two different experts of each token and layer [t l k], some left as routed (-1)."""
    drawn = np.argsort(rng.random((tokens, 2, 4)), axis=2)[:, :, :2]
    drawn[rng.random((tokens, 2)) < 0.3] = -1
    return drawn


def under_routes(model, ids, drawn):
    """(log-probabilities of the next token [t v] in float64, experts [t l k]) of one text."""
    out = read(
        model, np.array([ids]), np.ones((1, len(ids)), bool), interventions.replay(GATE, drawn)
    )
    z = np.asarray(out.logits[0], np.float64)
    return z - np.log(np.exp(z).sum(1, keepdims=True)), np.asarray(out.routing.expert[0])


def test_texts_under_routes_of_their_own(mixture):
    rng = np.random.default_rng(1)
    texts = [[4, 6], [39, 8, 7], [1]]
    whole = [[*map(int, c), *y] for c, y in zip(CONTEXTS, texts, strict=True)]
    drawn = [routes(rng, len(ids)) for ids in whole]
    edits = [interventions.replay(GATE, r) for r in drawn]
    found = score_text(mixture, CONTEXTS, texts, edit=edits, batch_size=2)
    for ids, text, given, mine in zip(whole, texts, drawn, found, strict=True):
        said, expert = under_routes(mixture, ids, given)
        start = len(ids) - len(text)
        want = [said[start + j - 1, y] for j, y in enumerate(text)]
        np.testing.assert_allclose(mine.logp, want, atol=1e-4, rtol=1e-5)
        np.testing.assert_array_equal(mine.expert, expert)
        np.testing.assert_array_equal(expert[given >= 0], given[given >= 0])


def test_options_under_routes_of_their_own(mixture):
    """Every option of a context takes the same routes after those of the context."""
    rng = np.random.default_rng(2)
    before, after = [routes(rng, len(c)) for c in CONTEXTS], [routes(rng, 5) for _ in CONTEXTS]
    scores = score_options(
        mixture,
        CONTEXTS,
        OPTIONS,
        edit=[interventions.replay(GATE, r) for r in before],
        edit_options=[interventions.replay(GATE, r) for r in after],
        batch_size=2,
    )
    for n, (context, options) in enumerate(zip(CONTEXTS, OPTIONS, strict=True)):
        for o, y in enumerate(options):
            ids = [*map(int, context), *y]
            drawn = np.concatenate([before[n], after[n][: len(y) - 1], np.full((1, 2, 2), -1)])
            said, _ = under_routes(mixture, ids, drawn)
            want = sum(said[len(context) + j - 1, token] for j, token in enumerate(y))
            np.testing.assert_allclose(scores.logp[n, o], want, atol=1e-4, rtol=1e-5)
    plain = score_options(mixture, CONTEXTS, OPTIONS, batch_size=2).logp
    assert np.abs(plain - scores.logp).max() > 0.1


def test_lists_of_edits_that_do_not_fit(mixture):
    edits = [interventions.identity(GATE, 2)] * 3
    with pytest.raises(ValueError, match="edit is a list of 2 edits for 3 prompts"):
        score_options(mixture, CONTEXTS, OPTIONS, edit=edits[:2], batch_size=2)
    long = interventions.identity(GATE, 2, tokens=np.ones(6, bool))
    with pytest.raises(ValueError, match=r"edit_options\[0\].tokens has shape .*the 5 tokens"):
        score_options(mixture, CONTEXTS, OPTIONS, edit_options=[long, *edits[1:]], batch_size=2)
