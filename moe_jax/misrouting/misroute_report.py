"""A Stage 2 study as a page, and as a table and a few lines in the terminal."""

from pathlib import Path
from typing import Any

from rich.console import Console

from moe_jax.common.files import write_atomically
from moe_jax.misrouting import misroute_sections as parts
from moe_jax.misrouting import misroute_tables as tables
from moe_jax.misrouting import misroute_words as words
from moe_jax.misrouting.measures import ACCURACY, HEADLINE
from moe_jax.misrouting.study_results import Study
from moe_jax.reports.escape import one_line
from moe_jax.reports.page import (
    Column,
    Section,
    definitions,
    number,
    paragraph,
    render_page,
    verbatim,
)
from moe_jax.reports.terminal import show_table

_TRUST, _WAYS = "Can the measures be trusted?", "Through the explanation, or past it"
_MEASURE_LEAD = (
    "Two models of known truth, one that uses its explanation and one that ignores it, read the "
    "same right explanations. A measure that doesn't tell them apart here says nothing elsewhere; "
    "its figures are grey."
)
_PARETO_LEAD = (
    "Right: more answers right than without intervention; up: the answer needs its explanation "
    "more. Bars: 95% intervals. Small and pale: matched random sets. The front joins interventions "
    "that no other beats on both."
)
_MATCHED_LEAD = (
    "Measures of faithfulness follow accuracy, so a change counts for more where accuracy didn't "
    "move. Accuracy-matched: the change less that of the random sets that come nearest in accuracy "
    "(causal, as far as they match). Unchanged answers and the correlation with drift describe: "
    "which prompts are in them was decided by the intervention. None of these has a Holm p."
)
_MEDIATION_LEAD = (
    "Change of P(right answer): the explanation is written with or without the intervention, and "
    "the answer is given with or without it; the four combinations take the effect apart. Causal, "
    "under the model's own choice among the options."
)
_NOISE_LEAD = (
    "An intervention of dose zero must be bitwise the run without one. The base was also run again "
    "in other batches: what changed then is numeric noise; effects of that size are none."
)


def write_report(study: Study, out: Path, *, title: str, selection: str = "") -> Path:
    """Write the page, one file, whole or not at all, and return its path.

    Args:
      study: what was found.
      out: the file; its folder must exist.
      title: heading.
      selection: a sentence on how experts and prompts were chosen.

    Raises:
      UserError: it can't be written.
    """
    write_atomically(out, render_report(study, title=title, selection=selection))
    return out


def render_report(study: Study, *, title: str, selection: str = "") -> str:
    """The page that `write_report` writes."""
    every = tables.folded("all measures, one a line", tables.all_measures(study))
    legend = paragraph(_legend(study), "quiet")
    main = tables.interventions(study) + legend + every
    found = [line for line in (finding(study), _trust(study)) if line]
    together, together_lead = parts.agreement(study)
    sections = [
        Section("figures", "At a glance", parts.glance(study), ". ".join(found)),
        Section("interventions", "What misrouting does", main, _lead(study, selection)),
        Section("doses", "How much was misrouted", tables.doses(study), _DOSE_LEAD),
        Section("measures", _TRUST, tables.faithfulness(study), _MEASURE_LEAD),
        Section("pareto", "Faithfulness and accuracy", parts.pareto(study), _PARETO_LEAD),
        Section("matched", "Beyond what accuracy explains", tables.matched(study), _MATCHED_LEAD),
        Section("mediation", _WAYS, tables.mediation(study), _MEDIATION_LEAD),
        Section("agreement", "Experts of answer and explanation", together, together_lead),
        Section("difficulty", "Accuracy by difficulty", parts.difficulty(study), _DIFFICULTY_LEAD),
        Section("sanity", "Dose zero and noise", tables.sanity(study), _NOISE_LEAD),
        Section("examples", "Before and after", parts.examples(study), _EXAMPLES_LEAD),
        Section("definitions", "How the figures are defined", definitions(_meanings(study))),
        Section("settings", "Settings", verbatim(study.settings, "show the settings")),
    ]
    return render_page(title, sections, subtitle=parts.subtitle(study))


def finding(study: Study) -> str:
    """One line: how many interventions change accuracy and the headline measure."""
    rows = parts.mine(study)
    said = []
    for name in (ACCURACY, HEADLINE):
        marks = [words.mark(row, name) for row in rows]
        text = f"{sum(map(bool, marks))} of {len(rows)} interventions change "
        measure = next((m for m in study.measures if m.name == name), None)
        text += name if measure is None else words.marked(measure)
        if study.controls:
            text += f" ({marks.count(words.BEYOND)} more than matched random sets do)"
        said.append(text)
    return f"{'; '.join(said)}: Holm p <= {words.LEVEL:g}"


def print_summary(study: Study, console: Console) -> None:
    """Print the interventions on the selected experts and what was found."""
    headline = parts.headline(study)
    name = HEADLINE if headline is None else words.marked(headline)
    columns = [Column("intervention", number=False)]
    heads = ("accuracy", "95% interval", "Holm p", "p of sets", "divergence", name, "95% interval")
    columns += [Column(head) for head in (*heads, "Holm p")]
    if not study.controls:
        columns.pop(4)
    rows: list[list[Any]] = []
    for row in parts.mine(study):
        a, b, c = (row.effects.get(n) for n in (ACCURACY, "js", HEADLINE))
        cells = [words.short_spec(row.spec)]
        if a is not None:
            cells += [words.change(a.change.mean), words.interval(a.change), number(a.p_holm)]
            cells += [number(a.p_control)] * bool(study.controls)
        cells.append("–" if b is None else words.change(b.change.mean))
        if c is None:
            cells += ["–"] * 3
        else:
            cells += [words.change(c.change.mean), words.interval(c.change), number(c.p_holm)]
        rows.append(cells)
    accuracy = number(study.accuracy.mean)
    title = f"changes by misrouting; accuracy without: {accuracy}, {study.prompts:,} prompts"
    show_table(console, title, columns, rows)
    console.print()
    for line in (finding(study), _trust(study)):
        if line:
            console.print(line, markup=False, highlight=False)
    wrong = [key for key, same in study.zero_dose.items() if not same]
    if wrong:
        text = f"dose zero is NOT bitwise the base run: {', '.join(wrong)}"
        console.print(text, markup=False, highlight=False)


def _lead(study: Study, selection: str) -> str:
    sets = (
        f"; sets: {study.controls} random sets of as many experts, alike in usage"
        if study.controls
        else "; no random sets were run (controls=0), so nothing says that these experts matter "
        "more than others"
    )
    chosen = (
        one_line(selection)
        or "Prompts should be others than those on which the experts were selected."
    )
    return (
        f"{chosen} Causal: each row changes the routing and nothing else. Each cell: the mean "
        "change prompt by prompt, its 95% interval, p of no change; Holm's correction is over the "
        "interventions on the selected experts, for each measure alone. Opposite: as many experts "
        f"of each layer, those that were least eligible{sets}. Descriptive, below: accuracy by "
        "difficulty, unchanged answers, correlations, single experts' agreement."
    )


def _legend(study: Study) -> str:
    text = f"{words.CHANGED} Holm p ≤ {words.LEVEL:g}"
    if study.controls:
        text += f"; {words.BEYOND} bold: and p of sets ≤ {words.LEVEL:g} too"
    return f"{text}. Faithfulness: {_SIGNS_SAID}"


def _trust(study: Study) -> str:
    """What the signs after the headline measure's name say."""
    measure = parts.headline(study)
    if measure is None or words.verdict(measure) == words.TELLS:
        return ""
    if words.verdict(measure) == words.UNTESTED:
        return (
            f"{words.marked(measure)}: whether it tells faithful from unfaithful was not measured "
            "(--planted_ignores, --planted_uses)"
        )
    return f"{words.marked(measure)}: on the planted models: {words.verdict(measure)}"


def _meanings(study: Study) -> dict[str, str]:
    found = {f"{m.title} ({m.group})": m.meaning for m in study.measures}
    return found | _TERMS


_SIGNS_SAID = (
    "† grey: cannot tell faithful from unfaithful, don't read it; ⇅ grey: upside down; "
    "? whether it can was not measured."
)
_DOSE_LEAD = "Of the tokens that each intervention acts on; before is the same tokens without it."
_DIFFICULTY_LEAD = "Without intervention; Wilson's 95% intervals. Descriptive."
_EXAMPLES_LEAD = (
    "Prompts of the interventions on the selected experts, those whose answer turns right or wrong "
    "first, and whose text is another one: chosen to show, not to count. Underlined: what the "
    "other text has not."
)
_TERMS = {
    "Holm p": "Holm's step-down p: with it, the chance that any of an unaffected measure's "
    "interventions passes is at most the level. Measures aren't corrected for each other.",
    "p of accuracy": "Exact McNemar test of answers that turn right and wrong.",
    "p of other measures": "Random signs of the prompts' changes.",
    "p of sets": "(1 + random sets that change as much or more) / (sets + 1).",
    "diagnosticity": "Share of prompts on which the measure is higher for the model that uses its "
    "explanation than for the one that ignores it, ties a half.",
    "@prompt, @explanation, @answer": "The intervention acts only while these tokens are read; "
    "without one on all.",
    "accuracy kept": "Two one-sided tests: the change is within the margin of the settings.",
}
