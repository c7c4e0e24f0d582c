"""A profile as a page, and as a table and a line in the terminal."""

from pathlib import Path
from typing import Any

from rich.console import Console

from moe_jax.common.files import write_atomically
from moe_jax.misrouting import profile_glossary as glossary
from moe_jax.misrouting import profile_sections as parts
from moe_jax.misrouting.profile_data import Profile
from moe_jax.reports.escape import one_line
from moe_jax.reports.page import Column, Section, number, render_page
from moe_jax.reports.terminal import show_table

_LEVEL = 0.05


def write_report(profile: Profile, out: Path, *, title: str) -> Path:
    """Write the page, whole or not at all, and return its path.

    Raises:
      UserError: it can't be written.
    """
    write_atomically(out, render_report(profile, title=title))
    return out


def render_report(profile: Profile, *, title: str) -> str:
    """The page: one file without any reference outside itself."""
    sections = [
        Section("figures", "At a glance", parts.glance(profile), finding(profile)),
        Section("maps", "Layers and experts", parts.maps(profile), parts.MAPS_LEAD),
        Section("levels", "Usage by level", parts.level_lines(profile), parts.LEVELS_LEAD),
        Section("ranking", "Experts by score", *parts.ranking(profile)),
        Section("halves", "Selected on one half, tested on the other", *parts.halves(profile)),
        Section("layers", "Balance of the layers", parts.layers(profile), parts.LAYERS_LEAD),
    ]
    if profile.model.k > 1:
        sections.append(Section("pairs", "Experts chosen together", *parts.pairs(profile)))
    sections.append(Section("tokens", "Tokens of the first experts", *parts.tokens(profile)))
    if profile.samples:
        sections.append(Section("texts", "Prompts and their experts", *parts.texts(profile)))
    sections += [
        Section(
            "compared",
            f"Beside {one_line(c.name)}",
            parts.compared(profile, c),
            parts.COMPARED_LEAD,
        )
        for c in profile.compared
    ]
    sections += [
        Section("definitions", "How the figures are defined", glossary.meanings(profile)),
        Section("settings", "Settings", glossary.settings(profile)),
    ]
    return render_page(title, sections, subtitle=parts.subtitle(profile))


def finding(profile: Profile) -> str:
    """One line: how many experts change with difficulty."""
    s, total = profile.scores, profile.scores.p_family.size
    found = s.p_family <= _LEVEL
    count = int(found.sum())
    said = "none" if not count else str(count)
    verb = "changes" if count == 1 or not count else "change"
    text = f"{said} of {total} experts {verb} with difficulty (family-wise p <= {_LEVEL:g})"
    if not count:
        return text
    up, kept = int((found & (s.score > 0)).sum()), int((found & (s.clr_p_family <= _LEVEL)).sum())
    return (
        f"{text}: {up} used more by harder prompts, {count - up} less; "
        f"{kept} of them also as log-ratios"
    )


def print_summary(profile: Profile, console: Console) -> None:
    """Print the experts that lead the ranking and what was found."""
    columns, rows = top_table(profile)
    show_table(console, "experts by |score|", columns, rows)
    console.print()
    console.print(finding(profile), markup=False, highlight=False)
    chosen = profile.selection
    if chosen.halved:
        held = int((chosen.p_holm <= _LEVEL).sum())
        console.print(
            f"{len(chosen.expert)} selected on half A: {held} hold on half B (Holm p <= "
            f"{_LEVEL:g}), {round(chosen.agreement * len(chosen.expert))} have the same sign",
            markup=False,
            highlight=False,
        )
    confound = parts.length_warning(profile)
    if confound:
        console.print(confound, markup=False, highlight=False)


def top_table(profile: Profile) -> tuple[list[Column], list[list[Any]]]:
    """The experts that lead the ranking: a few columns, for a terminal."""
    s, experts = profile.scores, profile.model.num_experts
    heads = ("layer", "expert", "score", "low", "high", "z", "p", "p family", "in top")
    ends = (f"at {profile.difficulty[0]:g}", f"at {profile.difficulty[-1]:g}")
    rows = []
    for column in profile.ranking[: len(profile.selection.expert)].tolist():
        at = divmod(column, experts)
        rows.append(
            [profile.model.expert_layers[at[0]], at[1]]
            + [float(a[at]) for a in (s.score, s.low, s.high, s.z)]
            + [number(s.p[at]), number(s.p_family[at]), float(s.inclusion[at])]
            + [float(profile.means.mean[i][at]) for i in (0, -1)]
        )
    return [Column(head) for head in (*heads, *ends)], rows
