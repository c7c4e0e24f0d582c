"""Stage 2: misroute experts, and measure what becomes of answers and explanations.

    found = run(MisrouteConfig(model=..., prompts=..., workdir=..., profile=...))

A study is a folder: `config.json` says what it is of, `conditions.jsonl` holds one line for each
run that is done, so that it can be resumed. Letters: t tokens, l layers with a mixture, k choices
of a token.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from moe_jax.common.files import local_path
from moe_jax.common.log import Log
from moe_jax.common.schema import to_json
from moe_jax.errors import UserError
from moe_jax.misrouting import study_inputs
from moe_jax.misrouting.causes import zero_dose_record
from moe_jax.misrouting.conditions import conditions
from moe_jax.misrouting.context import make_context
from moe_jax.misrouting.misroute_files import write_files
from moe_jax.misrouting.misroute_report import write_report
from moe_jax.misrouting.prompts import Prompt
from moe_jax.misrouting.routes import check_recorded, donors
from moe_jax.misrouting.selection import Selection
from moe_jax.misrouting.study_config import MisrouteConfig, StudyConfig
from moe_jax.misrouting.study_progress import StudyProgress, stoppable
from moe_jax.misrouting.study_results import Study
from moe_jax.misrouting.study_runs import Planted, StudyRuns
from moe_jax.misrouting.study_summary import summarise
from moe_jax.models.causal_pretrained import PretrainedLM
from moe_jax.models.compiled import free_programs
from moe_jax.models.digest import weights_digest
from moe_jax.training import settings
from moe_jax.training import workdir as folders

Progress = Callable[[int, int, str], None]
"""(runs done, runs in all, what is next)."""
Detail = Callable[[str], None]
"""What a run is doing."""
RERUN, PLANTED, AGREEMENT, ZERO_DOSE = "base/rerun", "planted", "agreement", "zero-dose"


@dataclasses.dataclass(kw_only=True)
class StudyOf:
    """What a study's folder holds: a second run in it must be of the same.

    Attributes:
      model: as the user named it.
      weights: SHA-256 of its parameters, and of those of the planted models, if there are any.
      chat: is the model's chat template around the prompts?
      system_message: of the chats; "" for none.
      prompts: SHA-256 of the prompts, as the model reads them.
      selected: (layer, expert), layers counted among those with a mixture.
      matching: SHA-256 of the usage and the scores by which other sets are drawn.
      routes: SHA-256 of recorded routes; "" without any.
      planted: folders of the models that ignore and that use their explanation; "" for none.
      config: the settings.
    """

    system: ClassVar[str] = "misrouting-study"

    model: str
    weights: list[str]
    chat: bool = False
    system_message: str = ""
    prompts: str
    selected: list[list[int]]
    matching: str
    routes: str = ""
    planted: tuple[str, str]
    config: StudyConfig


def run(config: MisrouteConfig) -> Study:
    """Run what isn't done yet of a study, sum it up, write the files and the page.

    The same call on the same workdir resumes an interrupted study; of a finished one only the
    files are written anew.

    Args:
      config: inputs, settings and workdir, which gets config.json, conditions.jsonl (a line for
        each run), misroute.json, misroute.csv and misroute.html. Progress goes to stderr.

    Returns:
      What misroute.json holds.

    Raises:
      UserError: a field, the prompts, a model, the experts or the routes are wrong (which), or the
        workdir holds another study.
      study_progress.Stopped: Ctrl-C or SIGTERM; the runs that are done are kept.
    """
    config.validate()
    given = study_inputs.load(config)
    this = study_of(
        given.lm,
        given.prompts,
        given.chosen.selection,
        given.planted,
        config.settings(),
        chat=config.chat,
        system=config.system,
        recorded=given.recorded,
    )
    workdir = local_path(config.workdir, "workdir")
    with folders.claimed(workdir, this), folders.lock(workdir):
        found = summarise(
            _records(given, this.config, workdir),
            given.prompts,
            this.config,
            model=given.lm.name,
            expert_layers=given.lm.config.expert_layers,
            settings=_described(this, given.chosen.said),
        )
        write_files(found, workdir)
        title = f"Misrouting: {given.lm.name}"
        write_report(found, workdir / "misroute.html", title=title, selection=given.chosen.said)
    return found


def study_of(
    lm: PretrainedLM,
    prompts: Sequence[Prompt],
    selection: Selection,
    planted: Planted | None,
    config: StudyConfig,
    *,
    chat: bool = False,
    system: str = "",
    recorded: Sequence[Int[np.ndarray, "_ l k"]] | None = None,
) -> StudyOf:
    """What identifies a study.

    Args:
      lm: the model.
      prompts: as it reads them.
      selection: the experts.
      planted: models of known truth, if there are any.
      config: the settings.
      chat: are the prompts chats (`chat_prompts.as_chat`)?
      system: their system message.
      recorded: routes of the prompts by another engine, if there are any.
    """
    digest = hashlib.sha256(repr([tuple(p) for p in prompts]).encode()).hexdigest()
    names = ("", "") if planted is None else (planted.ignores.name, planted.uses.name)
    weights = [weights_digest(one.model) for one in (lm, *(planted or ()))]
    selected = np.argwhere(selection.target).tolist()
    matching = hashlib.sha256(np.stack(selection[1:]).astype(np.float64).tobytes()).hexdigest()
    routes = hashlib.sha256(b"".join(_bytes(one) for one in recorded or ()))
    return StudyOf(
        model=lm.name,
        weights=weights,
        chat=chat,
        system_message=system,
        prompts=digest,
        selected=selected,
        matching=matching,
        routes="" if recorded is None else routes.hexdigest(),
        planted=names,
        config=config,
    )


def run_study(
    lm: PretrainedLM,
    prompts: Sequence[Prompt],
    selection: Selection,
    config: StudyConfig,
    workdir: Path,
    *,
    planted: Planted | None = None,
    recorded: Sequence[Int[np.ndarray, "_ l k"]] | None = None,
    progress: Progress | None = None,
    detail: Detail | None = None,
) -> list[dict[str, Any]]:
    """Run what isn't in `workdir/conditions.jsonl` yet, and give all records.

    Args:
      lm: a model with experts.
      prompts: those to test on: not those on which the experts were selected.
      selection: from Stage 1.
      config: the settings, validated.
      workdir: the study's folder, claimed by the caller.
      planted: models for the diagnosticity of each measure.
      recorded: routes of the prompts' tokens by another engine, for "replay".
      progress: called before each run and at the end.
      detail: called with what a run is doing.

    Raises:
      UserError: a model without experts; no expert selected; runs that were done under other
        settings of JAX (x64, random numbers); as what is run.
    """
    if lm.config.experts is None:
        raise UserError(f"{lm.name} has no experts: there is no routing to change")
    if not selection.target.any():
        raise UserError("no expert is selected: there is nothing to misroute")
    gate = lm.config.experts.gate
    runs = conditions(
        gate,
        config.specs(),
        selection.target,
        usage=selection.usage,
        score=selection.score,
        controls=config.controls,
        seed=config.seed,
    )
    _check_routes(lm, prompts, config, recorded)
    log = Log(workdir / "conditions.jsonl")
    for key, record in log.records.items():
        settings.check(record.get("jax", {}), f"{workdir / 'conditions.jsonl'}: {key}")
    study = StudyRuns(lm, prompts, config, log, recorded, detail)
    todo: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        (runs[0].key, partial(study.condition, runs[0])),
        (RERUN, partial(study.rerun, runs[0])),
        (ZERO_DOSE, lambda: zero_dose_record(lm, study.texts(), config)),
        *((run.key, partial(study.condition, run)) for run in runs[1:]),
        (AGREEMENT, partial(study.agreement, selection)),
    ]
    whole = [run for run in runs[1:] if run.experts == "selected" and run.scope == "all"]
    todo += [(f"mediation/{run.spec}", partial(study.mediation, run)) for run in whole]
    if planted is not None:
        todo.append((PLANTED, partial(study.planted, planted)))
    for number, (key, run_it) in enumerate(todo):
        if key in log.records:
            continue
        if progress is not None:
            progress(number, len(todo), key)
        free_programs()
        log.add({"key": key, "jax": settings.current(), **run_it()})
    if progress is not None:
        progress(len(todo), len(todo), "")
    return [log.records[key] for key, _ in todo]


def _records(
    given: study_inputs.Loaded, config: StudyConfig, workdir: Path
) -> list[dict[str, Any]]:
    """`run_study` with its progress on stderr, until a signal stops it."""
    progress = StudyProgress(len(Log(workdir / "conditions.jsonl").records))
    with stoppable(progress):
        return run_study(
            given.lm,
            given.prompts,
            given.chosen.selection,
            config,
            workdir,
            planted=given.planted,
            recorded=given.recorded,
            progress=progress,
            detail=progress.detail,
        )


def _described(this: StudyOf, said: str) -> str:
    """What the study is of, a line a field, and where its experts are from."""
    values = to_json(this)
    inner = values.pop("config")
    lines = [f"{name} = {value!r}" for name, value in (values | inner).items()]
    return "\n".join([*lines, "", said])


def _check_routes(
    lm: PretrainedLM,
    prompts: Sequence[Prompt],
    config: StudyConfig,
    recorded: Sequence[Int[np.ndarray, "_ l k"]] | None,
) -> None:
    """Are there routes for the interventions that take routes?"""
    names = {spec.name for spec in config.specs()}
    level = np.asarray([prompt.difficulty for prompt in prompts])
    for name in names & {"donor", "donor_peer"}:
        donors(level, np.random.default_rng(config.seed), peers=name == "donor_peer")
    if ("replay" in names) != (recorded is not None):
        raise UserError(
            "interventions: replay needs --routes=FILE, routes that were recorded"
            if recorded is None
            else "--routes is given, and no intervention replays: add replay to --interventions"
        )
    if recorded is not None:
        texts = [make_context(lm.tokenizer, prompt.text, "", "") for prompt in prompts]
        check_recorded(recorded, texts, range(len(prompts)))


def _bytes(routes: Int[np.ndarray, "t l k"]) -> bytes:
    return repr(routes.shape).encode() + routes.astype(np.int64).tobytes()
