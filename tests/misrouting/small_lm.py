"""A tiny mixture with a tokenizer of single characters, as a folder."""

import pathlib

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from tests.models import small_causal

CHARACTERS = ["<end>", "<begin>", *"0123456789+-=\n: AQnswert?."]


def write(folder: pathlib.Path, kind: str = "olmoe", *, seed: int = 0) -> pathlib.Path:
    """A folder that `load_lm` reads; the first token begins a text and 0 stops it."""
    config = {**small_causal.CONFIGS[kind], "eos_token_id": 0, "num_hidden_layers": 2}
    small_causal.write(folder, config, small_causal.tensors(config, seed))
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(CHARACTERS)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(CHARACTERS[:2])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
