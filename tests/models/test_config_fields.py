"""config.json: what a family's class has for what is left out, two statements, and wrong values."""

import itertools
import json

import pytest

from moe_jax.common.files import same, shown
from moe_jax.errors import UserError
from moe_jax.models import RopeConfig, load_language_model, load_lm, save_lm
from moe_jax.models.causal_families import read_causal_config
from moe_jax.models.config_fields import Fields
from moe_jax.models.families import read_config
from moe_jax.models.switch_config import read_switch_config
from moe_jax.models.tokenizer import read_json
from tests.models import small_causal, small_encoders, small_switch

LLAMA, MIXTRAL = small_causal.CONFIGS["llama"], small_causal.CONFIGS["mixtral"]
LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = small_causal.CONFIGS["llama tied, biased, stretched"]["rope_parameters"]
READERS = [
    (small_causal.CONFIGS, read_causal_config),
    (small_encoders.CONFIGS, read_config),
    (small_switch.CONFIGS, read_switch_config),
]


def without(raw, *names):
    return {k: v for k, v in raw.items() if k not in names}


def causal(raw):
    return read_causal_config(raw, "config.json")[0]


def refusal(read, *arguments):
    """The message of the UserError that reading must end in: one line that names the file."""
    with pytest.raises(UserError) as caught:
        read(*arguments)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400
    assert "config.json" in message
    return message


# theta, epsilon, key heads (None: as many as heads) of the classes of transformers 5.23.
CLASSES = {
    "llama": (10_000.0, 1e-6, None),
    "mixtral": (1_000_000.0, 1e-5, 8),
    "olmoe": (10_000.0, 1e-5, None),
    "qwen2_moe": (10_000.0, 1e-6, 16),
    "qwen3_moe": (10_000.0, 1e-6, 4),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_fields_that_are_left_out_are_those_of_the_familys_class(kind):
    theta, eps, kv_heads = CLASSES[kind]
    raw = small_causal.CONFIGS[kind] | {"num_attention_heads": 32, "hidden_size": 64}
    optional = (
        *("rope_parameters", "rms_norm_eps", "num_key_value_heads", "hidden_act"),
        *("tie_word_embeddings", "attention_bias", "norm_topk_prob", "qkv_bias", "head_dim"),
        *("decoder_sparse_step", "mlp_only_layers", "sliding_window", "clip_qkv"),
    )
    found = causal(without(raw, *optional))
    assert found.rope == RopeConfig(theta=theta)
    assert found.norm_eps == eps
    assert found.num_kv_heads == (kv_heads or 32)
    assert (found.activation, found.tie_embeddings, found.window) == ("silu", False, None)
    assert (found.qkv_bias, found.out_bias) == (kind == "qwen2_moe", False)
    assert (found.width_of_head, found.clip_qkv) == (2, None)
    assert found.expert_layers == (() if kind == "llama" else (0, 1, 2))
    assert kind == "llama" or found.experts.gate.renormalise == (kind == "mixtral")
    # A stretched context does not change the base.
    assert causal(without(raw, "rope_parameters") | {"rope_scaling": LINEAR}).rope.theta == theta


def test_encoders_and_switch_take_their_classes_defaults():
    bert = small_encoders.CONFIGS["bert"]
    found, _ = read_config(without(bert, "hidden_act", "layer_norm_eps", "pad_token_id"), "x")
    assert (found.activation, found.norm_eps, found.pad_id) == ("gelu", 1e-12, 0)
    roberta = without(small_encoders.CONFIGS["roberta"], "layer_norm_eps", "pad_token_id")
    found, _ = read_config(roberta, "x")
    assert (found.norm_eps, found.pad_id, found.position_offset) == (1e-12, 1, 2)
    raw = small_switch.CONFIGS["biased, untied"] | {"num_layers": 6, "num_decoder_layers": 12}
    left = ("router_bias", "dense_act_fn", "layer_norm_epsilon", "tie_word_embeddings")
    steps = ("encoder_sparse_step", "decoder_sparse_step")
    buckets = ("relative_attention_num_buckets", "relative_attention_max_distance")
    found = read_switch_config(without(raw, *left, *steps, *buckets, "eos_token_id"), "x")
    assert (found.router_bias, found.activation, found.norm_eps) == (False, "relu", 1e-6)
    assert (found.tie_embeddings, found.gate.jitter, found.stop_ids) == (True, 0.01, (1,))
    assert (found.encoder_step, found.decoder_step) == (2, 4)  # three sparse layers of each
    assert (found.num_buckets, found.max_distance) == (32, 128)
    assert read_switch_config(raw | {"num_decoder_layers": None}, "x").num_decoder_layers == 6


@pytest.mark.parametrize(
    ("configs", "read", "name", "fields"),
    [
        (*READERS[0], "mixtral", ("hidden_size", "num_local_experts", "num_experts_per_tok")),
        (*READERS[0], "qwen2_moe", ("shared_expert_intermediate_size", "moe_intermediate_size")),
        (*READERS[0], "llama", ("vocab_size", "max_position_embeddings", "intermediate_size")),
        (*READERS[1], "bert", ("num_attention_heads", "type_vocab_size")),
        (*READERS[1], "distilbert", ("dim", "n_layers", "n_heads", "hidden_dim")),
        (*READERS[2], "base", ("num_decoder_layers", "num_experts", "expert_capacity", "d_kv")),
    ],
)
def test_sizes_that_are_left_out_are_named(configs, read, name, fields):
    for field in fields:
        message = refusal(read, without(configs[name], field), "a/config.json")
        assert message == f"a/config.json lacks the field {field!r}"


@pytest.mark.parametrize(
    "changes",
    [
        {
            "rope_parameters": {**LINEAR, "rope_theta": 50.0},
            "rope_scaling": LINEAR,
            "rope_theta": 50,
        },
        {
            "rope_parameters": {**LINEAR, "rope_theta": 1e4},
            "rope_scaling": {"type": "linear", "factor": 4},
        },
        {"rope_scaling": {**LINEAR, "type": "linear"}, "rope_parameters": None},
        {"rope_scaling": {}, "rope_parameters": LINEAR},
        {"rope_scaling": None, "rope_parameters": LINEAR, "rope_theta": 10_000},
        {"rope_parameters": {**LINEAR, "rope_theta": 10_000}, "rope_theta": None},
    ],
)
def test_two_equal_descriptions_of_the_positions_load(changes):
    theta = changes.get("rope_theta") or 10_000
    assert causal(LLAMA | changes).rope == RopeConfig(
        theta=float(theta), scaling="linear", factor=4.0
    )


def test_two_ways_to_say_that_nothing_is_stretched_are_equal():
    rope = {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {**LINEAR, "factor": 1}}
    assert causal(LLAMA | rope).rope == RopeConfig()


def test_the_length_before_stretching_may_stand_in_either_place():
    inner = without(LLAMA3, "original_max_position_embeddings")
    raw = LLAMA | {"rope_parameters": inner}
    assert causal(raw).rope.original_length == LLAMA["max_position_embeddings"]
    assert causal(raw | {"original_max_position_embeddings": 16}).rope.original_length == 16


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (
            "llama",
            {"rope_scaling": LINEAR},
            "rope_scaling={'rope_type': 'linear', 'factor': 4.0} and",
        ),
        (
            "llama",
            {"rope_theta": 5e5},
            "rope_parameters.rope_theta=10000.0 and rope_theta=500000.0",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default", "type": "linear", "factor": 2}},
            "rope_parameters.rope_type='default' and rope_parameters.type='linear' must be the same",
        ),
        (
            "llama",
            {"rope_parameters": LLAMA3, "original_max_position_embeddings": 32},
            "rope_parameters.original_max_position_embeddings=16 and original_max_position",
        ),
        (
            "llama",
            {"rope_parameters": {"factor": 4.0}},
            "rope_parameters.factor=4.0 needs a rope_type",
        ),
        (
            "llama",
            {"rope_parameters": {"partial_rotary_factor": 0.5}},
            "0.5 is not covered, only 1",
        ),
        (
            "llama",
            {"rope_parameters": {"full_attention": LINEAR}},
            "all layers must have the same positions",
        ),
        ("llama", {"layer_types": ["full_attention"]}, "'full_attention' for each of the 3 layers"),
        ("mixtral", {"num_experts": 8}, "num_local_experts=5 and num_experts=8 must be the same"),
        (
            "olmoe",
            {"num_local_experts": 9},
            "num_experts=8 and num_local_experts=9 must be the same",
        ),
        ("olmoe", {"head_dim": 8}, "head_dim=8 must be hidden_size / num_attention_heads, 6"),
        ("qwen2_moe", {"layer_types": ["sliding_attention"] * 3}, "must be 'full_attention' for"),
        ("qwen3_moe", {"decoder_sparse_step": 4}, "leave none of the 3 layers experts"),
        ("qwen3_moe", {"per_layer_config": {"0": {}}}, "the layers must be alike"),
    ],
)
def test_two_statements_that_differ_are_refused(name, changes, words):
    raw = small_causal.CONFIGS[name] | changes
    assert words in refusal(read_causal_config, raw, "config.json")


@pytest.mark.parametrize(
    ("read", "raw", "changes", "words"),
    [
        (
            read_config,
            small_encoders.CONFIGS["distilbert"],
            {"hidden_size": 48},
            "dim=24 and hidden_size=48",
        ),
        (
            read_switch_config,
            small_switch.CONFIGS["base"],
            {"hidden_size": 8},
            "d_model=20 and hidden_size=8",
        ),
        (
            read_switch_config,
            small_switch.CONFIGS["base"],
            {"feed_forward_proj": "gelu"},
            "dense_act_fn='relu' and feed_forward_proj='gelu' must be the same",
        ),
    ],
)
def test_other_families_names_for_a_field(read, raw, changes, words):
    assert words in refusal(read, raw | changes, "config.json")
    # Under the other name alone it is the field.
    (name,) = changes
    ours = {"hidden_size": "dim" if "dim" in raw else "d_model"}.get(name)
    if ours:
        there = without(raw, ours) | {name: raw[ours]}
        assert read(there, "config.json") == read(raw, "config.json")


def test_equal_statements_of_the_number_of_experts_load():
    assert causal(MIXTRAL | {"num_experts": 5}) == causal(MIXTRAL)
    olmoe = small_causal.CONFIGS["olmoe"]
    named = without(olmoe, "num_experts") | {"num_local_experts": 8}
    assert causal(olmoe | {"num_local_experts": 8, "head_dim": 6}) == causal(olmoe) == causal(named)
    wide = small_causal.CONFIGS["qwen2_moe"] | {"head_dim": 10}  # read by its layers
    assert causal(wide).width_of_head == 10


def _nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


BAD = [
    *(None, True, 0, -1, 3.5, float("nan"), float("inf"), 1e39, 2**31, 10**400),
    *("x", "\ud800", "a\nb" * 3000, [], ["x"], [[1]], {"a": 1}, {"factor": "4"}, _nested(500)),
]
EXPERTS = ("num_local_experts", "num_experts", "num_experts_per_tok")
QWEN = (*EXPERTS, "moe_intermediate_size", "use_sliding_window", "decoder_sparse_step")
# Fields of each family beside those of its config here; of some, only what others lack.
FAMILIES = [
    (
        *("llama tied, biased, stretched", READERS[0], True),
        *(("rope_scaling", "rope_theta", "layer_types", "partial_rotary_factor", "mlp_bias"),),
    ),
    ("mixtral windowed", READERS[0], False, (*EXPERTS, "sliding_window", "per_layer_config")),
    ("olmoe clipped", READERS[0], False, (*EXPERTS, "clip_qkv", "norm_topk_prob")),
    ("qwen2_moe", READERS[0], False, (*QWEN, "shared_expert_intermediate_size", "qkv_bias")),
    ("qwen3_moe", READERS[0], False, (*QWEN, "mlp_only_layers")),
    ("bert", READERS[1], True, ("position_embedding_type", "is_decoder", "per_layer_config")),
    ("distilbert", READERS[1], True, ("hidden_size",)),
    ("roberta", READERS[1], False, ("pad_token_id",)),
    (
        *("base", READERS[2], True),
        *(("hidden_size", "is_gated_act", "feed_forward_proj", "router_jitter_noise"),),
    ),
]


@pytest.mark.parametrize(
    ("name", "reader", "whole", "more"), FAMILIES, ids=[x[0] for x in FAMILIES]
)
def test_any_value_of_any_field_is_read_or_refused_in_one_line(name, reader, whole, more):
    configs, read = reader
    raw = configs[name]
    fields = (*raw, *more) if whole else more
    inner = raw.get("rope_parameters", {}) if whole else {}
    changes = [{field: value} for field in fields for value in BAD]
    changes += [{"rope_parameters": {**inner, key: value}} for key in inner for value in BAD]
    messages = []
    for change in changes:
        try:
            read(raw | change, "config.json")
        except UserError as error:
            messages.append((change, str(error)))
    # A number of layers may leave no layer experts.
    related = ("num_experts_per_tok", "mlp_only_layers")
    assert messages
    for (field,), message in messages:
        assert message.startswith("config.json")
        assert message.isprintable()
        assert len(message) < 400
        assert any(word in message for word in (field, *related))


@pytest.mark.parametrize(
    ("raw", "changes", "message"),
    [
        (LLAMA, {"rope_scaling": "linear"}, "rope_scaling='linear' must be an object"),
        (
            LLAMA,
            {"rope_theta": None, "rope_parameters": None},
            "rope_theta=None must be a number more than 0 (that float32 can hold)",
        ),
        (LLAMA, {"rope_parameters": [1]}, "rope_parameters=[1] must be an object"),
        (LLAMA, {"hidden_size": 24.0}, "hidden_size=24.0 must be a whole number >= 1"),
        (LLAMA, {"hidden_size": True}, "hidden_size=True must be a whole number >= 1"),
        (
            LLAMA,
            {"num_hidden_layers": 10**9},
            "num_hidden_layers=1000000000 must be a whole number up to 10000",
        ),
        (LLAMA, {"num_key_value_heads": 0}, "num_key_value_heads=0 must be a whole number >= 1"),
        (
            LLAMA,
            {"num_key_value_heads": 3},
            "num_key_value_heads=3 must divide num_attention_heads=4",
        ),
        (
            LLAMA,
            {"rms_norm_eps": "1e-5"},
            "rms_norm_eps='1e-5' must be a number more than 0 (that float32 can hold)",
        ),
        (LLAMA, {"tie_word_embeddings": 1}, "tie_word_embeddings=1 must be true or false"),
        (LLAMA, {"hidden_act": ["silu"]}, "hidden_act=['silu'] must be a string"),
        (
            LLAMA,
            {"rope_parameters": {**LINEAR, "factor": "4"}},
            "rope_parameters.factor='4' must be a number more than 0 (that float32 can hold)",
        ),
        (LLAMA, {"rope_parameters": {"rope_type": "linear"}}, None),
        (
            small_causal.CONFIGS["qwen3_moe"],
            {"decoder_sparse_step": 0},
            "decoder_sparse_step=0 must be a whole number >= 1",
        ),
        (
            small_causal.CONFIGS["qwen3_moe"],
            {"mlp_only_layers": "01"},
            "mlp_only_layers='01' must be a list of whole numbers",
        ),
        (
            without(MIXTRAL, "num_key_value_heads"),
            {},
            "num_key_value_heads=8 (its default) must divide num_attention_heads=4",
        ),
    ],
)
def test_messages(raw, changes, message):
    wanted = f"config.json: {message}"
    if message is None:
        wanted = "config.json lacks the field 'rope_parameters.factor'"
    assert refusal(read_causal_config, raw | changes, "config.json") == wanted


def test_values_are_shown_on_one_short_line():
    assert shown("a\nb") == "'a\\nb'"
    assert len(shown(["x" * 100])) == 80
    assert shown(10**4000).startswith("1000")
    assert shown(10**5000) == "(a long int)"
    assert shown(_nested(100_000)) == "(a long list)"


def test_what_is_the_same():
    numbers = [0, 1, 2.5, True, False, None, "1", [1], {"a": 1}, float("nan"), float("inf")]
    for (i, one), (j, other) in itertools.product(enumerate(numbers), repeat=2):
        assert same(one, other) == (i == j)
    assert same({"a": [1, 2.0]}, {"a": [1.0, 2]})
    assert not same({"a": [1]}, {"a": [True]})
    assert not same(float("inf"), -float("inf"))
    assert not same(_nested(100_000), _nested(100_000))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 2}', "has the name 'a' twice, with different values"),
        ('{"b": {"a": 1, "a": true}}', "has the name 'a' twice"),
        ('{"a": ' + "[" * 100_000, "nested too deeply"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", "4,300 digits"),
        ('{"a": 1', "can't be read as JSON"),
        ("[1]", "must hold one JSON object, not a list"),
        ("", "can't be read as JSON"),
    ],
)
def test_odd_json_is_one_line(text, words, tmp_path):
    (tmp_path / "config.json").write_text(text)
    assert words in refusal(read_json, tmp_path / "config.json")


def test_json_that_is_odd_but_clear_is_read(tmp_path):
    file = tmp_path / "config.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1, "a": 1.0, "b": [NaN], "b": [NaN]}')
    assert read_json(file)["a"] == 1
    file.write_bytes(b'{"a": "\xff"}')
    assert "line 1: not UTF-8" in refusal(read_json, file)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "config.json",
            40,
            "eos_token_id=40 must be an id of the vocabulary, 0 to 39 (vocab_size=40)",
        ),
        ("config.json", -1, "eos_token_id=-1 must be an id of the vocabulary"),
        ("config.json", [2, 10**12], "eos_token_id=1000000000000 must be an id"),
        ("config.json", [[2]], "eos_token_id=[[2]] must be a whole number or a list of them"),
        ("config.json", "2", "eos_token_id='2' must be a whole number"),
        ("config.json", 2.0, "eos_token_id=2.0 must be a whole number"),
        ("config.json", {"id": 2}, "must be a whole number"),
        ("generation_config.json", [3, 40], "eos_token_id=40 must be an id of the vocabulary"),
        ("generation_config.json", ["2"], "eos_token_id=['2'] must be a whole number"),
        ("generation_config.json", True, "eos_token_id=True must be a whole number"),
    ],
)
@pytest.mark.parametrize(
    ("write", "raw"),
    [(small_causal.write, LLAMA), (small_switch.write, small_switch.CONFIGS["base"])],
    ids=["causal", "switch"],
)
def test_stop_ids_that_the_model_can_not_make(write, raw, name, value, words, tmp_path):
    folder = write(tmp_path, raw)
    base = raw if name == "config.json" else {}
    (folder / name).write_text(json.dumps({**base, "eos_token_id": value}))
    message = refusal(load_language_model, folder)
    assert message.startswith(f"{folder / name}: ")
    assert words in message


def test_stop_ids_of_two_files(tmp_path):
    folder = small_causal.write(tmp_path / "a", LLAMA)  # eos_token_id=3
    found = load_lm(folder)
    assert found.stop_ids == (3,)
    for value, wanted in (
        ({}, (3,)),
        ({"eos_token_id": None}, (3,)),
        ({"eos_token_id": [5, 6]}, (5, 6)),
    ):
        (folder / "generation_config.json").write_text(json.dumps(value))
        assert load_lm(folder).stop_ids == wanted
    # Without any, transformers would have the architecture's own in its config: null says none.
    save_lm(found.model, tmp_path / "b", tokenizer=found.tokenizer)
    raw = json.loads((tmp_path / "b" / "config.json").read_text())
    assert [raw[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [None] * 3
    assert load_lm(tmp_path / "b").stop_ids == ()


@pytest.mark.parametrize("field", ["vocab_size", "intermediate_size"])
def test_more_memory_than_there_is_is_never_asked_for(field, tmp_path):
    folder = small_causal.write(tmp_path, MIXTRAL)
    (folder / "config.json").write_text(json.dumps(MIXTRAL | {field: 2**31 - 1}))
    with pytest.raises(UserError, match="its config asks for"):
        load_lm(folder)


def test_fields_within_an_object_are_named_with_their_path():
    fields = Fields({"a": {"b": {"c": "x"}}}, "config.json")
    inner = fields.inner("a").inner("b")
    assert refusal(inner.whole, "c") == "config.json: a.b.c='x' must be a whole number >= 1"
    assert refusal(inner.number, "d") == "config.json lacks the field 'a.b.d'"
    assert Fields({"a": {}}, "x").inner("a") is None
