"""Tokenizers of GGUF files: cuts by hand, SentencePiece's merges as loops, and transformers' own."""

import itertools
import pathlib
from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from moe_jax.errors import UserError
from moe_jax.models import load_lm
from moe_jax.models.gguf_metadata import Metadata
from moe_jax.models.gguf_tokenizer import read_gguf_tokenizer
from tests.models import small_causal, small_experts_gguf

TEXTS = [
    "Hello world",
    "I'll say 'IT'S' 12345.67 times, she'd",
    "Hello there,   inner  spaces and a last one ",
    "line\nbreaks\r\n\n\tand tabs \n \n",
    "Zoë's café – naïve Ærø, 東京 ١٢٣ привет",
    "🚀 emoji 👩‍👩‍👧 ✅!!",
    "def f(x):\n    return x**2  # 3.14e-10\n\n\nclass A: pass",
    "x",
]
LEADING = ["  leading", " one", "\n", " ", "   "]
DECOMPOSED = ["a\u0301e\u0308 nai\u0308ve cafe\u0301", "\u1100\u1161 \u212b"]
NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6
PRES = ["gpt-2", "smollm", "olmo", "dbrx", "llama-bpe", "llama3", "llama-v3", "qwen2"]


def byte_level() -> tuple[list[str], list[str]]:
    """A small trained vocabulary and its merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, min_frequency=1, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 2, trainer)
    vocab = tokenizer.get_vocab()
    longer = sorted((token for token in vocab if len(token) > 1), key=vocab.__getitem__)
    merges = []
    for token in longer:  # each token's parts are the trainer's, found as it was merged
        model = models.BPE({t: i for t, i in vocab.items() if i < vocab[token]}, merges[:])
        left, right = (t.value for t in model.tokenize(token))
        merges.append((left, right))
    return sorted(vocab, key=vocab.__getitem__), [" ".join(pair) for pair in merges]


BYTES, MERGES = byte_level()
# Special and user-defined tokens stand after the rest.
BYTE_TOKENS = [*BYTES, "<|end|>", "<think>", "    "]
BYTE_KINDS = [NORMAL] * len(BYTES) + [CONTROL, USER, USER]


def pieces() -> tuple[list[str], list[float], list[int]]:
    """A small vocabulary of SentencePiece's kind: specials, bytes, then merges, then characters."""
    words = "▁t ▁th ▁the he in er el ll ell ello ▁H ▁Hello wo or rl wor worl world ▁world ▁world"
    more = "▁▁ ▁▁▁▁ ▁▁▁▁▁▁▁▁ ▁a an nd and ▁and es sp ▁sp ac ace aces ▁l li ne ine 12 34 123 ca fé"
    longer = list(dict.fromkeys(f"{words} {more} re tu rn turn ret ▁ret ▁return".split()))
    characters = sorted({c for text in TEXTS for c in text.replace(" ", "▁") if c.isprintable()})
    characters = [c for c in characters if c not in "🚀✅東京"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *longer, *characters]
    kinds = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(tokens) - 259)
    scores = [0.0] * 259 + [-float(i) for i in range(len(tokens) - 259)]
    return [*tokens, "<tool>"], [*scores, 0.0], [*kinds, USER]


PIECES, SCORES, PIECE_KINDS = pieces()


def keys(pre: str | None) -> dict[str, Any]:
    """Metadata of a byte-level tokenizer, or (None) of one with pieces."""
    start = "tokenizer.ggml"
    if pre is None:
        return {
            f"{start}.model": "llama",
            f"{start}.pre": "default",
            f"{start}.tokens": PIECES,
            f"{start}.scores": SCORES,
            f"{start}.token_type": PIECE_KINDS,
            f"{start}.bos_token_id": 1,
            f"{start}.eos_token_id": 2,
            f"{start}.unknown_token_id": 0,
        }
    return {
        f"{start}.model": "gpt2",
        f"{start}.pre": pre,
        f"{start}.tokens": BYTE_TOKENS,
        f"{start}.merges": MERGES,
        f"{start}.token_type": BYTE_KINDS,
        f"{start}.bos_token_id": len(BYTES),
        f"{start}.eos_token_id": len(BYTES),
    }


def write(file: pathlib.Path, values: dict[str, Any], drop: tuple[str, ...] = ()) -> pathlib.Path:
    writer = gguf.GGUFWriter(file, "qwen2moe" if "tokenizer.ggml.merges" in values else "llama")
    adders: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in values.items():
        if key.removeprefix("tokenizer.ggml.") not in drop:
            adders[type(value)](key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def make(
    folder: pathlib.Path, pre: str | None, *, drop: tuple[str, ...] = (), **change: Any
) -> tuple[Tokenizer, tuple[int, ...]]:
    changed = {f"tokenizer.ggml.{name}": value for name, value in change.items()}
    file = write(folder / "t.gguf", keys(pre) | changed, drop)
    return read_gguf_tokenizer(Metadata(file, dict(gguf.GGUFReader(file).fields)))


def words(tokenizer: Tokenizer, text: str) -> list[str]:
    """What the text is cut into, spaces as they are."""
    cut = tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return [text[start:end] for _, (start, end) in cut]


TEXT = "I'LL say  it's 12345\n\n  ok!!\n x²"
CUT = {
    "gpt-2": ["I", "'", "LL", " say", " ", " it", "'s", " 12345", "\n\n ", " ok", "!!", "\n", " x", "²"],
    "smollm": ["I", "'", "LL", " say", " ", " it", "'s", " ", "1", "2", "3", "4", "5", "\n\n ", " ok", "!!", "\n", " x", "²"],
    "dbrx": ["I", "'LL", " say", " ", " it", "'s", " ", "123", "45", "\n\n", " ", " ok", "!!\n", " x", "²"],
    "qwen2": ["I", "'LL", " say", " ", " it", "'s", " ", "1", "2", "3", "4", "5", "\n\n", " ", " ok", "!!\n", " x", "²"],
}  # fmt: skip
CUT |= {"olmo": CUT["gpt-2"]}
CUT |= dict.fromkeys(["llama-bpe", "llama3", "llama-v3"], CUT["dbrx"])


@pytest.mark.parametrize("pre", PRES)
def test_cuts_by_hand(tmp_path, pre):
    tokenizer, stops = make(tmp_path, pre)
    assert words(tokenizer, TEXT) == CUT[pre]
    assert stops == (len(BYTES),)


@pytest.mark.parametrize("pre", PRES)
def test_bytes_come_back(tmp_path, pre):
    tokenizer, _ = make(tmp_path, pre)
    for text in [*TEXTS, *LEADING, "a<think>    b"]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
    tokens = tokenizer.encode("a<|end|>    <think>", add_special_tokens=False).tokens
    assert tokens == ["a", "<|end|>", "    ", "<think>"]


@pytest.mark.parametrize("pre", PRES)
def test_token_before_a_text(tmp_path, pre):
    """Llama 3's kind has one unless the file forbids it, the others have one if it asks for it."""
    usual = 1 if pre.startswith("llama") else 0
    for asked, want in (({}, usual), ({"add_bos_token": True}, 1), ({"add_bos_token": False}, 0)):
        assert make(tmp_path, pre, **asked)[0].encode("x").tokens == ["<|end|>"] * want + ["x"]


def test_words_that_are_tokens_without_merges(tmp_path):
    tokens, kinds = [*BYTES, "zq"], [NORMAL] * (len(BYTES) + 1)
    change = {"tokens": tokens, "token_type": kinds, "bos_token_id": 0}
    whole, _ = make(tmp_path, "llama-bpe", **change)
    assert whole.encode("zq", add_special_tokens=False).tokens == ["zq"]
    assert whole.encode("zqz", add_special_tokens=False).tokens == ["z", "q", "z"]
    assert make(tmp_path, "dbrx", **change)[0].encode("zq").tokens == ["z", "q"]


def test_characters_are_composed_for_qwen_and_olmo(tmp_path):
    for pre in PRES:
        tokenizer, _ = make(tmp_path, pre)
        one, two = (tokenizer.encode(text).ids for text in ("caf\u00e9", "cafe\u0301"))
        assert (one == two) == (pre in ("qwen2", "olmo"))


def sentence_pieces(text: str, prefix: bool = True) -> list[str]:
    """llama.cpp's way, in loops: of all neighbours that are a token, the best score, leftmost."""
    score = {t: s for t, s, k in zip(PIECES, SCORES, PIECE_KINDS, strict=True) if k == NORMAL}
    out: list[str] = []
    rest, after_special = text, True
    while rest:
        found = [(rest.find(s), s) for s in ("<unk>", "<s>", "</s>", "<tool>") if s in rest]
        place, special = min(found, default=(len(rest), ""))
        if place:
            part = (" " if prefix and after_special else "") + rest[:place]
            symbols = list(part.replace(" ", "▁"))
            while True:
                pairs = [
                    (-score[a + b], i)
                    for i, (a, b) in enumerate(itertools.pairwise(symbols))
                    if a + b in score
                ]
                if not pairs:
                    break
                i = min(pairs)[1]
                symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
            for symbol in symbols:
                known = symbol in score
                out += [symbol] if known else [f"<0x{b:02X}>" for b in symbol.encode()]
        out += [special] if special else []
        rest, after_special = rest[place + len(special) :], True
    return out


SPECIAL_TEXTS = ["<s>Hello", "Hello</s> world<s> Hello", "<tool>the<tool> the", "a<unk>b"]


@pytest.mark.parametrize("prefix", [True, False])
def test_pieces_are_merged_by_score(tmp_path, prefix):
    change = {} if prefix else {"add_space_prefix": False}
    tokenizer, stops = make(tmp_path, None, **change)
    for text in [*TEXTS, *LEADING, *DECOMPOSED, *SPECIAL_TEXTS, "the wor ldelloworld      and"]:
        tokens = tokenizer.encode(text, add_special_tokens=False).tokens
        assert tokens == sentence_pieces(text, prefix)
    for text in [*TEXTS, *LEADING]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert stops == (2,)


def test_pieces_by_hand(tmp_path):
    tokenizer, _ = make(tmp_path, None)
    assert tokenizer.encode("Hello world").tokens == ["<s>", "▁Hello", "▁world"]
    assert tokenizer.encode("東").tokens == ["<s>", "▁", "<0xE6>", "<0x9D>", "<0xB1>"]
    assert tokenizer.encode("the\n").tokens == ["<s>", "▁the", "<0x0A>"]


def test_ends_of_pieces(tmp_path):
    """llama.cpp's defaults: <s> is 1 and goes before every text, </s> is 2 and doesn't follow."""
    drop = ("bos_token_id", "eos_token_id", "unknown_token_id")
    tokenizer, stops = make(tmp_path, None, drop=drop)
    assert tokenizer.encode("the").tokens == ["<s>", "▁the"]
    assert stops == (2,)
    tokenizer, stops = make(tmp_path, None, add_bos_token=False, add_eos_token=True, eot_token_id=1)
    assert tokenizer.encode("the").tokens == ["▁the", "</s>"]
    assert stops == (2, 1)


@pytest.mark.parametrize(
    ("pre", "change", "match"),
    [
        ("tekken", {}, "pre='tekken' is not covered, only gpt-2, smollm, olmo, dbrx, llama-bpe"),
        ("qwen2", {"model": "t5"}, "model='t5' is not covered, only 'gpt2' and 'llama'"),
        ("qwen2", {"tokens": [1] * len(BYTE_TOKENS)}, "ggml.tokens, which are not texts"),
        (None, {"scores": SCORES[1:]}, f"scores has {len(SCORES) - 1} of {len(SCORES)} tokens"),
        (
            None,
            {"scores": [-1e3 if k == NORMAL else 0.0 for k in PIECE_KINDS]},
            "scores are all -1000.0, which says nothing",
        ),
        (None, {"unknown_token_id": 9999}, "unknown_token_id=9999 is no token"),
        (None, {"bos_token_id": 9999}, "bos_token_id=9999 is no token"),
        (None, {"token_type": PIECE_KINDS[2:]}, "token_type has"),
        (None, {"token_type": ["x"] * len(PIECES)}, "token_type has what is no whole number"),
        (None, {"scores": ["x"] * len(PIECES)}, "scores has what is no number"),
        (None, {"scores": [float("nan")] * len(PIECES)}, "scores has what is no number"),
        ("qwen2", {"tokens": [b"\xff"] * len(BYTE_TOKENS)}, "ggml.tokens is not UTF-8"),
        (
            "qwen2",
            {"tokens": [*BYTE_TOKENS[:-1], BYTE_TOKENS[7]]},
            rf"tokens has '\{BYTE_TOKENS[7]}' twice, as ids 7 and {len(BYTE_TOKENS) - 1} ",
        ),
        (None, {"tokens": [*PIECES[:-1], PIECES[7]]}, "tokens has .* twice, as ids 7 and "),
    ],
)
def test_what_is_refused(tmp_path, pre, change, match):
    with pytest.raises(UserError, match=match) as caught:
        make(tmp_path, pre, **change)
    assert str(tmp_path / "t.gguf") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ids_without_a_text(tmp_path):
    """llama.cpp takes them: they stand for nothing, however many there are."""
    more = {"tokens": [*BYTE_TOKENS, "", ""], "token_type": [*BYTE_KINDS, NORMAL, NORMAL]}
    tokenizer, _ = make(tmp_path, "qwen2", **more)
    count, ids = len(BYTE_TOKENS), tokenizer.encode("Hello").ids
    assert tokenizer.decode([count, *ids, count + 1]) == "Hello"


@pytest.mark.parametrize("key", ["scores", "tokens", "model"])
def test_a_key_is_missing(tmp_path, key):
    with pytest.raises(UserError, match=f"lacks the metadata key tokenizer.ggml.{key}"):
        make(tmp_path, None, drop=(key,))


def test_mixtral_with_pieces(tmp_path):
    config = {**small_causal.CONFIGS["mixtral"], "vocab_size": len(PIECES)}
    change = keys(None)
    file = small_experts_gguf.write(tmp_path / "m.gguf", config, change=change)
    found = load_lm(file)
    assert found.config.vocab_size == len(PIECES)
    assert found.stop_ids == (2,)
    ids = found.tokenizer.encode("Hello world").ids
    assert [PIECES[i] for i in ids] == ["<s>", "▁Hello", "▁world"]
    weights = small_causal.tensors(config)["model.embed_tokens.weight"]
    np.testing.assert_array_equal(found.model.token.embedding[...], weights)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("pre", [*PRES, None])
def test_transformers_makes_the_same_of_the_file(tmp_path, pre):
    """Not after special tokens: there transformers 5 leaves out the space before the pieces."""
    import transformers

    # Nor with tokens of plain spaces, which transformers 5 spells in letters of bytes and loses.
    change = {"tokens": BYTE_TOKENS[:-1], "token_type": BYTE_KINDS[:-1]} if pre else {}
    ours, _ = make(tmp_path, pre, **change)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="t.gguf")
    # smollm's digits are not in transformers' table: it would keep them together.
    texts = [text for text in TEXTS if pre != "smollm" or not any(c.isnumeric() for c in text)]
    # Nor before a text that starts with a space.
    for text in [*texts, *(LEADING if pre else []), "a<think>    b" if pre else "a"]:
        want = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, add_special_tokens=False).ids == want


@pytest.mark.parity
@pytest.mark.parametrize("pre", ["qwen2", "olmo"])
def test_the_models_own_tokenizer_is_the_same(tmp_path, pre):
    import transformers

    classes = {"qwen2": transformers.Qwen2Tokenizer, "olmo": transformers.GPTNeoXTokenizer}
    pairs = [tuple(line.split(" ")) for line in MERGES]
    theirs = classes[pre](vocab={token: i for i, token in enumerate(BYTES)}, merges=pairs)
    ours, _ = make(tmp_path, pre, tokens=BYTES, token_type=[NORMAL] * len(BYTES))
    for text in [*TEXTS, *LEADING, *DECOMPOSED]:
        want = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, add_special_tokens=False).ids == want
