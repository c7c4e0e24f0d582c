"""Names of the tensors of Hugging Face's causal language models, and what they are called here.

A parameter of ours is one tensor of theirs, transposed where it is a Linear's matrix (theirs are
[out, in]), or a stack of them, one of each expert.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import DTypeLike

from moe_jax.errors import UserError
from moe_jax.models.causal_config import CausalConfig
from moe_jax.models.causal_families import FfnNames
from moe_jax.models.causal_lm import CausalLM

Path = tuple[Any, ...]
# Constants that older files carry; they are computed here.
_BUFFERS = ("rotary_emb.inv_freq",)


class Source(NamedTuple):
    """What a parameter is made of.

    Attributes:
      names: their tensors: one, or one of each expert.
      form: "as is", "matrix" (transposed) or "row" (theirs is [1, d]).
      stacked: the parameter has a leading axis of experts.
    """

    names: tuple[str, ...]
    form: str = "as is"
    stacked: bool = False


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
    # Tied models may carry the output layer all the same.
    ignored = {"lm_head.weight"} if config.tie_embeddings else set()
    found = {name for name in found if not name.endswith(_BUFFERS)} - ignored
    for what, which in (
        ("lacks tensors that its config calls for", wanted - found),
        ("has tensors that its config does not describe", found - wanted),
    ):
        if which:
            more = f" and {len(which) - 3} more" if len(which) > 3 else ""
            raise UserError(f"{where} {what}: {', '.join(sorted(which)[:3])}{more}")
    graphdef, state = nnx.split(nnx.eval_shape(lambda: CausalLM(config, rngs=nnx.Rngs(0))))
    leaves = []
    for path, leaf in nnx.to_flat_state(state):
        full = bool(leaf.get_metadata().get("full_precision", False))
        dtype = jnp.dtype(jnp.float32 if full else param_dtype)
        value = _value(table[path], leaf.shape, read, where, dtype)
        leaves.append((path, leaf.replace(jnp.asarray(value))))
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))


def _value(
    source: Source,
    shape: tuple[int, ...],
    read: Callable[[str], np.ndarray],
    where: str,
    dtype: np.dtype,
) -> np.ndarray:
    """One parameter from its tensors, which are read one after the other."""
    value = np.empty(shape, dtype)
    each = value if source.stacked else value[None]
    for i, name in enumerate(source.names):
        part = np.asarray(read(name))
        theirs = _theirs(source.form, each.shape[1:])
        if part.shape != theirs:
            raise UserError(f"{where}: {name} has shape {part.shape}, its config asks for {theirs}")
        each[i] = _turned(source.form, part).astype(dtype)
    return value


def _theirs(form: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return {"matrix": shape[::-1], "row": (1, *shape), "as is": shape}[form]


def _turned(form: str, part: np.ndarray) -> np.ndarray:
    """Theirs as ours."""
    return {"matrix": part.T, "row": part.reshape(-1), "as is": part}[form]


def tensors(model: CausalLM, names: FfnNames) -> Iterator[tuple[str, np.ndarray]]:
    """The model's parameters as their tensors, by name, one after the other.

    Args:
      model: any.
      names: of the feed-forward tensors.
    """
    table = sources(model.config, names)
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        source, value = table[path], np.asarray(leaf[...])
        for name, part in zip(source.names, value if source.stacked else value[None], strict=True):
            yield name, _back(source.form, part)


def _back(form: str, part: np.ndarray) -> np.ndarray:
    """Ours as theirs."""
    return {"matrix": part.T, "row": part[None], "as is": part}[form]
