"""Special tokens that other files than tokenizer.json know, and files that disagree."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers

from moe_jax.errors import UserError
from moe_jax.models import read_chat_template, read_tokenizer
from moe_jax.models.added_tokens import read_added_tokens
from moe_jax.models.chat import without_added_tokens
from moe_jax.models.tokenizer import read_added
from tests.models import small_chats

# Bytes and six special tokens in tokenizer.json: new ones begin at 262.
NEW = {
    "262": {"content": "<|user|>", "special": True, "normalized": False},
    "263": {"content": "<|model|>", "special": True, "normalized": False},
}
SIZE = 262


def folder(path, config=None, names=None, ids=None):
    small_chats.tokenizer().save(str(path / "tokenizer.json"))
    for file, value in (
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", names),
        ("added_tokens.json", ids),
    ):
        if value is not None:
            (path / file).write_text(json.dumps(value))
    return path


def tokens(path, text="a<|user|>b<|model|>"):
    made = read_tokenizer(path)
    return [made.id_to_token(i) for i in made.encode(text).ids]


FILES = [
    {"config": {"added_tokens_decoder": NEW}},
    {"config": {"added_tokens_decoder": NEW, "eos_token": "<|model|>"}},
    {"ids": {"<|user|>": 262, "<|model|>": 263}},
    {"ids": {"<|model|>": 263, "<|user|>": 262}, "names": {"eos_token": "<|model|>"}},
    {"config": {"extra_special_tokens": ["<|user|>", "<|model|>"]}},
    {"config": {"additional_special_tokens": ["<|user|>", "<|model|>"]}},
    {"names": {"additional_special_tokens": ["<|user|>", "<|model|>"]}},
    {"names": {"additional_special_tokens": [{"content": "<|user|>"}, "<|model|>"]}},
    {"names": {"unk_token": {"content": "<|user|>"}, "pad_token": "<|model|>"}},
    {"config": {"user_token": "<|user|>", "extra_special_tokens": {"end": "<|model|>"}}},
]


@pytest.mark.parametrize("files", FILES)
def test_new_tokens_are_one_each_with_the_next_ids(tmp_path, files):
    made = read_tokenizer(folder(tmp_path, **files))
    assert [made.token_to_id(t) for t in ("<|user|>", "<|model|>")] == [262, 263]
    assert tokens(tmp_path) == ["a", "<|user|>", "b", "<|model|>"]


def test_a_named_token_is_special_and_a_listed_one_as_it_says(tmp_path):
    plain = {"262": {"content": "<x>"}, "263": {"content": "<y>"}}
    made = read_tokenizer(
        folder(tmp_path, {"added_tokens_decoder": plain, "eos_token": "<y>", "pad_token": "Z"})
    )
    assert made.decode([262, 263, made.token_to_id("Z")]) == "<x>"


def test_the_list_decides_flags(tmp_path):
    index = small_chats.tokenizer().token_to_id("[INST]")
    listed = {str(index): {"content": "[INST]", "special": False, "rstrip": True}}
    folder(tmp_path, {"added_tokens_decoder": listed})
    assert tokens(tmp_path, "[INST]  a") == ["[INST]", "a"]


def test_files_of_before_do_not_count_where_tokens_are_listed(tmp_path):
    path = folder(tmp_path, {"added_tokens_decoder": NEW}, {"eos_token": "<old>"}, {"<older>": 264})
    made = read_tokenizer(path)
    assert made.get_vocab_size() == SIZE + 2
    (path / "chat_template.jinja").write_text("{{ eos_token }}")
    assert read_chat_template(path).tokens == {}


@pytest.mark.parametrize(
    "files, message",
    [
        (
            {"config": {"added_tokens_decoder": {"300": NEW["262"]}}},
            r"tokenizer_config\.json gives the token '<\|user\|>' the id 300; .* it would be 262",
        ),
        (
            {"config": {"added_tokens_decoder": {"7": NEW["262"]}}},
            r"has the token '<\|user\|>' under the id 7, which is '.+' in the tokenizer's",
        ),
        (
            {"config": {"added_tokens_decoder": {"9": {"content": "<s>"}}}},
            r"gives the token '<s>' the id 9, the tokenizer's vocabulary 0",
        ),
        ({"ids": {"<x>": 300}}, r"added_tokens\.json gives the token '<x>' the id 300"),
        ({"ids": {"<x>": 262, "<y>": 262}}, r"'<x>' and '<y>' have the same id 262"),
        ({"ids": {"<x>": "262"}}, r"added_tokens\.json: '<x>' has the id '262'"),
        ({"ids": ["<x>"]}, r"added_tokens\.json: must hold one JSON object"),
        ({"names": ["<x>"]}, r"special_tokens_map\.json: must hold one JSON object"),
        ({"config": {"added_tokens_decoder": {"x": NEW["262"]}}}, r"added_tokens_decoder\['x'\]"),
        ({"config": {"added_tokens_decoder": {"262": "<x>"}}}, r"must be a token's content and"),
        ({"config": {"added_tokens_decoder": {"262": {}}}}, r"must be a token's|or an object with"),
        ({"config": {"added_tokens_decoder": ["<x>"]}}, r"must be an object of tokens"),
        ({"config": {"eos_token": 3}}, r"eos_token=3 must be a token's text"),
        ({"config": {"extra_special_tokens": "<x>"}}, r"extra_special_tokens='<x>' must be a list"),
        (
            {"config": {"added_tokens_decoder": {"262": {"content": "<x>", "lstrip": "no"}}}},
            r"lstrip='no' must be true or false",
        ),
    ],
)
def test_what_is_refused(tmp_path, files, message):
    with pytest.raises(UserError, match=message) as error:
        read_tokenizer(folder(tmp_path, **files))
    assert "\n" not in str(error.value)


def test_an_added_token_without_its_id(tmp_path):
    file = folder(tmp_path) / "tokenizer.json"
    values = json.loads(file.read_text())
    values["added_tokens"].append({**values["added_tokens"][0], "content": "<x>", "id": 4000})
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"'<x>' under the id 4000, after the vocabulary it is 262"):
        read_tokenizer(tmp_path)


def test_split_special_tokens(tmp_path):
    path = folder(tmp_path, {"split_special_tokens": True})
    assert tokens(path, "<s>") == ["<", "s", ">"]
    assert len(without_added_tokens(read_tokenizer(path)).encode("<s>").ids) == 3


@pytest.mark.parametrize("lower", [True, False])
def test_capitals_are_as_tokenizer_config_says(tmp_path, lower):
    made = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "A": 2}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=not lower)
    made.save(str(tmp_path / "tokenizer.json"))
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({"do_lower_case": lower, "strip_accents": None}))
    assert read_tokenizer(tmp_path).encode("A").ids == [1 if lower else 2]
    file.write_text("{}")
    assert read_tokenizer(tmp_path).encode("A").ids == [2 if lower else 1]
    file.write_text(json.dumps({"do_lower_case": "no"}))
    with pytest.raises(UserError, match="do_lower_case='no' must be true or false"):
        read_tokenizer(tmp_path)


def test_names_win_over_tokenizer_config_where_it_lists_nothing():
    found = read_added_tokens(
        {"eos_token": "<a>", "bos_token": "<b>"}, {"eos_token": "<c>"}, {}, "F"
    )
    assert {name: token.content for name, token in found.named.items()} == {
        "eos_token": "<c>",
        "bos_token": "<b>",
    }
    assert isinstance(found.named["eos_token"], AddedToken)


# Tokens with flags in a list of names, which transformers fails at.
_OURS = [{"names": {"additional_special_tokens": [{"content": "<|user|>"}, "<|model|>"]}}]
MORE = [
    {"config": {"added_tokens_decoder": {"4": {"content": "[INST]", "rstrip": True}}}},
    {"config": {"added_tokens_decoder": NEW}, "names": {"eos_token": "<a>"}, "ids": {"<b>": 264}},
    {
        "config": {"eos_token": "<a>", "bos_token": "<b>", "x_token": "<d>"},
        "names": {"eos_token": "<c>"},
    },
    {"config": {"added_tokens_decoder": {"262": {"content": "<x>"}}, "eos_token": "<x>"}},
    {"config": {"split_special_tokens": True}},
]


@pytest.mark.parity
@pytest.mark.parametrize("files", [f for f in (*FILES, *MORE) if f not in _OURS])
def test_as_transformers_reads_the_same_folder(tmp_path, files):
    import transformers

    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    path = folder(tmp_path, **{**files, "config": {**kind, **files.get("config", {})}})
    theirs = transformers.AutoTokenizer.from_pretrained(str(path))
    mine = read_tokenizer(path)
    assert mine.get_vocab() == theirs.get_vocab()
    for text in ("a<|user|>b<|model|>", "<s> x <x><a> [INST]  b <b><c><d>", ""):
        assert mine.encode(text).ids == theirs(text)["input_ids"]
        ids = theirs(text)["input_ids"]
        assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    named = {name: token.content for name, token in read_added(path).named.items()}
    assert named == theirs.special_tokens_map
