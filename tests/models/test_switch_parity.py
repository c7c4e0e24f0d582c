"""Switch Transformers against transformers' torch model (`make parity`; needs torch)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_jax.models import ReadRouting, generate_switch, load_switch, save_switch
from moe_jax.models.t5_attention import relative_buckets
from tests.models import small_switch

pytestmark = [
    pytest.mark.parity,
    # Deprecations inside torch and transformers are not ours to mend.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SEEDS = range(8)


def random_config(seed):
    """Each seed has other sizes; the seeds together have every option."""
    random = np.random.RandomState(seed)

    def draw(low, high):
        return int(random.randint(low, high))

    buckets = 4 * draw(1, 9)
    return small_switch.CONFIGS["base"] | {
        "d_model": draw(12, 40),
        "d_kv": draw(3, 12),
        "d_ff": draw(8, 40),
        "num_layers": draw(2, 5),
        "num_decoder_layers": draw(2, 4),
        "num_heads": draw(1, 5),
        "num_experts": draw(2, 7),
        "expert_capacity": (2, 3, 64)[seed % 3],
        "router_bias": seed % 2 == 1,
        "encoder_sparse_step": (1, 2, 3, 2)[seed % 4],
        "decoder_sparse_step": (2, 1, 2, 0)[seed % 4],
        "dense_act_fn": ("relu", "gelu_new", "silu")[seed // 2 % 3],
        "layer_norm_epsilon": (1e-6, 1e-3)[seed % 2],
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": buckets + draw(0, 100),
        "tie_word_embeddings": seed % 4 != 2,
    }


def random_tensors(config, seed):
    """Logits of about 1, so that 1e-4 is a tight bound; routers that decide something."""
    out = {}
    for name, value in small_switch.tensors(config, seed).items():
        small = value.ndim > 1 and "router" not in name and "relative" not in name
        head = not config["tie_word_embeddings"] and name == "lm_head.weight"
        out[name] = (value * (0.5 if small else 1.0) * (0.5 if head else 1.0)).astype(np.float32)
    return out


def theirs(folder):
    """The torch model of a folder, and what its gates dispatch: one-hot [b s e], 0 where dropped."""
    import torch
    from transformers import SwitchTransformersForConditionalGeneration as Model

    model, info = Model.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    gates = []
    for name, module in model.named_modules():
        if type(module).__name__ == "SwitchTransformersTop1Router":
            module.register_forward_hook(
                lambda m, i, out, name=name: gates.append(
                    (name.split(".")[0], *(x.detach().numpy() for x in out))
                )
            )
    return model.eval(), gates


def call(model, ids, where, target, target_where):
    import torch

    tensors = [torch.from_numpy(a).long() for a in (ids, where, target, target_where)]
    names = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")
    with torch.no_grad():
        return model(**dict(zip(names, tensors, strict=True))).logits.numpy()


def batch(seed, before):
    """Texts of unlike lengths, padded before or after."""
    random = np.random.RandomState(seed)
    ids, target = random.randint(2, 40, (3, 15)), random.randint(2, 40, (3, 11))
    target[:, 0] = 0
    where, target_where = np.ones(ids.shape, bool), np.ones(target.shape, bool)
    pad = (slice(0, 5), slice(0, 9)) if before else (slice(10, None), slice(6, None))
    where[1, pad[0]], where[2, pad[1]] = False, False
    if not before:
        target_where[1, 8:] = False
    return np.where(where, ids, 0), where, np.where(target_where, target, 0), target_where


def check_routing(routing, gates, where):
    """Chosen experts and dropped tokens of every layer, padding included; gives how many fell."""
    if routing is None:
        assert not gates
        return 0
    assert routing.expert.shape[2] == len(gates)
    lost = 0
    for i, (dispatch, weight, logits) in enumerate(gates):
        none = dispatch.shape[-1]
        expert = np.where(dispatch.any(axis=-1), dispatch.argmax(axis=-1), none)
        top2 = np.sort(logits, axis=-1)[..., -2:]
        assert (top2[..., 1] - top2[..., 0]).min() > 1e-5, "a tie: take another seed"
        np.testing.assert_array_equal(routing.expert[:, :, i, 0], expert)
        mine = np.asarray(routing.weight[:, :, i, 0])
        np.testing.assert_allclose(mine, np.where(expert == none, 0, weight[..., 0]), atol=1e-4)
        probs = np.exp(logits - logits.max(axis=-1, keepdims=True))
        probs = probs / probs.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(routing.probs[:, :, i], probs, atol=1e-4)
        lost += int((expert == none)[where].sum())
    return lost


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_random_models(seed, before, tmp_path, record_property):
    config = random_config(seed)
    folder = small_switch.write(tmp_path, config, random_tensors(config, seed))
    ids, where, target, target_where = batch(seed, before)
    model, gates = theirs(folder)
    logits = call(model, ids, where, target, target_where)
    found = load_switch(folder)
    arrays = (jnp.asarray(a) for a in (ids, where, target, target_where))
    out = jax.device_get(nnx.jit(lambda m, *a: m(*a))(found.model, *arrays))
    lost = [
        check_routing(routing, [g for name, *g in gates if name == stack], mask)
        for stack, routing, mask in (
            ("encoder", out.encoder_routing, where),
            ("decoder", out.decoder_routing, target_where),
        )
    ]
    worst = np.abs(out.logits - logits)[target_where].max()
    record_property("worst", float(worst))
    print(f"seed {seed} before {before}: {worst:.2e}, scale {np.abs(logits).max():.2f}, {lost}")
    assert worst <= 1e-4
    if config["expert_capacity"] == 2:
        assert sum(lost) > 0


@pytest.mark.parametrize("seed", [1, 2, 4])
def test_greedy_generation(seed, tmp_path):
    import torch

    config = random_config(seed)
    tensors = random_tensors(config, seed)
    found = load_switch(small_switch.write(tmp_path, config, tensors))
    random = np.random.RandomState(seed)
    prompts = [[*random.randint(2, 40, n).tolist(), 1] for n in (3, 9, 14, 1)]
    made = generate_switch(found.model, prompts, max_new_tokens=12)
    model, gates = theirs(tmp_path)
    for prompt, mine in zip(prompts, made, strict=True):
        gates.clear()
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
        )
        np.testing.assert_array_equal(mine.ids, out[0, 1:].numpy())
        assert (mine.finish == "stop") == (int(out[0, -1]) == 1)
        encoder = [g for name, *g in gates if name == "encoder"]
        check_routing(_batched(mine.encoder_routing), encoder, np.ones((1, len(prompt)), bool))
        # Theirs come step by step, each with every layer.
        steps = [g for name, *g in gates if name == "decoder"]
        layers = len(found.config.decoder_layers)
        joined = [
            [np.concatenate(parts, axis=1) for parts in zip(*steps[i::layers], strict=True)]
            for i in range(layers)
        ]
        lost = check_routing(
            _batched(mine.decoder_routing), joined, np.ones((1, len(mine.ids)), bool)
        )
        assert lost == 0
    assert len({tuple(m.ids) for m in made}) > 1


def _batched(routing):
    """A generation's routing as a batch of one."""
    return None if routing is None else ReadRouting(*(a[None] for a in routing))


@pytest.mark.parametrize("name", small_switch.CONFIGS)
def test_what_we_save_transformers_loads(name, tmp_path):
    first = small_switch.write(tmp_path / "first", small_switch.CONFIGS[name])
    save_switch(load_switch(first).model, tmp_path / "second", max_bytes=9_000)
    arguments = batch(0, False)
    models = [theirs(tmp_path / which)[0] for which in ("first", "second")]
    a, b = (call(model, *arguments) for model in models)
    np.testing.assert_array_equal(a, b)
    for field in ("decoder_start_token_id", "pad_token_id", "eos_token_id"):
        assert len({getattr(model.generation_config, field) for model in models}) == 1


@pytest.mark.parametrize("name", small_switch.CONFIGS)
def test_what_transformers_saves_we_load(name, tmp_path):
    first = small_switch.write(tmp_path / "first", small_switch.CONFIGS[name])
    theirs(first)[0].save_pretrained(tmp_path / "second", max_shard_size="9KB")
    a, b = load_switch(first), load_switch(tmp_path / "second")
    assert a.config == b.config
    jax.tree.map(np.testing.assert_array_equal, nnx.state(a.model), nnx.state(b.model))


def test_tables_that_differ_from_each_other(tmp_path):
    """Untied folders from before transformers 5 have one table, which both stacks use here."""
    config = small_switch.CONFIGS["biased, untied"]
    tensors = small_switch.tensors(config)
    shared = tensors["shared.weight"]
    full = tensors | {f"{s}.embed_tokens.weight": shared for s in ("encoder", "decoder")}
    model, _ = theirs(small_switch.write(tmp_path / "new", config, full))
    old = {k: v for k, v in full.items() if "embed_tokens" not in k}
    found = load_switch(small_switch.write(tmp_path / "old", config, old))
    ids, where, target, target_where = batch(0, False)
    out = nnx.jit(lambda m, *a: m(*a))(found.model, *map(jnp.asarray, (ids, where, target)))
    logits = call(model, ids, where, target, target_where)
    scale = np.abs(logits).max()
    assert np.abs(out.logits - logits)[target_where].max() <= 1e-5 * max(scale, 1)


@pytest.mark.parametrize("both_sides", [True, False])
@pytest.mark.parametrize(("buckets", "far"), [(32, 128), (16, 64), (8, 20), (5, 7), (64, 100)])
def test_relative_buckets(both_sides, buckets, far):
    import torch
    from transformers.models.switch_transformers import modeling_switch_transformers as module

    distance = torch.arange(-999, 1000)
    want = module.SwitchTransformersAttention._relative_position_bucket(
        distance, both_sides, buckets, far
    )
    found = relative_buckets(1000, both_sides=both_sides, num_buckets=buckets, max_distance=far)
    np.testing.assert_array_equal(found, want.numpy())
