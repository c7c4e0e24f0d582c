"""Live comparison of chats with transformers' `apply_chat_template` (`make parity`)."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from moe_jax.errors import UserError
from moe_jax.models import read_chat_template, read_tokenizer
from moe_jax.models.chat import render, without_added_tokens
from tests.models import small_chats
from tests.models.small_chats import TEMPLATES

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

QUESTIONS = ("2+2?", "  Ünï <b> & \"q\" 'q'\n\n", "a</s>b <|im_end|>", "{{ bos_token }}")
CONFIG = {
    "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": False},
    "eos_token": "</s>",
    "tokenizer_class": "PreTrainedTokenizerFast",
}
MORE = {
    "extra special tokens": "{{ boi_token }}{{ bos_token }}{{ pad_token }}{{ messages | tojson }}",
    "indented": "  {% for m in messages %}\n    {% if m.role %}\n  {{ m.content }}\n  {% endif %}\n{% endfor %}\n",
    "defined": "{{ tools is defined }}{{ tools is none }}{{ documents is none }}{{ x is defined }}!",
    "nested": "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(messages[-1]['content'].split('+')[0]) }}",
}


def words():
    """Cuts a word at the start of a text otherwise than after a special token."""
    pieces = ["<s>", "</s>", "?", *"▁abcdefghijklmnopqrstuvwxyz0123456789+[]/INSTuser<>|"]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    made = Tokenizer(models.BPE(vocab, [], unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.add_special_tokens(["<s>", "</s>"])
    return made


TOKENIZERS = {"bytes": small_chats.tokenizer, "words": words}
ADDING = {"nothing": "$A", "bos": "<s> $A", "bos and eos": "<s> $A </s>"}


def write(folder, tokenizer, template, *, adding="nothing", jinja=True, named=False):
    """A folder with a tokenizer and a template; nothing else of a model."""
    made = TOKENIZERS[tokenizer]()
    made.post_processor = processors.TemplateProcessing(
        single=ADDING[adding], special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    made.save(str(folder / "tokenizer.json"))
    config = dict(CONFIG, boi_token="</s>")
    if jinja:
        (folder / "chat_template.jinja").write_text(template)
    else:
        both = [{"name": n, "template": t} for n, t in (("other", "x"), ("default", template))]
        config["chat_template"] = both if named else template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def compare(folder, questions=QUESTIONS, systems=("", "Be <brief>.\n")):
    import transformers

    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    template, mine = read_chat_template(folder), without_added_tokens(read_tokenizer(folder))
    for system in systems:
        for question in questions:
            chat = [{"role": "system", "content": system}] if system else []
            chat.append({"role": "user", "content": question})
            text = render(template, question, system=system)
            more = {"add_generation_prompt": True}
            assert text == theirs.apply_chat_template(chat, tokenize=False, **more)
            ids = theirs.apply_chat_template(chat, tokenize=True, **more)["input_ids"]
            assert mine.encode(text).ids == ids
            assert mine.encode(text).ids.count(0) == text.count("<s>")


@pytest.mark.parametrize("adding", ADDING)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("name", ["chatml", "llama", "helpers", "training"])
def test_texts_and_ids(tmp_path, name, tokenizer, adding):
    compare(write(tmp_path, tokenizer, TEMPLATES[name], adding=adding))


@pytest.mark.parametrize("adding", ADDING)
def test_a_template_without_a_system_message(tmp_path, adding):
    import jinja2

    folder = write(tmp_path, "words", TEMPLATES["mistral"], adding=adding)
    compare(folder, systems=("",))
    import transformers

    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "q"}]
    with pytest.raises(jinja2.TemplateError, match="roles must alternate"):
        theirs.apply_chat_template(chat, tokenize=False)
    with pytest.raises(UserError, match="roles must alternate"):
        render(read_chat_template(folder), "q", system="S")


@pytest.mark.parametrize("name", MORE)
def test_odd_templates(tmp_path, name):
    compare(write(tmp_path, "bytes", MORE[name]))


@pytest.mark.parametrize("named", [False, True])
def test_templates_in_the_configuration(tmp_path, named):
    compare(write(tmp_path, "bytes", TEMPLATES["llama"], adding="bos", jinja=False, named=named))
