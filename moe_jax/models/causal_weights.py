"""Names of the tensors of Hugging Face's causal language models, and what they are called here."""

from collections.abc import Callable, Iterable, Iterator

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import DTypeLike

from moe_jax.models.causal_config import CausalConfig
from moe_jax.models.causal_families import FfnNames
from moe_jax.models.causal_lm import CausalLM
from moe_jax.models.hub_tensors import Path, Source, check_names, from_tensors, to_tensors

# Constants that older files carry; they are computed here.
_BUFFERS = ("rotary_emb.inv_freq",)


def sources(config: CausalConfig, names: FfnNames) -> dict[Path, Source]:
    """For each parameter of CausalLM(config), the tensors that it is made of."""
    table: dict[Path, Source] = {
        ("token", "embedding"): Source(("model.embed_tokens.weight",)),
        ("norm", "scale"): Source(("model.norm.weight",)),
    }
    if not config.tie_embeddings:
        table[("out", "kernel")] = Source(("lm_head.weight",), "matrix")
    for i in range(config.num_layers):
        theirs = f"model.layers.{i}"
        layer: dict[Path, Source] = {
            ("attention_norm", "scale"): Source((f"{theirs}.input_layernorm.weight",)),
            ("ffn_norm", "scale"): Source((f"{theirs}.post_attention_layernorm.weight",)),
        }
        layer |= _attention(config, f"{theirs}.self_attn")
        if i in config.expert_layers:
            layer |= _mixture(config, f"{theirs}.{names.moe}", names)
        else:
            layer |= _dense((), f"{theirs}.mlp", FfnNames())
        table |= {("layers", i, *path): source for path, source in layer.items()}
    return table


def _attention(config: CausalConfig, theirs: str) -> dict[Path, Source]:
    table: dict[Path, Source] = {}
    for ours, name in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "o_proj")):
        table[("attention", ours, "kernel")] = Source((f"{theirs}.{name}.weight",), "matrix")
        if config.out_bias if ours == "out" else config.qkv_bias:
            table[("attention", ours, "bias")] = Source((f"{theirs}.{name}.bias",))
    if config.qk_norm != "none":
        for ours in ("q_norm", "k_norm"):
            table[("attention", ours, "scale")] = Source((f"{theirs}.{ours}.weight",))
    return table


def _dense(inner: Path, theirs: str, names: FfnNames) -> dict[Path, Source]:
    return {
        ("ffn", *inner, "w_in_df"): Source((f"{theirs}.{names.up}.weight",), "matrix"),
        ("ffn", *inner, "w_gate_df"): Source((f"{theirs}.{names.gate}.weight",), "matrix"),
        ("ffn", *inner, "w_out_fd"): Source((f"{theirs}.{names.down}.weight",), "matrix"),
    }


def _mixture(config: CausalConfig, theirs: str, names: FfnNames) -> dict[Path, Source]:
    experts = config.experts
    assert experts is not None
    table: dict[Path, Source] = {
        ("ffn", "gate", "w_de"): Source((f"{theirs}.gate.weight",), "matrix")
    }
    for ours, name in (
        ("w_in_edf", names.up),
        ("w_gate_edf", names.gate),
        ("w_out_efd", names.down),
    ):
        each = (f"{theirs}.experts.{e}.{name}.weight" for e in range(experts.gate.num_experts))
        table[("ffn", ours)] = Source(tuple(each), "matrix", stacked=True)
    if experts.d_shared is not None:
        table |= _dense(("shared",), f"{theirs}.shared_expert", FfnNames())
    if experts.shared_gate:
        table[("ffn", "shared_gate_d")] = Source((f"{theirs}.shared_expert_gate.weight",), "row")
    return table


def build(
    config: CausalConfig,
    names: FfnNames,
    found: Iterable[str],
    read: Callable[[str], np.ndarray],
    where: str,
    *,
    param_dtype: DTypeLike = jnp.float32,
) -> CausalLM:
    """Makes the model from a folder's tensors.

    Args:
      config: the model's shape.
      names: of the feed-forward tensors.
      found: names of the tensors that there are.
      read: gives the tensor of a name.
      where: the folder, for messages.
      param_dtype: of the parameters; those of gates are float32 always.

    Raises:
      UserError: a tensor is missing, unknown, or has another shape than the config says.
    """
    table = sources(config, names)
    wanted = {name for source in table.values() for name in source.names}
    there = {name for name in found if not name.endswith(_BUFFERS)}
    # Tied models may carry the output layer all the same.
    check_names(wanted, there, where, ignored=["lm_head.weight"] if config.tie_embeddings else [])
    return from_tensors(
        lambda: CausalLM(config, rngs=nnx.Rngs(0)), table, read, where, param_dtype=param_dtype
    )


def tensors(model: CausalLM, names: FfnNames) -> Iterator[tuple[str, np.ndarray]]:
    """The model's parameters as their tensors, by name, one after the other.

    Args:
      model: any.
      names: of the feed-forward tensors.
    """
    return to_tensors(model, sources(model.config, names))
