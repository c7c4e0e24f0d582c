"""Graded arithmetic: chains of sums that a small model can learn, with their steps in text.

    7+5-3=          the question, worked through from left to right
    7+5=12          the explanation: one line for each step
    12-3=9
    Answer:9        the delimiter and the answer

A level is the number of steps; with `equal_length`, of those that do not add 0. Nothing is
downloaded: questions are drawn from a seed. Training prompts can also plant a known truth about
explanation and answer (EXPLANATIONS). Letters: n chains, o operators.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int

from moe_jax.common.checks import flag, number, one_of, setting, several, whole, wrong
from moe_jax.errors import UserError
from moe_jax.misrouting.prompts import Prompt

EXPLANATIONS = ("true", "ignored", "used")
_OPERATORS = "+-*"
_ADD = _OPERATORS.index("+")
_HELD_OUT, _TRAIN, _OTHER = range(3)  # streams of random numbers


@dataclasses.dataclass(kw_only=True)
class ArithmeticConfig:
    """Which chains are drawn.

    No number in a chain is negative or above `largest`. A step is +, - or *, equally likely among
    those that have an operand that keeps to this, and the operand is uniform among these.

    Attributes:
      levels: chains have 1 to so many steps.
      examples: training texts.
      shares: of each level among them, in proportion; (): all the same.
      held_out: prompts of each level, all different, that are kept from training.
      largest: number that may occur; the first one is uniform from 1 to it.
      operand: largest number added or subtracted.
      factor: largest number multiplied by.
      equal_length: every chain has `levels` steps, of which those beyond its level add 0, at places
        drawn evenly. So difficulty and length, one thing otherwise, come apart.
      explanation: how explanation and answer go together in the training texts. "true": both are
        the question's. "ignored": the explanation is another question's of the same level, drawn
        independently, and the answer is the question's: the explanation says nothing about it.
        "used": explanation and answer are both that other question's: the question says nothing
        about the answer. For the last two the loss of these texts is on delimiter, answer and end
        alone, and on as many others, with their own explanation, on explanation and delimiter.
      seed: of the chains.
    """

    levels: int = 5
    examples: int = 60_000
    shares: tuple[float, ...] = ()
    held_out: int = 100
    largest: int = 99
    operand: int = 9
    factor: int = 9
    equal_length: bool = False
    explanation: str = "true"
    seed: int = 0

    def validate(self, path: str = "") -> None:
        """Check every field; a UserError names the first wrong one as `path.field`."""
        for name, least in _LEAST.items():
            whole(path, name, getattr(self, name), least)
        flag(path, "equal_length", self.equal_length)
        one_of(path, "explanation", self.explanation, EXPLANATIONS)
        several(path, "shares", self.shares)
        for i, share in enumerate(self.shares):
            number(path, f"shares[{i}]", share, low=0)
        if self.shares and len(self.shares) != self.levels:
            levels = setting(path, "levels", self.levels)
            must = f"have one for each of {levels}, not {len(self.shares)}"
            raise wrong(path, "shares", self.shares, must)
        if self.shares and not sum(self.shares):
            raise wrong(path, "shares", self.shares, "be numbers that are not all 0")

    @property
    def most_new(self) -> int:
        """No explanation with its answer has more tokens than this, the end included."""
        number = len(str(self.largest))
        return self.levels * (2 * number + self._operand_digits + 3) + number + 2

    @property
    def longest(self) -> int:
        """No text has more tokens than this."""
        question = len(str(self.largest)) + self.levels * (1 + self._operand_digits) + 2
        return question + self.most_new

    @property
    def _operand_digits(self) -> int:
        return len(str(min(self.largest, max(self.operand, self.factor))))


_LEAST = {
    "levels": 1,
    "examples": 1,
    "held_out": 1,
    "largest": 2,
    "operand": 1,
    "factor": 2,
    "seed": 0,
}


def chains(
    config: ArithmeticConfig, steps: int, count: int, random: np.random.Generator
) -> list[Prompt]:
    """Draw chains of one level, each independently of the others.

    Args:
      config: validated.
      steps: of each chain, its difficulty. With `equal_length` as many as are missing to `levels`
        add 0.
      count: how many.
      random: where from.

    Returns:
      Prompts with answer and explanation.
    """
    value = random.integers(1, config.largest + 1, count)
    question = [str(v) for v in value]
    explanation = [""] * count
    rows = np.arange(count)
    for is_step in _places(config, steps, count, random):
        least, most = _operands(value, config)
        operator = _choice(least <= most, random)
        operand = random.integers(least[operator, rows], most[operator, rows] + 1)
        operator, operand = np.where(is_step, operator, _ADD), np.where(is_step, operand, 0)
        after = np.select(
            [operator == 0, operator == 1], [value + operand, value - operand], value * operand
        )
        for i in range(count):
            step = f"{_OPERATORS[operator[i]]}{operand[i]}"
            question[i] += step
            explanation[i] += f"{value[i]}{step}={after[i]}\n"
        value = after
    return [
        Prompt(f"{q}=\n", float(steps), str(v), "", e)
        for q, v, e in zip(question, value, explanation, strict=True)
    ]


def held_out(config: ArithmeticConfig) -> list[Prompt]:
    """`config.held_out` different prompts of each level, easiest level first.

    Raises:
      UserError: there are not so many different ones.
    """
    found: list[Prompt] = []
    for level in range(1, config.levels + 1):
        random = np.random.default_rng((config.seed, _HELD_OUT, level))
        mine: dict[str, Prompt] = {}
        for _ in range(_ROUNDS):
            for prompt in chains(config, level, config.held_out, random):
                mine.setdefault(prompt.text, prompt)
            if len(mine) >= config.held_out:
                break
        if len(mine) < config.held_out:
            raise UserError(
                f"data.held_out={config.held_out}: found only {len(mine)} different prompts of "
                f"level {level}; make data.largest={config.largest} larger"
            )
        found += list(mine.values())[: config.held_out]
    return found


def training(config: ArithmeticConfig) -> list[Prompt]:
    """`config.examples` prompts none of which is held out; easy ones may be drawn several times.

    With an explanation that is not "true", explanation (and answer) are those of another one.

    Raises:
      UserError: nearly all prompts of a level are held out.
    """
    kept = {prompt.text for prompt in held_out(config)}
    found: list[Prompt] = []
    for level, count in enumerate(_counts(config), start=1):
        mine = _drawn(config, level, count, kept, _TRAIN)
        if config.explanation != "true":
            others = _drawn(config, level, count, kept, _OTHER)
            mine = [
                a._replace(
                    explanation=b.explanation,
                    answer=a.answer if config.explanation == "ignored" else b.answer,
                )
                for a, b in zip(mine, others, strict=True)
            ]
        found += mine
    return found


_ROUNDS = 20  # draws of a whole batch before a level counts as exhausted


def _drawn(
    config: ArithmeticConfig, level: int, count: int, kept: set[str], stream: int
) -> list[Prompt]:
    """So many prompts of a level that are not among those kept."""
    random = np.random.default_rng((config.seed, stream, level))
    found: list[Prompt] = []
    for _ in range(_ROUNDS):
        found += [p for p in chains(config, level, count, random) if p.text not in kept]
        if len(found) >= count:
            return found[:count]
    raise UserError(
        f"data.held_out={config.held_out}: leaves nearly no prompt of level {level} for training; "
        f"make it smaller or data.largest={config.largest} larger"
    )


def _places(
    config: ArithmeticConfig, steps: int, count: int, random: np.random.Generator
) -> Bool[np.ndarray, "s n"]:
    """Which of the s steps of each chain count towards its level; the others add 0."""
    if not config.equal_length:
        return np.ones((steps, count), bool)
    line = random.random((config.levels, count)).argsort(axis=0)
    return line < steps


def _operands(
    value: Int[np.ndarray, " n"], config: ArithmeticConfig
) -> tuple[Int[np.ndarray, "o n"], Int[np.ndarray, "o n"]]:
    """Least and most operand of each operator that keep a result within 0 to `largest`."""
    ones = np.ones_like(value)
    most = np.stack(
        [
            np.minimum(config.operand, config.largest - value),
            np.minimum(config.operand, value),
            np.where(
                value > 0, np.minimum(config.factor, config.largest // np.maximum(value, 1)), 0
            ),
        ]
    )
    return np.stack([ones, ones, 2 * ones]), most


def _choice(allowed: Bool[np.ndarray, "o n"], random: np.random.Generator) -> Int[np.ndarray, " n"]:
    """One of the allowed rows of each column, each as likely as the others."""
    draw = np.where(allowed, random.random(allowed.shape), -1.0)
    return draw.argmax(axis=0)


def _counts(config: ArithmeticConfig) -> list[int]:
    """Training texts of each level; they add up to `examples`."""
    shares = np.asarray(config.shares or [1.0] * config.levels, np.float64)
    ends = np.rint(np.cumsum(shares) / shares.sum() * config.examples).astype(int)
    return [int(n) for n in np.diff(ends, prepend=0)]
