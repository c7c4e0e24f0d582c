"""Causal language models against loops in float64, loaded from folders and saved to them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_jax.errors import UserError
from moe_jax.gating import GateConfig, RoutingEdit
from moe_jax.layers import ExpertOptions
from moe_jax.models import (
    CausalConfig,
    CausalLM,
    ExpertsConfig,
    RopeConfig,
    causal_families,
    load_lm,
    save_lm,
)
from tests.models import causal_oracle, small_causal

IDS = np.random.RandomState(1).randint(0, 40, (2, 9))


@nnx.jit
def read(model, ids, where=None, cache=None):
    """Compiled whole, which takes less time than operation by operation."""
    return model(ids, where, cache=cache)


def moe(**changes):
    """A small model with experts in layers 0 and 2, random weights of a size that matters."""
    gate = changes.pop("gate", GateConfig(num_experts=4, k=2))
    names = ("options", "selection_bias")
    more = {name: changes.pop(name) for name in names if name in changes}
    experts = ExpertsConfig(gate=gate, d_expert=16, layers=(0, 2), **more)
    sizes = {"vocab_size": 40, "d_model": 24, "num_layers": 3, "d_ff": 32, "max_length": 64}
    config = CausalConfig(**sizes, num_kv_heads=2, experts=experts, **changes)
    model = CausalLM(config, rngs=nnx.Rngs(0))
    # Initial weights are small; these make attention and gates decide something.
    state = jax.tree.map(lambda a: a * 6 if a.ndim > 1 else a, nnx.state(model))
    nnx.update(model, state)
    return model


@pytest.mark.parametrize("name", small_causal.CONFIGS)
def test_every_architecture_against_the_loop(name, tmp_path):
    config = small_causal.CONFIGS[name]
    found = load_lm(small_causal.write(tmp_path, config))
    out = read(found.model, jnp.asarray(IDS))
    assert found.stop_ids == (3,)
    for row, ids in enumerate(IDS):
        logits, expert, weight = causal_oracle.run(config, small_causal.tensors(config), ids)
        np.testing.assert_allclose(out.logits[row], logits, atol=2e-5 * np.abs(logits).max())
        if expert is None:
            assert out.routing is None
        else:
            np.testing.assert_array_equal(out.routing.expert[row], expert)
            np.testing.assert_allclose(out.routing.weight[row], weight, atol=1e-5)


@pytest.mark.parametrize("name", small_causal.CONFIGS)
@pytest.mark.parametrize("max_bytes", [10**9, 9_000])
def test_saved_and_loaded_again(name, max_bytes, tmp_path):
    first = load_lm(small_causal.write(tmp_path / "first", small_causal.CONFIGS[name]))
    second = tmp_path / "a" / "second"
    save_lm(first.model, second, tokenizer=first.tokenizer, stop_ids=(3,), max_bytes=max_bytes)
    shards = sorted(second.glob("*.safetensors"))
    assert (len(shards) > 1) == (max_bytes == 9_000)
    assert len(list(second.glob(".*"))) + len(list(second.glob("part*"))) == 0
    again = load_lm(second)
    assert again.stop_ids == (3,)
    a, b = nnx.state(first.model), nnx.state(again.model)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    raw = json.loads((second / "config.json").read_text())
    assert raw["model_type"] == small_causal.CONFIGS[name]["model_type"]
    with pytest.raises(UserError, match="exists already"):
        save_lm(first.model, second)


@pytest.mark.parametrize("changes", [{}, {"window": 3}, {"gate": GateConfig(num_experts=4, k=1)}])
def test_in_pieces_with_a_cache(changes):
    model = moe(**changes)
    whole = read(model, jnp.asarray(IDS))
    cache, start = model.empty_cache(2, 12), 0
    for stop in (4, 5, 9):
        out = read(model, jnp.asarray(IDS[:, start:stop]), None, cache)
        np.testing.assert_allclose(out.logits, whole.logits[:, start:stop], atol=1e-4)
        np.testing.assert_array_equal(out.routing.expert, whole.routing.expert[:, start:stop])
        cache, start = out.cache, stop
    assert int(cache.used) == 9
    assert not np.asarray(cache.where)[:, 9:].any()


@pytest.mark.parametrize("before", [True, False])
def test_padding_changes_nothing(before):
    model = moe(gate=GateConfig(num_experts=4, k=2, capacity=3))
    short = jnp.asarray(IDS[:1, :6])
    alone = read(model, short)
    pad = ((0, 0), (3, 0)) if before else ((0, 0), (0, 3))
    ids = jnp.concatenate([jnp.pad(short, pad), jnp.asarray(IDS[1:])])
    where = jnp.concatenate([jnp.pad(jnp.ones((1, 6), bool), pad), jnp.ones((1, 9), bool)])
    out = read(model, ids, where)
    mine = slice(3, 9) if before else slice(0, 6)
    np.testing.assert_allclose(out.logits[0, mine], alone.logits[0], atol=1e-4)
    np.testing.assert_array_equal(out.routing.expert[0, mine], alone.routing.expert[0])
    rest = np.ones(9, bool)
    rest[mine] = False
    assert np.all(np.asarray(out.routing.expert[0])[rest] == 4)
    last = model(ids, where, last_only=True)
    np.testing.assert_allclose(last.logits[:, 0], out.logits[:, -1], atol=1e-5)


def test_padding_before_the_text_and_a_cache():
    model = moe()
    ids, where = np.zeros((2, 8), int), np.ones((2, 8), bool)
    ids[0], ids[1, 3:], where[1, :3] = IDS[0, :8], IDS[1, :5], False
    first = read(model, jnp.asarray(ids), jnp.asarray(where), model.empty_cache(2, 16))
    nxt = read(model, jnp.asarray([[7], [9]]), None, first.cache)
    for row, text in enumerate(([*IDS[0, :8], 7], [*IDS[1, :5], 9])):
        alone = read(model, jnp.asarray([text]))
        np.testing.assert_allclose(nxt.logits[row, 0], alone.logits[0, -1], atol=1e-4)


def test_edits_by_layer_and_vmapped():
    model = moe()
    gate = model.config.experts.gate
    identity = RoutingEdit.identity(gate)
    base = model(jnp.asarray(IDS))

    def layers(*edits):
        return jax.tree.map(lambda *a: jnp.stack(a), *edits)

    edits = [layers(RoutingEdit.make(gate, suppress=[e]), identity) for e in range(4)]
    edits.append(layers(identity, identity))
    run = jax.jit(jax.vmap(lambda edit: model(jnp.asarray(IDS), edit=edit)))
    out = run(layers(*edits))
    for e in range(4):
        assert not (out.routing.expert[e, :, :, 0] == e).any()
    assert (out.routing.expert[0, :, :, 1] == 0).any()
    one = model(jnp.asarray(IDS), edit=edits[4])
    np.testing.assert_array_equal(one.logits, base.logits)
    np.testing.assert_array_equal(out.routing.expert[4], base.routing.expert)
    with pytest.raises(ValueError, match="leading axis of the 2 layers"):
        model(jnp.asarray(IDS), edit=identity)
    dense = CausalLM(CausalConfig(num_layers=1, d_model=16), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="without experts"):
        dense(jnp.asarray(IDS), edit=edits[0])


def test_what_the_mixtures_read():
    """The gates' logits are those of these inputs; nothing else changes by a bit."""
    model = moe(gate=GateConfig(num_experts=4, k=2, renormalise=True))
    where = jnp.asarray(np.arange(9)[None] < [[9], [6]])
    ask = nnx.jit(lambda model, ids: model(ids, where, mixture_inputs=True))
    plain, out = read(model, jnp.asarray(IDS), where), ask(model, jnp.asarray(IDS))
    assert plain.inputs is None
    assert out.inputs.shape == (2, 9, 2, 24)
    for number, layer in enumerate((0, 2)):
        logits = np.asarray(out.inputs[:, :, number]) @ model.layers[layer].ffn.gate.w_de[...]
        own = np.asarray(out.routing.logits[:, :, number])
        np.testing.assert_allclose(logits[where], own[where], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(out.logits, plain.logits, atol=1e-5)
    np.testing.assert_array_equal(out.routing.expert, plain.routing.expert)
    dense = CausalLM(CausalConfig(vocab_size=40, num_layers=1, d_model=16), rngs=nnx.Rngs(0))
    assert dense(jnp.asarray(IDS), mixture_inputs=True).inputs is None


def test_gradients_are_those_of_finite_differences():
    model = moe(gate=GateConfig(num_experts=4, k=4))  # no choice, so the loss is smooth
    graph, state = nnx.split(model)

    def loss(state):
        out = nnx.merge(graph, state)(jnp.asarray(IDS))
        logp = jax.nn.log_softmax(out.logits[:, :-1])
        return -jnp.mean(jnp.take_along_axis(logp, jnp.asarray(IDS)[:, 1:, None], 2))

    grads = jax.jit(jax.grad(loss))(state)
    direction = jax.tree.map(lambda g: g / (jnp.linalg.norm(g) + 1e-9), grads)
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, v: jnp.sum(g * v), grads, direction)))
    step = 3e-3
    loss = jax.jit(loss)
    ahead = loss(jax.tree.map(lambda a, v: a + step * v, state, direction))
    behind = loss(jax.tree.map(lambda a, v: a - step * v, state, direction))
    np.testing.assert_allclose((ahead - behind) / (2 * step), slope, rtol=2e-2)


def test_bfloat16_keeps_the_router_in_float32(tmp_path):
    folder = small_causal.write(tmp_path, small_causal.CONFIGS["qwen2_moe"])
    found = load_lm(folder, dtype="bfloat16")
    kinds = {str(v[...].dtype) for _, v in nnx.to_flat_state(nnx.state(found.model))}
    assert kinds == {"bfloat16", "float32"}
    assert found.model.layers[0].ffn.gate.w_de[...].dtype == jnp.float32
    out = read(found.model, jnp.asarray(IDS))
    assert out.logits.dtype == out.routing.weight.dtype == jnp.float32
    exact = read(load_lm(folder).model, jnp.asarray(IDS)).logits
    assert np.abs(out.logits - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 3}, "model.num_kv_heads=3: must divide model.num_heads=4"),
        ({"num_heads": 5, "num_kv_heads": 5}, "model.num_heads=5: must divide model.d_model=128"),
        ({"head_dim": 7}, "model.head_dim=7: must give heads of an even width"),
        ({"qk_norm": "some"}, "model.qk_norm='some': must be one of none, head, all"),
        ({"window": 0}, "model.window=0: must be"),
        ({"clip_qkv": -1.0}, "model.clip_qkv=-1.0: must be more than 0"),
        ({"rope": RopeConfig(scaling="yarn")}, "model.rope.scaling='yarn': must be one of"),
        ({"experts": ExpertsConfig(layers=(4,))}, "must be different layers from 0 to 3"),
        ({"experts": ExpertsConfig(layers=())}, "experts=None: all"),
        ({"experts": ExpertsConfig(shared_gate=True)}, "must come with model.experts.d_shared"),
        (
            {"experts": ExpertsConfig(gate=GateConfig(k=9))},
            "model.experts.gate.k=9: must be at most",
        ),
        ({"experts": ExpertsConfig(gate=GateConfig(choice="expert"))}, "see those that come later"),
    ],
)
def test_configs_that_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        CausalConfig(**changes).validate("model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "gpt2"},
            "model_type='gpt2' is not covered; covered are llama, mixtral, olmoe",
        ),
        ({"hidden_size": None}, r"config\.json: hidden_size=None must be a whole number >= 1"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type='yarn' is not covered"),
        ({"mlp_bias": True}, "mlp_bias=True is not covered"),
        ({"hidden_act": "tanh"}, "hidden_act='tanh' is not covered; one of gelu"),
        ({"vocab_size": 41}, r"weight has shape \(40, 24\), its config asks for \(41, 24\)"),
        ({"num_hidden_layers": 4}, "lacks tensors that its config calls for: model.layers.3"),
        ({"num_hidden_layers": 2}, "has tensors that its config does not describe: model.layers.2"),
        ({"vocab_size": 39}, "the tokenizer has ids up to 39"),
        ({"eos_token_id": "x"}, "eos_token_id='x' must be a whole number"),
    ],
)
def test_folders_that_are_refused(changes, message, tmp_path):
    config = small_causal.CONFIGS["llama"]
    folder = small_causal.write(tmp_path, config)
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=message):
        load_lm(folder)


def test_missing_folder_field_and_shard(tmp_path):
    with pytest.raises(UserError, match="is not a folder with config"):
        load_lm(tmp_path / "none")
    config = small_causal.CONFIGS["mixtral"]
    folder = small_causal.write(tmp_path / "a", config)
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k != "num_local_experts"})
    )
    with pytest.raises(UserError, match="lacks the field 'num_local_experts'"):
        load_lm(folder)
    found = load_lm(small_causal.write(tmp_path / "b", config))
    save_lm(found.model, tmp_path / "c", tokenizer=found.tokenizer, max_bytes=9_000)
    second = sorted((tmp_path / "c").glob("model-00002*"))[0]
    second.unlink()
    with pytest.raises(
        UserError, match=r"model-00002-of-.*which model.safetensors.index.json lists"
    ):
        load_lm(tmp_path / "c")


def test_older_files_say_the_same():
    new = small_causal.CONFIGS["llama tied, biased, stretched"]
    rope = dict(new["rope_parameters"])
    old = {k: v for k, v in new.items() if k != "rope_parameters"}
    old |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    read = causal_families.read_causal_config
    assert read(old, "x") == read(new, "x")
    rope["type"] = rope.pop("rope_type")
    assert read(old, "x") == read(new, "x")


def test_a_model_that_no_architecture_has(tmp_path):
    model = moe(gate=GateConfig(num_experts=4, k=1, capacity=8))
    with pytest.raises(UserError, match="no covered architecture"):
        save_lm(model, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_options_of_the_experts_reach_the_layers_and_no_file(tmp_path):
    options = ExpertOptions(backend="reference", recompute=True)
    gate = GateConfig(num_experts=4, k=2)
    experts = ExpertsConfig(gate=gate, d_expert=16, options=options)
    config = CausalConfig(vocab_size=40, d_model=24, num_layers=2, qk_norm="all", experts=experts)
    model = CausalLM(config, rngs=nnx.Rngs(0))
    assert [layer.ffn.options for layer in model.layers] == [options, options]
    save_lm(model, tmp_path / "a")
    raw = json.loads((tmp_path / "a" / "config.json").read_text())
    assert "options" not in str(raw)
    read, _ = causal_families.read_causal_config(raw, "x")
    assert read.experts.options == ExpertOptions()
    with pytest.raises(UserError, match=r"experts\.options\.backend='cuda': must be one of"):
        moe(gate=GateConfig(num_experts=4, k=1), options=ExpertOptions(backend="cuda"))


def test_a_selection_bias_changes_the_choice_and_is_in_no_file(tmp_path):
    model = moe(gate=GateConfig(num_experts=4, k=1), selection_bias=True)
    ids = jnp.asarray([[3, 1, 4, 1, 5]])
    gate = model.layers[0].ffn.gate
    gate.selection_bias_e[...] = jnp.asarray([0.0, 0.0, 9.0, 0.0])
    assert np.all(np.asarray(model(ids).routing.expert)[:, :, 0] == 2)
    with pytest.raises(UserError, match="no covered architecture"):
        save_lm(model, tmp_path / "a")


def test_what_nothing_reads_does_not_matter(tmp_path):
    experts = ExpertsConfig(gate=GateConfig(num_experts=4, k=2, renormalise=True), d_expert=16)
    config = CausalConfig(vocab_size=40, d_model=24, num_layers=2, d_ff=999, experts=experts)
    raw, names = causal_families.write_causal_config(config)
    assert (raw["model_type"], raw["intermediate_size"], names.up) == ("mixtral", 16, "w3")
    assert dataclasses.replace(config).experts is experts
