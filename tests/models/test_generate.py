"""Generation against reading the whole text again for every token, without a cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_jax.errors import UserError
from moe_jax.gating import GateConfig, RoutingEdit
from moe_jax.models import CausalConfig, CausalLM, ExpertsConfig, SamplingConfig, generate
from tests.edits import side_by_side

PROMPTS = [[5, 7, 9, 11, 2], [3], [8, 1, 30]]
GATES = {
    "dense": None,
    "top-2": GateConfig(num_experts=4, k=2, renormalise=True),
    "switch": GateConfig(num_experts=4, k=1, jitter=0.01),
}


def small(kind, **changes):
    """A small model with weights of a size that matters."""
    gate = GATES[kind]
    experts = None if gate is None else ExpertsConfig(gate=gate, d_expert=16, layers=(0, 1))
    sizes = {"vocab_size": 40, "d_model": 24, "num_layers": 2, "d_ff": 32, "max_length": 64}
    model = CausalLM(
        CausalConfig(**sizes, num_kv_heads=2, experts=experts, **changes), rngs=nnx.Rngs(0)
    )
    nnx.update(model, jax.tree.map(lambda a: a * 6 if a.ndim > 1 else a, nnx.state(model)))
    return model


@pytest.fixture(scope="module")
def mixture():
    return small("top-2")


def read_again(model, prompt, steps):
    """Greedy tokens and the routing of the whole text, read anew for each token in one padded row."""
    model.eval()
    text = list(prompt)
    run = nnx.jit(lambda m, ids, where: m(ids, where))
    for _ in range(steps):
        ids, where = np.zeros((1, 16), np.int32), np.zeros((1, 16), bool)
        ids[0, : len(text)], where[0, : len(text)] = text, True
        out = run(model, ids, where)
        text.append(int(np.argmax(out.logits[0, len(text) - 1])))
    model.train()
    return text[len(prompt) :], out


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("dense", {}), ("top-2", {"window": 3}), ("switch", {})],
)
def test_as_without_a_cache(kind, changes):
    model = small(kind, **changes)
    for prompt, found in zip(PROMPTS, generate(model, PROMPTS, max_new_tokens=6), strict=True):
        ids, out = read_again(model, prompt, 6)
        assert found.ids.tolist() == ids
        assert (found.finish, found.stopped_by, found.prompt_tokens) == (
            "length",
            None,
            len(prompt),
        )
        n = len(prompt) + 5
        logp = jax.nn.log_softmax(out.logits[0])[len(prompt) - 1 : n]
        np.testing.assert_allclose(found.logprob, logp[np.arange(6), ids], atol=1e-3)
        if kind == "dense":
            assert found.routing is None
            continue
        for name in ("expert", "weight", "probs"):
            mine, whole = getattr(found.routing, name), getattr(out.routing, name)[0, :n]
            np.testing.assert_allclose(mine, whole, atol=1e-4)


def test_each_prompt_as_if_alone(mixture):
    sampled = SamplingConfig(temperature=1.0, top_p=0.9)
    together = generate(mixture, PROMPTS, max_new_tokens=5)
    for prompt, found in zip(PROMPTS, together, strict=True):
        (alone,) = generate(mixture, [prompt], max_new_tokens=5)
        assert alone.ids.tolist() == found.ids.tolist()
        np.testing.assert_array_equal(alone.routing.expert, found.routing.expert)
    runs = [
        [
            g.ids.tolist()
            for g in generate(mixture, PROMPTS, max_new_tokens=5, sampling=sampled, seed=s)
        ]
        for s in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_edits_act_in_their_phase(mixture):
    gate = mixture.config.experts.gate

    def edits(expert):
        one = RoutingEdit.make(gate, suppress=[expert])
        return jax.tree.map(lambda *a: jnp.stack(a), one, one)

    base = generate(mixture, PROMPTS, max_new_tokens=6)
    each = side_by_side(*(edits(e) for e in range(3)))
    for number in range(3):
        n = len(PROMPTS[number])
        want = base[number].routing.expert
        late = generate(mixture, PROMPTS, max_new_tokens=6, edit_generated=edits(0))[number]
        np.testing.assert_array_equal(late.routing.expert[:n], want[:n])
        assert not (late.routing.expert[n:] == 0).any()
        early = generate(mixture, PROMPTS, max_new_tokens=6, edit_prompt=each)[number]
        assert not (early.routing.expert[:n] == number).any()
        alone = generate(mixture, [PROMPTS[number]], max_new_tokens=6, edit_prompt=edits(number))
        np.testing.assert_array_equal(early.routing.expert, alone[0].routing.expert)
    assert any((g.routing.expert[g.prompt_tokens :] == 0).any() for g in base)
    with pytest.raises(ValueError, match="its second axis must be 1 or the 1 prompts"):
        generate(mixture, PROMPTS[:1], max_new_tokens=2, edit_prompt=each)


def test_stops_and_the_callback(mixture):
    base = generate(mixture, PROMPTS, max_new_tokens=6)
    stop = int(base[0].ids[2])
    seen = []
    found = generate(
        mixture,
        PROMPTS,
        max_new_tokens=6,
        stop_ids=(stop,),
        on_token=lambda step, ids: seen.append((step, ids.tolist())),
    )
    for was, now in zip(base, found, strict=True):
        ids = was.ids.tolist()
        n = ids.index(stop) + 1 if stop in ids else 6
        assert now.ids.tolist() == ids[:n]
        assert now.finish == ("stop" if stop in ids else "length")
        assert now.content.tolist() == [i for i in ids[:n] if i != stop]
        assert len(now.routing.expert) == now.prompt_tokens + n - 1
    assert [step for step, _ in seen] == list(range(max(len(g.ids) for g in found)))
    for row, g in enumerate(found):
        column = [ids[row] for _, ids in seen]
        assert column == g.ids.tolist() + [-1] * (len(seen) - len(g.ids))


def test_a_stop_text_across_tokens(mixture):
    def decode(ids):
        return "".join(f"<{i}>" for i in ids)

    ids = generate(mixture, PROMPTS, max_new_tokens=6)[0].ids
    text = f"{ids[1]}><{ids[2]}"
    (found,) = generate(
        mixture, PROMPTS[:1], max_new_tokens=6, stop_texts=("no", text), decode=decode
    )
    ends = [n for n in range(1, 7) if text in decode(ids[:n])]
    assert found.ids.tolist() == found.content.tolist() == ids[: ends[0]].tolist()
    assert (found.finish, found.stopped_by) == ("stop", text)


@pytest.mark.parametrize(
    ("prompts", "changes", "error", "message"),
    [
        ([[1], []], {}, UserError, "prompt 1 is empty"),
        ([[1], [2] * 61], {}, UserError, "prompt 1 has 61 tokens and max_new_tokens=4: more than "),
        ([[1, 40]], {}, UserError, "prompt 0 has the id 40; the model has 0 to 39"),
        ([[1]], {"max_new_tokens": 0}, UserError, "max_new_tokens=0: must be at least 1"),
        ([[1]], {"stop_ids": (40,)}, UserError, "stop_ids: 40 is not one of the ids 0 to 39"),
        ([[1]], {"pad_id": -1}, UserError, "pad_id: -1 is not"),
        ([[1]], {"stop_texts": ("",), "decode": str}, UserError, "has an empty text"),
        ([[1]], {"stop_texts": ("a",)}, ValueError, "stop_texts need decode"),
        ([[1]], {"sampling": SamplingConfig(top_p=2.0)}, UserError, "sampling.top_p=2.0"),
    ],
)
def test_what_is_refused(mixture, prompts, changes, error, message):
    with pytest.raises(error, match=message):
        generate(mixture, prompts, **{"max_new_tokens": 4, **changes})


def test_no_prompts_and_broken_weights(mixture):
    assert generate(mixture, [], max_new_tokens=3) == []
    broken = small("dense")
    nnx.update(broken, jax.tree.map(lambda a: a * jnp.nan, nnx.state(broken)))
    with pytest.raises(UserError, match="logits are not numbers after 0 new tokens of prompt 0"):
        generate(broken, [[1]], max_new_tokens=2)


def test_programs_are_compiled_once_for_models_of_one_structure(monkeypatch):
    traced, call = [], CausalLM.__call__

    def counted(self, ids, *args, **kwargs):
        traced.append(ids.shape)
        return call(self, ids, *args, **kwargs)

    monkeypatch.setattr(CausalLM, "__call__", counted)
    # A window that no other test has: nothing is compiled yet.
    for scale in (1.0, 2.0):
        model = small("dense", window=11)
        nnx.update(model, jax.tree.map(lambda a, s=scale: a * s, nnx.state(model)))
        generate(model, PROMPTS, max_new_tokens=3)
        generate(model, PROMPTS, max_new_tokens=2, seed=1)
    assert traced == [(3, 32), (3, 1)]
