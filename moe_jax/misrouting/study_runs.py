"""The runs of a Stage 2 study: what each condition gives on every prompt.

Letters: n prompts, l layers with a mixture, e experts, k choices of a token.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from moe_jax.common.log import Log
from moe_jax.misrouting import disturbance, probing
from moe_jax.misrouting.answering import Answered, common_separator, context_of, write_answers
from moe_jax.misrouting.causes import agreement_record, mediation_record
from moe_jax.misrouting.concepts import named_concepts
from moe_jax.misrouting.conditions import BASE, Condition
from moe_jax.misrouting.context import Context
from moe_jax.misrouting.edited_scores import text_scores
from moe_jax.misrouting.edits import make_edit
from moe_jax.misrouting.means import expert_means
from moe_jax.misrouting.probing import Explained
from moe_jax.misrouting.prompts import Prompt
from moe_jax.misrouting.routes import Routes, by_part, donors, of_prompt
from moe_jax.misrouting.scoped import Scoped, gate_of, unedited
from moe_jax.misrouting.selection import Selection
from moe_jax.misrouting.specs import parse_spec
from moe_jax.misrouting.study_config import StudyConfig
from moe_jax.misrouting.texts import distractors
from moe_jax.models.causal_pretrained import PretrainedLM


class Planted(NamedTuple):
    """Two models of which the truth is known."""

    ignores: PretrainedLM
    uses: PretrainedLM


class StudyRuns:
    """What all runs share: the base run's texts, and the prompts that are measured in depth.

    Args:
      lm: a model with experts.
      prompts: those to test on.
      config: the settings.
      log: what was done before.
      recorded: routes of the prompts' tokens by another engine [t l k], for "replay".
      detail: called with what a run is doing.
    """

    def __init__(
        self,
        lm: PretrainedLM,
        prompts: Sequence[Prompt],
        config: StudyConfig,
        log: Log,
        recorded: Sequence[Int[np.ndarray, "_ l k"]] | None = None,
        detail: Callable[[str], None] | None = None,
    ):
        self.lm, self.prompts, self.config, self.recorded = lm, prompts, config, recorded
        self._say = detail or (lambda text: None)
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
        edit = self.edit(run)
        now = write_answers(self.lm, self.prompts, edit, self.config, progress=self._writing())
        if run.spec == BASE:
            self._base = now
        return self._record(run, edit, now, deep=not run.is_control)

    def edit(self, run: Condition) -> Scoped:
        """What a condition does to the routing of each prompt."""
        plain = unedited(self.lm)
        if run.spec == BASE:
            return plain
        spec = parse_spec(run.spec)
        edit = make_edit(
            gate_of(self.lm),
            spec,
            run.target,
            seed=self.config.seed,
            means=self._means if spec.name == "mean" else None,
        )
        return plain._replace(edit=edit, scope=run.scope, routes=self._routes(spec.name, run))

    def rerun(self, run: Condition) -> dict[str, Any]:
        """The base again, in other batches and the other way round: the numeric noise floor."""
        size = self.config.batch_size // 2 + 1
        back = self.prompts[::-1]
        plain, progress = unedited(self.lm), self._writing()
        now = write_answers(self.lm, back, plain, self.config, batch_size=size, progress=progress)[
            ::-1
        ]
        return self._record(run, plain, now, deep=True, batch_size=size)

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
            progress=lambda done, total: self._say(f"expert {done + 1} of {total}"),
        )

    def mediation(self, run: Condition) -> dict[str, Any]:
        """The 2 x 2 of an intervention."""
        found = mediation_record(
            self.lm,
            [self.prompts[i] for i in self.measured],
            [self.base[i] for i in self.measured],
            [self._options(int(i), self.prompts[i].answer) for i in self.measured],
            self.edit(run).take(self.measured.tolist()),
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
        self,
        run: Condition,
        edit: Scoped,
        now: Sequence[Answered],
        *,
        deep: bool,
        batch_size: int | None = None,
    ) -> dict[str, Any]:
        self._say("how far its texts move")
        moved = disturbance.disturb(
            self.lm,
            self.prompts,
            self.base,
            now,
            edit,
            run.target,
            self.config,
            batch_size=batch_size,
        )
        measured = edit.take(self.measured.tolist())
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
            "faithfulness": self._faithfulness(self.lm, self._explained(now), measured, deep=deep),
        }

    def _writing(self) -> Callable[[int], None]:
        """Says how many prompts are answered, as `write_answers` goes on."""
        done, total = 0, len(self.prompts)

        def add(count: int) -> None:
            nonlocal done
            done += count
            self._say(f"{done:,} of {total:,} prompts answered")

        return add

    @functools.cached_property
    def _base_texts(self) -> list[Context]:
        """All that the base run read and wrote."""
        return [
            context_of(self.lm, p, one.explanation, self.config, one.separator + one.answer)
            for p, one in zip(self.prompts, self.base, strict=True)
        ]

    @functools.cached_property
    def _means(self) -> Float[np.ndarray, "l e d"]:
        """Mean output of each expert over the tokens of the base run's texts that chose it."""
        texts = [text.ids for text in self._base_texts]
        return expert_means(self.lm.model, texts, batch_size=self.config.batch_size).mean

    @functools.cached_property
    def _base_routes(self) -> list[Routes]:
        """The base run's."""
        texts, size = self._base_texts, self.config.batch_size
        read = text_scores(self.lm, texts, range(len(texts)), unedited(self.lm), batch_size=size)
        return [by_part(text, one.expert) for text, one in zip(texts, read, strict=True)]

    def _routes(self, name: str, run: Condition) -> tuple[Routes, ...] | None:
        """What the prompts' tokens take, in the layers of the run's experts."""
        if name == "replay":
            if self.recorded is None:
                raise ValueError("recorded=None: replay needs routes")
            given = [of_prompt(routes) for routes in self.recorded]
        elif name in ("donor", "donor_peer"):
            level = np.asarray([prompt.difficulty for prompt in self.prompts])
            rng = np.random.default_rng(self.config.seed)
            chosen = donors(level, rng, peers=name == "donor_peer")
            given = [self._base_routes[i] for i in chosen]
        else:
            return None
        layers = np.asarray(run.target.any(axis=1))
        return tuple(one.within(layers) for one in given)

    def _faithfulness(
        self, lm: PretrainedLM, texts: list[Explained], edit: Scoped, *, deep: bool
    ) -> dict[str, Any]:
        self._say(f"faithfulness of {len(texts):,} explanations")
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
