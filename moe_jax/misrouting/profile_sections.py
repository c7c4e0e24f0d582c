"""The parts of the page about a profile. Each gives its content, some their lead as well."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from scipy import stats

from moe_jax.misrouting.profile_data import Compared, Profile, Sample
from moe_jax.reports.charts import RoutedToken, Series, heat_map, interval_lines, routed_text
from moe_jax.reports.escape import one_line
from moe_jax.reports.page import Cell, Column, number, paragraph, table, tiles

_ROWS = 200  # of the ranking
_PAIRS = 20
_LINES = 6  # experts in the chart of levels
_LEVEL = 0.05
MAPS_LEAD = (
    "Scores: one colour for experts that harder prompts use more, another for those that they use "
    "less; an outline marks family-wise p <= 0.05. Point at a cell for its figures."
)
LEVELS_LEAD = "Mean usage at each difficulty, with 95% intervals over prompts."
LAYERS_LEAD = "Over all tokens that count, and the entropy of single tokens at each difficulty."
COMPARED_LEAD = "The same tokens read by both; expert i of both is taken to be the same one."


def subtitle(profile: Profile) -> str:
    """One line: what was read by which model."""
    return (
        f"{profile.model.name}: {len(profile.model.expert_layers)} layers of "
        f"{profile.model.num_experts} experts, {profile.model.k} of them a token; "
        f"usage: {profile.settings.usage}; tokens: {profile.settings.tokens}"
    )


def glance(profile: Profile) -> Markup:
    """The headline figures, and the warning about lengths."""
    found = int((profile.scores.p_family <= _LEVEL).sum())
    figures: list[tuple[str, int | float, str]] = [
        ("experts that change", found, "with difficulty, family-wise p ≤ 0.05"),
        ("experts", profile.scores.score.size, f"in {len(profile.model.expert_layers)} layers"),
        ("prompts", len(profile.level), f"{np.bincount(profile.level).min()} or more a level"),
        ("levels", len(profile.difficulty), "of difficulty"),
        ("tokens", int(profile.tokens.sum()), "counted"),
    ]
    if profile.dropped.any():
        figures.append(("dropped", 100 * profile.dropped.mean(), "% of choices, for capacity"))
    warning = length_warning(profile)
    return tiles(figures) + (paragraph(warning, "missing") if warning else Markup())


def length_warning(profile: Profile) -> str:
    """Where difficulty and length go together, what that means; else ""."""
    counts = profile.tokens
    if len(np.unique(counts)) < 2:
        return ""
    rho = float(stats.spearmanr(counts, profile.level).statistic)
    if abs(rho) < 0.3:
        return ""
    ends = [counts[profile.level == d].mean() for d in (0, profile.level.max())]
    text = (
        f"Harder prompts are {'longer' if rho > 0 else 'shorter'} (mean tokens {ends[0]:.1f} at "
        f"the easiest level, {ends[1]:.1f} at the hardest; rank correlation {rho:.2f}): a trend "
        "may be one of length."
    )
    if profile.settings.length_bins:
        return text + f" Labels were permuted within {profile.settings.length_bins} bins of length."
    if abs(rho) > 0.9:
        return text + " Too few prompts of different levels are of like length to tell these apart."
    return text + " --length_bins=4 compares prompts of like length."


def maps(profile: Profile) -> Markup:
    """Score and mean usage, layer by expert."""
    rows = [f"layer {m}" for m in profile.model.expert_layers]
    columns = [str(e) for e in range(profile.model.num_experts)]
    s, mean = profile.scores, profile.usage.mean(axis=0)

    def hint(i: int, j: int) -> str:
        return (
            f"layer {profile.model.expert_layers[i]}, expert {j}: score {s.score[i, j]:.3f} "
            f"[{s.low[i, j]:.3f}, {s.high[i, j]:.3f}], p family {s.p_family[i, j]:.2g}, "
            f"mean usage {mean[i, j]:.3f}"
        )

    scores = heat_map(
        "trend score",
        s.score,
        rows=rows,
        columns=columns,
        diverging=True,
        marked=s.p_family <= _LEVEL,
        hints=hint,
    )
    return scores + heat_map("mean usage", mean, rows=rows, columns=columns, hints=hint)


def level_lines(profile: Profile) -> Markup:
    """The experts that lead the ranking, level by level."""
    means, experts = profile.means, profile.model.num_experts
    series = []
    for column in profile.ranking[:_LINES].tolist():
        i, j = divmod(column, experts)
        values = [a[:, i, j].tolist() for a in (means.mean, means.low, means.high)]
        series.append(Series(f"layer {profile.model.expert_layers[i]}, expert {j}", *values))
    labels = [f"{d:g}" for d in profile.difficulty]
    name = f"the {len(series)} experts of largest |score|, by difficulty"
    return interval_lines(name, labels, series, y_title="mean usage")


def ranking(profile: Profile) -> tuple[Markup, str]:
    """Every expert, or the first 200."""
    s, experts = profile.scores, profile.model.num_experts
    columns = [
        Column("rank"),
        Column("layer"),
        Column("expert"),
        Column("score", "weighted sum of the levels' mean usage"),
        Column("95% interval", "bootstrap over prompts; sorted by its lower end"),
        Column("z", "score in standard deviations under permuted labels"),
        Column("p", "of this expert alone"),
        Column("p family", "against the largest |z| of all experts"),
        Column("q", "false discovery rate"),
        Column("in top", "share of bootstrap samples in which it is selected"),
        Column("Somers' D", "by ranks, -1 to 1"),
        Column("p ranks", "Jonckheere and Terpstra"),
        Column("CLR score", "of log-ratios"),
        Column("CLR p", "of log-ratios, this expert alone"),
        Column("usage", "mean over prompts"),
    ]
    mean = profile.usage.mean(axis=0)
    rows: list[list[Any]] = []
    for rank, column in enumerate(profile.ranking[:_ROWS].tolist(), start=1):
        at = divmod(column, experts)
        rows.append(
            [rank, profile.model.expert_layers[at[0]], at[1]]
            + [float(s.score[at]), _interval(s.low[at], s.high[at]), float(s.z[at])]
            + [_small(a[at]) for a in (s.p, s.p_family, s.q)]
            + [float(s.inclusion[at]), float(s.somers_d[at]), _small(s.p_jonckheere[at])]
            + [float(s.clr_score[at]), _small(s.clr_p[at]), float(mean[at])]
        )
    left = len(profile.ranking) - len(rows)
    lead = f"The first {_ROWS}; profile.csv has the other {left:,}." if left > 0 else "All of them."
    return table(columns, rows), f"{lead} A click on a heading sorts."


def halves(profile: Profile) -> tuple[Markup, str]:
    """The selection for Stage 2, and whether it holds on prompts that had no part in it."""
    chosen = profile.selection
    columns = [
        Column("layer"),
        Column("expert"),
        Column("score on A", "by which it was selected"),
        Column("score on B"),
        Column("p on B", "of this expert alone"),
        Column("Holm p", "of all that were selected"),
        Column("same sign", number=False),
    ]
    rows: list[list[Any]] = [
        [
            int(chosen.layer[i]),
            int(chosen.expert[i]),
            float(chosen.score_a[i]),
            float(chosen.score_b[i]),
            _small(chosen.p_b[i]),
            _small(chosen.p_holm[i]),
            "yes" if chosen.score_a[i] * chosen.score_b[i] > 0 else "no",
        ]
        for i in range(len(chosen.expert))
    ]
    if not chosen.halved:
        lead = (
            "Selected and tested on the same prompts (--select_half=false): these p are too small, "
            "and what Stage 2 finds on them is biased."
        )
        return table(columns, rows), lead
    lead = (
        f"The {len(rows)} experts of largest |score| on half A ({len(chosen.half_a)} prompts), on "
        f"half B ({len(chosen.half_b)}): {100 * chosen.agreement:.0f}% have the same sign; scores "
        f"of all experts correlate by {chosen.correlation:.2f}. Stage 2 takes these experts and "
        "half B."
    )
    return table(columns, rows), lead


def layers(profile: Profile) -> Markup:
    """Entropy, load, dead experts, and how far tokens are bound to experts."""
    b = profile.balance
    columns = [
        Column("layer"),
        Column("load entropy", "bits"),
        Column("evenness", "load entropy / log2 of the number of experts"),
        Column("peak load", "times the mean"),
        Column("dead", "experts that no token chose"),
        Column("cold", "experts with less than a tenth of the mean load"),
        Column("dropped", "share of choices"),
        Column("bound to token", "mean share of a token's commonest expert"),
        *(Column(f"entropy at {d:g}", "of a token's scores, bits") for d in profile.difficulty),
    ]
    rows: list[list[Any]] = [
        [
            layer,
            float(b.load_entropy[i]),
            float(b.evenness[i]),
            float(b.peak[i]),
            int(b.dead[i].sum()),
            int(b.cold[i].sum()),
            float(profile.dropped[:, i].mean()),
            float(b.vocabulary[i]),
            *(float(x) for x in b.entropy[:, i]),
        ]
        for i, layer in enumerate(profile.model.expert_layers)
    ]
    load = heat_map(
        "load",
        b.load,
        rows=[f"layer {m}" for m in profile.model.expert_layers],
        columns=[str(e) for e in range(profile.model.num_experts)],
    )
    return table(columns, rows) + load


def pairs(profile: Profile) -> tuple[Markup, str]:
    """The pairs of experts of one layer that go together more than their loads make them."""
    together = profile.balance.pairs.astype(np.float64)
    tokens = float(profile.tokens.sum())
    alone = np.diagonal(together, axis1=1, axis2=2)
    expected = alone[:, :, None] * alone[:, None, :] / tokens
    lift = np.divide(together, expected, out=np.zeros_like(together), where=expected >= 1)
    above = np.triu(np.ones(together.shape[1:], bool), 1)[None]
    order = np.argsort(-(lift * above).ravel(), kind="stable")[:_PAIRS]
    columns = [
        Column("layer"),
        Column("one"),
        Column("other"),
        Column("tokens", "that choose both"),
        Column("P(other | one)"),
        Column("P(one | other)"),
        Column("lift", "tokens / those expected if choices were independent"),
    ]
    rows: list[list[Any]] = []
    for m, i, j in zip(*np.unravel_index(order, together.shape), strict=True):
        if lift[m, i, j] > 0 and i < j:
            both = together[m, i, j]
            rows.append(
                [profile.model.expert_layers[m], int(i), int(j), int(both)]
                + [float(both / alone[m, i]), float(both / alone[m, j]), float(lift[m, i, j])]
            )
    return table(columns, rows), "Of all pairs of a token's choices, those of largest lift."


def tokens(profile: Profile) -> tuple[Markup, str]:
    """What the experts of the ranking's head take most."""
    columns = [
        Column("layer"),
        Column("expert"),
        Column("tokens: times taken, share of their occurrences", number=False, wide=True),
    ]
    rows: list[list[Any]] = [
        [
            t.layer,
            t.expert,
            ",  ".join(
                f"“{one_line(piece)}” {times:,} ({100 * rate:.0f}%)"
                for piece, times, rate in zip(t.pieces, t.times, t.rate, strict=True)
            )
            or "–",
        ]
        for t in profile.top_tokens
    ]
    least = profile.settings.minimum
    return table(columns, rows), f"Of tokens that are seen at least {least} times."


def texts(profile: Profile) -> tuple[Markup, str]:
    """A few prompts, their tokens shaded by how many of their choices are leading experts."""
    leading = np.zeros(profile.scores.score.shape, bool)
    leading.flat[profile.ranking[: len(profile.selection.expert)]] = True
    body = Markup("").join(
        Markup("<h3>{}</h3>{}").format(
            f"prompt {sample.number}, difficulty "
            f"{profile.difficulty[profile.level[sample.number]]:g}",
            routed_text(_routed(sample, leading, profile.model.expert_layers)),
        )
        for sample in profile.samples
    )
    lead = (
        f"Darker: in more layers one of the {int(leading.sum())} experts of largest |score| took "
        "the token. Tokens that are not counted have no shade. Point at a token for its experts."
    )
    return body, lead


def compared(profile: Profile, other: Compared) -> Markup:
    """Two models' routing of the same tokens."""
    columns = [
        Column("layer"),
        Column("Jaccard", "of a token's experts"),
        Column("total variation", "of the loads"),
        Column("JSD", "of the loads, bits"),
        Column("load correlation"),
    ]
    arrays = (other.jaccard, other.total_variation, other.jsd, other.correlation)
    rows: list[list[Any]] = [
        [layer, *(float(a[i]) for a in arrays)]
        for i, layer in enumerate(profile.model.expert_layers)
    ]
    score_map = heat_map(
        f"trend score of {other.name}",
        other.score,
        rows=[f"layer {m}" for m in profile.model.expert_layers],
        columns=[str(e) for e in range(profile.model.num_experts)],
        diverging=True,
        marked=other.p_family <= _LEVEL,
    )
    found = int((other.p_family <= _LEVEL).sum())
    said = (
        f"{found} of its experts change with difficulty; its scores and those of "
        f"{one_line(profile.model.name)} correlate by {number(other.score_correlation)}."
    )
    return paragraph(said) + table(columns, rows) + score_map


def _routed(sample: Sample, leading: np.ndarray, layers: Sequence[int]) -> list[RoutedToken]:
    experts, found = leading.shape[1], []
    for piece, counted, rows in zip(sample.pieces, sample.where, sample.expert, strict=True):
        names = [
            ", ".join(str(e) if e < experts else "dropped" for e in row) for row in rows.tolist()
        ]
        note = "\n".join(f"layer {m}: {name}" for m, name in zip(layers, names, strict=True))
        hits = [
            any(e < experts and leading[i, e] for e in row) for i, row in enumerate(rows.tolist())
        ]
        shade = float(np.mean(hits)) if counted else 0.0
        found.append(RoutedToken(piece, note if counted else f"not counted\n{note}", shade))
    return found


def _small(p: float) -> Cell:
    """A probability, small ones with their digits."""
    return Cell(Markup.escape(number(p)), float(p))


def _interval(low: float, high: float) -> Cell:
    return Cell(Markup.escape(f"{low:.3f} to {high:.3f}"), float(low))
