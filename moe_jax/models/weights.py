"""Names of Hugging Face's encoder weights, and what they are called here.

A weight of ours is one tensor of theirs, transposed where it is a Linear's matrix (theirs are
[out, in]), or the concatenation of three (queries, keys and values are one matrix here).
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe_jax.errors import UserError
from moe_jax.models.bert import Encoder, EncoderConfig
from moe_jax.models.hub_tensors import check_count, check_names, finite
from moe_jax.models.shapes import shapes_of

Path = tuple[Any, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Names:
    """Where one family of models keeps its tensors; layer names are below `layer`.N."""

    prefixes: tuple[str, ...]
    layer: str
    qkv: tuple[str, str, str]
    attention_out: str
    attention_norm: str
    ffn_in: str
    ffn_out: str
    ffn_norm: str
    # Beginnings of names that belong to heads, which an encoder does not need.
    heads: tuple[str, ...]


BERT_NAMES = Names(
    prefixes=("bert.", "roberta."),
    layer="encoder.layer",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    attention_out="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    ffn_in="intermediate.dense",
    ffn_out="output.dense",
    ffn_norm="output.LayerNorm",
    heads=("pooler.", "cls.", "lm_head.", "classifier.", "qa_outputs."),
)
DISTILBERT_NAMES = Names(
    prefixes=("distilbert.",),
    layer="transformer.layer",
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    attention_out="attention.out_lin",
    attention_norm="sa_layer_norm",
    ffn_in="ffn.lin1",
    ffn_out="ffn.lin2",
    ffn_norm="output_layer_norm",
    heads=("vocab_", "pre_classifier.", "classifier.", "qa_outputs."),
)
# Constants that older files carry; positions are counted here.
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


def sources(config: EncoderConfig, names: Names) -> dict[Path, tuple[str, ...]]:
    """For each parameter of Encoder(config), the tensor (or three) that it is made of."""
    table: dict[Path, tuple[str, ...]] = {
        ("token", "embedding"): ("embeddings.word_embeddings.weight",),
        ("position", "embedding"): ("embeddings.position_embeddings.weight",),
        ("norm", "scale"): ("embeddings.LayerNorm.weight",),
        ("norm", "bias"): ("embeddings.LayerNorm.bias",),
    }
    if config.num_token_types:
        table[("token_type", "embedding")] = ("embeddings.token_type_embeddings.weight",)
    for index in range(config.num_layers):
        start = f"{names.layer}.{index}"
        dense: dict[str, tuple[str, ...]] = {
            "qkv": names.qkv,
            "attention_out": (names.attention_out,),
            "ffn_in": (names.ffn_in,),
            "ffn_out": (names.ffn_out,),
        }
        for ours, theirs in dense.items():
            for part, end in (("kernel", "weight"), ("bias", "bias")):
                path = ("layers", index, ours, part)
                table[path] = tuple(f"{start}.{name}.{end}" for name in theirs)
        for ours, name in (("attention_norm", names.attention_norm), ("ffn_norm", names.ffn_norm)):
            for part, end in (("scale", "weight"), ("bias", "bias")):
                table[("layers", index, ours, part)] = (f"{start}.{name}.{end}",)
    return table


def plain_name(name: str, names: Names) -> str:
    """A tensor's name without the model's prefix, and with today's names for layer norms."""
    prefix = next((prefix for prefix in names.prefixes if name.startswith(prefix)), "")
    name = name.removeprefix(prefix)
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return name


def needed(name: str, names: Names) -> bool:
    """Whether a plain name can be an encoder's: neither a head's nor a constant's."""
    return not name.startswith(names.heads) and name not in _BUFFERS


def build(
    config: EncoderConfig,
    names: Names,
    found: Collection[str],
    read: Callable[[str], np.ndarray],
    where: str,
) -> Encoder:
    """Makes the encoder from a folder's tensors.

    Args:
      config: the encoder's shape.
      names: how the folder names its tensors.
      found: plain names of the tensors that it has, without heads.
      read: gives the tensor with a plain name.
      where: the folder, for messages.

    Returns:
      The encoder, with float32 parameters.

    Raises:
      UserError: a weight is missing, unknown, or has another shape than the config says.
    """
    check_count(config.num_layers, "layers", found, where)
    table = sources(config, names)
    wanted = {name for group in table.values() for name in group}
    check_names(wanted, set(found), where)
    shapes = shapes_of(lambda rngs: Encoder(config, rngs=rngs))
    graphdef, state = nnx.split(shapes)
    leaves = []
    for path, leaf in nnx.to_flat_state(state):
        turned = path[-1] == "kernel"
        whole = leaf.shape[::-1] if turned else leaf.shape
        shape = (whole[0] // len(table[path]), *whole[1:])
        parts = []
        for name in table[path]:
            part = read(name)
            if part.shape != shape:
                raise UserError(
                    f"{where}: {name} has shape {part.shape}, its config.json calls for {shape}"
                )
            with np.errstate(over="ignore"):
                parts.append(finite(part.astype(np.float32), name, where))
        value = np.concatenate(parts) if len(parts) > 1 else parts[0]
        leaves.append((path, leaf.replace(jnp.asarray(value.T if turned else value))))
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))
