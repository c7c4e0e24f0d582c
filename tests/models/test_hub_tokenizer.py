"""Tokenizers without tokenizer.json: the ids are those of AutoTokenizer, or a line says why not."""

import io
import json
import sys

import pytest
import sentencepiece

from moe_jax.errors import UserError
from moe_jax.models import hub_tokenizer, pretrained, read_tokenizer
from moe_jax.models.tokenizer import special_ids
from tests.models import small_encoders

TEXTS = ["the cat sat", " a\n\n ab  the", "\N{LATIN SMALL LETTER E WITH ACUTE}7", "</s>x<s>ab", ""]
LETTERS = ["<s>", "<pad>", "</s>", "<unk>", "a", "b", "\u0120", "ab", "\u0120ab", "<mask>"]
MERGES = "#version: 0.2\na b\n\u0120 ab\n"
BYTES = {"vocab.json": json.dumps({t: i for i, t in enumerate(LETTERS)}), "merges.txt": MERGES}
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the cat sat ##t a ab".replace(" ", "\n")


def pieces(kind, **more):
    """A SentencePiece model."""
    out, texts = io.BytesIO(), ["the cat sat on the mat", "a 12 + 7 = 19"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=out,
        model_type=kind,
        hard_vocab_limit=False,
        minloglevel=2,
        **more,
    )
    return out.getvalue()


@pytest.fixture(scope="module")
def models():
    return {
        "bpe": pieces("bpe", vocab_size=290, byte_fallback=True),
        "t5": pieces("unigram", vocab_size=40, pad_id=0, eos_id=1, unk_id=2, bos_id=-1),
    }


def folder(path, kind, files, config=None):
    (path / "config.json").write_text(json.dumps({"model_type": kind}))
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


CASES = {
    "llama": ("tokenizer.model", "bpe", {"tokenizer_class": "LlamaTokenizer"}),
    "mixtral": (
        *("tokenizer.model", "bpe"),
        {"add_bos_token": True, "tokenizer_class": "LlamaTokenizer"},
    ),
    "switch_transformers": ("spiece.model", "t5", None),
    "qwen3_moe": (BYTES, None, {"eos_token": "</s>"}),
    "roberta": (BYTES, None, None),
    "bert": ({"vocab.txt": WORDS}, None, {"do_lower_case": False}),
}


@pytest.mark.parametrize("kind", CASES)
def test_ids_are_those_of_auto_tokenizer(tmp_path, models, kind):
    import transformers

    files, model, config = CASES[kind]
    files = {files: models[model]} if model else files
    made = read_tokenizer(folder(tmp_path, kind, files, config))
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    for text in TEXTS:
        for around in (True, False):
            wanted = theirs(text, add_special_tokens=around)["input_ids"]
            assert made.encode(text, add_special_tokens=around).ids == wanted
    assert made.encode("the ab").ids
    assert made.get_vocab() == theirs.get_vocab()


def test_an_encoder_with_vocabulary_and_merges(tmp_path):
    small_encoders.write(tmp_path, small_encoders.CONFIGS["roberta"])
    (tmp_path / "tokenizer.json").unlink()
    for name, content in BYTES.items():
        (tmp_path / name).write_text(content)
    found = pretrained.load_encoder(str(tmp_path))
    assert special_ids(found.tokenizer) == ([0], [2])
    encoded = found.tokenizer.encode("ab  ab", add_special_tokens=False)
    assert encoded.ids == [7, 6, 8]
    assert encoded.offsets[-1] == (4, 6)


@pytest.mark.parametrize(
    "kind, files, config, message",
    [
        ("bert", {"vocab.json": BYTES["vocab.json"]}, None, r"BertTokenizer, .* reads vocab\.txt"),
        ("switch_transformers", {"vocab.txt": WORDS}, None, r"T5Tokenizer, .* reads spiece\.model"),
        ("qwen3_moe", {"vocab.txt": WORDS}, None, r"Qwen2Tokenizer, .* reads vocab\.json, merges"),
        ("qwen3_moe", {**BYTES, "vocab.json": "{"}, None, r"only vocab\.json: AutoTokenizer can't"),
        ("llama", {"tokenizer.model": b""}, None, r"tokenizer\.model is not a whole SentencePiece"),
        ("llama", {"tokenizer.model": "bpe"}, None, "is not a whole SentencePiece model"),
        ("bert", {}, None, r"has no tokenizer: neither tokenizer\.json nor tokenizer\.model"),
        (
            *("qwen3_moe", BYTES),
            {"added_tokens_decoder": {"4": {"content": "<x>"}}},
            "gives the token '<x>' the id 4, the tokenizer's vocabulary 10",
        ),
        (
            *("none", {"vocab.txt": WORDS}),
            {"auto_map": {"AutoTokenizer": ["mine.Tokenizer", None]}},
            "only vocab.txt: AutoTokenizer can't read it",
        ),
    ],
)
def test_folders_that_are_refused(tmp_path, models, kind, files, config, message):
    # Half of a whole one.
    files = {n: models["bpe"][:300] if c == "bpe" else c for n, c in files.items()}
    (tmp_path / "mine.py").write_text("raise RuntimeError('was run')")
    with pytest.raises(UserError, match=message) as error:
        read_tokenizer(folder(tmp_path, kind, files, config))
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "mine" not in sys.modules


@pytest.mark.parametrize(
    "gone, files, wanted",
    [
        ("transformers", {"vocab.txt": WORDS}, "transformers"),
        ("transformers", BYTES, "transformers"),
        ("sentencepiece", {"tokenizer.model": b""}, "sentencepiece"),
        ("google.protobuf", {"spiece.model": b""}, "protobuf"),
    ],
)
def test_without_the_extra(tmp_path, monkeypatch, gone, files, wanted):
    there = hub_tokenizer.importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == gone else there(name)
    )
    with pytest.raises(
        UserError, match=rf"the packages {wanted}: pip install 'moe-jax\[hub\]'; or save tokenizer"
    ):
        read_tokenizer(folder(tmp_path, "bert", files))
