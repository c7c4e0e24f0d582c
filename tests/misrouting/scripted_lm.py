"""A mixture that is a script: after each token one other, whatever came before."""

import itertools
import json
import pathlib

import numpy as np
from tokenizers import Tokenizer

from tests.models import small_causal

_EXPERTS = 4


def write(
    folder: pathlib.Path, tokenizer: Tokenizer, written: list[str], stop: str = "</s>"
) -> pathlib.Path:
    """A folder that `load_lm` reads.

    Attention and experts add nothing, so that the embedding alone decides.

    Args:
      folder: to write to.
      tokenizer: of the model.
      written: tokens; after the first come the others, then `stop`.
      stop: the token that ends a text.
    """
    size = tokenizer.get_vocab_size()
    v = size + size % 2
    config = {
        **small_causal.CONFIGS["mixtral"],
        **{"vocab_size": v, "hidden_size": v, "num_hidden_layers": 1, "intermediate_size": 4},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4},
        **{"num_local_experts": _EXPERTS, "max_position_embeddings": 128},
        "eos_token_id": tokenizer.token_to_id(stop),
    }
    ids = [tokenizer.token_to_id(token) for token in (*written, stop)]
    following = {**{i: i for i in range(v)}, **dict(itertools.pairwise(ids))}
    tensors = {
        name: value * ("o_proj" not in name and ".w2." not in name)
        for name, value in small_causal.tensors(config).items()
    }
    tensors = {n: np.ones_like(a) if "norm" in n else a for n, a in tensors.items()}
    tensors["model.embed_tokens.weight"] = np.eye(v, dtype=np.float32)
    tensors["lm_head.weight"] = np.eye(v, dtype=np.float32)[
        [following[i] for i in range(v)]
    ].T.copy()
    small_causal.write(folder, config, tensors)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config))
    return folder
