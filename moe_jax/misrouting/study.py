"""Stage 2: runs every condition on every prompt and keeps what each gave, so that it can go on.

A study is a folder: `config.json` says what it is of, `conditions.jsonl` holds one line for each
run that is done. Letters: n prompts, l layers with a mixture, e experts.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from moe_jax.errors import UserError
from moe_jax.misrouting import disturbance, probing
from moe_jax.misrouting.answering import (
    Answered,
    Scoped,
    common_separator,
    scoped,
    unedited,
    write_answers,
)
from moe_jax.misrouting.causes import agreement_record, mediation_record, zero_dose_record
from moe_jax.misrouting.concepts import named_concepts
from moe_jax.misrouting.conditions import BASE, Condition, conditions
from moe_jax.misrouting.probing import Explained
from moe_jax.misrouting.prompts import Prompt
from moe_jax.misrouting.records import Log
from moe_jax.misrouting.study_config import StudyConfig
from moe_jax.misrouting.texts import distractors
from moe_jax.models.causal_pretrained import PretrainedLM
from moe_jax.models.digest import weights_digest

Progress = Callable[[int, int, str], None]
"""(runs done, runs in all, what is next)."""
RERUN, PLANTED, AGREEMENT, ZERO_DOSE = "base/rerun", "planted", "agreement", "zero-dose"


class Selection(NamedTuple):
    """The experts to misroute, from Stage 1.

    Attributes:
      target: the selected experts.
      usage: of all experts, to match controls by.
      score: by which they were selected; the larger, the more they change with difficulty.
    """

    target: Bool[np.ndarray, "l e"]
    usage: Float[np.ndarray, "l e"]
    score: Float[np.ndarray, "l e"]


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
    planted: tuple[str, str]
    config: StudyConfig


class Planted(NamedTuple):
    """Two models of which the truth is known."""

    ignores: PretrainedLM
    uses: PretrainedLM


def study_of(
    lm: PretrainedLM,
    prompts: Sequence[Prompt],
    selection: Selection,
    planted: Planted | None,
    config: StudyConfig,
    *,
    chat: bool = False,
    system: str = "",
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
    """
    digest = hashlib.sha256(repr([tuple(p) for p in prompts]).encode()).hexdigest()
    names = ("", "") if planted is None else (planted.ignores.name, planted.uses.name)
    weights = [weights_digest(one.model) for one in (lm, *(planted or ()))]
    selected = np.argwhere(selection.target).tolist()
    matching = hashlib.sha256(np.stack(selection[1:]).astype(np.float64).tobytes()).hexdigest()
    return StudyOf(
        model=lm.name,
        weights=weights,
        chat=chat,
        system_message=system,
        prompts=digest,
        selected=selected,
        matching=matching,
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
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Run what isn't in `workdir/conditions.jsonl` yet, and give all records.

    Args:
      lm: a model with experts.
      prompts: those to test on: not those on which the experts were selected.
      selection: from Stage 1.
      config: the settings, validated.
      workdir: the study's folder, claimed by the caller.
      planted: models for the diagnosticity of each measure.
      progress: called before each run and at the end.

    Raises:
      UserError: a model without experts; no expert selected; as what is run.
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
    log = Log(workdir / "conditions.jsonl")
    study = _Study(lm, prompts, config, log)
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
        log.add({"key": key, **run_it()})
    if progress is not None:
        progress(len(todo), len(todo), "")
    return [log.records[key] for key, _ in todo]


class _Study:
    """What all runs share: the base run's texts, and the prompts that are measured in depth."""

    def __init__(self, lm: PretrainedLM, prompts: Sequence[Prompt], config: StudyConfig, log: Log):
        self.lm, self.prompts, self.config = lm, prompts, config
        count = config.faithfulness_prompts or len(prompts)
        order = np.random.default_rng(config.seed).permutation(len(prompts))
        self.measured = np.sort(order[:count])
        done = log.records.get(f"{BASE}/{BASE}")
        self._base = None if done is None else [Answered(**one) for one in done["written"]]

    @property
    def base(self) -> list[Answered]:
        """What the model writes without intervention."""
        if self._base is None:
            raise ValueError("the base run comes first")
        return self._base

    def condition(self, run: Condition) -> dict[str, Any]:
        """Answers, stability and faithfulness under a condition."""
        now = write_answers(self.lm, self.prompts, run, self.config)
        if run.spec == BASE:
            self._base = now
        return self._record(run, now, deep=not run.is_control)

    def rerun(self, run: Condition) -> dict[str, Any]:
        """The base again, in other batches and the other way round: the numeric noise floor."""
        size = self.config.batch_size // 2 + 1
        back = self.prompts[::-1]
        now = write_answers(self.lm, back, run, self.config, batch_size=size)[::-1]
        return self._record(run, now, deep=True, batch_size=size)

    def texts(self) -> list[Explained]:
        """The measured prompts with the base run's explanations; its answer is the first option."""
        return self._explained(self.base)

    def agreement(self, selection: Selection) -> dict[str, Any]:
        """Effects of experts suppressed one by one."""
        return agreement_record(
            self.lm,
            self.texts(),
            selection.target,
            selection.usage,
            self.config,
            separator=common_separator(self.base),
        )

    def mediation(self, run: Condition) -> dict[str, Any]:
        """The 2 x 2 of an intervention."""
        found = mediation_record(
            self.lm,
            [self.prompts[i] for i in self.measured],
            [self.base[i] for i in self.measured],
            [self._options(int(i), self.prompts[i].answer) for i in self.measured],
            run,
            self.config,
            separator=common_separator(self.base),
        )
        return {"spec": run.spec, **found}

    def planted(self, models: Planted) -> dict[str, Any]:
        """Every measure on the two models of known truth, on right explanations if there are."""
        texts = [
            one._replace(explanation=one.prompt.explanation or one.explanation)
            for one in self.texts()
        ]
        return {
            name: self._faithfulness(lm, texts, unedited(lm), deep=True)
            for name, lm in zip(Planted._fields, models, strict=True)
        }

    def _record(
        self, run: Condition, now: Sequence[Answered], *, deep: bool, batch_size: int | None = None
    ) -> dict[str, Any]:
        edit = scoped(self.lm, run)
        moved = disturbance.disturb(
            self.lm, self.prompts, self.base, now, edit, run, self.config, batch_size=batch_size
        )
        return {
            "spec": run.spec,
            "experts": run.experts,
            "scope": run.scope,
            "target": np.argwhere(run.target),
            "written": [one._asdict() for one in now],
            "stability": moved.metric,
            "dose": moved.dose,
            "base_dose": moved.base_dose,
            "measured": self.measured,
            "faithfulness": self._faithfulness(self.lm, self._explained(now), edit, deep=deep),
        }

    def _faithfulness(
        self, lm: PretrainedLM, texts: list[Explained], edit: Scoped, *, deep: bool
    ) -> dict[str, Any]:
        separator = common_separator(self.base)
        found = probing.probe(lm, texts, edit, self.config, separator=separator)
        figures: dict[str, Any] = {**found.metric, "margin": found.margin}
        if deep:
            figures["concepts"] = named_concepts(lm, texts, edit, self.config, separator=separator)
            figures["cc_shap"] = probing.input_alignment(
                lm, texts, edit, self.config, separator=separator
            )
        return figures

    def _explained(self, written: Sequence[Answered]) -> list[Explained]:
        return [
            Explained(
                self.prompts[i],
                written[i].explanation,
                self._options(int(i), written[i].answer or self.prompts[i].answer),
            )
            for i in self.measured
        ]

    def _options(self, number: int, answer: str) -> tuple[str, ...]:
        """The answer, the right one and wrong ones, which differ little between conditions."""
        rng = np.random.default_rng([self.config.seed, number])
        others = [prompt.answer for prompt in self.prompts]
        right = self.prompts[number].answer
        return tuple(distractors(answer, right, others, self.config.options, rng))
