"""Stage 1: which experts do prompts of each difficulty use?

    result = run(ProfileConfig(model=..., prompts=..., workdir=...))

or, of readings that are there:

    check(prompts, settings)
    found = collect(readings, prompts, model, kind=settings.usage)      # collect.py
    result = profile(found, prompts, model, settings)

The unit is the prompt. Letters: n prompts, d levels, l layers with experts, e experts of each,
m = l * e, k choices of a token, t tokens counted (of all prompts).
"""

import sys
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from moe_jax.common.files import local_path
from moe_jax.common.statistics import holm
from moe_jax.errors import UserError
from moe_jax.misrouting import specialisation
from moe_jax.misrouting.chat_prompts import read_asked
from moe_jax.misrouting.collect import balance, top_tokens
from moe_jax.misrouting.profile_config import ProfileConfig, ProfileSettings
from moe_jax.misrouting.profile_data import (
    Collected,
    Compared,
    LevelMeans,
    ModelShape,
    Profile,
    Scores,
    Selection,
)
from moe_jax.misrouting.profile_files import write_profile
from moe_jax.misrouting.profile_inputs import read_and_collect
from moe_jax.misrouting.profile_report import write_report
from moe_jax.misrouting.prompts import Levels, Prompt, levels, strata
from moe_jax.misrouting.trend import bootstrap, halves, jonckheere, trend
from moe_jax.misrouting.usage import clr

_COLUMNS = 1024  # of the bootstrap at once
_TOP = 10


def run(config: ProfileConfig) -> Profile:
    """Read the prompts with the model, evaluate its routing, write the files and the page.

    Args:
      config: inputs, method and workdir, which gets profile.json, profile.csv, usage.csv and
        profile.html. Progress goes to stderr.

    Returns:
      What the files hold.

    Raises:
      UserError: a field, the prompts, the model or its routes are wrong (which); nothing is written
        then.
    """
    config.validate()
    workdir, settings = local_path(config.workdir, "workdir"), config.settings()
    prompts = read_asked(config)
    check(prompts, settings)
    shape, found = read_and_collect(config.model, prompts, config)
    print(
        f"comparing {found.rate[0].size:,} experts over {len(prompts):,} prompts", file=sys.stderr
    )
    result = profile(found, prompts, shape, settings)
    if config.compare:
        _, other = read_and_collect(config.compare, prompts, config)
        result = result._replace(compared=(compare(result, found, config.compare, other),))
    write_profile(result, workdir)
    write_report(result, workdir / "profile.html", title=f"Routing by difficulty: {shape.name}")
    return result


def check(prompts: Sequence[Prompt], settings: ProfileSettings) -> Levels:
    """The levels of the prompts, once they and the settings are found to be right.

    Raises:
      UserError: one level only, a level with one prompt, or a setting that can't be.
    """
    settings.validate()
    found = levels(prompts)
    weights = np.array(settings.weights)
    if len(weights):
        if len(weights) != len(found.difficulty):
            raise UserError(
                f"weights: {len(weights)} numbers for {len(found.difficulty)} levels of difficulty "
                f"({', '.join(f'{d:g}' for d in found.difficulty)})"
            )
        if not np.isfinite(weights).all() or not weights.any():
            raise UserError("weights must be numbers that are not all 0")
        if abs(weights.sum()) > 1e-6 * np.abs(weights).sum():
            raise UserError(f"weights add up to {weights.sum():g}: they must add up to 0")
    return found


def profile(
    found: Collected, prompts: Sequence[Prompt], model: ModelShape, settings: ProfileSettings
) -> Profile:
    """Level means, trends with their tests, the selection for Stage 2, balance and typical tokens.

    Args:
      found: the readings of the prompts.
      prompts: the study's.
      model: whose readings they are.
      settings: how to evaluate.

    Raises:
      UserError: as `check`; more experts to select than there are; strata that leave nothing to
        compare.
    """
    study = check(prompts, settings)
    stratum = _strata(prompts, found.tokens, settings.length_bins)
    _check_strata(study.level, stratum, settings)
    n, m = len(prompts), found.rate[0].size
    top = settings.top or max(1, min(_TOP, m // 4))
    if top > m:
        raise UserError(f"top={top} is more than the model's {m} experts")
    flat = found.rate.reshape(n, m)
    scores = _scores(found, study.level, stratum, top, settings)
    ranking = np.argsort(-np.abs(scores.score).ravel(), kind="stable")
    return Profile(
        model=model,
        settings=settings,
        difficulty=study.difficulty,
        level=study.level,
        group=tuple(prompt.group for prompt in prompts),
        stratum=stratum,
        tokens=found.tokens,
        length=found.length,
        usage=found.rate,
        dropped=found.dropped,
        means=_level_means(found.rate, study.level, settings),
        scores=scores,
        ranking=ranking,
        selection=_select(flat, study.level, stratum, top, model, settings),
        balance=balance(found, study.level, model, settings.minimum),
        top_tokens=tuple(
            top_tokens(found, model, *divmod(int(column), model.num_experts), settings.minimum)
            for column in ranking[:top]
        ),
        samples=found.samples,
    )


def compare(result: Profile, found: Collected, name: str, other: Collected) -> Compared:
    """A second model's routing of the same tokens beside that of a profile.

    Expert i of both should mean the same: two checkpoints of one run, a model and its fine-tuned
    descendant. Between models trained apart only the load's evenness can be compared.

    Args:
      result: the profile.
      found: its readings.
      name: of the second model.
      other: its readings of the same prompts, of the same usage.

    Raises:
      UserError: it has other layers or experts, or its tokenizer makes other tokens.
    """
    if found.rate.shape != other.rate.shape:
        second, first = (" x ".join(map(str, a.rate.shape[1:])) for a in (other, found))
        raise UserError(
            f"compare: {name} has {second} layers x experts, {result.model.name} has {first}"
        )
    if not np.array_equal(found.ids, other.ids):
        raise UserError(f"compare: {name} reads other tokens than {result.model.name}")
    e, everywhere = result.model.num_experts, np.ones(len(found.ids), bool)
    alike = specialisation.compare(found.expert, other.expert, e, where=everywhere)
    settings = result.settings
    theirs = trend(
        other.rate.reshape(len(other.rate), -1),
        result.level,
        seed=settings.seed,
        weights=np.array(settings.weights) if settings.weights else None,
        stratum=result.stratum,
        permutations=settings.permutations,
    )
    shape = result.scores.score.shape
    return Compared(
        name,
        *alike,
        theirs.score.reshape(shape),
        theirs.p_family.reshape(shape),
        _pearson(result.scores.score.ravel(), theirs.score),
    )


def _strata(
    prompts: Sequence[Prompt], tokens: Int[np.ndarray, " n"], length_bins: int
) -> Int[np.ndarray, " n"]:
    """Group, and within it the bin of the number of tokens between its quantiles.

    Quantiles of the length and of its logarithm cut at the same prompts.
    """
    group = strata(prompts)
    if length_bins < 2:
        return group
    bins = np.zeros(len(prompts), np.int64)
    for g in np.unique(group):
        here = group == g
        edges = np.quantile(tokens[here], np.arange(1, length_bins) / length_bins)
        bins[here] = np.searchsorted(edges, tokens[here], side="left")
    return np.unique(group * length_bins + bins, return_inverse=True)[1].reshape(-1)


def _check_strata(
    level: Int[np.ndarray, " n"], stratum: Int[np.ndarray, " n"], settings: ProfileSettings
) -> None:
    if not any(len(np.unique(level[stratum == s])) > 1 for s in np.unique(stratum)):
        bins = f", cut in {settings.length_bins} by length" if settings.length_bins else ""
        raise UserError(
            f"no group of prompts{bins} has two levels of difficulty: nothing can be compared "
            "within groups; use fewer length_bins, or groups that hold several levels"
        )


def _scores(
    found: Collected,
    level: Int[np.ndarray, " n"],
    stratum: Int[np.ndarray, " n"],
    top: int,
    settings: ProfileSettings,
) -> Scores:
    n = len(level)
    flat = found.rate.reshape(n, -1)
    # One pseudo count for all: with 0.5 / T_i of each prompt an expert that is never used would
    # fall with the prompts' length.
    ratio = clr(found.rate, 0.5 / float(np.median(found.tokens))).reshape(n, -1)
    weights = np.array(settings.weights) if settings.weights else None
    raw, relative = (
        trend(
            values,
            level,
            seed=settings.seed,
            weights=weights,
            stratum=stratum,
            permutations=settings.permutations,
        )
        for values in (flat, ratio)
    )
    interval = bootstrap(
        flat, level, seed=settings.seed, top=top, weights=weights, samples=settings.samples
    )
    ranks = jonckheere(flat, level, stratum=stratum)
    columns = Scores(
        score=raw.score,
        low=interval.low,
        high=interval.high,
        z=raw.z,
        p=raw.p,
        p_family=raw.p_family,
        q=raw.q,
        inclusion=interval.inclusion,
        somers_d=ranks.somers_d,
        p_jonckheere=ranks.p,
        clr_score=relative.score,
        clr_p=relative.p,
        clr_p_family=relative.p_family,
    )
    return Scores(*(a.reshape(found.rate.shape[1:]) for a in columns))


def _level_means(
    rate: Float[np.ndarray, "n l e"], level: Int[np.ndarray, " n"], settings: ProfileSettings
) -> LevelMeans:
    """Means, and percentile intervals over prompts drawn with replacement within each level."""
    rng = np.random.default_rng(settings.seed)
    parts = []
    for d in range(level.max() + 1):
        here = rate[level == d].reshape(np.count_nonzero(level == d), -1)
        size = len(here)
        drawn = rng.multinomial(size, np.full(size, 1 / size), settings.samples) / size
        ends = [
            np.quantile(drawn @ here[:, start : start + _COLUMNS], [0.025, 0.975], axis=0)
            for start in range(0, here.shape[1], _COLUMNS)
        ]
        parts.append(np.stack([here.mean(axis=0), *np.concatenate(ends, axis=1)]))
    shape = (len(parts), *rate.shape[1:])
    return LevelMeans(*(np.stack([p[i] for p in parts]).reshape(shape) for i in range(3)))


def _select(
    flat: Float[np.ndarray, "n m"],
    level: Int[np.ndarray, " n"],
    stratum: Int[np.ndarray, " n"],
    top: int,
    model: ModelShape,
    settings: ProfileSettings,
) -> Selection:
    a = b = np.ones(len(level), bool)
    if settings.select_half:
        a = halves(level, seed=settings.seed, stratum=stratum)
        whole = level.max() + 1
        if min(len(np.unique(level[a])), len(np.unique(level[~a]))) < whole:
            # Strata of single prompts may leave a half without a level.
            a = halves(level, seed=settings.seed)
        b = ~a
    first, second = (
        trend(
            flat[half],
            level[half],
            seed=settings.seed + 1,
            weights=np.array(settings.weights) if settings.weights else None,
            stratum=stratum[half],
            permutations=settings.permutations,
        )
        for half in (a, b)
    )
    best = np.argsort(-np.abs(first.score), kind="stable")[:top]
    layer, expert = np.divmod(best, model.num_experts)
    shape = (len(model.expert_layers), model.num_experts)
    return Selection(
        halved=settings.select_half,
        half_a=np.flatnonzero(a),
        half_b=np.flatnonzero(b),
        layer=np.array(model.expert_layers)[layer],
        expert=expert,
        score_a=first.score[best],
        score_b=second.score[best],
        p_b=second.p[best],
        p_holm=holm(second.p[best]),
        agreement=float((first.score[best] * second.score[best] > 0).mean()),
        correlation=_pearson(first.score, second.score),
        usage_mean=flat[a].mean(axis=0).reshape(shape),
        z=first.z.reshape(shape),
    )


def _pearson(x: Float[np.ndarray, " m"], y: Float[np.ndarray, " m"]) -> float:
    """NaN where one of them doesn't vary."""
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else float("nan")
