"""What a trained rationale model found, as one page and as a summary in the terminal."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from moe_jax.common.files import write_atomically
from moe_jax.rationale import report_sections as parts
from moe_jax.rationale.assess import to_json
from moe_jax.rationale.display import display_spans, keys_of, names_of
from moe_jax.rationale.results import Assessment
from moe_jax.reports.page import Column, Section, render_page, verbatim
from moe_jax.reports.terminal import coloured_text, factor_chip, legend, show_table, shows_colour


def write_report(
    assessment: Assessment,
    metrics_history: Sequence[Mapping[str, Any]],
    out: Path,
    *,
    title: str,
    config_text: str,
) -> Path:
    """Write the page about a trained model and return its path.

    One file without any reference outside itself. Beside it goes the assessment itself, as
    assessment.json, from which `explain` knows the names of the factors. Each file is written
    whole or not at all.

    Args:
      assessment: what the evaluation found; sections that need gold labels say so where it has
        none.
      metrics_history: the lines of metrics.jsonl.
      out: the file to write; its folder must exist.
      title: heading of the page.
      config_text: the config of the run, shown as it is.

    Raises:
      UserError: the file can't be written.
    """
    page = render_report(assessment, metrics_history, title=title, config_text=config_text)
    write_atomically(out.with_name("assessment.json"), json.dumps(to_json(assessment)) + "\n")
    write_atomically(out, page)
    return out


def render_report(
    assessment: Assessment,
    metrics_history: Sequence[Mapping[str, Any]],
    *,
    title: str,
    config_text: str,
) -> str:
    """The page that `write_report` writes."""
    num_factors, num_labels = len(assessment.usage), len(assessment.labels)
    sections = [
        Section("figures", "At a glance", parts.glance(assessment)),
        Section("texts", "Which factor took which word", *parts.texts(assessment)),
        Section("factors", "The factors", *parts.factors(assessment)),
        Section("usage", "Is every factor in use?", parts.usage(assessment)),
        Section("rationales", "Are the factors good rationales?", parts.rationales(assessment)),
        Section("training", "Training", parts.training(metrics_history)),
        Section("definitions", "How the figures are defined", parts.meanings()),
        Section("config", "Config of this run", verbatim(config_text, "show the config")),
    ]
    subtitle = f"{num_factors} factors, " + (
        f"{num_labels} gold labels" if num_labels else "no gold labels"
    )
    return render_page(title, sections, subtitle=subtitle, num_colours=num_factors + num_labels)


def print_summary(assessment: Assessment, console: Console, *, num_samples: int = 4) -> None:
    """Print the figures beside the baselines, the factors, and a few texts coloured by factor.

    Args:
      assessment: what the evaluation found.
      console: where to; without colours the factors are named in brackets.
      num_samples: texts to print.
    """
    colour, names = shows_colour(console), names_of(assessment)
    if assessment.methods:
        scores: list[list[Any]] = [
            [m.name, s.macro_precision, s.macro_recall, s.macro_f1, m.many_to_one.macro_f1, m.ami]
            for m in assessment.methods
            for s in [m.one_to_one]
        ]
        heads = ["precision", "recall", "F1", "many-to-one F1", "AMI"]
        columns = [Column("", number=False), *map(Column, heads)]
        show_table(console, "macro means over labels, test tokens", columns, scores, own=0)
        console.print()
    columns, rows = parts.factor_table(assessment, short=True)
    chips = [factor_chip(factor, colour=colour) for factor in range(len(rows))]
    for chip, row in zip(chips, rows, strict=True):
        row[0] = chip
    show_table(
        console,
        "factors, with the F1 of the baselines" if assessment.methods else "factors",
        columns,
        rows,
    )
    console.print()
    columns = [Column("#"), Column("words that each factor takes", number=False, wide=True)]
    rows = [[chip, parts.typical(assessment, factor)] for factor, chip in enumerate(chips)]
    show_table(console, "", columns, rows)
    console.print()
    console.print(parts.reading(assessment), markup=False, highlight=False)
    used = set()
    for sample in assessment.samples[:num_samples]:
        spans = display_spans(sample)
        used |= {span.factor for span in spans}
        console.print()
        shown = coloured_text(sample.text, spans, names, colour=colour)
        console.print(shown, soft_wrap=not console.is_terminal)
    keys = [key._replace(note="") for key in keys_of(assessment) if key.is_factor]
    if used and colour:
        console.print()
        console.print(legend([key for key in keys if key.colour in used]))
