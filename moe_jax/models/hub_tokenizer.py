"""Tokenizers without tokenizer.json, as transformers' AutoTokenizer reads them.

SentencePiece's models, vocabularies with merges, BERT's vocabularies: what else they need (how a
text is cut, what goes around it) is written in transformers' classes, not in the files. Nothing is
downloaded and no code of the folder is run. transformers takes seconds to import, so it is
imported here alone; it needs no torch for this.
"""

import contextlib
import importlib.util
import logging
import os
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

from moe_jax.errors import UserError

_FILES = (
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *("vocab.json", "vocab.txt"),
)
_INSTALL = "pip install 'moe-jax[hub]'"


def files(folder: pathlib.Path) -> list[str]:
    """The files of a tokenizer that the folder has, tokenizer.json left out."""
    return [name for name in _FILES if (folder / name).is_file()]


def read(folder: pathlib.Path) -> Tokenizer:
    """The tokenizer behind AutoTokenizer.

    Args:
      folder: the model's, without tokenizer.json.

    Returns:
      One that gives the ids that AutoTokenizer gives.

    Raises:
      UserError: no file of a tokenizer, no transformers (how to get it), a folder that
        AutoTokenizer can't read, or one that it reads without its vocabulary.
    """
    found = files(folder)
    if not found:
        raise UserError(
            f"{folder} has no tokenizer: neither tokenizer.json nor {', '.join(_FILES[:-1])} or "
            f"{_FILES[-1]}"
        )
    what = f"{folder} has no tokenizer.json, only {', '.join(found)}"
    missing = _missing(found)
    if missing:
        raise UserError(
            f"{what}, which is read with the packages {', '.join(missing)}: {_INSTALL}; or save "
            "tokenizer.json there: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    if any(name.endswith(".model") for name in found):
        _check_pieces(folder, found)
    with _quiet():
        from transformers import AutoTokenizer

        logger = logging.getLogger("transformers")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            made = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # whatever a file leads it to
            raise UserError(
                f"{what}: AutoTokenizer can't read it: {type(error).__name__}: {_line(error)}"
            ) from None
        finally:
            logger.setLevel(level)
    inner = getattr(made, "backend_tokenizer", None)
    if not isinstance(inner, Tokenizer):
        raise UserError(
            f"{what}: {type(made).__name__} isn't built on the tokenizers library, so it isn't "
            "covered"
        )
    _check_read(made, inner, found, what)
    return inner


def _check_read(made: Any, inner: Tokenizer, found: list[str], what: str) -> None:
    """Where the class reads none of the files, transformers makes up a few tokens."""
    own = {str(token) for token in made.all_special_tokens}
    reads = list(dict.fromkeys(made.vocab_files_names.values()))
    # Any class reads tokenizer.model in place of a file of its own.
    if not {"tokenizer.model", *reads} & set(found) or own.issuperset(inner.get_vocab()):
        raise UserError(
            f"{what}; {type(made).__name__}, which AutoTokenizer takes for it, reads "
            f"{', '.join(reads)}: is tokenizer_class of tokenizer_config.json right?"
        )


def _check_pieces(folder: pathlib.Path, found: list[str]) -> None:
    """Refuses half a SentencePiece model, of which transformers reads what is there."""
    import sentencepiece

    for name in found:
        if name.endswith(".model"):
            try:
                sentencepiece.SentencePieceProcessor(model_file=str(folder / name))
            except Exception as error:  # the library's and the system's
                raise UserError(
                    f"{folder / name} is not a whole SentencePiece model: {_line(error)}"
                ) from None


def _line(error: Exception) -> str:
    """The first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _missing(found: list[str]) -> list[str]:
    """Packages that aren't installed."""
    needed = {"transformers": "transformers"}
    if any(name.endswith(".model") for name in found):
        needed |= {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
    return [package for module, package in needed.items() if not _installed(module)]


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice that there is no torch, and without warnings."""
    name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})
