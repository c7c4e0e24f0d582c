"""Texts and corpora from the user's files and standard input.

`read_texts` reads texts alone, `read` a corpus with the labels of its parts. JSON lines of other
kinds are read by `common.files.json_lines`, as here. Every fault is one UserError that names the
file and the line.
"""

import csv
import hashlib
import itertools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from moe_jax.common.files import (
    check_text,
    decode,
    json_lines,
    local_path,
    numbered_lines,
    parse,
    read_text,
    shown,
)
from moe_jax.data.types import Corpus, Example
from moe_jax.errors import UserError

SUFFIXES = (".jsonl", ".txt", ".md")
# A label index with no labels.json to check it against: names are made for all below it as well.
_MAX_UNNAMED_LABEL = 9_999


class _Record(NamedTuple):
    """A text as it was read: labels are still indices or names; `where` is for messages."""

    text: str
    spans: list[tuple[int, int, int | str]]
    where: str


def read_texts(path: str | os.PathLike[str], *, name: str, field: str = "text") -> list[str]:
    """The texts of a file, or of standard input: see `parse_texts`.

    Args:
      path: a .jsonl or .csv file; any other holds one text a line, as "-", standard input, does.
      name: of the flag or field that gave the path, for errors: "NAME=PATH: no such file".
      field: of the objects of a .jsonl file, and the column of a .csv file, that hold the texts.

    Raises:
      UserError: as `parse_texts`, or the file can't be read.
    """
    if os.fspath(path) == "-":
        return parse_texts(sys.stdin.buffer.read(), "standard input")
    file = local_path(path, name)
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{name}={file}: no such file") from None
    except OSError as error:
        raise UserError(f"{name}={file}: can't be read: {error.strerror or error}") from None
    kinds: dict[str, Literal["jsonl", "csv"]] = {".jsonl": "jsonl", ".csv": "csv"}
    return parse_texts(data, str(file), kind=kinds.get(file.suffix.lower(), "txt"), field=field)


def parse_texts(
    data: bytes,
    source: str,
    *,
    kind: Literal["txt", "jsonl", "csv"] = "txt",
    field: str = "text",
) -> list[str]:
    """The texts in the bytes of a file, in order; at least one, and none is blank.

    Args:
      data: what the file holds, in UTF-8.
      source: its name, for errors.
      kind: "txt", one text a line; "jsonl", one JSON object a line; "csv", as `csv_lines`.
      field: name of the object's field, or of the column, that holds the text.

    Raises:
      UserError: not UTF-8, nothing at all, an empty line, a line without such a field. Names the
        line.
    """
    whole = decode(data, source)
    if not whole.strip():
        raise UserError(f"{source}: there is no text in it; give one text a line")
    if kind == "txt":
        return [_not_blank(text, where) for where, text in numbered_lines(whole, source)]
    lines = (json_lines if kind == "jsonl" else csv_lines)(whole, source, [field])
    found = [_not_blank(check_text(values[field], field, where), where) for where, values in lines]
    if not found:
        raise UserError(f"{source}: there is no text below the header; give one text a line")
    return found


def csv_lines(
    text: str, source: str, columns: Sequence[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row of a CSV file by column with where it begins, as `json_lines` gives objects.

    The first line names the columns. Fields are separated by commas; those in double quotes may
    hold commas, line ends and doubled quotes (RFC 4180).

    Args:
      text: of the file, as `decode` gives it.
      source: the file's name.
      columns: names that the header must have.

    Raises:
      UserError: a header without such a column, or with it twice; an empty line, a row with more
        or fewer fields than the header, a quote that isn't closed.
    """
    rows = _csv_rows(text, source)
    where, header = next(rows, (f"{source}, line 1", []))
    for name in columns:
        if name not in header:
            raise UserError(f"{where}: has no column {name!r} (it has {shown(header)})")
        if header.count(name) > 1:
            raise UserError(f"{where}: has the column {name!r} twice; give each a name of its own")
    for where, row in rows:
        if not row:
            raise UserError(f"{where}: empty line; each line must hold one row")
        if len(row) != len(header):
            raise UserError(f"{where}: has {len(row)} fields, the header has {len(header)}")
        yield where, dict(zip(header, row, strict=True))


def _csv_rows(text: str, source: str) -> Iterator[tuple[str, list[str]]]:
    # Not splitlines: only line feeds end a line.
    rows = csv.reader((f"{line}\n" for line in text.removesuffix("\n").split("\n")), strict=True)
    while True:
        where = f"{source}, line {rows.line_num + 1}"
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{where}: not CSV ({error})") from None
        yield where, row


def _not_blank(text: str, where: str) -> str:
    if not text.strip():
        raise UserError(f"{where}: no text; give one text a line, without empty lines")
    return text


def read(path: Path, test_fraction: float, seed: int) -> Corpus:
    """Read a file or a folder as `load_corpus` describes."""
    path = local_path(path, "data.path")
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_dir():
        if (path / "train.jsonl").exists():
            return _read_split(path)
        records = [record for file in _files_below(path) for record in _read_file(file)]
        names = _read_labels(path / "labels.json")
    else:
        records = list(_read_file(path))
        names = _read_labels(path.parent / "labels.json") if path.suffix == ".jsonl" else None
    if not records:
        raise UserError(f"{path}: no text in it; a corpus needs at least one")
    (examples,), labels = _resolve([records], names)
    train, test = hold_out(examples, test_fraction, seed)
    if not train or (test_fraction > 0 and not test):
        raise UserError(
            f"{path}: only one distinct text, so none can be held out; add texts or set "
            "test_fraction=0"
        )
    return Corpus(train, test, labels)


def hold_out(
    examples: list[Example], test_fraction: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Split into (train, test) by a hash of seed and text; equal texts go to the same side.

    round(test_fraction * distinct texts) are held out, but at least one when the fraction is
    positive and never all. Each side keeps the order of `examples`.
    """

    def order(text: str) -> bytes:
        return hashlib.sha256(f"{seed}\n{text}".encode()).digest()

    distinct = sorted({example.text for example in examples}, key=order)
    number = round(test_fraction * len(distinct))
    if test_fraction > 0:
        number = min(max(number, 1), len(distinct) - 1)
    held = set(distinct[:number])
    train = [example for example in examples if example.text not in held]
    test = [example for example in examples if example.text in held]
    return train, test


def _read_split(folder: Path) -> Corpus:
    train_path, test_path = folder / "train.jsonl", folder / "test.jsonl"
    if not test_path.exists():
        raise UserError(
            f"{folder} has train.jsonl but no test.jsonl; add one (it may be empty), or give "
            f"{train_path} itself to have it split"
        )
    train, test = list(_read_file(train_path)), list(_read_file(test_path))
    if not train:
        raise UserError(f"{train_path}: no text in it; a corpus needs at least one")
    (train_examples, test_examples), labels = _resolve(
        [train, test], _read_labels(folder / "labels.json")
    )
    return Corpus(train_examples, test_examples, labels)


def _files_below(folder: Path) -> list[Path]:
    found = []
    for parent, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix in SUFFIXES
        ]
    if not found:
        raise UserError(f"{folder}: no {', '.join(SUFFIXES)} file in it or below it")
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _read_file(path: Path) -> Iterator[_Record]:
    if path.suffix == ".jsonl":
        lines = json_lines(read_text(path), str(path), ["text"])
        return (_record(values, where) for where, values in lines)
    if path.suffix == ".txt":
        return _texts(path)
    if path.suffix == ".md":
        return _paragraphs(path)
    raise UserError(
        f"{path} has suffix {path.suffix!r}; supported are {', '.join(SUFFIXES)} and folders"
    )


def _texts(path: Path) -> Iterator[_Record]:
    """The lines of a text file, none of them empty."""
    for where, line in numbered_lines(read_text(path), str(path)):
        if not line.strip():
            raise UserError(f"{where}: empty line; each line must hold one text")
        yield _Record(line.strip(), [], where)


def _paragraphs(path: Path) -> Iterator[_Record]:
    """Blocks of a Markdown file between blank lines, each joined to one line."""
    text = read_text(path).replace("\r\n", "\n")
    text = re.sub(r"^(```|~~~).*?^\1[ \t]*$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    for block in re.split(r"\n\s*\n", text):
        if joined := " ".join(block.split()):
            yield _Record(joined, [], str(path))


def _record(record: dict[str, Any], where: str) -> _Record:
    text = check_text(record["text"], "text", where)
    if not text.strip():
        raise UserError(f"{where}: text={shown(text)} must not be blank")
    spans = record.get("spans")
    return _Record(text, _parse_spans([] if spans is None else spans, text, where), where)


def _parse_spans(spans: Any, text: str, where: str) -> list[tuple[int, int, int | str]]:
    if not isinstance(spans, list):
        raise UserError(
            f'{where}: "spans" must be a list of [start, end, label], not {shown(spans)}'
        )
    for span in spans:
        if not (isinstance(span, list) and len(span) == 3):
            raise UserError(f"{where}: span {shown(span)} must be [start, end, label]")
        start, end, label = span
        if type(start) is not int or type(end) is not int or type(label) not in (int, str):
            raise UserError(
                f"{where}: span {shown(span)} must be two whole numbers and a label index or name"
            )
        if isinstance(label, str):
            check_text(label, "the label of a span", where)
        if start >= end:
            raise UserError(f"{where}: span {shown(span)} must start before it ends")
        if start < 0 or end > len(text):
            raise UserError(
                f"{where}: span {shown(span)} is out of range; the text has {len(text)} characters"
            )
    ordered = sorted((tuple(span) for span in spans), key=lambda span: span[:2])
    for left, right in itertools.pairwise(ordered):
        if right[0] < left[1]:
            raise UserError(f"{where}: spans {shown(list(left))} and {shown(list(right))} overlap")
    return ordered


def _read_labels(path: Path) -> list[str] | None:
    """Names from a labels.json; None when there is no such file."""
    if not path.exists():
        return None
    names = parse(read_text(path), str(path))
    if not isinstance(names, list) or not all(isinstance(n, str) and n.strip() for n in names):
        raise UserError(f"{path}: must be a list of names")
    for name in names:
        check_text(name, "a name", str(path))
    if len(set(names)) < len(names):
        raise UserError(f"{path}: names a label twice")
    return names


def _resolve(
    parts: list[list[_Record]], names: list[str] | None
) -> tuple[list[list[Example]], list[str]]:
    """Turn label names into indices. Without `names`: the names that occur, sorted."""
    used = {
        (label, record.where) for part in parts for record in part for *_, label in record.spans
    }
    if names is None:
        names = _collect_names(used)
    index = {name: i for i, name in enumerate(names)}
    for label, where in sorted(used, key=lambda pair: pair[1]):
        if isinstance(label, str) and label not in index:
            raise UserError(f"{where}: label {shown(label)} is not in labels.json")
        if isinstance(label, int) and not 0 <= label < len(names):
            raise UserError(
                f"{where}: label {shown(label)} is out of range; labels.json has {len(names)} "
                "labels"
            )

    def example(record: _Record) -> Example:
        spans = [(a, b, index[c] if isinstance(c, str) else c) for a, b, c in record.spans]
        return Example(record.text, tuple(spans))

    return [[example(record) for record in part] for part in parts], names


def _collect_names(used: set[tuple[int | str, str]]) -> list[str]:
    """Label names for a corpus without labels.json: its own names, or "0", "1", ... to the top."""
    strings = sorted({label for label, _ in used if isinstance(label, str)})
    numbers = [(label, where) for label, where in used if isinstance(label, int)]
    if not numbers:
        return strings
    top, where = max(numbers)
    if strings:
        raise UserError(
            f"{where}: label {shown(top)} is a number where others are names; use one kind"
        )
    lowest, low_where = min(numbers)
    if lowest < 0:
        raise UserError(f"{low_where}: label {shown(lowest)} is negative")
    if top > _MAX_UNNAMED_LABEL:
        raise UserError(
            f"{where}: label {shown(top)} is above {_MAX_UNNAMED_LABEL}; use names instead"
        )
    return [str(i) for i in range(top + 1)]
