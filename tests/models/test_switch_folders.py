"""Switch Transformers loaded from folders, saved to them, and generating texts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models

from moe_jax.errors import UserError
from moe_jax.gating import GateConfig, RoutingEdit
from moe_jax.models import SwitchConfig, generate_switch, load_switch, save_switch
from moe_jax.models.switch_config import read_switch_config, write_switch_config
from tests.models import small_switch, switch_oracle


def words(count):
    return Tokenizer(models.WordLevel({f"w{i}": i for i in range(count)}, unk_token="w0"))


@pytest.mark.parametrize("name", small_switch.CONFIGS)
@pytest.mark.parametrize("max_bytes", [10**9, 9_000])
def test_saved_and_loaded_again(name, max_bytes, tmp_path):
    config = small_switch.CONFIGS[name]
    first = load_switch(small_switch.write(tmp_path / "first", config))
    assert first.tokenizer is None
    second = tmp_path / "a" / "second"
    save_switch(first.model, second, tokenizer=words(40), max_bytes=max_bytes)
    shards = sorted(second.glob("*.safetensors"))
    assert (len(shards) > 1) == (max_bytes == 9_000)
    assert len(list(second.glob(".*"))) + len(list(second.glob("part*"))) == 0
    written = {k: v for shard in shards for k, v in load_file(shard).items()}
    original = small_switch.tensors(config)
    assert set(written) == set(original)
    for key, value in written.items():
        # Untied models have no use for "shared"; it is written as a copy of the encoder's table.
        table = "encoder.embed_tokens.weight" if key == "shared.weight" else key
        np.testing.assert_array_equal(value, original.get(table, original[key]))
    again = load_switch(second)
    assert again.config == first.config
    assert again.tokenizer.get_vocab_size() == 40
    jax.tree.map(np.testing.assert_array_equal, nnx.state(first.model), nnx.state(again.model))
    raw = json.loads((second / "config.json").read_text())
    assert {k: raw[k] for k in config} == config
    with pytest.raises(UserError, match="exists already"):
        save_switch(first.model, second)


def test_names_of_the_tables(tmp_path):
    """Tied tables under any of their names; one table for both stacks in older untied folders."""
    config = small_switch.CONFIGS["base"]
    tensors = small_switch.tensors(config)
    table = tensors.pop("shared.weight")
    for i, names in enumerate((["lm_head"], ["decoder.embed_tokens", "shared", "lm_head"])):
        also = {f"{name}.weight": table for name in names}
        found = load_switch(small_switch.write(tmp_path / str(i), config, tensors | also))
        np.testing.assert_array_equal(found.model.token.embedding[...], table)
    also = {"shared.weight": table, "lm_head.weight": table + 1}
    with pytest.raises(UserError, match=r"lm_head.weight is not equal to shared.weight"):
        load_switch(small_switch.write(tmp_path / "differ", config, tensors | also))
    with pytest.raises(UserError, match=r"lacks tensors .*: shared.weight"):
        load_switch(small_switch.write(tmp_path / "none", config, tensors))
    config = small_switch.CONFIGS["biased, untied"]
    tensors = small_switch.tensors(config)
    old = {k: v for k, v in tensors.items() if "embed_tokens" not in k}
    model = load_switch(small_switch.write(tmp_path / "old", config, old)).model
    for embed in (model.token, model.decoder_token):
        np.testing.assert_array_equal(embed.embedding[...], tensors["shared.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "t5"}, "model_type='t5' is not covered here, only 'switch_transformers'"),
        ({"d_model": None}, r"config\.json: d_model=None must be a whole number >= 1"),
        ({"is_gated_act": True}, "is_gated_act=True is not covered: gated feed-forward layers"),
        (
            {"feed_forward_proj": "gated-gelu"},
            "feed_forward_proj='gated-gelu' is not covered: gated",
        ),
        ({"dense_act_fn": "tanh"}, "dense_act_fn='tanh' is not covered; one of gelu"),
        ({"router_dtype": "bfloat16"}, "router_dtype='bfloat16' is not covered"),
        ({"expert_capacity": 0}, "expert_capacity=0 must be a whole number >= 1"),
        ({"vocab_size": 41}, r"weight has shape \(40, 20\), its config asks for \(41, 20\)"),
        ({"num_layers": 3}, "lacks tensors that its config calls for: encoder.block.2"),
        ({"num_layers": 1}, "has tensors that its config does not describe: encoder.block.1"),
        ({"num_experts": 5}, "lacks tensors .*expert_4.wi.weight"),
        ({"router_bias": True}, "lacks tensors .*router.classifier.bias"),
        (
            {"eos_token_id": [1, 40]},
            r"config\.json: eos_token_id=40 must be an id of the vocabulary, 0 to 39",
        ),
    ],
)
def test_folders_that_are_refused(changes, message, tmp_path):
    config = small_switch.CONFIGS["base"]
    folder = small_switch.write(tmp_path, config)
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=message):
        load_switch(folder)


def test_missing_folder_field_and_foreign_tokenizer(tmp_path):
    with pytest.raises(UserError, match="is not a folder with config"):
        load_switch(tmp_path / "none")
    config = small_switch.CONFIGS["base"]
    folder = small_switch.write(tmp_path, config)
    words(41).save(str(folder / "tokenizer.json"))
    with pytest.raises(UserError, match="the tokenizer has ids up to 40"):
        load_switch(folder)
    (folder / "config.json").write_text(json.dumps(config | {"num_experts": None}))
    with pytest.raises(UserError, match="num_experts=None must be a whole number"):
        load_switch(folder)
    del (config := dict(config))["d_kv"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="lacks the field 'd_kv'"):
        load_switch(folder)


def test_token_ids_of_either_file():
    raw = small_switch.CONFIGS["base"]
    ids = {"decoder_start_token_id": 5, "eos_token_id": [2, 3], "pad_token_id": None}
    found = read_switch_config(raw | {"pad_token_id": 4}, "x", generation=ids)
    assert (found.start_id, found.stop_ids, found.pad_id) == (5, (2, 3), 4)
    bare = {k: v for k, v in raw.items() if "token_id" not in k}
    found = read_switch_config(bare | {"pad_token_id": 6}, "x")
    assert (found.start_id, found.stop_ids, found.pad_id) == (6, (1,), 6)
    assert read_switch_config(bare | {"eos_token_id": None}, "x").stop_ids == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"gate": GateConfig(num_experts=8, k=2, capacity=4)},
        {"gate": GateConfig(num_experts=8, k=1)},
        {"gate": GateConfig(num_experts=8, k=1, capacity=4, score="sigmoid")},
        {"activation": "relu2"},
    ],
)
def test_models_that_transformers_does_not_have(changes):
    with pytest.raises(UserError, match="has no such model"):
        write_switch_config(SwitchConfig(**changes))


def test_nothing_is_left_of_a_save_that_fails(tmp_path):
    model = load_switch(small_switch.write(tmp_path / "a", small_switch.CONFIGS["base"])).model
    model.config.gate = GateConfig(num_experts=4, k=2)
    with pytest.raises(UserError, match="has no such model"):
        save_switch(model, tmp_path / "b")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_greedy_texts_are_those_of_the_loop(tmp_path):
    config = small_switch.CONFIGS["full experts, every layer"]
    tensors = small_switch.tensors(config)
    # Less of the table, or every token is followed by itself.
    tensors["shared.weight"] *= 0.3
    model = load_switch(small_switch.write(tmp_path, config, tensors)).model
    prompts = [[5, 9, 30, 1], [7], [*range(2, 22), 1]]
    made = generate_switch(model, prompts, max_new_tokens=8)
    for prompt, mine in zip(prompts, made, strict=True):
        ids, encoder, decoder = switch_oracle.greedy(config, tensors, prompt, 8)
        np.testing.assert_array_equal(mine.ids, ids)
        assert mine.finish == ("stop" if ids[-1] == 1 else "length")
        for routing, oracle in ((mine.encoder_routing, encoder), (mine.decoder_routing, decoder)):
            np.testing.assert_array_equal(
                routing.expert[:, :, 0], np.array([e for e, _ in oracle]).T
            )
            np.testing.assert_allclose(
                routing.weight[:, :, 0], np.array([w for _, w in oracle]).T, atol=1e-5
            )
    assert (made[2].encoder_routing.expert == 4).any()
    assert not any((m.decoder_routing.expert == 4).any() for m in made)
    # The third token as a stop id ends a text there, whatever the others do.
    stop = int(made[0].ids[2])
    first = list(made[0].ids).index(stop)
    again = generate_switch(model, prompts, max_new_tokens=8, stop_ids=(stop,))
    assert again[0].finish == "stop"
    np.testing.assert_array_equal(again[0].ids, made[0].ids[: first + 1])
    np.testing.assert_array_equal(again[0].content, made[0].ids[:first])
    assert again[0].decoder_routing.expert.shape == (first + 1, 2, 1)
    check_edits(model, prompts, made)
    check_bad_input(model)
    model.decoder.norm.scale[...] = model.decoder.norm.scale[...].at[3].set(jnp.nan)
    with pytest.raises(UserError, match="not numbers after 0 new tokens of source 0"):
        generate_switch(model, prompts, max_new_tokens=8)


def check_the_same(got, want):
    """Integers to the last bit, floats up to rounding: a program with edits is another program."""

    def check(got, want):
        if np.asarray(want).dtype.kind == "f":
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)
        else:
            np.testing.assert_array_equal(got, want)

    jax.tree.map(check, got, want)


def check_edits(model, prompts, made):
    """Edits for the second source alone: of the encoder, then of the decoder's first layer."""
    gate = model.config.gate
    identity = RoutingEdit.identity(gate, num_tokens=3)
    gone = int(made[1].encoder_routing.expert[0, 0, 0])
    only = jnp.asarray([False, True, False])
    cut = RoutingEdit.make(gate, suppress=[gone], tokens=only).scoped(gate, 3)
    encoder = jax.tree.map(lambda a: a[None], cut)
    none = jax.tree.map(lambda *a: jnp.stack(a), identity, identity)
    edits = {"edit_encoder": encoder, "edit_decoder": none}
    found = generate_switch(model, prompts, max_new_tokens=8, **edits)
    assert found[1].encoder_routing.expert[0, 0, 0] not in (gone, 4)
    for row in (0, 2):
        check_the_same(found[row], made[row])
    gone = int(made[1].decoder_routing.expert[0, 0, 0])
    cut = RoutingEdit.make(gate, suppress=[gone], tokens=only).scoped(gate, 3)
    edits = {
        "edit_encoder": jax.tree.map(lambda a: a[None], identity),
        "edit_decoder": jax.tree.map(lambda *a: jnp.stack(a), cut, identity),
    }
    found = generate_switch(model, prompts, max_new_tokens=8, **edits)
    assert not np.any(found[1].decoder_routing.expert[:, 0] == gone)
    check_the_same(found[1].encoder_routing, made[1].encoder_routing)
    for row in (0, 2):
        check_the_same(found[row], made[row])
    with pytest.raises(ValueError, match=r"edit_encoder.tokens has shape .* must be 1 or the 1"):
        generate_switch(model, prompts[:1], max_new_tokens=8, edit_encoder=encoder)
    with pytest.raises(ValueError, match=r"edit_decoder.tokens has shape .* of the 2 layers"):
        generate_switch(model, prompts, max_new_tokens=8, edit_decoder=encoder)


def check_bad_input(model):
    assert generate_switch(model, [], max_new_tokens=8) == []
    for prompts, options, message in (
        ([[]], {}, "source 0 is empty"),
        ([[3], [40]], {}, "source 1 has the id 40; the model has 0 to 39"),
        ([[3]], {"max_new_tokens": 0}, "max_new_tokens=0: must be at least 1"),
        ([[3]], {"stop_ids": (40,)}, "stop_ids: 40 is not one of the ids"),
    ):
        with pytest.raises(UserError, match=message):
            generate_switch(model, prompts, **{"max_new_tokens": 8} | options)
