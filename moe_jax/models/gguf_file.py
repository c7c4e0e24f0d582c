"""Reads GGUF files, llama.cpp's format: shape, tokenizer and tensors of causal language models.

Covered: the architectures "llama" (dense Llama, Mixtral), "olmoe", "qwen2moe" and "qwen3moe".
Quantised tensors become float32, exactly as the format defines them. No code of the file is run.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from tokenizers import Tokenizer

from moe_jax.errors import UserError
from moe_jax.models import causal_families, causal_weights
from moe_jax.models.causal_config import CausalConfig
from moe_jax.models.causal_families import FfnNames
from moe_jax.models.gguf_config import PAIRED, raw_config
from moe_jax.models.gguf_metadata import Metadata
from moe_jax.models.gguf_tokenizer import read_gguf_tokenizer
from moe_jax.models.hub_tensors import Place, check_names
from moe_jax.models.tensor_files import Index, Tensors
from moe_jax.models.tokenizer import check_size

_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_proj": "ffn_gate",
    "mlp.down_proj": "ffn_down",
}
# Below a mixture's own name.
_MIXTURE = {
    "gate": "ffn_gate_inp",
    "shared_expert.up_proj": "ffn_up_shexp",
    "shared_expert.gate_proj": "ffn_gate_shexp",
    "shared_expert.down_proj": "ffn_down_shexp",
    "shared_expert_gate": "ffn_gate_inp_shexp",
}


class GgufModel(NamedTuple):
    """What a GGUF file holds.

    Attributes:
      config: the model's shape.
      names: of the feed-forward tensors.
      tokenizer: neither truncates nor pads.
      stop_ids: tokens that end a text.
      tensors: under Hugging Face's names and in its layout, float32, read when asked for.
    """

    config: CausalConfig
    names: FfnNames
    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]
    tensors: Tensors


def read_gguf(file: pathlib.Path) -> GgufModel:
    """Opens a GGUF file of a covered architecture.

    Files of mixtures do not say whether the weights of the chosen experts are normalised: that is
    as llama.cpp has it for the architecture (Mixtral and Qwen3-MoE: yes; OLMoE and Qwen2-MoE: no),
    unless the key expert_weights_norm is there.

    Args:
      file: version 2 or 3, in this machine's byte order; its tensors stay on disk until read.

    Raises:
      UserError: the file is missing, broken or not of a covered kind; one line that says which.
    """
    reader = _open(file)
    metadata = Metadata(file, dict(reader.fields))
    held = {tensor.name: tensor for tensor in reader.tensors}
    shapes = {name: tuple(tensor.shape.tolist()[::-1]) for name, tensor in held.items()}
    raw = raw_config(metadata, shapes)
    config, names = causal_families.read_causal_config(raw, str(file))
    places = _places(file, config, names, shapes)
    tokenizer, stop_ids = read_gguf_tokenizer(metadata)
    check_size(tokenizer, config.vocab_size, str(file))
    paired = metadata.need("general.architecture", str) == PAIRED

    def read(name: str) -> np.ndarray:
        place = places[name]
        value = _dequantise(file, held[place.name], place.part)
        if name.endswith(".shared_expert_gate.weight"):
            return value.reshape(1, -1)  # a row that llama.cpp's converter makes a vector
        for part, heads in (("q_proj", config.num_heads), ("k_proj", config.num_kv_heads)):
            mine = paired and f".self_attn.{part}." in name
            # Another height is an error that the caller reports.
            if mine and len(value) == heads * config.width_of_head:
                value = halves_from_pairs(value, heads)
        return value

    return GgufModel(config, names, tokenizer, stop_ids, Tensors(tuple(places), read))


def read_metadata(file: pathlib.Path) -> Metadata:
    """The keys and values of a GGUF file, of whatever architecture.

    Raises:
      UserError: the file is missing or broken, or the package gguf isn't installed.
    """
    return Metadata(file, dict(_open(file).fields))


def halves_from_pairs(value: Float[np.ndarray, "..."], heads: int) -> Float[np.ndarray, "..."]:
    """Puts rows of a head from (0, w/2, 1, w/2 + 1, ...) back to (0, 1, ..., w - 1).

    For the architecture "llama" llama.cpp rotates neighbours (2i, 2i + 1) where transformers and
    CausalLM rotate (i, i + w/2), so its files hold the rows of q and k in the order of its pairs.
    For the others it rotates halves too. w = rows / heads.

    Args:
      value: a matrix [out, in] or a bias [out].
      heads: how many heads share the rows.

    Returns:
      An array like `value`.
    """
    pairs = value.reshape(heads, -1, 2, *value.shape[1:])
    return pairs.swapaxes(1, 2).reshape(value.shape)


def _open(file: pathlib.Path) -> Any:
    """The `gguf` package's reader, of a file that is whole."""
    try:
        import gguf  # noqa: F401

        from moe_jax.models.gguf_reader import read_whole
    except ImportError:
        raise UserError(f"{file}: GGUF files need the package gguf: pip install gguf") from None
    if not file.is_file():
        raise UserError(f"model {str(file)!r} is not a file")
    return read_whole(file)


def _places(
    file: pathlib.Path,
    config: CausalConfig,
    names: FfnNames,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Place]:
    """From Hugging Face's names of the model's tensors to their places in the file."""
    table = {hub: Place(name) for hub, name in _TOP.items()}
    layer = _LAYER | {f"{names.moe}.{hub}": name for hub, name in _MIXTURE.items()}
    for i in range(config.num_layers):
        table |= {
            f"model.layers.{i}.{hub}": Place(f"blk.{i}.{name}") for hub, name in layer.items()
        }
        if i in config.expert_layers:
            table |= _expert_places(file, i, config, names, shapes)
    wanted = {}
    for source in causal_weights.sources(config, names).values():
        for name in source.names:
            stem, _, kind = name.rpartition(".")
            wanted[name] = table[stem]._replace(name=f"{table[stem].name}.{kind}")
    theirs, says = (
        {place.name for place in wanted.values()},
        ("metadata call for", "metadata do not describe"),
    )
    check_names(theirs, set(shapes), str(file), says=says)
    return wanted


def _expert_places(
    file: pathlib.Path,
    i: int,
    config: CausalConfig,
    names: FfnNames,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Place]:
    """A layer's experts: slices of three stacks, or of two, or (files of early 2024) a tensor each.

    Of two, one has the rows of the gate and then those of up.
    """
    assert config.experts is not None
    rows, both = config.experts.d_expert, f"blk.{i}.ffn_gate_up_exps"
    shape, fused = shapes.get(f"{both}.weight"), {}
    if shape is not None:
        fused = {"gate": slice(0, rows), "up": slice(rows, 2 * rows)}
        if shape[1] != 2 * rows:
            raise UserError(f"{file}: {both}.weight has shape {shape}, not 2 x {rows} rows")
    table = {}
    for part, hub in (("up", names.up), ("gate", names.gate), ("down", names.down)):
        each = f"blk.{i}.ffn_{part}.0.weight" in shapes
        for e in range(config.experts.gate.num_experts):
            if part in fused:
                place = Place(both, (e, fused[part]))
            elif each:
                place = Place(f"blk.{i}.ffn_{part}.{e}")
            else:
                place = Place(f"blk.{i}.ffn_{part}_exps", (e,))
            table[f"model.layers.{i}.{names.moe}.experts.{e}.{hub}"] = place
    return table


def _dequantise(file: pathlib.Path, tensor: Any, index: Index) -> np.ndarray:
    """A tensor, or one expert's part of a stack: the others' bytes are not read."""
    import gguf

    part = tensor.data[index]
    try:
        # Scales of a damaged file may be anything; the caller asks for finite values.
        with np.errstate(all="ignore"):
            if part.dtype == np.float64:  # which gguf doesn't turn
                return part.astype(np.float32)
            value = gguf.quants.dequantize(part, tensor.tensor_type)
    except NotImplementedError:
        kind = tensor.tensor_type.name
        raise UserError(f"{file}: {tensor.name} is of type {kind}, which is not covered") from None
    return np.asarray(value, np.float32)
