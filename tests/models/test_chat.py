"""Chat templates: rendered by hand-worked examples, kept in a sandbox, tokens never twice."""

import builtins
import datetime
import json

import gguf
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from moe_jax.errors import UserError
from moe_jax.models import read_chat_template
from moe_jax.models.chat import chat_template, render, without_added_tokens
from tests.models import small_chats
from tests.models.small_chats import TEMPLATES


def made(source, tokens=None):
    return chat_template(source, tokens or {}, "here.jinja")


@pytest.mark.parametrize(
    "name, system, expected",
    [
        ("chatml", "", "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"),
        (
            *("chatml", "Be <brief>."),
            "<|im_start|>system\nBe <brief>.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        ("llama", "", "<s>[user]\n\n2+2?</s>[assistant]\n\n"),
        ("llama", "Hm", "<s>[system]\n\nHm</s>[user]\n\n2+2?</s>[assistant]\n\n"),
        ("mistral", "", "<s>[INST] 2+2? [/INST]"),
        ("training", "", "Q 2+2? A"),
    ],
)
def test_texts_by_hand(name, system, expected):
    template = made(TEMPLATES[name], {"bos_token": "<s>", "eos_token": "</s>"})
    assert render(template, "2+2?", system=system) == expected


def test_white_space_of_a_question_is_the_templates_matter():
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    assert "\n\n2\n+2?</s>" in render(made(TEMPLATES["llama"], tokens), " 2\n+2?\n")
    assert "user\n 2\n+2?\n<|im_end|>" in render(made(TEMPLATES["chatml"]), " 2\n+2?\n")


def test_a_template_may_refuse_the_system_message():
    template = made(TEMPLATES["mistral"], {"bos_token": "<s>"})
    with pytest.raises(UserError, match=r"here\.jinja: the chat template fails: roles must alte"):
        render(template, "2+2?", system="Be brief.")


def test_what_templates_may_call():
    text = render(made(TEMPLATES["helpers"]), "a<b>&'é\"", system="S")
    json_text = '[{"role": "system", "content": "S"}, {"role": "user", "content": "a<b>&\'é\\""}]'
    year = datetime.date.today().year
    indented = '{\n  "b": 1,\n  "a": 2\n}'
    assert text == f'{json_text}|{indented}|{{"a":[2],"b":1}}|{year}|n=2|only user|k=1'


def test_blocks_leave_no_empty_lines():
    source = "{% if true %}\n  {% set x = 1 %}\n  a\n{% endif %}\nb{{ x }}\n"
    assert render(made(source), "?") == "  a\nb1"
    tools = "{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}{{ enable }}"
    assert render(made(tools), "?") == "TrueTrueTrue"


UNSAFE = "access to attribute '__class__' of 'str' object is unsafe"


@pytest.mark.parametrize(
    "source, message",
    [
        ("{{ ''.__class__.__mro__ }}", UNSAFE),
        ("{{ ''['__class__']['__mro__'] }}", UNSAFE),
        ("{{ (''|attr('__class__')).__mro__ }}", UNSAFE),
        ("{{ '{0.__class__.__mro__}'.format('') }}", UNSAFE),
        ("{{ raise_exception.__globals__.x }}", "attribute '__globals__' of 'function' object is"),
        ("{{ dict.__globals__.x }}", "attribute '__globals__' of 'function' object is unsafe"),
        ("{{ messages.append(1) }}", "'append' of 'list' object is unsafe"),
        ("{% set ns = namespace(__class__=1) %}", "a namespace can't hold '__class__'"),
        ("{% set ns = namespace() %}{% set ns.__call__ = 1 %}", "can't hold '__call__'"),
        ("{{ range(10000000) | length }}", "Range too big"),
        ("{% include 'chat.py' %}", "no loader"),
        ("{{ open('x') }}", "'open' is undefined"),
    ],
)
def test_the_sandbox_holds(source, message):
    with pytest.raises(UserError, match=rf"here\.jinja: the chat template fails: .*{message}"):
        render(made(source), "?")


def test_what_the_sandbox_hides_is_nothing():
    assert render(made("<{{ raise_exception.__globals__ }}>"), "?") == "<>"
    assert render(made("<{{ (''|attr('__class__'))|attr('__mro__') }}>"), "?") == "<>"


@pytest.mark.parametrize(
    "source, message",
    [
        ("{{ raise_exception('No, <never>!') }}", "fails: No, <never>!"),
        ("{{ messages[0]['content'] + 1 }}", "fails: can only concatenate str"),
        ("{{ nothing.at.all }}", "fails: 'nothing' is undefined"),
        ("{% if false %}x{% endif %}", "gives an empty text"),
    ],
)
def test_templates_that_fail(source, message):
    with pytest.raises(UserError, match=message):
        render(made(source), "?")


def folder(path, config=None, jinja=None, **files):
    values = {name: json.dumps(value) for name, value in files.items()}
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if jinja is not None:
        (path / "chat_template.jinja").write_text(jinja, encoding="utf-8")
    for name, text in values.items():
        (path / f"{name}.json").write_text(text)
    return path


def test_where_a_folder_has_its_template(tmp_path):
    assert read_chat_template(folder(tmp_path)) is None
    assert read_chat_template(folder(tmp_path, {"chat_template": None})) is None
    template = read_chat_template(folder(tmp_path, {"chat_template": "a é"}))
    assert (render(template, "?"), template.where) == (
        "a é",
        str(tmp_path / "tokenizer_config.json"),
    )
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    template = read_chat_template(str(folder(tmp_path, {"chat_template": named})))
    assert render(template, "?") == "d"
    template = read_chat_template(folder(tmp_path, jinja="j é"))
    assert (render(template, "?"), template.where) == ("j é", str(tmp_path / "chat_template.jinja"))


def test_names_of_special_tokens(tmp_path):
    config = {
        "bos_token": {"__type": "AddedToken", "content": "<b>", "lstrip": False},
        "eos_token": "<e>",
        "pad_token": None,
        "add_bos_token": True,
        "image_token": "<i>",
        "extra_special_tokens": {"boi_token": "<boi>", "start": {"content": "<start>"}},
    }
    old = {"bos_token": "other", "unk_token": {"content": "<u>"}}
    template = read_chat_template(
        folder(tmp_path, config, "{{ bos_token }}{{ pad_token }}", special_tokens_map=old)
    )
    assert template.tokens == {
        **{"bos_token": "other", "eos_token": "<e>", "unk_token": "<u>", "image_token": "<i>"},
        **{"boi_token": "<boi>", "start": "<start>"},
    }
    assert render(template, "?") == "other"
    # The file of before is not read where this one lists its tokens.
    config["added_tokens_decoder"] = {"7": {"content": "<e>", "special": True}}
    now = read_chat_template(folder(tmp_path, config, "", special_tokens_map=old)).tokens
    assert now["bos_token"] == "<b>"
    assert "unk_token" not in now


@pytest.mark.parametrize(
    "config, jinja, message",
    [
        (None, "a\n{% if %}", r"chat_template\.jinja: the chat template is no Jinja: line 2: "),
        ({"chat_template": "{{ a"}, None, r"tokenizer_config\.json: the chat template is no Jinja"),
        ({"chat_template": "{% nonsense %}"}, None, "unknown tag 'nonsense'"),
        ({"chat_template": 3}, None, "must be a text, or a list"),
        ({"chat_template": ["a"]}, None, "must be a text, or a list"),
        ({"chat_template": [{"name": "default", "template": 3}]}, None, "must be a text, or a li"),
        ({"chat_template": [{"name": "rag", "template": "x"}]}, None, "named 'default', only rag"),
        ([], None, "must hold one JSON object"),
    ],
)
def test_folders_that_are_refused(tmp_path, config, jinja, message):
    with pytest.raises(UserError, match=message):
        read_chat_template(folder(tmp_path, config, jinja))


def test_other_bad_input(tmp_path, monkeypatch):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"chat_template\.jinja: can't be read"):
        read_chat_template(tmp_path)
    with pytest.raises(UserError, match="'nowhere' is not a folder with config"):
        read_chat_template("nowhere")
    with pytest.raises(UserError, match="is not a file"):
        read_chat_template(tmp_path / "no.gguf")
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("jinja2"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"here\.jinja: chat templates need .* pip install 'jinja2"):
        made("a")


@pytest.mark.parametrize(
    "source", [None, "{{ bos_token }}[{{ messages[0].content }}]{{ eos_token }}"]
)
def test_gguf_metadata(tmp_path, source):
    file = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_token_list(["a", "<s>", "</s>"])
    writer.add_bos_token_id(1)
    if source:
        writer.add_chat_template(source)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    template = read_chat_template(file)
    if source is None:
        assert template is None
    else:
        assert template.tokens == {"bos_token": "<s>"}
        assert (render(template, "q"), template.where) == ("<s>[q]", str(file))


ADDING = {
    "none": None,
    "bos": processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
    "bos and eos": processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    ),
    "bytes": processors.ByteLevel(trim_offsets=True),
    "bytes, then bos": processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
        ]
    ),
    "roberta": processors.RobertaProcessing(("</s>", 1), ("<s>", 0)),
    "bert": processors.BertProcessing(("</s>", 1), ("<s>", 0)),
}


@pytest.mark.parametrize("adding", ADDING)
@pytest.mark.parametrize("text", ["<s>[INST] 2 + 2 ? [/INST]", "no beginning here", "</s>", " a "])
def test_nothing_is_added(adding, text):
    tokenizer = small_chats.tokenizer()
    if ADDING[adding] is not None:
        tokenizer.post_processor = ADDING[adding]
    before = tokenizer.to_str()
    bare = without_added_tokens(tokenizer)
    got = bare.encode(text)
    assert got.ids == tokenizer.encode(text, add_special_tokens=False).ids
    assert got.ids == bare.encode(text, add_special_tokens=False).ids
    assert got.ids.count(0) == text.count("<s>")
    assert not any(got.special_tokens_mask)  # else tokens at the end would be left out of a chat
    assert bare.decode(got.ids) == tokenizer.decode(got.ids)
    assert bare.get_added_tokens_decoder() == tokenizer.get_added_tokens_decoder()
    assert bare.get_vocab() == tokenizer.get_vocab()
    assert tokenizer.to_str() == before
    if "bytes" in adding:  # and offsets are as they were
        assert got.offsets == tokenizer.encode(text, add_special_tokens=False).offsets


def test_a_word_at_the_start_is_not_one_after_a_token():
    """Why the text isn't cut instead."""
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "▁a": 1, "a": 2, "?": 3}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.add_special_tokens([AddedToken("<s>", special=True, normalized=False)])
    tokenizer.post_processor = ADDING["bos"]
    assert without_added_tokens(tokenizer).encode("<s>a").ids == [0, 2]
    assert tokenizer.encode("a").ids == [0, 1]


def test_a_character_tokenizer_with_and_without_an_adding_post_processor():
    """Tokens by hand: the template's <s> once."""
    tokenizer = Tokenizer(
        models.WordLevel({"<s>": 0, "</s>": 1, "2": 2, "+": 3, "?": 4}, unk_token="?")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    text = render(made("{{ bos_token }}{{ messages[0].content }}", {"bos_token": "<s>"}), "2+2")
    assert without_added_tokens(tokenizer).encode(text).ids == [0, 2, 3, 2]
    tokenizer.post_processor = ADDING["bos and eos"]
    assert tokenizer.encode(text).ids == [0, 0, 2, 3, 2, 1]
    assert without_added_tokens(tokenizer).encode(text).ids == [0, 2, 3, 2]
