import numpy as np
import pytest

from moe_jax.misrouting import Prompt, StudyConfig, interventions
from moe_jax.misrouting.answering import Answered, context_of
from moe_jax.misrouting.context import PROMPT
from moe_jax.misrouting.disturbance import DOSES, METRICS, disturb
from moe_jax.misrouting.scoped import Scoped, gate_of, unedited
from moe_jax.models import load_lm
from tests.misrouting import oracle, small_lm

_CONFIG = StudyConfig(batch_size=4)
_PROMPTS = [Prompt("1+2+4=\n", 2, "7"), Prompt("9-9=\n", 1, "0")]
_BASE = [
    Answered("1+2=3\n3+4=7\n", "7", True, True, "", [5, 6, 7, 8]),
    Answered("", "0", True, True, " ", [5, 6]),
]
_NOW = [
    Answered("1+2=3\n", "8", False, True, "", [5, 6, 9, 8]),
    Answered("", "0", True, False, " ", [5, 6]),
]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return load_lm(small_lm.write(tmp_path_factory.mktemp("lm") / "olmoe"))


def _edit(lm, scope: str) -> tuple[Scoped, np.ndarray]:
    """Two experts of the first layer suppressed, and which they are."""
    gate, layers = gate_of(lm), len(lm.config.expert_layers)
    target = np.zeros((layers, gate.num_experts), bool)
    target[0, :2] = True
    return unedited(lm)._replace(edit=interventions.suppress(gate, target), scope=scope), target


def _js(p: np.ndarray, q: np.ndarray) -> float:
    """Bits, from the definition with logarithms of base 2."""
    p, q = np.exp(p), np.exp(q)
    m = (p + q) / 2
    return float((np.sum(p * np.log2(p / m)) + np.sum(q * np.log2(q / m))) / 2)


@pytest.mark.parametrize("scope", ["all", "answer"])
def test_stability_and_dose_are_those_of_one_text_at_a_time(lm, scope):
    edit, target = _edit(lm, scope)
    got = disturb(lm, _PROMPTS, _BASE, _NOW, edit, target, _CONFIG)
    assert tuple(got.metric) == METRICS
    mass, changed, on_target = [[], []], [], [0.0, 0.0]
    for i, (prompt, base) in enumerate(zip(_PROMPTS, _BASE, strict=True)):
        text = context_of(lm, prompt, base.explanation, _CONFIG, base.separator + base.answer)
        on = text.within(scope)
        p, e0, w0 = oracle.read(lm, text.ids)
        q, e1, w1 = oracle.read(lm, text.ids, edit=edit.edit, where=on)
        rows = np.arange(np.sum(text.part == PROMPT) - 1, len(text.ids) - 1)
        np.testing.assert_allclose(
            got.metric["js"][i], np.mean([_js(p[r], q[r]) for r in rows]), atol=1e-6
        )
        same = np.mean(p[rows].argmax(axis=1) == q[rows].argmax(axis=1))
        assert got.metric["top1"][i] == pytest.approx(same)
        drift = [
            1 - len(set(a) & set(b)) / len(set(a) | set(b))
            for a, b in zip(
                e0[on].reshape(-1, e0.shape[2]), e1[on].reshape(-1, e1.shape[2]), strict=True
            )
        ]
        assert got.metric["drift"][i] == pytest.approx(np.mean(drift), abs=1e-9)
        for k, (expert, weight) in enumerate(((e0, w0), (e1, w1))):
            mass[k] += weight[on].sum(axis=2).ravel().tolist()
            on_target[k] += weight[on][:, 0][expert[on][:, 0] < 2].sum()
        changed += [
            any(set(a) != set(b) for a, b in zip(x, y, strict=True))
            for x, y in zip(e0[on].tolist(), e1[on].tolist(), strict=True)
        ]
    assert set(got.dose) == set(DOSES)
    assert got.base_dose["gate_mass"] == pytest.approx(np.mean(mass[0]), rel=1e-5)
    assert got.dose["gate_mass"] == pytest.approx(np.mean(mass[1]), rel=1e-5)
    assert got.dose["changed"] == pytest.approx(np.mean(changed))
    assert got.base_dose["target_share"] == pytest.approx(on_target[0] / np.sum(mass[0]), rel=1e-4)
    assert got.dose["target_share"] == 0


def test_texts_are_compared_by_token(lm):
    edit, target = _edit(lm, "all")
    got = disturb(lm, _PROMPTS, _BASE, _NOW, edit, target, _CONFIG).metric
    assert got["same_start"].tolist() == [0.5, 1.0]
    assert got["levenshtein"].tolist() == [0.75, 1.0]
    assert got["rouge_l"].tolist() == [0.75, 1.0]
    assert got["complete"].tolist() == [1.0, 0.0]


def test_nothing_moves_without_an_intervention(lm):
    none = np.zeros((len(lm.config.expert_layers), gate_of(lm).num_experts), bool)
    got = disturb(lm, _PROMPTS, _BASE, _BASE, unedited(lm), none, _CONFIG, batch_size=1)
    np.testing.assert_allclose(got.metric["js"], 0, atol=1e-9)
    assert got.metric["drift"].tolist() == [0.0, 0.0]
    assert got.dose["changed"] == 0
