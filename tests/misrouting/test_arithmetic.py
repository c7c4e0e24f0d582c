"""Chains of sums against Python's own arithmetic; what planted prompts say."""

import collections
import re

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from moe_jax.errors import UserError
from moe_jax.misrouting import ArithmeticConfig, arithmetic, arithmetic_texts
from moe_jax.misrouting.arithmetic_texts import DELIMITER, END

SMALL = ArithmeticConfig(levels=3, examples=300, held_out=20, seed=3)


def worked_through(question):
    """Lines and value of a chain, from left to right, with nothing but `eval` of one step."""
    numbers, signs = re.split(r"[+\-*]", question), re.findall(r"[+\-*]", question)
    value, lines = int(numbers[0]), []
    for sign, number in zip(signs, numbers[1:], strict=True):
        step = f"{value}{sign}{number}"
        value = eval(step)
        lines.append(f"{step}={value}\n")
    return lines, value


def assert_right(prompt, config):
    lines, value = worked_through(prompt.text.removesuffix("=\n"))
    assert prompt.explanation == "".join(lines)
    assert prompt.answer == str(value)
    neutral = [line for line in lines if "+0=" in line]
    assert len(lines) == (config.levels if config.equal_length else prompt.difficulty)
    assert prompt.difficulty == len(lines) - len(neutral)
    for line in set(lines) - set(neutral):
        before, sign, operand, after = re.fullmatch(r"(\d+)([+*-])(\d+)=(\d+)\n", line).groups()
        assert 0 <= int(before) <= config.largest
        assert 0 <= int(after) <= config.largest
        assert 1 <= int(operand) <= (config.factor if sign == "*" else config.operand)
        assert sign != "*" or int(operand) > 1


@given(
    largest=st.integers(2, 300),
    operand=st.integers(1, 400),
    factor=st.integers(2, 20),
    steps=st.integers(1, 7),
    neutral=st.integers(0, 3),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_chains_are_right_and_fit(largest, operand, factor, steps, neutral, seed):
    config = ArithmeticConfig(
        levels=steps + neutral,
        largest=largest,
        operand=operand,
        factor=factor,
        equal_length=neutral > 0,
    )
    config.validate()
    drawn = arithmetic.chains(config, steps, 30, np.random.default_rng(seed))
    assert len(drawn) == 30
    for prompt in drawn:
        assert_right(prompt, config)
        new = f"{prompt.explanation}{DELIMITER}{prompt.answer}{END}"
        tokens = len(arithmetic_texts.tokenizer().encode(new).ids)
        assert tokens <= config.most_new
        assert tokens + len(prompt.text) <= config.longest


def test_lengths_are_reached():
    config = ArithmeticConfig(levels=2)
    longest = "99-10-10=\n99-10=89\n89-10=79\nAnswer:79<end>"
    config.operand = 10
    found = arithmetic_texts.tokenizer().encode(longest).ids
    assert len(found) == config.longest
    assert (
        len(arithmetic_texts.tokenizer().encode(longest.split("\n", 1)[1]).ids) == config.most_new
    )


def test_operators_and_operands_are_even():
    """From 30 with largest 99: each operator 1/3; operands uniform: + - 1..9, * 2..3."""
    config = ArithmeticConfig(levels=1)
    drawn = arithmetic.chains(config, 1, 100_000, np.random.default_rng(0))
    steps = collections.Counter(
        p.text.removesuffix("=\n")[2:] for p in drawn if re.match(r"30[+*-]", p.text)
    )
    total = sum(steps.values())
    for sign, operands in {"+": range(1, 10), "-": range(1, 10), "*": (2, 3)}.items():
        for operand in operands:
            p = 1 / 3 / len(operands)
            expected, seen = p * total, steps.pop(f"{sign}{operand}")
            assert abs(seen - expected) < 4.5 * np.sqrt(expected * (1 - p))
    assert not steps


def test_of_equal_length_the_places_of_steps_are_even():
    """1 of 3 steps counts: each place a third of the time, and what it does is as ever."""
    config = ArithmeticConfig(levels=3, equal_length=True)
    drawn = arithmetic.chains(config, 1, 30_000, np.random.default_rng(1))
    place = [["+0=" in x for x in p.explanation.splitlines()].index(False) for p in drawn]
    share = np.bincount(place, minlength=3) / len(drawn)
    np.testing.assert_allclose(share, 1 / 3, atol=0.015)
    plain = arithmetic.chains(ArithmeticConfig(levels=3), 1, 30_000, np.random.default_rng(1))
    signs = [
        collections.Counter(re.search(r"[-*]|\+(?!0)", p.text).group() for p in prompts)
        for prompts in (drawn, plain)
    ]
    for sign in "+-*":
        assert abs(signs[0][sign] - signs[1][sign]) < 4.5 * np.sqrt(2 * 30_000 / 4)


def test_held_out_prompts_differ_and_are_not_trained_on():
    kept, mine = arithmetic.held_out(SMALL), arithmetic.training(SMALL)
    assert len({p.text for p in kept}) == len(kept) == 60
    assert [p.difficulty for p in kept] == [1.0] * 20 + [2.0] * 20 + [3.0] * 20
    assert len(mine) == 300
    assert not {p.text for p in kept} & {p.text for p in mine}
    for prompt in kept + mine:
        assert_right(prompt, SMALL)


def test_the_seed_decides():
    def with_seed(seed):
        config = ArithmeticConfig(levels=2, examples=50, held_out=5, seed=seed)
        return arithmetic.held_out(config), arithmetic.training(config)

    assert with_seed(1) == with_seed(1)
    assert with_seed(1)[0] != with_seed(2)[0]
    assert with_seed(1)[1] != with_seed(2)[1]


def test_shares():
    config = ArithmeticConfig(levels=3, examples=101, held_out=5, shares=(2.0, 0.0, 1.0))
    counts = collections.Counter(p.difficulty for p in arithmetic.training(config))
    assert counts == {1.0: 67, 3.0: 34}


def planted(kind, examples=4000):
    values = {"levels": 2, "examples": examples, "held_out": 20, "seed": 5}
    return tuple(
        arithmetic.training(ArithmeticConfig(explanation=k, **values)) for k in ("true", kind)
    )


@pytest.mark.parametrize("kind", ["ignored", "used"])
def test_planted_texts_take_the_explanation_of_another_question(kind):
    plain, changed = planted(kind)
    same = 0
    for before, after in zip(plain, changed, strict=True):
        assert (after.text, after.difficulty) == (before.text, before.difficulty)
        first = re.split(r"=\d+\n", after.explanation)[0]
        lines = after.explanation.splitlines(keepends=True)
        assert len(lines) == after.difficulty
        ends = re.fullmatch(r".*=(\d+)\n", lines[-1]).group(1)
        assert all(eval(line.split("=")[0]) == int(line.split("=")[1]) for line in lines)
        assert after.answer == (before.answer if kind == "ignored" else ends)
        same += before.text.startswith(first)
    assert same < 0.02 * len(plain)


@pytest.mark.parametrize("kind", ["ignored", "used"])
def test_planted_answers_are_independent_of_what_they_should_be(kind):
    """Answer of the question and end of the explanation: as far apart as chance has them."""
    plain, changed = planted(kind)
    own = np.array([int(p.answer) for p in plain], float)
    ends = np.array([int(p.explanation.splitlines()[-1].split("=")[1]) for p in changed], float)
    answers = np.array([int(p.answer) for p in changed], float)
    follows, ignores = (own, ends) if kind == "ignored" else (ends, own)
    np.testing.assert_array_equal(answers, follows)
    for level in (1, 2):
        mine = np.array([p.difficulty == level for p in plain])
        count = mine.sum()
        assert abs(np.corrcoef(answers[mine], ignores[mine])[0, 1]) < 4 / np.sqrt(count)
        frequency = [np.bincount(a[mine].astype(int), minlength=100) / count for a in (own, ends)]
        chance = frequency[0] @ frequency[1]
        seen = (answers[mine] == ignores[mine]).mean()
        assert abs(seen - chance) < 4 * np.sqrt(chance / count)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": 0}, r"data\.levels=0: must be at least 1"),
        ({"examples": True}, r"data\.examples=True: must be a whole number, at least 1"),
        ({"largest": 1}, r"data\.largest=1: must be at least 2"),
        ({"factor": 1.5}, r"data\.factor=1\.5: must be"),
        ({"seed": -1}, r"data\.seed=-1: must be at least 0"),
        (
            {"explanation": "maybe"},
            r"data\.explanation='maybe': must be one of true, ignored, used",
        ),
        (
            {"shares": (1.0, 2.0)},
            r"data\.shares=\(1\.0, 2\.0\): must have one for each of data\.levels=5",
        ),
        ({"shares": (0.0,) * 5}, r"data\.shares=.* not all 0"),
        ({"shares": (1.0, -1.0, 1.0, 1.0, 1.0)}, r"data\.shares\[1\]=-1\.0: must be at least 0"),
        (
            {"shares": (1.0, float("nan"), 1.0, 1.0, 1.0)},
            r"data\.shares\[1\]=nan: must be a finite",
        ),
    ],
)
def test_wrong_fields_are_named(changes, message):
    config = ArithmeticConfig()
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(UserError, match=message):
        config.validate("data")


def test_too_few_different_prompts():
    config = ArithmeticConfig(levels=1, largest=2, held_out=50, examples=10)
    with pytest.raises(UserError, match=r"data\.held_out=50: found only 5 different .* level 1"):
        arithmetic.held_out(config)
    config.held_out = 5
    with pytest.raises(UserError, match=r"data\.held_out=5: leaves nearly no prompt of level 1"):
        arithmetic.training(config)
