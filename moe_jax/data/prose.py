"""Plain English sentences out of documentation: no code, tables, markup, headings or lists."""

import inspect
import re

# Sections of numpydoc and Google docstrings that hold tables, lists or code.
_TABLES = {
    *("parameters", "other parameters", "args", "arguments", "keyword args", "keyword arguments"),
    *("attributes", "properties", "methods", "inputs", "returns", "return", "return value"),
    *("yields", "receives", "raises", "warns", "usage", "example", "examples", "example usage"),
    *("references", "bibliography", "see also", "index"),
}
_UNDERLINE = re.compile(r"^\s*([=\-~^*#+\"'`.:])\1{2,}\s*$")
_GOOGLE_SECTION = re.compile(r"^[A-Z][A-Za-z ]{2,30}:{1,2}$")
_LIST_ITEM = re.compile(r"^\s*([-*+•]|\(?[0-9a-zA-Z]{1,2}[.)]|#\.|@\w+|:\w[^:]*:)\s")
_ROLE = re.compile(r":[a-zA-Z][\w:+.-]*:`([^`]*)`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{0,2}")
_QUOTED = re.compile(r"``?([^`]+)``?_{0,2}")
_STRESSED = re.compile(r"(?<![\w*])\*{1,2}([^\s*](?:[^*]*[^\s*])?)\*{1,2}(?![\w*])")
_CITATION = re.compile(r"\s*(\[[\w#*]+\]_?,?\s*)+(?=[\s.,;:)]|$)")
# Without its citation "as shown in [1]_" would be no sentence: the sign "#" marks it as unclean.
_NEEDED_CITATION = re.compile(r"\b(in|by|from|of|see|to|and|per)\s+(?=\[[\w#*]+\]_)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")
_ABBREVIATION = re.compile(
    r"\b(?:e\.g|i\.e|vs|cf|al|[Ee]qs?|[Ff]igs?|[Ss]ec|[Rr]ef|pp|resp|approx|[A-Z])\.$"
)
# Signs of code, formulas, paths and of a word broken at the end of a line ("pre- computed").
_NOT_PROSE = re.compile(
    r"[^A-Za-z0-9 ,;:.!?'\"()–—-]|::|\.\.|--|\w\.\w|\w\(|\)\w|\d{3}|\"'|'\""
    r"|\w-\s|\w[.!?] [a-z]|\b[Dd]eprecated\b"
)
# An ordinary word (one capital, or an acronym, or the name of an exception), or a small number.
_WORD = re.compile(
    r"""[("']*
        (?:[A-Za-z]?[a-z]+(?:['-][A-Za-z]?[a-z]+)*|[A-Z]{1,5}s?|[A-Z]\w+(?:Error|Exception)|\d{1,2}|[–—-])
        [)"']*[,;:.!?]*[)"']*$""",
    re.VERBOSE,
)
_SYMBOL = re.compile(r"[(\"']*(?:[b-zB-HJ-Z]|\d{1,2})[)\"']*[,;:.!?]*$")  # names of quantities


def sentences(document: str, *, min_words: int = 8) -> list[str]:
    """Clean sentences of a docstring or a pydoc topic, in order.

    reStructuredText, numpydoc and Google style are understood as far as needed to leave out what
    is not running text. A sentence has at least `min_words` words, begins with a capital, ends
    with a stop, and is made of ordinary words and few numbers or symbols.
    """
    found = []
    for paragraph in _paragraphs(inspect.cleandoc(document)):
        for sentence in _split(_strip_markup(paragraph)):
            if _is_clean(sentence, min_words):
                found.append(sentence)
    return found


def _paragraphs(text: str) -> list[str]:
    """Unindented paragraphs of running text, each joined to one line."""
    blocks = [block.splitlines() for block in re.split(r"\n\s*\n", text)]
    kept, in_prose = [], True
    for lines in blocks:
        while lines:  # headings, one or several in a block
            if len(lines) > 2 and _UNDERLINE.match(lines[0]) and _UNDERLINE.match(lines[2]):
                title, lines = lines[1], lines[3:]
            elif len(lines) > 1 and _UNDERLINE.match(lines[1]):
                title, lines = lines[0], lines[2:]
            elif _GOOGLE_SECTION.match(lines[0]):
                title, lines = lines[0].rstrip(":"), lines[1:]
            else:
                break
            in_prose = title.strip().lower() not in _TABLES
        if not lines or not in_prose:
            continue
        if any(_looks_like_code(line) for line in lines):
            continue
        kept.append(" ".join(line.strip() for line in lines))
    return kept


def _looks_like_code(line: str) -> bool:
    return bool(
        line[:1].isspace()
        or _LIST_ITEM.match(line)
        or _UNDERLINE.match(line)
        or line.startswith((">>>", "...", ".. ", "__", "|", "+-", "$", "%"))
    )


def _strip_markup(text: str) -> str:
    text = _ROLE.sub(lambda m: _role_text(m[1]), text)
    text = _LINK.sub(r"\1", text)
    text = _QUOTED.sub(r"\1", text)
    text = _STRESSED.sub(r"\1", text)
    text = _NEEDED_CITATION.sub(r"\1 # ", text)
    text = _CITATION.sub("", text)
    text = text.replace("“", '"').replace("”", '"').replace("‘", "'").replace("’", "'")
    return " ".join(text.split())


def _role_text(body: str) -> str:
    """What a reader sees of :role:`body`: "title" of "title <target>", "b" of "~a.b"."""
    if "<" in body:
        return body.partition("<")[0].strip()
    return body.rpartition(".")[2] if body.startswith("~") else body.lstrip("!")


def _split(paragraph: str) -> list[str]:
    parts: list[str] = []
    for part in _SENTENCE_END.split(paragraph):
        if parts and _ABBREVIATION.search(parts[-1]):
            parts[-1] += " " + part
        else:
            parts.append(part)
    return parts


def _is_clean(sentence: str, min_words: int) -> bool:
    words = sentence.split(" ")
    return (
        len(words) >= min_words
        and sentence[0].isupper()
        and sentence[-1] in ".!?"
        and not _NOT_PROSE.search(sentence)
        and not sentence.startswith("See ")
        and is_closed(sentence)
        and all(_WORD.match(word) for word in words)
        and sum(bool(_SYMBOL.match(word)) for word in words) <= 1
    )


def is_closed(text: str) -> bool:
    """Whether every parenthesis and quotation that is opened is closed."""
    return text.count("(") == text.count(")") and text.count('"') % 2 == 0
