"""A tiny Switch Transformer with a tokenizer of single characters, as a folder."""

import pathlib

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from tests.models import small_switch

CHARACTERS = ["<pad>", "</s>", *"0123456789+-=\n: AQnswert?."]


def write(
    folder: pathlib.Path, kind: str = "full experts, every layer", *, seed: int = 0
) -> pathlib.Path:
    """A folder that `load_switch` reads; a text ends with id 1, as T5's do."""
    config = small_switch.CONFIGS[kind]
    tensors = small_switch.tensors(config, seed)
    # Less of the table, or every token is followed by itself.
    tensors["shared.weight"] *= 0.3
    small_switch.write(folder, config, tensors)
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(CHARACTERS)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(CHARACTERS[:2])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
