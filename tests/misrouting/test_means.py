"""Mean outputs of experts against loops; models whose experts give them instead of their own."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

from moe_jax.errors import UserError
from moe_jax.gating import GateConfig
from moe_jax.misrouting import interventions
from moe_jax.misrouting.means import expert_means
from moe_jax.models import (
    CausalConfig,
    CausalLM,
    ExpertsConfig,
    generate,
    score_options,
    score_text,
)
from tests.edits import side_by_side

GATE = GateConfig(num_experts=4, k=2, renormalise=True)
TEXTS = [[5, 7, 9, 11, 2], [3], np.array([8, 1, 30]), [4, 4, 17, 21]]
LAYERS, D = (0, 2), 16
TARGET = np.array([[True, False, True, False], [False, True, False, True]])


def small(gate=GATE, **changes):
    experts = None if gate is None else ExpertsConfig(gate=gate, d_expert=12, layers=LAYERS)
    sizes = {"vocab_size": 40, "d_model": D, "num_layers": 3, "d_ff": 24, "max_length": 64}
    model = CausalLM(
        CausalConfig(**sizes, num_kv_heads=2, experts=experts, **changes), rngs=nnx.Rngs(0)
    )
    nnx.update(model, jax.tree.map(lambda a: a * 6 if a.ndim > 1 else a, nnx.state(model)))
    return model


@pytest.fixture(scope="module")
def mixture():
    return small()


@pytest.fixture(scope="module")
def means(mixture):
    return expert_means(mixture, TEXTS, batch_size=3)


ask = nnx.jit(lambda model, ids, where: model(ids, where, mixture_inputs=True))
read = nnx.jit(lambda model, ids, where, edit: model(ids, where, edit=edit))


def right(text, width=8):
    """Ids and mask [1 width], the padding after the text."""
    ids, where = np.zeros((1, width), np.int32), np.arange(width)[None] < len(text)
    ids[0, : len(text)] = text
    return jnp.asarray(ids), jnp.asarray(where)


def looped(model, texts):
    """Sums and numbers of tokens, text by text, in float64."""
    mixtures = [model.layers[i].ffn for i in LAYERS]
    total, tokens = np.zeros((2, 4, D)), np.zeros((2, 4), int)
    for text in texts:
        out = ask(model, *right(text))
        for t in range(len(text)):
            for m, moe in enumerate(mixtures):
                x = np.asarray(out.inputs[0, t, m], np.float64)
                for e in np.asarray(out.routing.expert[0, t, m]):
                    if e < 4:
                        inner = x @ np.asarray(moe.w_gate_edf[e], np.float64)
                        up = x @ np.asarray(moe.w_in_edf[e], np.float64)
                        hidden = inner / (1 + np.exp(-inner)) * up
                        total[m, e] += hidden @ np.asarray(moe.w_out_efd[e], np.float64)
                        tokens[m, e] += 1
    return total, tokens


@pytest.mark.parametrize("batch_size", [1, 3])
def test_means_against_the_loop(mixture, batch_size):
    found = expert_means(mixture, TEXTS, batch_size=batch_size, pad_id=7)
    total, tokens = looped(mixture, TEXTS)
    np.testing.assert_array_equal(found.tokens, tokens)
    assert found.tokens.sum() == 2 * 2 * sum(map(len, TEXTS))
    assert found.mean.dtype == np.float32
    want = total / np.maximum(tokens, 1)[..., None]
    np.testing.assert_allclose(found.mean, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_what_a_capacity_drops_does_not_count():
    model = small(GateConfig(num_experts=4, k=1, capacity=1))
    found = expert_means(model, TEXTS, batch_size=3)
    total, tokens = looped(model, TEXTS)
    np.testing.assert_array_equal(found.tokens, tokens)
    assert found.tokens.sum() < 2 * sum(map(len, TEXTS))
    want = total / np.maximum(tokens, 1)[..., None]
    np.testing.assert_allclose(found.mean, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_an_expert_that_no_token_has():
    model = small()
    for i in LAYERS:
        gate = model.layers[i].ffn.gate
        # Equal logits: ties go to the experts 0 and 1.
        gate.w_de[...] = jnp.zeros_like(gate.w_de[...])
    found = expert_means(model, TEXTS)
    n = sum(map(len, TEXTS))
    assert found.tokens.tolist() == [[n, n, 0, 0]] * 2
    assert not found.mean[:, 2:].any()
    assert found.mean[:, :2].any(axis=-1).all()


class Replaced(nnx.Module):
    """A mixture as one dense sum, in which some experts give a constant."""

    def __init__(self, moe, gone, own):
        self.moe, self.gone, self.own = moe, tuple(np.flatnonzero(gone).tolist()), own.tolist()

    def __call__(self, h, *, edit, where, segments):
        moe, x = self.moe, h.reshape(-1, h.shape[-1])
        routing = moe.gate(x, where=where.reshape(-1))
        rows = jnp.arange(len(x))[:, None]
        weight = jnp.zeros((len(x), 4)).at[rows, routing.expert].add(routing.weight, mode="drop")
        up = jnp.einsum("td,edf->tef", x, moe.w_in_edf[...])
        hidden = jax.nn.silu(jnp.einsum("td,edf->tef", x, moe.w_gate_edf[...])) * up
        y = jnp.einsum("tef,efd->ted", hidden, moe.w_out_efd[...])
        for e in self.gone:
            y = y.at[:, e].set(jnp.asarray(self.own[e])[None])
        return jnp.einsum("te,ted->td", weight, y).reshape(h.shape), routing


@pytest.fixture(scope="module")
def replaced(means):
    model = small()
    for m, i in enumerate(LAYERS):
        model.layers[i].ffn = Replaced(model.layers[i].ffn, TARGET[m], means.mean[m])
    return model


@pytest.fixture(scope="module")
def edit(means):
    return interventions.mean_ablate(GATE, TARGET, means.mean)


def test_generation_under_means(mixture, replaced, edit):
    found = generate(mixture, TEXTS, max_new_tokens=3, edit_prompt=edit, edit_generated=edit)
    for text, one in zip(TEXTS, found, strict=True):
        ids, where = right([*text, *one.ids])
        logp = jax.nn.log_softmax(read(replaced, ids, where, None).logits[0])
        want = [logp[len(text) - 1 + j, y] for j, y in enumerate(one.ids)]
        np.testing.assert_allclose(one.logprob, want, atol=1e-3)
        experts, weight = one.routing.expert, one.routing.weight
        gone = TARGET[np.arange(2)[None, :, None], experts]
        assert not weight[gone].any()
        assert weight[~gone].all()
    zeroed = edit._replace(stand_in=edit.stand_in * 0)
    silent = generate(mixture, TEXTS, max_new_tokens=3, edit_prompt=zeroed, edit_generated=zeroed)
    gaps = [abs(a.logprob[0] - b.logprob[0]) for a, b in zip(found, silent, strict=True)]
    assert max(gaps) > 0.05


def test_scores_under_means(mixture, replaced, edit):
    options = [[[4], [6, 2, 9]]] * len(TEXTS)
    found = score_options(mixture, TEXTS, options, edit=edit, edit_options=edit, batch_size=3)
    for i, text in enumerate(TEXTS):
        for o, option in enumerate(options[i]):
            ids, where = right([*text, *option])
            logp = jax.nn.log_softmax(read(replaced, ids, where, None).logits[0])
            want = sum(logp[len(text) - 1 + j, y] for j, y in enumerate(option))
            np.testing.assert_allclose(found.logp[i, o], want, atol=1e-3)
    whole = score_text(mixture, TEXTS, [y[1] for y in options], edit=edit, batch_size=3)
    for i, one in enumerate(whole):
        np.testing.assert_allclose(one.logp.sum(), found.logp[i, 1], atol=1e-3)


def test_scope_and_prompts_with_targets_of_their_own(mixture, edit):
    """Prompts share the means; each has its own experts, at its own tokens."""
    nobody, half = np.zeros((2, 4), bool), TARGET & [[True, True, False, False]]
    own = [interventions.zero(GATE, t)._replace(stand_in=edit.stand_in) for t in (half, nobody)]
    masks = [np.arange(len(t)) % 2 == 0 for t in TEXTS]
    follow = [[9, 1], [2], [7], [30]]
    where = [np.append(m, np.zeros(len(f), bool)) for m, f in zip(masks, follow, strict=True)]
    edits = [edit, own[0], edit, own[1]]
    found = score_text(
        mixture, TEXTS, follow, edit=side_by_side(*edits), edit_where=where, batch_size=3
    )
    for text, more, mask, one, got in zip(TEXTS, follow, where, edits, found, strict=True):
        ids, real = right([*text, *more], width=8)
        on = np.pad(mask, (0, 8 - len(mask)))
        tokens = jnp.broadcast_to(jnp.asarray(on)[None], (2, 8))
        logp = jax.nn.log_softmax(
            read(mixture, ids, real, one._replace(tokens=tokens)).logits[0].astype(float)
        )
        want = [logp[len(text) - 1 + j, y] for j, y in enumerate(more)]
        np.testing.assert_allclose(got.logp, want, atol=1e-3)
    nothing = side_by_side(*[own[1]] * 4)
    plain = score_text(mixture, TEXTS, follow, edit=nothing, batch_size=3)
    np.testing.assert_allclose(plain[3].logp, found[3].logp, atol=1e-5)
    assert abs(plain[0].logp[0] - found[0].logp[0]) > 0.01


def test_many_at_once(mixture, replaced, means, edit):
    """Edits without means (their stand-in has a width of 1) beside one that has them."""
    edits = [
        interventions.identity(GATE, 2),
        interventions.zero(GATE, TARGET),
        interventions.mean_ablate(GATE, TARGET & False, means.mean),
        edit,
    ]
    ids, where = right(TEXTS[0])
    run = nnx.jit(lambda model, e: jax.vmap(lambda e: model(ids, where, edit=e).logits)(e))
    found = run(mixture, interventions.stack(edits))
    plain = read(mixture, ids, where, None).logits
    silent = edit._replace(stand_in=edit.stand_in * 0)
    wants = [plain, read(mixture, ids, where, silent).logits, plain]
    wants.append(read(replaced, ids, where, None).logits)
    for got, want in zip(found, wants, strict=True):
        np.testing.assert_allclose(got[0, :5], want[0, :5], atol=2e-3)
    assert np.abs(found[1, 0, :5] - found[3, 0, :5]).max() > 0.05


def test_nobody_ablated_is_bitwise_no_edit(mixture, means):
    none = interventions.mean_ablate(GATE, TARGET & False, means.mean)
    ids, where = right(TEXTS[0])
    a, b = (read(mixture, ids, where, e) for e in (None, none))
    assert np.asarray(a.logits).tobytes() == np.asarray(b.logits).tobytes()


@pytest.mark.parametrize(
    ("texts", "changes", "error", "message"),
    [
        ([], {}, ValueError, "texts is empty"),
        ([[1], []], {}, UserError, "text 1 is empty"),
        ([[1], [40]], {}, UserError, "text 1 has the id 40; the model has 0 to 39"),
        ([[1] * 65], {}, UserError, "text 0 has 65 tokens: more than the context of 64"),
        ([[1]], {"batch_size": 0}, UserError, "batch_size=0: must be at least 1"),
    ],
)
def test_bad_input(mixture, texts, changes, error, message):
    with pytest.raises(error, match=message):
        expert_means(mixture, texts, **changes)


def test_models_that_have_no_means():
    with pytest.raises(ValueError, match="model has no layer with experts"):
        expert_means(small(None), TEXTS)
    broken = small()
    weights = broken.layers[0].ffn.w_out_efd
    weights[...] = weights[...] * jnp.nan
    with pytest.raises(UserError, match="the experts' outputs are not numbers"):
        expert_means(broken, TEXTS)


def test_means_for_another_model(mixture, means, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    narrow = interventions.mean_ablate(GATE, TARGET, means.mean[..., :5])
    with pytest.raises(ValueError, match=r"stand_in has shape .*, the layer has d_model=16"):
        read(mixture, *right(TEXTS[0]), narrow)
