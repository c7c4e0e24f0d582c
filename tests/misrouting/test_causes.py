import numpy as np
import pytest

from moe_jax.misrouting import Prompt, StudyConfig, causes, interventions
from moe_jax.misrouting.answering import context_of, write_answers
from moe_jax.misrouting.context import ANSWER, EXPLANATION, PROMPT
from moe_jax.misrouting.probing import Explained
from moe_jax.misrouting.scoped import unedited
from moe_jax.misrouting.specs import ON_EXPERTS
from moe_jax.models import load_lm
from tests.misrouting import oracle, small_lm

_CONFIG = StudyConfig(batch_size=2, max_new_tokens=5, answer_tokens=3)
_TEXTS = [
    Explained(Prompt("1+2+4=\n", 2, "7"), "1+2=3\n3+4=7\n", ("7", "17", "3")),
    Explained(Prompt("9-9=\n", 1, "0"), "9-9=0\n", ("12", "0", "3")),
    Explained(Prompt("5=\n", 1, "5"), "", ("5", "0", "3")),
]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return load_lm(small_lm.write(tmp_path_factory.mktemp("lm") / "olmoe"))


def _shape(lm) -> tuple[int, int]:
    return len(lm.config.expert_layers), lm.config.experts.gate.num_experts


def test_effects_of_single_experts_are_those_of_one_text_at_a_time(lm, monkeypatch):
    monkeypatch.setattr(causes, "CANDIDATES", 3)
    layers, experts = _shape(lm)
    target = np.zeros((layers, experts), bool)
    target[1, 0] = True
    usage = np.arange(float(layers * experts)).reshape(layers, experts)[::-1, ::-1].copy()
    got = causes.agreement_record(lm, _TEXTS, target, usage, _CONFIG, separator="")
    # The selected one, then the most used: usage falls from the first expert of the first layer on.
    assert list(zip(got["layer"], got["expert"], strict=True)) == [(1, 0), (0, 0), (0, 1)]
    assert got["prompts"] == 2
    for c, (layer, expert) in enumerate(zip(got["layer"], got["expert"], strict=True)):
        one = np.zeros((layers, experts), bool)
        one[layer, expert] = True
        edit, effects = interventions.suppress(lm.config.experts.gate, one), []
        for text in _TEXTS[:2]:
            whole = context_of(lm, text.prompt, text.explanation, _CONFIG, text.options[0])
            at = int(np.sum(whole.part == PROMPT))
            part = whole.part[at:]
            p, q = (oracle.score(lm, whole.ids[:at], whole.ids[at:], edit=e) for e in (None, edit))
            lost = p - q
            answer = lost[part == ANSWER][len("Answer:") :].sum()
            effects.append((answer, lost[part == EXPLANATION].mean()))
        mean = np.mean(effects, axis=0)
        np.testing.assert_allclose([got["answer"][c], got["explanation"][c]], mean, atol=2e-4)


def test_the_four_runs_of_mediation(lm):
    layers, experts = _shape(lm)
    target = np.zeros((layers, experts), bool)
    target[:, ::2] = True
    gate = lm.config.experts.gate
    edit = interventions.suppress(gate, target)
    acting = unedited(lm)._replace(edit=edit)
    prompts = [one.prompt for one in _TEXTS]
    base = write_answers(lm, prompts, unedited(lm), _CONFIG)
    options = [("7", "1", "2"), ("0", "1", "2"), ("5", "1", "2")]
    got = causes.mediation_record(lm, prompts, base, options, acting, _CONFIG, separator="")
    other = write_answers(lm, prompts, acting._replace(scope="explanation"), _CONFIG)
    for a, written in enumerate((base, other)):
        for b in (0, 1):
            for i, prompt in enumerate(prompts):
                context = context_of(lm, prompt, written[i].explanation, _CONFIG)
                scores = []
                for option in options[i]:
                    tail = [*lm.tokenizer.encode(option).ids, lm.stop_ids[0]]
                    where = [*(context.part == ANSWER), *[True] * len(tail)]
                    scores.append(
                        oracle.score(
                            lm, context.ids, tail, edit=edit if b else None, where=where
                        ).sum()
                    )
                weight = np.exp(np.asarray(scores) - max(scores))
                np.testing.assert_allclose(
                    got[f"y_{a}{b}"][i], (weight / weight.sum())[0], atol=1e-5
                )


def test_dose_zero_is_bitwise_no_edit(lm):
    same = causes.zero_dose_record(lm, _TEXTS, _CONFIG)["same"]
    assert set(same) == {*ON_EXPERTS, "bias=0", "scale=1", "gumbel=0", "replay"}
    assert all(same.values())


def test_a_dose_that_is_not_zero_is_seen(lm, monkeypatch):
    real = causes.interventions.bias
    monkeypatch.setattr(
        causes.interventions,
        "bias",
        lambda gate, target, amount: real(gate, target & _one(target), 1.0),
    )
    same = causes.zero_dose_record(lm, _TEXTS, _CONFIG)["same"]
    assert not same["bias=0"]
    assert same["scale=1"]


def _one(target: np.ndarray) -> np.ndarray:
    mask = np.zeros_like(target)
    mask[:, 0] = True
    return mask
