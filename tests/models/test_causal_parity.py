"""Causal language models against transformers' torch models (`make parity`; needs torch)."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_jax.models.causal_families import CAUSAL_FAMILIES
from moe_jax.models.causal_pretrained import load_lm, save_lm
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
