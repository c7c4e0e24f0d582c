"""Small tokenizers that make another thing of a piece alone than of the same piece inside a text."""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789+=#:"


def sentence_pieces(special: tuple[str, ...] = ()) -> Tokenizer:
    """Llama 2's kind: a space before every text, bytes for what has no token, <s> at the start."""
    start = ("<unk>", "<s>", "</s>")
    words = [
        *start,
        *(f"<0x{i:02X}>" for i in range(256)),
        SPACE,
        *CHARACTERS,
        f"{SPACE}7",
        *special,
    ]
    made = Tokenizer(
        models.BPE(
            {word: i for i, word in enumerate(words)},
            [(SPACE, "7")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    made.add_special_tokens([*start, *special])
    return made


def byte_level(
    special: tuple[str, ...] = (), merges: tuple[tuple[str, str], ...] = ()
) -> Tokenizer:
    """GPT-2's kind: bytes, and merges of two."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *("".join(pair) for pair in merges)]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, list(merges)))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(special))
    return made
