"""Causal language models against transformers' torch models (`make parity`; needs torch)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from moe_jax.models import load_lm, save_lm
from moe_jax.models.causal_families import CAUSAL_FAMILIES
from tests.models import small_causal

pytestmark = [
    pytest.mark.parity,
    # Deprecations inside torch and transformers are not ours to mend.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def random_config(name, seed):
    """The small config of an architecture with other sizes."""
    random = np.random.RandomState(seed)
    config = dict(small_causal.CONFIGS[name])
    groups, width = int(random.randint(1, 4)), 2 * int(random.randint(2, 9))
    heads = groups * int(random.randint(1, 4))
    config |= {"num_attention_heads": heads, "num_key_value_heads": groups}
    config |= {"hidden_size": heads * width, "intermediate_size": int(random.randint(8, 70))}
    if "head_dim" in config:
        config["head_dim"] = width + 2
    return config


def theirs(folder):
    """The torch model of a folder, its logits and, of each layer with a mixture, its router's input to top-k."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        attn_implementation="eager",
        experts_implementation="eager",  # the default needs sizes that are multiples of 4
        dtype=torch.float32,
    ).eval()
    chosen = []
    for module in model.modules():
        if type(module).__name__.endswith(("TopKRouter", "TopkRouter")):
            module.register_forward_hook(lambda m, i, out: chosen.append(out[-1].numpy()))
    return model, chosen


def run(model, ids, where):
    import torch

    with torch.no_grad():
        return model(
            input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(where).long()
        ).logits.numpy()


def check(folder, seed):
    random = np.random.RandomState(seed)
    ids = random.randint(0, 40, (3, 12))
    where = np.ones(ids.shape, bool)
    where[1, 7:], where[2, 2:] = False, False
    found = load_lm(folder)
    out = nnx.jit(lambda m, *a: m(*a))(found.model, jnp.asarray(ids), jnp.asarray(where))
    model, chosen = theirs(folder)
    logits = run(model, ids, where)
    assert np.abs(np.asarray(out.logits) - logits)[where].max() <= 1e-4
    layers = found.config.expert_layers
    assert len(chosen) == len(layers)
    for i in range(len(layers)):
        mine = np.asarray(out.routing.expert)[:, :, i][where]
        np.testing.assert_array_equal(
            np.sort(mine), np.sort(chosen[i].reshape(*ids.shape, -1)[where])
        )
    return found, logits


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", small_causal.CONFIGS)
def test_random_models_of_every_architecture(name, seed, tmp_path):
    config = random_config(name, seed)
    # Logits of about 1, so that 1e-4 is a tight bound.
    weights = {
        k: v * (0.5 if v.ndim > 1 else 1) for k, v in small_causal.tensors(config, seed).items()
    }
    check(small_causal.write(tmp_path, config, weights), seed)


@pytest.mark.parametrize("name", small_causal.CONFIGS)
def test_what_we_save_transformers_loads(name, tmp_path):
    found = load_lm(small_causal.write(tmp_path / "first", small_causal.CONFIGS[name]))
    second = tmp_path / "second"
    save_lm(found.model, second, tokenizer=found.tokenizer, stop_ids=(3,), max_bytes=9_000)
    first_model, _ = theirs(tmp_path / "first")
    second_model, _ = theirs(second)
    ids = np.random.RandomState(0).randint(0, 40, (2, 9))
    where = np.ones(ids.shape, bool)
    np.testing.assert_array_equal(run(first_model, ids, where), run(second_model, ids, where))
    kind = small_causal.CONFIGS[name]["model_type"]
    assert type(second_model).__name__ == CAUSAL_FAMILIES[kind].architecture


@pytest.mark.parametrize("name", [name for name in small_causal.CONFIGS if "llama" not in name])
@pytest.mark.parametrize("published", [True, False])
def test_we_load_what_transformers_saves(name, published, tmp_path):
    """In both of its layouts: a tensor for each expert, or two for all of a layer."""
    first = small_causal.write(tmp_path / "first", small_causal.CONFIGS[name])
    model, _ = theirs(first)
    model.save_pretrained(tmp_path / "second", save_original_format=published)
    (first / "tokenizer.json").rename(tmp_path / "second" / "tokenizer.json")
    stacked = [n for n in load_file(tmp_path / "second" / "model.safetensors") if "gate_up" in n]
    assert bool(stacked) != published
    check(tmp_path / "second", 5)


@pytest.mark.parametrize("kept", [("lm_head",), ("embed_tokens",), ("lm_head", "embed_tokens")])
def test_tied_models_with_an_output_layer_in_their_files(kept, tmp_path):
    """Transformers uses the file's where it differs from the table, and either if one lacks."""
    config = {**small_causal.CONFIGS["llama"], "tie_word_embeddings": True}
    weights = {
        name: value
        for name, value in small_causal.tensors(small_causal.CONFIGS["llama"]).items()
        if name.split(".")[-2] in kept or "layers" in name or "norm" in name
    }
    found, _ = check(small_causal.write(tmp_path, config, weights), 6)
    assert found.config.tie_embeddings == (len(kept) == 1)


@pytest.mark.parametrize("block", [(4, 4), (4, 2), None])
def test_float8_stands_for_what_transformers_makes_of_it(block, tmp_path):
    import torch
    from safetensors.torch import save_file as save_torch
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    config = small_causal.CONFIGS["qwen3_moe"]
    files, stand = {}, {}
    for name, value in small_causal.tensors(config).items():
        files[name] = stand[name] = torch.from_numpy(value)
        if "_proj.weight" in name:
            rows, columns = block or value.shape
            blocks = files[name].reshape(-1, rows, value.shape[1] // columns, columns)
            scale = blocks.abs().amax((1, 3)) / 448
            whole = (blocks / scale[:, None, :, None]).reshape(value.shape)
            files[name] = whole.to(torch.float8_e4m3fn)
            files[f"{name}_scale_inv"] = scale if block else scale.reshape(())
            stand[name] = Fp8Dequantize(None)._dequantize_one(files[name], scale, torch.float32)
    small_causal.write(tmp_path / "stand", config, {n: v.numpy() for n, v in stand.items()})
    how = {"quant_method": "fp8", "weight_block_size": block and list(block)}
    small_causal.write(tmp_path / "float8", config | {"quantization_config": how})
    save_torch(files, tmp_path / "float8" / "model.safetensors", metadata={"format": "pt"})
    models = [load_lm(tmp_path / folder).model for folder in ("stand", "float8")]
    states = [nnx.to_pure_dict(nnx.state(model)) for model in models]
    jax.tree.map(np.testing.assert_array_equal, *states)
