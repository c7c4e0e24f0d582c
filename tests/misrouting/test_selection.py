"""Which experts are misrouted: from a profile, and by hand."""

import json

import numpy as np
import pytest

from moe_jax.errors import UserError
from moe_jax.misrouting import Prompt, StudyConfig, arithmetic_texts, selection
from moe_jax.misrouting.reading import read
from moe_jax.models import load_lm
from moe_jax.models.causal_families import read_causal_config
from tests.misrouting import small_lm
from tests.models import small_causal

PROMPTS = [Prompt(f"{i}+2=", 1.0 + i % 2, str(i + 2)) for i in range(5)]


CONFIG = read_causal_config(small_causal.CONFIGS["olmoe"], "config.json")[0]
"""Layers 0, 1 and 2 have 8 experts."""


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    """A layer without experts, and layer 1 with 6, 3 of them a token."""
    return load_lm(small_lm.write(tmp_path_factory.mktemp("given") / "model", "qwen3_moe"))


@pytest.fixture
def profile(tmp_path):
    rng = np.random.default_rng(0)
    values = {
        "selected": [[2, 7], [0, 3]],
        "test_prompts": [4, 1],
        "expert_layers": [0, 1, 2],
        "num_experts": 8,
        "usage_mean": rng.random((3, 8)).tolist(),
        "z": rng.normal(size=(3, 8)).tolist(),
        "profile": {"level": [0, 1, 0, 1, 0], "selection": {"halved": True}},
    }

    def write(**changes):
        file = tmp_path / "profile.json"
        file.write_text(json.dumps({k: v for k, v in (values | changes).items() if v != "gone"}))
        return values

    return tmp_path, write


def test_from_a_profile(profile):
    folder, write = profile
    values = write()
    values["z"][1][1] = None
    write(z=values["z"])
    for path in (folder, folder / "profile.json"):
        found = selection.from_profile(path, CONFIG, 5)
        assert np.argwhere(found.selection.target).tolist() == [[0, 3], [2, 7]]
        assert found.numbers == [4, 1]
        np.testing.assert_array_equal(found.selection.usage, values["usage_mean"])
        expected = np.abs(np.array(values["z"], np.float64))
        expected[1, 1] = 0
        np.testing.assert_array_equal(found.selection.score, expected)
        assert "2 prompts that had no part in their selection" in found.said


def test_a_profile_that_was_not_halved_is_said(profile):
    folder, write = profile
    write(test_prompts=[0, 1, 2, 3, 4], profile={"selection": {"halved": False}})
    said = selection.from_profile(folder, CONFIG, 5).said
    assert said.startswith("2 experts selected by Stage 1 on the same 5 prompts")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"expert_layers": [0, 1]}, "8 experts in layers 0, 1; this one has 8 in layers 0, 1, 2"),
        ({"num_experts": 4}, "with 4 experts in layers 0, 1, 2; this one has 8"),
        ({"usage_mean": [[0.5] * 8] * 2}, r"usage_mean is \(2, 8\), must be \(3, 8\)"),
        ({"z": [[0.0] * 8] * 2 + [[0.0] * 7]}, "not a profile"),
        ({"z": "gone"}, "not a profile .KeyError: 'z'"),
        ({"selected": [[1]]}, "not a profile .ValueError"),
        ({"selected": []}, "no expert is selected"),
        ({"selected": [[1, 8]]}, "layer 1 has no expert 8: its experts are 0 to 7"),
        ({"selected": [[3, 0]]}, "layer 3 has no experts; layers with experts: 0, 1, 2"),
        ({"test_prompts": []}, "test_prompts is empty"),
        ({"test_prompts": [0, 5], "profile": None}, "prompt 5 of its test_prompts"),
        ({"test_prompts": [0, -1]}, "prompt -1 of its test_prompts"),
        ({"test_prompts": [0, 0]}, "names a prompt twice"),
        ({"profile": {"level": [0, 1]}}, "is of 2 prompts, --prompts holds 5"),
    ],
)
def test_profiles_that_do_not_fit(profile, changes, message):
    folder, write = profile
    write(**changes)
    with pytest.raises(UserError, match=message):
        selection.from_profile(folder, CONFIG, 5)


@pytest.mark.parametrize(
    "content, message",
    [(None, "no such file; launch/profile_routing.py"), ("{", "can't be read as JSON")]
    + [("[]", "must hold one JSON object"), ("{}", "not a profile")],
)
def test_files_that_are_no_profile(tmp_path, content, message):
    if content is not None:
        (tmp_path / "profile.json").write_text(content)
    with pytest.raises(UserError, match=message):
        selection.from_profile(tmp_path, CONFIG, 5)


def test_experts_by_hand(lm):
    assert lm.config.expert_layers == (1,)
    three = selection.parse_experts("2:7, 0:3,0:0", CONFIG)
    assert np.argwhere(three).tolist() == [[0, 0], [0, 3], [2, 7]]
    target = selection.parse_experts("1:5", lm.config)
    assert np.argwhere(target).tolist() == [[0, 5]]
    found = selection.by_hand(target, lm, PROMPTS, batch_size=2)
    assert found.numbers == [0, 1, 2, 3, 4]
    assert found.said.startswith("1 expert named by hand, tested on all 5 prompts.")
    expected = np.zeros((1, 6))
    for one in read(lm, PROMPTS, batch_size=2):
        for token in np.flatnonzero(one.where):
            for expert in one.expert[token, 0]:
                expected[0, expert] += 1 / (3 * one.where.sum() * 5)
    np.testing.assert_allclose(found.selection.usage, expected, rtol=1e-12)
    np.testing.assert_array_equal(found.selection.score, found.selection.usage)
    np.testing.assert_allclose(found.selection.usage.sum(axis=1), 1)


@pytest.mark.parametrize(
    "text, message",
    [
        ("1", "'1' is not LAYER:EXPERT; write for instance --experts=0:0"),
        ("1:2,", "'' is not LAYER:EXPERT"),
        ("1:-2", "'1:-2' is not"),
        ("1:2,1:2", "1:2 is there twice"),
        ("9:0", "--experts=9:0: layer 9 has no experts; layers with experts: 0, 1, 2"),
        ("0:8", "layer 0 has no expert 8: its experts are 0 to 7"),
    ],
)
def test_experts_that_are_not_there(text, message):
    with pytest.raises(UserError, match=message):
        selection.parse_experts(text, CONFIG)


def test_prompts_that_do_not_fit(lm):
    config = StudyConfig(max_new_tokens=40, answer_tokens=8, delimiter="?")
    # 64 tokens of context: 4 of a prompt, 40 + 1 + 8 written.
    selection.check_prompts(lm, PROMPTS, range(5), config)
    long = [*PROMPTS[:1], Prompt("1" * 16, 1.0, "1")]
    with pytest.raises(UserError, match=r"prompt 7 has 16 tokens, and up to 49 .* context of 64"):
        selection.check_prompts(lm, long, [3, 7], config)
    long[1] = Prompt("1" * 15, 1.0, "1")
    selection.check_prompts(lm, long, [3, 7], config)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt("1x2", 1.0, "1"), "prompt 7, character 2: .* no token for 'x'"),
        (Prompt("12", 1.0, "x"), "prompt 7: its answer: .* no token for 'x'$"),
        (Prompt("12", 1.0, "1", "", "1\nx"), "prompt 7: its explanation, character 3: .* for 'x'"),
    ],
)
def test_prompts_with_characters_unknown_to_the_model(lm, prompt, message):
    sums = lm._replace(tokenizer=arithmetic_texts.tokenizer())
    config = StudyConfig(max_new_tokens=8, answer_tokens=2)
    selection.check_prompts(sums, [Prompt("1", 1.0, "2")], [7], config)
    with pytest.raises(UserError, match=message):
        selection.check_prompts(sums, [Prompt("1", 1.0, "2"), prompt], [3, 7], config)


def test_models_without_experts(lm, tmp_path):
    selection.check_model(lm)
    dense = load_lm(small_lm.write(tmp_path / "dense", "llama"))
    with pytest.raises(UserError, match=r"--planted_uses=.*dense: this model has no experts"):
        selection.check_model(dense, "planted_uses")
