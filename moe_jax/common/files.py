r"""Files: paths that users give, texts and JSON read with checks, atomic writes.

What is wrong is a UserError of one line that names the file, the line and the field. Only "\n" and
"\r\n" end a line: other separators (U+2028, U+2029, U+0085, form feeds) may be in a text. A byte
order mark is passed over. NaN and Infinity are read, as Python's and pandas' writers make them: who
uses a number says whether it must be finite.
"""

import contextlib
import json
import math
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from moe_jax.errors import UserError

_BYTE_ORDER_MARK = "\ufeff"
# Path makes "gs:/bucket" of "gs://bucket"; one letter would be a drive.
_ADDRESS = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]+:/")


class LogLine(NamedTuple):
    """A line of a file that our own runs append to.

    Attributes:
      raw: as it is in the file, its line end included.
      values: its object; None where it holds none, or where its line end was cut off.
    """

    raw: bytes
    values: dict[str, Any] | None


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
      UserError: it can't be read, or isn't UTF-8 (names the line).
    """
    return decode(_read_bytes(path), str(path))


def decode(data: bytes, source: str) -> str:
    """UTF-8 as text, without its byte order mark.

    Raises:
      UserError: it isn't UTF-8; names `source` and the line.
    """
    try:
        return data.decode("utf-8").removeprefix(_BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{source}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x}); save it as UTF-8"
        ) from None


def numbered_lines(text: str, source: str) -> Iterator[tuple[str, str]]:
    """Each line with where it is, "SOURCE, line N"; a line end at the end begins no line."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, start=1):
        yield f"{source}, line {number}", line.removesuffix("\r")


def json_lines(
    text: str, source: str, fields: Sequence[str], *, skip_empty: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line's JSON object with where it is, "SOURCE, line N": the reader of JSON lines.

    Args:
      text: of the file, as `read_text` or `decode` gives it.
      source: the file's name.
      fields: names that each object must have.
      skip_empty: pass over lines of white space alone; else they are errors.

    Raises:
      UserError: a line that is empty, no JSON object, or one without such a field.
    """
    for where, line in numbered_lines(text, source):
        if not line.strip():
            if skip_empty:
                continue
            raise UserError(f"{where}: empty line; each line must hold one object")
        # Files with a mark that were joined have one within.
        values = parse(line.removeprefix(_BYTE_ORDER_MARK), where)
        if not isinstance(values, dict):
            raise UserError(
                f"{where}: must be an object with {', '.join(fields)}, not {_kind(values)}"
            )
        for name in fields:
            if name not in values:
                raise UserError(f"{where}: has no {name!r} (it has {shown(sorted(values))})")
        yield where, values


def log_lines(path: Path) -> list[LogLine]:
    """The lines of a file that our own runs append to, whatever a kill left of them.

    Raises:
      UserError: the file can't be read.
    """
    lines = [line + b"\n" for line in _read_bytes(path).split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return [LogLine(line, _object_or_none(line)) for line in lines if line]


def read_object(path: Path, *, missing: str | None = None) -> dict[str, Any]:
    """The JSON object that a file holds.

    Args:
      path: the file.
      missing: what to say if there is no such file.

    Raises:
      UserError: it can't be read or holds no JSON object.
    """
    text = decode(_read_bytes(path, missing), str(path))
    try:
        values = _loads(text)
    except _NotJson as error:
        raise UserError(f"{path}: can't be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold one JSON object, not {_kind(values)}")
    return values


def parse(text: str, where: str) -> Any:
    """The value of a JSON text.

    Raises:
      UserError: it isn't JSON, an object has a name twice, a number has too many digits, or it is
        nested too deeply; begins with `where`.
    """
    try:
        return _loads(text)
    except _NotJson as error:
        raise UserError(f"{where}: not JSON ({error})") from None


def check_text(value: Any, name: str, where: str) -> str:
    """The value of a field that must be a text.

    Args:
      value: as JSON had it.
      name: of the field.
      where: "FILE, line N".

    Raises:
      UserError: it isn't one, or holds half a surrogate pair: no file can be written with that.
    """
    if not isinstance(value, str):
        raise UserError(f"{where}: {name}={shown(value)} must be a text")
    if (place := half_pair(value)) is not None:
        raise UserError(
            f"{where}: {name} holds \\u{ord(value[place]):04x}, half of a surrogate pair and no "
            "character: write the whole character, or leave it out"
        )
    return value


def half_pair(text: str) -> int | None:
    """Where a text has the first half of a UTF-16 pair, which stands for nothing; None: nowhere."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal; 1 and 1.0 are, 1 and true are not."""
    try:
        return _same(one, other)
    except RecursionError:  # nested too deeply to tell
        return False


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return one == other


def shown(value: Any) -> str:
    """A value of a file as a message shows it: on one line, and not all of a long one."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested or written too long
        return f"(a long {type(value).__name__})"
    return text if len(text) <= 80 else f"{text[:77]}..."


def local_path(path: str | os.PathLike[str], name: str) -> Path:
    """`local` as a Path."""
    return Path(local(path, name))


def local(path: str | os.PathLike[str], name: str) -> str:
    """The path with "~" as the user's home (shells don't expand it after "--flag=").

    Args:
      path: what the user gave; there need not be such a file. To give it again changes nothing.
      name: of the flag or field, for errors.

    Raises:
      UserError: it is the address of a file elsewhere (gs://, s3://, file://, ...), begins with a
        home that nobody has, or can't be a path here (too long, a loop of links).
    """
    text = os.fspath(path)
    if _ADDRESS.match(text):
        raise UserError(
            f"{name}={text}: must be a file or folder of this machine, or mounted on it "
            "(a bucket can be, with gcsfuse or s3fs), not an address"
        )
    found = os.path.expanduser(text)
    if found.startswith("~"):
        home = found.split("/", 1)[0]
        raise UserError(
            f"{name}={text}: {home} is no home here; write ./{text} if that is its name"
        )
    try:
        os.stat(found)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise UserError(f"{name}={text}: can't be used: {error.strerror or error}") from None
    except ValueError:
        raise UserError(
            f"{name}={text!r}: can't be used: no path can hold these characters"
        ) from None
    # Path drops "./", without which these would be a home or an address.
    plain = os.path.normpath(found)
    return os.path.abspath(found) if plain.startswith("~") or _ADDRESS.match(plain) else found


def write_atomically(target: Path, text: str) -> None:
    """Replace the file, or leave it as it was: never a half of it."""
    with file_errors(target):
        os.replace(_draft(target, text), target)


def write_new(target: Path, text: str) -> bool:
    """Write the file unless there is one; of several writers at once only one wins.

    Returns:
      Whether it was written now.

    Raises:
      UserError: it can't be written.
    """
    if target.exists():
        return False
    with file_errors(target.parent):
        draft = _draft(target, text)
        try:
            os.link(draft, target)  # fails if the name is taken
        except FileExistsError:
            return False
        finally:
            draft.unlink()
    return True


@contextlib.contextmanager
def new_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to fill, hidden beside `target`, which takes its name at the end.

    So `target` is there whole or not at all. What is written is removed where the block fails; what
    a kill left, by the next one for the same target. Only one at a time may write it.

    Args:
      target: a new name, or an empty folder. Its parents are made.
      replace: a folder that holds something goes once the new one is whole; else it is refused.

    Raises:
      UserError: `target` is a file, or a folder that holds something; or it can't be written.
    """
    draft, old = (target.with_name(f".{target.name}.{what}") for what in ("part", "old"))
    with file_errors(target):
        _put_back(old, target)
        is_full = target.is_dir() and any(target.iterdir())
        if (target.exists() and not target.is_dir()) or (is_full and not replace):
            raise UserError(f"{target} exists already; name a new or an empty folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        try:
            yield draft
            if is_full:
                target.rename(old)
            draft.rename(target)
        finally:
            _put_back(old, target)
            for folder in (draft, old):
                shutil.rmtree(folder, ignore_errors=True)


def _put_back(old: Path, target: Path) -> None:
    """Give a folder its name again, if a kill or an error came before its successor had it."""
    if old.exists() and not target.exists():
        old.rename(target)


@contextlib.contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into one clear line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: can't be written: {error.strerror or error}") from error


def _draft(target: Path, text: str) -> Path:
    draft = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    return draft


def _read_bytes(path: Path, missing: str | None = None) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        if missing is not None and isinstance(error, FileNotFoundError):
            raise UserError(missing) from None
        raise UserError(f"{path}: can't be read: {error.strerror or error}") from None


class _NotJson(Exception):
    """Why a text can't be read as JSON."""


def _loads(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.rstrip() else ""
        raise _NotJson(f"{error.msg}, {line}column {error.colno}") from None
    except RecursionError:
        raise _NotJson("nested too deeply") from None
    except ValueError:
        most = sys.get_int_max_str_digits()
        raise _NotJson(f"a whole number of more than {most:,} digits") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found and not same(found[name], value):
            raise _NotJson(f"an object has the name {shown(name)} twice, with different values")
        found[name] = value
    return found


def _object_or_none(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        values = parse(decode(line, ""), "")
    except UserError:
        return None
    return values if isinstance(values, dict) else None


def _kind(value: Any) -> str:
    """What a JSON value is, as an error says it."""
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
