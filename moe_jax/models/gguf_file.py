"""Reads GGUF files, llama.cpp's format: shape, tokenizer and tensors of dense Llama models.

Covered: architecture "llama" without experts, byte-level BPE ("gpt2") tokenizers. Quantised
tensors become float32, exactly as the format defines them. No code of the file is run.
"""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from moe_jax.errors import UserError
from moe_jax.models import causal_families, causal_weights
from moe_jax.models.causal_config import CausalConfig
from moe_jax.models.causal_families import FfnNames
from moe_jax.models.tensor_files import Tensors

_T = TypeVar("_T", int, float, str, list)
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_proj": "ffn_gate",
    "mlp.down_proj": "ffn_down",
}
# Kinds of tokens in tokenizer.ggml.token_type.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
# What cuts a text before the merges, by tokenizer.ggml.pre.
_CUTS: dict[str, Callable[[], Any]] = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
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


class Metadata:
    """The keys and values at a file's start."""

    def __init__(self, file: pathlib.Path, fields: dict[str, Any]):
        """Keep the reader's fields; values are made when asked for."""
        self.file, self._fields = file, fields

    def need(self, key: str, kind: type[_T]) -> _T:
        """The value of a key that must be there.

        Raises:
          UserError: it isn't, or it's of another type.
        """
        value = self.get(key, kind)
        if value is None:
            raise UserError(f"{self.file} lacks the metadata key {key}")
        return value

    def get(self, key: str, kind: type[_T]) -> _T | None:
        """The value of a key, or None.

        Raises:
          UserError: it's of another type.
        """
        if key not in self._fields:
            return None
        try:
            value = self._fields[key].contents()
        except UnicodeDecodeError:
            raise UserError(f"{self.file}: {key} is not UTF-8") from None
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is float):
            raise UserError(f"{self.file}: {key}={value!r:.60} must be of type {kind.__name__}")
        return value


def read_gguf(file: pathlib.Path) -> GgufModel:
    """Opens a GGUF file of a dense Llama model.

    Args:
      file: version 2 or 3, in this machine's byte order; its tensors stay on disk until read.

    Raises:
      UserError: the file is missing, broken or not of a covered kind; one line that says which.
    """
    reader = _open(file)
    metadata = Metadata(file, dict(reader.fields))
    held = {tensor.name: tensor for tensor in reader.tensors}
    raw = _raw_config(metadata, set(held))
    config, names = causal_families.read_causal_config(raw, str(file))
    theirs = _their_names(file, config, names, set(held))
    tokenizer, stop_ids = read_gguf_tokenizer(metadata)
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= config.vocab_size:
        raise UserError(
            f"{file}: the tokenizer has ids up to {largest}, the metadata have "
            f"vocab_size={config.vocab_size}"
        )

    def read(name: str) -> np.ndarray:
        value = _dequantise(file, held[theirs[name]])
        for part, heads in (("q_proj", config.num_heads), ("k_proj", config.num_kv_heads)):
            # Another height is an error that the caller reports.
            if f".self_attn.{part}." in name and len(value) == heads * config.width_of_head:
                value = halves_from_pairs(value, heads)
        return value

    return GgufModel(config, names, tokenizer, stop_ids, Tensors(tuple(theirs), read))


def read_metadata(file: pathlib.Path) -> Metadata:
    """The keys and values of a GGUF file, of whatever architecture.

    Raises:
      UserError: the file is missing or broken, or the package gguf isn't installed.
    """
    return Metadata(file, dict(_open(file).fields))


def halves_from_pairs(value: Float[np.ndarray, "..."], heads: int) -> Float[np.ndarray, "..."]:
    """Puts rows of a head from (0, w/2, 1, w/2 + 1, ...) back to (0, 1, ..., w - 1).

    llama.cpp rotates neighbours (2i, 2i + 1) where transformers and CausalLM rotate (i, i + w/2),
    so its files hold the rows of q and k in the order of its pairs. w = rows / heads.

    Args:
      value: a matrix [out, in] or a bias [out].
      heads: how many heads share the rows.

    Returns:
      An array like `value`.
    """
    pairs = value.reshape(heads, -1, 2, *value.shape[1:])
    return pairs.swapaxes(1, 2).reshape(value.shape)


def _open(file: pathlib.Path) -> Any:
    """The `gguf` package's reader."""
    try:
        import gguf
    except ImportError:
        raise UserError(f"{file}: GGUF files need the package gguf: pip install gguf") from None
    if not file.is_file():
        raise UserError(f"model {str(file)!r} is not a file")
    try:
        reader = gguf.GGUFReader(file)
    except (OSError, ValueError, LookupError, OverflowError, MemoryError, TypeError) as error:
        raise UserError(f"{file} is not a whole GGUF file: {error}") from None
    if reader.byte_order != "I":
        raise UserError(f"{file} is a GGUF file of the other byte order, which is not covered")
    return reader


def _raw_config(metadata: Metadata, tensors: set[str]) -> dict[str, Any]:
    """The metadata as a config.json has it."""
    file = metadata.file
    architecture = metadata.need("general.architecture", str)
    if architecture != "llama":
        raise UserError(f"{file}: architecture {architecture!r} is not covered, only 'llama'")
    if metadata.get("llama.expert_count", int):
        raise UserError(f"{file}: a GGUF file with experts is not covered; load its safetensors")
    if metadata.get("llama.attention.causal", int) is False:
        raise UserError(f"{file}: attention to both sides (attention.causal=false) is not covered")
    heads = metadata.need("llama.attention.head_count", int)
    wide = metadata.need("llama.embedding_length", int)
    width = metadata.get("llama.attention.key_length", int) or wide // max(heads, 1)
    for key in ("attention.value_length", "rope.dimension_count"):
        found = metadata.get(f"llama.{key}", int)
        if found not in (None, width):
            raise UserError(f"{file}: {key}={found} is not covered, only the heads' width, {width}")
    size, layers = metadata.get("llama.vocab_size", int), metadata.need("llama.block_count", int)
    if layers > len(tensors):
        raise UserError(f"{file} has {len(tensors)} tensors, too few for its {layers} layers")
    return {
        "model_type": "llama",
        "vocab_size": size or len(metadata.need("tokenizer.ggml.tokens", list)),
        "hidden_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get("llama.attention.head_count_kv", int) or heads,
        "head_dim": width,
        "intermediate_size": metadata.need("llama.feed_forward_length", int),
        "rms_norm_eps": metadata.need("llama.attention.layer_norm_rms_epsilon", float),
        "rope_parameters": _rope(metadata, tensors),
        "max_position_embeddings": metadata.need("llama.context_length", int),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
    }


def _rope(metadata: Metadata, tensors: set[str]) -> dict[str, Any]:
    """As llama.cpp reads it: a factor without a type is linear."""
    if "rope_freqs.weight" in tensors:
        raise UserError(
            f"{metadata.file}: rope_freqs.weight (Llama 3.1's scaling) is not covered in GGUF "
            "files; load the model's safetensors"
        )
    theta = metadata.get("llama.rope.freq_base", float) or 10_000.0
    kind = metadata.get("llama.rope.scaling.type", str) or "linear"
    factor = metadata.get("llama.rope.scaling.factor", float)
    if factor is None:
        factor = metadata.get("llama.rope.scale_linear", float)
    if kind == "none" or (kind == "linear" and factor in (None, 0.0, 1.0)):
        return {"rope_type": "default", "rope_theta": theta}
    if kind != "linear":
        raise UserError(
            f"{metadata.file}: rope.scaling.type={kind!r} is not covered, only none and linear"
        )
    return {"rope_type": "linear", "rope_theta": theta, "factor": factor}


def _their_names(
    file: pathlib.Path, config: CausalConfig, names: FfnNames, found: set[str]
) -> dict[str, str]:
    """From Hugging Face's names of the model's tensors to the file's."""
    table = dict(_TOP)
    for i in range(config.num_layers):
        table |= {f"model.layers.{i}.{hub}": f"blk.{i}.{name}" for hub, name in _LAYER.items()}
    wanted = {}
    for source in causal_weights.sources(config, names).values():
        for name in source.names:
            stem, _, kind = name.rpartition(".")
            wanted[name] = f"{table[stem]}.{kind}"
    for what, which in (
        ("lacks tensors that its metadata call for", set(wanted.values()) - found),
        ("has tensors that its metadata do not describe", found - set(wanted.values())),
    ):
        if which:
            more = f" and {len(which) - 3} more" if len(which) > 3 else ""
            raise UserError(f"{file} {what}: {', '.join(sorted(which)[:3])}{more}")
    return wanted


def _dequantise(file: pathlib.Path, tensor: Any) -> np.ndarray:
    import gguf

    try:
        return np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
    except NotImplementedError:
        kind = tensor.tensor_type.name
        raise UserError(f"{file}: {tensor.name} is of type {kind}, which is not covered") from None


def read_gguf_tokenizer(metadata: Metadata) -> tuple[Tokenizer, tuple[int, ...]]:
    """The tokenizer that the metadata describe, and the tokens that end a text.

    Raises:
      UserError: it is of a kind that isn't covered, or can't be made.
    """
    file, start = metadata.file, "tokenizer.ggml"
    kind, cut = metadata.need(f"{start}.model", str), metadata.get(f"{start}.pre", str)
    if kind != "gpt2":
        raise UserError(f"{file}: {start}.model={kind!r} is not covered, only 'gpt2'")
    if cut not in _CUTS:
        raise UserError(f"{file}: {start}.pre={cut!r} is not covered, only {', '.join(_CUTS)}")
    tokens = metadata.need(f"{start}.tokens", list)
    kinds = metadata.get(f"{start}.token_type", list) or [_NORMAL] * len(tokens)
    if len(kinds) != len(tokens):
        raise UserError(f"{file}: {start}.token_type has {len(kinds)} of {len(tokens)} tokens")
    merges = []
    for line in metadata.need(f"{start}.merges", list):
        pair = str(line).split(" ")
        if len(pair) != 2:
            raise UserError(f"{file}: {start}.merges has {line!r:.60}, which is not two tokens")
        merges.append((pair[0], pair[1]))
    try:
        model = models.BPE({token: i for i, token in enumerate(tokens)}, merges)
        tokenizer = Tokenizer(model)
    except Exception as error:  # the library raises bare Exceptions
        text = f"{error}".splitlines()[0]
        raise UserError(f"{file}: no tokenizer can be made of {start}.merges: {text}") from None
    tokenizer.pre_tokenizer = _CUTS[cut]()
    tokenizer.decoder = decoders.ByteLevel()
    for special, which in ((True, (_UNKNOWN, _CONTROL)), (False, (_USER_DEFINED,))):
        added = [token for token, code in zip(tokens, kinds, strict=True) if code in which]
        made = [AddedToken(token, special=special, normalized=False) for token in added]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(made)
    _add_ends(tokenizer, metadata, tokens)
    stops = (metadata.get(f"{start}.{name}_token_id", int) for name in ("eos", "eot"))
    return tokenizer, tuple(dict.fromkeys(i for i in stops if i is not None))


def _add_ends(tokenizer: Tokenizer, metadata: Metadata, tokens: list[str]) -> None:
    """Tokens that go before and after every text, where the file asks for them."""
    parts, known = ["$A"], []
    for name in ("bos", "eos"):
        if not metadata.get(f"tokenizer.ggml.add_{name}_token", int):
            continue
        index = metadata.need(f"tokenizer.ggml.{name}_token_id", int)
        if not 0 <= index < len(tokens):
            raise UserError(f"{metadata.file}: {name}_token_id={index} is no token")
        known.append((tokens[index], index))
        parts = [tokens[index], *parts] if name == "bos" else [*parts, tokens[index]]
    if known:
        tokenizer.post_processor = processors.TemplateProcessing(single=parts, special_tokens=known)
