"""Switch Transformers against loops in float64: what they compute, and how they route."""

import functools
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_jax.errors import UserError
from moe_jax.gating import GateConfig, RoutingEdit
from moe_jax.models import SwitchConfig, load_switch
from moe_jax.models.switch_config import read_switch_config
from moe_jax.models.t5_attention import relative_buckets
from tests.models import small_switch, switch_oracle

RANDOM = np.random.RandomState(1)
IDS = RANDOM.randint(2, 40, (2, 17))
WHERE = np.ones(IDS.shape, bool)
WHERE[1, 11:] = False
TARGET = np.concatenate([np.zeros((2, 1), int), RANDOM.randint(2, 40, (2, 13))], axis=1)


@nnx.jit
def read(model, ids, where, target, target_where=None, edit_encoder=None, edit_decoder=None):
    """Compiled whole, which takes less time than operation by operation."""
    edits = {"edit_encoder": edit_encoder, "edit_decoder": edit_decoder}
    return model(ids, where, target, target_where, **edits)


@nnx.jit
def encode(model, ids, where=None, key=None):
    return model.encode(ids, where, key=key)


@nnx.jit
def decode(model, ids, cache):
    return model.decode(ids, cache)


def run(model, ids=IDS, where=WHERE, target=TARGET, target_where=None, **edits):
    target_where = np.ones(target.shape, bool) if target_where is None else target_where
    arrays = (jnp.asarray(a) for a in (ids, where, target, target_where))
    return read(model, *arrays, **edits)


@functools.cache
def load(name):
    """A small model, one for all tests, so that what is compiled is compiled once."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        return load_switch(small_switch.write(path, small_switch.CONFIGS[name])).model


@pytest.fixture
def tight():
    """A model whose experts take two tokens of a sequence, in every layer."""
    return load("full experts, every layer")


def compare(routing, oracle, row, experts):
    """The routing [b s l 1] of a row with the oracle's; gives the number of dropped tokens."""
    if not oracle:
        assert routing is None
        return 0
    expert = np.array([e for e, _ in oracle]).T
    weight = np.array([w for _, w in oracle]).T
    np.testing.assert_array_equal(routing.expert[row, :, :, 0], expert)
    np.testing.assert_allclose(routing.weight[row, :, :, 0], weight, atol=1e-5)
    return int((expert == experts).sum())


@pytest.mark.parametrize("name", small_switch.CONFIGS)
def test_every_kind_against_the_loop(name):
    config = small_switch.CONFIGS[name]
    tensors = small_switch.tensors(config)
    out = run(load(name))
    lost = 0
    for row in range(2):
        logits, encoder, decoder = switch_oracle.run(
            config, tensors, IDS[row], WHERE[row], TARGET[row]
        )
        np.testing.assert_allclose(out.logits[row], logits, atol=2e-5 * np.abs(logits).max())
        lost += compare(out.encoder_routing, encoder, row, config["num_experts"])
        lost += compare(out.decoder_routing, decoder, row, config["num_experts"])
    assert (lost > 0) == (config["expert_capacity"] < 10)


def test_relative_buckets_by_hand():
    # 8 buckets, both sides: 4 a side, of which 0 and 1 exact; then 2..., borders 2 and 2 * 4**0.5.
    both = relative_buckets(10, both_sides=True, num_buckets=8, max_distance=8)
    after = [5, 6, 6, 7, 7, 7, 7, 7, 7]
    before = [1, 2, 2, 3, 3, 3, 3, 3, 3]
    np.testing.assert_array_equal(both, [*before[::-1], 0, *after])
    # One side: 0..3 exact, then borders 4, 4 * 2**0.5 = 5.66, 8, 11.3 up to 16.
    one = relative_buckets(15, both_sides=False, num_buckets=8, max_distance=16)
    back = [1, 2, 3, 4, 4, 5, 5, 6, 6, 6, 6, 7, 7, 7]
    np.testing.assert_array_equal(one, [*back[::-1], 0, *[0] * 14])
    # T5's own: 32 buckets up to 128, both sides.
    t5 = relative_buckets(200, both_sides=True, num_buckets=32, max_distance=128)
    for distance, found in ((-7, 7), (-8, 8), (-11, 8), (-12, 9), (-16, 10), (-127, 15), (90, 30)):
        assert t5[distance + 199] == found, distance
    assert set(t5) == set(range(32)) - {16}


@pytest.mark.parametrize("both_sides", [True, False])
@pytest.mark.parametrize(("buckets", "far"), [(32, 128), (4, 3), (7, 10), (20, 11), (33, 500)])
def test_relative_buckets_by_borders(both_sides, buckets, far):
    found = relative_buckets(300, both_sides=both_sides, num_buckets=buckets, max_distance=far)
    want = [switch_oracle.bucket(x, both_sides, buckets, far) for x in range(-299, 300)]
    np.testing.assert_array_equal(found, want)


def one_for_all(folder, **changes):
    """A model whose only gate sends every token to expert 2."""
    config = small_switch.CONFIGS["full experts, every layer"] | {
        **{"router_bias": True, "decoder_sparse_step": 0, "expert_capacity": 3},
        **{"num_decoder_layers": 1, **changes},
    }
    tensors = small_switch.tensors(config)
    bias = np.asarray([0, 0, 100, 0], np.float32)
    tensors["encoder.block.0.layer.1.mlp.router.classifier.bias"] = bias
    return load_switch(small_switch.write(folder, config, tensors)).model


def test_all_tokens_to_one_expert(tmp_path):
    model, ids = one_for_all(tmp_path), jnp.asarray(IDS)
    kept = encode(model, ids)
    want = np.full(17, 4)
    want[:3] = 2
    for row in range(2):
        expert, weight = kept.routing.expert[row, :, 0, 0], kept.routing.weight[row, :, 0, 0]
        np.testing.assert_array_equal(expert, want)
        np.testing.assert_allclose(weight, [1] * 3 + [0] * 14, atol=1e-6)
    # Who is dropped gets nothing from this layer: as if its experts gave zero.
    w_out = model.encoder.layers[0].ffn.w_out_efd
    w_out[...] = jnp.zeros(w_out.shape)
    none = encode(model, ids)
    assert np.all(np.any(kept.states[:, :3] != none.states[:, :3], axis=-1))
    np.testing.assert_array_equal(kept.states[:, 3:], none.states[:, 3:])


def test_padding_after_a_text_changes_nothing(tight):
    whole = run(tight)
    alone = encode(tight, jnp.asarray(IDS[1:, :11]), jnp.ones((1, 11), bool))
    padded = encode(tight, jnp.asarray(IDS), jnp.asarray(WHERE))
    np.testing.assert_allclose(padded.states[1, :11], alone.states[0], atol=1e-4)
    for name in ("expert", "weight", "probs"):
        ours = getattr(padded.routing, name)[1, :11]
        np.testing.assert_allclose(ours, getattr(alone.routing, name)[0], atol=1e-5)
    # What stands in the padding does not matter, and padding of the target neither.
    other = np.where(WHERE, IDS, 7)
    np.testing.assert_array_equal(run(tight, other).logits, whole.logits)
    where = np.ones(TARGET.shape, bool)
    where[:, 9:] = False
    short = run(tight, target=np.where(where, TARGET, 9), target_where=where)
    np.testing.assert_array_equal(short.logits[:, :9], whole.logits[:, :9])
    np.testing.assert_array_equal(
        short.decoder_routing.expert[:, :9], whole.decoder_routing.expert[:, :9]
    )


def test_padding_before_a_text_takes_room(tight):
    """As in transformers: padding has experts, and those it fills are full for the text."""
    config = small_switch.CONFIGS["full experts, every layer"]
    tensors = small_switch.tensors(config)
    ids = np.concatenate([np.full((2, 8), 5), IDS[:, :9]], axis=1)
    where = np.broadcast_to(np.arange(17) >= 8, (2, 17))
    out = encode(tight, jnp.asarray(ids), jnp.asarray(where))
    later = 0
    for row in range(2):
        _, encoder, _ = switch_oracle.run(config, tensors, ids[row], where[row], TARGET[row])
        compare(out.routing, encoder, row, 4)
        texts = (IDS[row, :9], np.ones(9, bool), TARGET[row])
        _, alone, _ = switch_oracle.run(config, tensors, *texts)
        later += (np.array(encoder[0][0][8:]) == 4).sum() - (np.array(alone[0][0]) == 4).sum()
    assert later > 0


def test_the_target_in_pieces():
    """Where there is room for all it is as at once."""
    model = load("base")
    whole = run(model)
    cache, start = (
        nnx.jit(lambda m, *a: m.start(m.encode(*a).states, a[1], slots=20))(
            model, jnp.asarray(IDS), jnp.asarray(WHERE)
        ),
        0,
    )
    for stop in (7, 14):
        out = decode(model, jnp.asarray(TARGET[:, start:stop]), cache)
        np.testing.assert_allclose(out.logits, whole.logits[:, start:stop], atol=1e-4)
        expert = whole.decoder_routing.expert[:, start:stop]
        np.testing.assert_array_equal(out.routing.expert, expert)
        cache, start = out.cache, stop
    assert int(cache.used) == 14
    assert not np.asarray(cache.where)[:, 14:].any()


def layers(gate, count, *edits):
    """Edits as one, each with its shapes full, so that all of them run the same program."""
    return jax.tree.map(lambda *a: jnp.stack(a), *(edit.scoped(gate, count) for edit in edits))


def test_edits(tight):
    gate = tight.config.gate
    identity = RoutingEdit.identity(gate)
    base = run(tight)
    none = {
        "edit_encoder": layers(gate, 34, identity),
        "edit_decoder": layers(gate, 28, identity, identity),
    }
    same = run(tight, **none)
    jax.tree.map(np.testing.assert_array_equal, same, base)
    # In the decoder's second layer only.
    cut = layers(gate, 28, identity, RoutingEdit.make(gate, suppress=[1]))
    out = run(tight, **none | {"edit_decoder": cut})
    jax.tree.map(np.testing.assert_array_equal, out.encoder_routing, base.encoder_routing)
    before, after = base.decoder_routing, out.decoder_routing
    np.testing.assert_array_equal(after.expert[:, :, 0], before.expert[:, :, 0])
    assert (before.expert[:, :, 1] == 1).any()
    assert not (after.expert[:, :, 1] == 1).any()
    # Positions before the first token that wanted this expert have what they had, but for the
    # softmax, which has one expert less.
    for row in range(2):
        wanted = np.argmax(np.asarray(before.logits[row, :, 1]), axis=-1) == 1
        first = int(np.flatnonzero(wanted)[0])
        np.testing.assert_array_equal(after.expert[row, :first], before.expert[row, :first])
    # And all of it is what the loop gives.
    config = small_switch.CONFIGS["full experts, every layer"]
    both = layers(gate, 34, RoutingEdit.make(gate, suppress=[0, 2]))
    out = run(tight, edit_encoder=both, edit_decoder=cut)
    for row in range(2):
        logits, encoder, decoder = switch_oracle.run(
            *(config, small_switch.tensors(config), IDS[row], WHERE[row], TARGET[row]),
            suppress={"encoder": {0: (0, 2)}, "decoder": {1: (1,)}},
        )
        np.testing.assert_allclose(out.logits[row], logits, atol=2e-5 * np.abs(logits).max())
        compare(out.encoder_routing, encoder, row, 4)
        compare(out.decoder_routing, decoder, row, 4)
    # An expert that is excluded changes nothing for those who did not want it, to the last bit.
    cut = layers(gate, 28, identity, RoutingEdit.make(gate, exclude=[1]))
    out = run(tight, **none | {"edit_decoder": cut})
    for row in range(2):
        wanted = np.argmax(np.asarray(before.logits[row, :, 1]), axis=-1) == 1
        first = int(np.flatnonzero(wanted)[0])
        np.testing.assert_array_equal(out.logits[row, :first], base.logits[row, :first])
        assert np.abs(out.logits[row, first] - base.logits[row, first]).max() > 1e-3


def test_an_edit_of_one_token(tight):
    gate = tight.config.gate
    base = np.asarray(run(tight).encoder_routing.expert[:, :, 0, 0])
    counts = np.bincount(base[0, :4], minlength=5)[:4]
    free = next(e for e in range(4) if counts[e] < 2 and e != base[0, 4])
    mask = jnp.zeros(34, bool).at[4].set(True)
    identity = RoutingEdit.identity(gate)
    edit = layers(gate, 34, RoutingEdit.make(gate, tokens=mask, force=[free]))
    out = run(tight, edit_encoder=edit, edit_decoder=layers(gate, 28, identity, identity))
    found = out.encoder_routing.expert[:, :, 0, 0]
    np.testing.assert_array_equal(found[1], base[1])
    np.testing.assert_array_equal(found[0, :4], base[0, :4])
    assert found[0, 4] == free


def test_edits_of_the_wrong_shape(tight, tmp_path):
    gate = tight.config.gate
    identity = RoutingEdit.identity(gate)
    with pytest.raises(ValueError, match=r"edit_encoder.tokens has shape .* of the 1 layers"):
        run(tight, edit_encoder=identity)
    with pytest.raises(ValueError, match=r"edit_decoder.tokens has shape .* of the 2 layers"):
        run(tight, edit_decoder=layers(gate, 28, identity))
    with pytest.raises(ValueError, match="edit_decoder given, but that stack has no layer"):
        run(one_for_all(tmp_path), edit_decoder=layers(gate, 28, identity))


def test_jitter_needs_a_key_or_eval(tmp_path):
    model, ids = one_for_all(tmp_path, router_jitter_noise=0.1), jnp.asarray(IDS)
    jax.eval_shape(encode, model, ids)  # as loaded it has none
    model.train()
    with pytest.raises(ValueError, match=r"jitter=0.1 needs a key"):
        encode(model, ids)
    keys = jax.random.split(jax.random.key(0))
    first, second = (np.asarray(encode(model, ids, None, k).routing.logits) for k in keys)
    assert np.mean((first != second)[..., [0, 1, 3]]) > 0.9  # 100 rounds small noise away
    np.testing.assert_allclose(first, second, atol=2)


def test_bfloat16_keeps_the_router_in_float32(tmp_path):
    config = small_switch.CONFIGS["base"]
    tensors = small_switch.tensors(config)
    found = load_switch(small_switch.write(tmp_path, config), dtype="bfloat16")
    kinds = {str(v[...].dtype) for _, v in nnx.to_flat_state(nnx.state(found.model))}
    assert kinds == {"bfloat16", "float32"}
    assert found.model.encoder.layers[1].ffn.gate.w_de[...].dtype == jnp.float32
    out = encode(found.model, jnp.asarray(IDS), jnp.asarray(WHERE))
    assert (out.states.dtype, out.routing.weight.dtype) == (jnp.bfloat16, jnp.float32)
    same, gaps = [], []
    for row in range(2):
        _, encoder, _ = switch_oracle.run(config, tensors, IDS[row], WHERE[row], TARGET[row])
        same.append(np.asarray(out.routing.expert[row, :, 0, 0]) == encoder[0][0])
        gaps.append(np.asarray(out.routing.weight[row, :, 0, 0]) - encoder[0][1])
    assert np.mean(same) > 0.8
    assert 1e-6 < np.abs(np.asarray(gaps)[np.asarray(same)]).max() < 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 0}, "model.num_heads=0: must be at least 1"),
        ({"encoder_step": -1}, "model.encoder_step=-1: must be at least 0"),
        ({"num_buckets": 3}, "model.num_buckets=3: must be at least 4"),
        ({"max_distance": 16}, "max_distance=16: must be more than half of model.num_buckets=32"),
        ({"activation": "tanh"}, "model.activation='tanh': must be one of silu"),
        ({"norm_eps": 0.0}, "model.norm_eps=0.0: must be more than 0"),
        ({"start_id": 256}, "model.start_id=256: must be from 0 to 255"),
        ({"stop_ids": (1, 256)}, r"model.stop_ids\[1\]=256: must be from 0 to 255"),
        ({"gate": GateConfig(k=9)}, "model.gate.k=9: must be at most model.gate.num_experts=8"),
        ({"gate": GateConfig(choice="expert")}, "see those that come later"),
    ],
)
def test_configs_that_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        SwitchConfig(**changes).validate("model")


@pytest.mark.parametrize(
    ("changes", "encoder", "decoder"),
    [
        ({}, (1, 5, 9), (1, 5, 9)),
        ({"num_sparse_encoder_layers": 6}, (1, 3, 5, 7, 9, 11), (1, 5, 9)),
        ({"num_sparse_encoder_layers": 12}, tuple(range(12)), (1, 5, 9)),
        ({"num_sparse_encoder_layers": 0, "num_sparse_decoder_layers": 13}, (1,), ()),
        ({"encoder_sparse_step": 5, "num_decoder_layers": 2}, (1, 6, 11), ()),
        ({"decoder_sparse_step": 1, "num_decoder_layers": 2}, (1, 5, 9), (0, 1)),
    ],
)
def test_which_layers_are_sparse(changes, encoder, decoder):
    raw = {k: v for k, v in small_switch.CONFIGS["base"].items() if "sparse" not in k}
    raw |= {"num_layers": 12, "num_decoder_layers": None, **changes}
    config = read_switch_config(raw, "x")
    assert (config.encoder_layers, config.decoder_layers) == (encoder, decoder)
