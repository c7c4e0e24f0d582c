"""Chat templates: what an instruct model reads in place of a bare question.

A template is a small Jinja program in the model's files. It is run as transformers runs it: in a
sandbox that keeps it from everything but the messages, and can't change them.
"""

import datetime
import json
import pathlib
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from moe_jax.common.files import local_path
from moe_jax.errors import UserError
from moe_jax.models import embedded_lm, gguf_file
from moe_jax.models.tokenizer import read_added, read_json

_JINJA, _CONFIG = "chat_template.jinja", "tokenizer_config.json"


class ChatTemplate(NamedTuple):
    """A template, ready to be rendered.

    Attributes:
      compiled: a `jinja2.Template` of the sandbox.
      tokens: texts of special tokens by the names that templates have for them, as "bos_token".
      where: the file it is from, for errors.
    """

    compiled: Any
    tokens: dict[str, str]
    where: str


def read_chat_template(path: str | pathlib.Path) -> ChatTemplate | None:
    """The chat template of a model, None if it has none.

    Of a folder: chat_template.jinja, else "chat_template" of tokenizer_config.json (of several the
    one named "default"). Of a GGUF file: its metadata.

    Args:
      path: a folder, a .gguf file or a known name, as `load_lm` takes them.

    Raises:
      UserError: no such model, a file that can't be read, a template that is no Jinja, or jinja2
        isn't installed.
    """
    known = str(path) == embedded_lm.DEFAULT_LM
    folder = embedded_lm.default_lm_file() if known else local_path(path, "model")
    if folder.is_dir():
        return _of_folder(folder)
    if folder.suffix == ".gguf":
        return _of_gguf(folder)
    raise UserError(
        f"model {str(path)!r} is not a folder with config.json and tokenizer_config.json, nor a "
        ".gguf file"
    )


def chat_template(source: str, tokens: dict[str, str], where: str) -> ChatTemplate:
    """Compile a template.

    Args:
      source: its text.
      tokens: see `ChatTemplate`.
      where: its file.

    Raises:
      UserError: it is no Jinja (says where and why), or jinja2 isn't installed.
    """
    environment, jinja2 = _environment(where)
    try:
        return ChatTemplate(environment.from_string(source), tokens, where)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"{where}: the chat template is no Jinja: line {error.lineno}: {error.message}"
        ) from None


def render(template: ChatTemplate, question: str, *, system: str = "") -> str:
    """A chat of one user message, up to where the model's answer begins.

    The text holds all special tokens that belong there, so it must be encoded without those that
    tokenizers add: see `without_added_tokens`. A template that asks for the date
    (`strftime_now`) gives another text tomorrow.

    Args:
      template: the model's.
      question: the user's message.
      system: the system message; "": none.

    Raises:
      UserError: the template refuses the messages, does what the sandbox forbids, or fails.
    """
    messages = [{"role": "user", "content": question}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    chat = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
    try:
        text = template.compiled.render({**template.tokens, **chat})
    except Exception as error:  # a template can raise anything
        raise UserError(f"{template.where}: the chat template fails: {error}") from None
    if not text:
        raise UserError(f"{template.where}: the chat template gives an empty text")
    return str(text)


def without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that sets no special tokens around a text: in a chat the template writes them all.

    To cut from the text what the tokenizer would add is not the same: a template may leave out
    what the tokenizer adds, and some tokenizers cut a word at the text's start otherwise than
    after a token.

    Args:
      tokenizer: of a model; not changed.

    Returns:
      `encode(text)` of it gives the ids of `tokenizer.encode(text, add_special_tokens=False)`.
    """
    made = json.loads(tokenizer.to_str())
    found = made["post_processor"]
    parts = found["processors"] if found and found["type"] == "Sequence" else [found]
    # ByteLevel adds nothing: it takes white space out of the offsets.
    kept = [part for part in parts if part and part["type"] == "ByteLevel"]
    made["post_processor"] = kept[0] if kept else None
    copy = Tokenizer.from_str(json.dumps(made))
    # No field of the file.
    copy.encode_special_tokens = tokenizer.encode_special_tokens
    return copy


def _of_folder(folder: pathlib.Path) -> ChatTemplate | None:
    alone, config = folder / _JINJA, folder / _CONFIG
    values = read_json(config) if config.is_file() else {}
    tokens = {name: token.content for name, token in read_added(folder).named.items()}
    if alone.is_file():
        try:
            return chat_template(alone.read_text(encoding="utf-8"), tokens, str(alone))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{alone}: can't be read ({error})") from None
    found = values.get("chat_template")
    if found is None:
        return None
    source = found if isinstance(found, str) else _default(found, str(config))
    return chat_template(source, tokens, str(config))


def _default(found: Any, where: str) -> str:
    """The one of several templates that is for chats without tools or documents."""
    try:
        named = {one["name"]: one["template"] for one in found}
    except (TypeError, KeyError):
        named = None
    if named is None or not all(isinstance(text, str) for text in named.values()):
        raise UserError(f"{where}: chat_template must be a text, or a list of name and template")
    if "default" not in named:
        names = ", ".join(map(str, named)) or "none"
        raise UserError(f"{where}: chat_template has no template named 'default', only {names}")
    return str(named["default"])


def _of_gguf(file: pathlib.Path) -> ChatTemplate | None:
    metadata = gguf_file.read_metadata(file)
    source = metadata.get("tokenizer.chat_template", str)
    if source is None:
        return None
    pieces, tokens = metadata.need("tokenizer.ggml.tokens", list), {}
    for name in ("bos", "eos"):
        index = metadata.get(f"tokenizer.ggml.{name}_token_id", int)
        if index is not None and 0 <= index < len(pieces):
            tokens[f"{name}_token"] = str(pieces[index])
    return chat_template(source, tokens, str(file))


def _environment(where: str) -> tuple[Any, Any]:
    """The sandbox, with what templates may call; and the module jinja2."""
    try:
        import jinja2
        import jinja2.ext
        import jinja2.sandbox
    except ImportError:
        raise UserError(
            f"{where}: chat templates need the package jinja2: pip install 'jinja2>=3.1.6'"
        ) from None

    class Generation(jinja2.ext.Extension):
        """{% generation %} marks the model's own words for training; here they are just text."""

        def parse(self, parser: Any) -> Any:
            """Keep what stands between the tags."""
            line = next(parser.stream).lineno
            inside = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(inside, lineno=line)

    Generation.tags = {"generation"}

    def checked(name: Any) -> Any:
        if str(name).startswith("_"):
            raise jinja2.sandbox.SecurityError(f"a namespace can't hold {name!r}")
        return name

    class Names(jinja2.utils.Namespace):
        """Jinja's `namespace`, without names that Python gives a meaning to."""

        def __init__(self, *args: Any, **values: Any):
            super().__init__({checked(k): v for k, v in dict(*args, **values).items()})

        def __setitem__(self, name: str, value: Any) -> None:
            super().__setitem__(checked(name), value)

    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    made.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
        "namespace": Names,
        "dict": lambda *args, **values: dict(*args, **values),
    }
    made.filters["tojson"] = _tojson
    return made, jinja2


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: Jinja's own filter escapes for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
