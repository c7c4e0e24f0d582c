"""Small encoders of each architecture, as the folders that Hugging Face's library saves.

The weights come from NumPy's legacy generator, whose streams are frozen, so that a golden file
need not hold them.
"""

import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from moe_jax.models import PretrainedEncoder

VOCAB = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", *(f"##{c}" for c in "abcde"))
POSITIONS = 24

_BERT = {
    "model_type": "bert",
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "minilm-like": {
        **_BERT,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-5,
    },
    "distilbert": {
        "model_type": "distilbert",
        "vocab_size": 40,
        "dim": 24,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 36,
        "max_position_embeddings": POSITIONS,
        "activation": "gelu",
        "pad_token_id": 0,
    },
    "roberta": {
        **_BERT,
        "model_type": "roberta",
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "max_position_embeddings": POSITIONS + 2,
    },
    "xlm-roberta": {
        **_BERT,
        "model_type": "xlm-roberta",
        "type_vocab_size": 1,
        "hidden_act": "relu",
        "layer_norm_eps": 1e-5,
        "pad_token_id": 4,
        "max_position_embeddings": POSITIONS + 5,
    },
}


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Hugging Face's names and shapes of an encoder's tensors."""
    if config["model_type"] == "distilbert":
        d, f, layers = config["dim"], config["hidden_dim"], config["n_layers"]
        attention = [f"attention.{name}_lin" for name in ("q", "k", "v", "out")]
        norms, dense = ("sa_layer_norm", "output_layer_norm"), ("ffn.lin1", "ffn.lin2")
        start = "transformer.layer"
    else:
        d, f = config["hidden_size"], config["intermediate_size"]
        layers = config["num_hidden_layers"]
        attention = [f"attention.self.{name}" for name in ("query", "key", "value")]
        attention.append("attention.output.dense")
        norms = ("attention.output.LayerNorm", "output.LayerNorm")
        dense = ("intermediate.dense", "output.dense")
        start = "encoder.layer"
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], d),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], d),
        "embeddings.LayerNorm.weight": (d,),
        "embeddings.LayerNorm.bias": (d,),
    }
    if "type_vocab_size" in config:
        shapes["embeddings.token_type_embeddings.weight"] = (config["type_vocab_size"], d)
    for i in range(layers):
        for name, out, into in [(a, d, d) for a in attention] + [
            (dense[0], f, d),
            (dense[1], d, f),
        ]:
            shapes[f"{start}.{i}.{name}.weight"] = (out, into)
            shapes[f"{start}.{i}.{name}.bias"] = (out,)
        for name in norms:
            shapes[f"{start}.{i}.{name}.weight"] = shapes[f"{start}.{i}.{name}.bias"] = (d,)
    return shapes


def tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights, large enough that attention is far from uniform."""
    random = np.random.RandomState(seed)
    found = {}
    for name, shape in sorted(_shapes(config).items()):
        value = random.standard_normal(shape) * 0.3
        found[name] = (value + name.endswith(("LayerNorm.weight", "layer_norm.weight"))).astype(
            np.float32
        )
    return found


def inputs(config: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, mask and token types of three texts of different lengths, padded on the right."""
    random = np.random.RandomState(7)
    ids_bs = random.randint(5, config["vocab_size"], (3, 12)).astype(np.int32)
    where_bs = np.arange(12)[None] < np.array([12, 7, 1])[:, None]
    types_bs = random.randint(0, config.get("type_vocab_size", 1), (3, 12)).astype(np.int32)
    return np.where(where_bs, ids_bs, config["pad_token_id"]), where_bs, types_bs * where_bs


@functools.partial(jax.jit, static_argnums=0)
def _states(graphdef, state, ids_bs, where_bs):
    return nnx.merge(graphdef, state)(ids_bs, where_bs)


def states(pretrained: PretrainedEncoder, ids: Sequence[int]) -> np.ndarray:
    """[s d] last states of one text, special tokens given, by the model's plain call.

    Padded to the longest length, so that one program is enough.
    """
    padded = np.zeros((1, POSITIONS), np.int32)
    padded[0, : len(ids)] = ids
    where = np.arange(POSITIONS)[None] < len(ids)
    return np.asarray(_states(*nnx.split(pretrained.model), padded, where))[0, : len(ids)]


def tokenizer() -> Tokenizer:
    """BERT's kind, of VOCAB."""
    vocab = {token: i for i, token in enumerate(VOCAB)}
    made = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(list(VOCAB[:5]))
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


def write(
    folder: pathlib.Path, config: dict[str, Any], weights: dict[str, np.ndarray] | None = None
) -> pathlib.Path:
    """Writes config.json, model.safetensors and tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer().save(str(folder / "tokenizer.json"))
    weights = tensors(config) if weights is None else weights
    # The library writes an array's memory as it lies.
    save_file(
        {k: np.ascontiguousarray(v) for k, v in weights.items()}, folder / "model.safetensors"
    )
    return folder
