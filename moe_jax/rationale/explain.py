"""Texts from outside, explained: which factor took which word, as text, JSON or a page."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from moe_jax.common.files import read_object, write_atomically
from moe_jax.errors import UserError
from moe_jax.rationale.display import display_spans, factor_names
from moe_jax.rationale.report_sections import coloured_texts
from moe_jax.rationale.results import TextRationale
from moe_jax.reports.page import Section, render_page
from moe_jax.reports.terminal import coloured_text, legend, shows_colour
from moe_jax.reports.tokens import Key, legend_html, text_html

FORMATS = ("text", "json", "html")


def stored_names(workdir: Path, num_factors: int) -> list[str]:
    """What the factors of a run are called, from the assessment.json that its report left.

    Each by its gold label, else by its typical words, else (and where there is no assessment yet)
    "factor 3".

    Raises:
      UserError: the file is there but is no assessment of such a model.
    """
    path = workdir / "assessment.json"
    if not path.exists():
        return factor_names(num_factors)
    stored = read_object(path)
    try:
        found = len(stored["usage"])
        if found != num_factors:
            raise UserError(
                f"{path}: is of a model with {found} factors, this one has {num_factors}; "
                "evaluate the run again"
            )
        top_words = [[(str(word), float(score)) for word, score in k] for k in stored["top_words"]]
        mapping = np.array(stored["mapping"], np.int64).reshape(-1)
        return factor_names(num_factors, [str(n) for n in stored["labels"]], mapping, top_words)
    except (KeyError, TypeError, ValueError, OverflowError, IndexError) as error:
        raise UserError(
            f"{path}: is not an assessment ({type(error).__name__}: {error}); "
            "evaluate the run again"
        ) from None


def as_records(rationales: Sequence[TextRationale], names: Sequence[str]) -> dict[str, Any]:
    """Everything as plain data, for JSON.

    {"factors": [{"factor", "name"}], "texts": [{"text", "tokens": [{"start", "end", "text",
    "factor", "name", "probability", "probabilities"}]}]}. Offsets count Unicode code points;
    tokens are the pieces that the model saw, probabilities are rounded to six decimals.
    """
    return {
        "factors": [{"factor": k, "name": name} for k, name in enumerate(names)],
        "texts": [
            {
                "text": rationale.text,
                "tokens": [
                    _token(rationale.text, offsets, probs, names)
                    for offsets, probs in zip(
                        rationale.offsets.tolist(),
                        rationale.probs.astype(np.float64).round(6).tolist(),
                        strict=True,
                    )
                ],
            }
            for rationale in rationales
        ],
    }


def as_json(rationales: Sequence[TextRationale], names: Sequence[str]) -> str:
    """`as_records` as one JSON document, one text a line."""
    records = as_records(rationales, names)
    rows = ",\n".join(json.dumps(text, ensure_ascii=False) for text in records["texts"])
    factors = json.dumps(records["factors"], ensure_ascii=False)
    return f'{{"factors": {factors},\n"texts": [\n{rows}\n]}}\n'


def as_page(rationales: Sequence[TextRationale], names: Sequence[str], *, title: str) -> str:
    """A self-contained page with the texts in the colours of their factors."""
    spans = [display_spans(rationale) for rationale in rationales]
    shown = [text_html(r.text, row) for r, row in zip(rationales, spans, strict=True)]
    keys = [Key(factor, name) for factor, name in enumerate(names)]
    section = Section(
        "texts",
        "Which factor took which word",
        coloured_texts(shown, legend_html(keys), gold=False),
        "Point at a word (or go through a text with the arrow keys) for the probability of each "
        "factor, and press a factor's name to see it alone.",
    )
    count = len(rationales)
    subtitle = f"{count} text{'s' if count != 1 else ''}, {len(names)} factors"
    return render_page(title, [section], subtitle=subtitle, num_colours=len(names))


def print_texts(
    rationales: Sequence[TextRationale], names: Sequence[str], console: Console
) -> None:
    """The texts coloured by factor and the legend, or in brackets where there are no colours."""
    colour, used = shows_colour(console), set()
    for i, rationale in enumerate(rationales):
        spans = display_spans(rationale)
        used |= {span.factor for span in spans}
        if i and colour:
            console.print()
        shown = coloured_text(rationale.text, spans, names, colour=colour)
        console.print(shown, soft_wrap=not console.is_terminal)
    if colour:
        keys = [Key(factor, names[factor]) for factor in sorted(used)]
        console.print()
        console.print(legend(keys))


def render(rationales: Sequence[TextRationale], names: Sequence[str], kind: str) -> str:
    """The content of a file of one of `FORMATS`; "text" is without colours."""
    if kind == "json":
        return as_json(rationales, names)
    if kind == "html":
        return as_page(rationales, names, title="Which factor took which word")
    file = io.StringIO()
    print_texts(rationales, names, Console(file=file, no_color=True, width=100))
    return file.getvalue()


def write(
    rationales: Sequence[TextRationale], names: Sequence[str], kind: str, output: Path | None
) -> None:
    """Write them in one of `FORMATS` to a file, or (None) to standard output.

    Raises:
      UserError: the file can't be written.
    """
    if output is not None:
        write_atomically(output, render(rationales, names, kind))
    elif kind == "text":
        with contextlib.suppress(AttributeError):
            # A terminal that lacks a character shows its number instead of a traceback.
            sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        print_texts(rationales, names, Console())
    else:
        sys.stdout.buffer.write(render(rationales, names, kind).encode("utf-8"))
        sys.stdout.buffer.flush()


def check_output(path: Path) -> None:
    """Raise UserError if nothing can be written there, before any work is done."""
    folder = path.absolute().parent
    if path.is_dir():
        raise UserError(f"--output={path}: is a folder; give the name of a file")
    if not folder.is_dir():
        raise UserError(f"--output={path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise UserError(f"--output={path}: the folder {folder} can't be written to")


def _token(
    text: str, offsets: Sequence[int], probs: Sequence[float], names: Sequence[str]
) -> dict[str, Any]:
    start, end = offsets
    factor = int(np.argmax(probs))
    return {
        "start": start,
        "end": end,
        "text": text[start:end],
        "factor": factor,
        "name": names[factor],
        "probability": probs[factor],
        "probabilities": probs,
    }
