"""What a model wrote, taken apart and changed: steps, answers, mistakes, distractors. No model.

A generation is explanation + delimiter + answer. The STEPS of an explanation are its lines that
hold more than blanks, each with its newline.
"""

import decimal
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from moe_jax.errors import UserError

_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_VALUE = re.compile(r"([$€£]?\s*)([-+]?)([$€£]?\s*)(\d{1,3}(?:,\d{3})+|\d+)?(\.\d+)?", re.ASCII)
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?", re.ASCII)
_AFTER = ("is", "are", "was", "were", "can", "will", "does", "do", "has", "have", "must", "should")
_OPPOSITES = (
    ("more", "less"),
    ("greater", "smaller"),
    ("larger", "smaller"),
    ("higher", "lower"),
    ("increase", "decrease"),
    ("increases", "decreases"),
    ("before", "after"),
    ("above", "below"),
    ("always", "never"),
    ("all", "no"),
    ("true", "false"),
    ("same", "different"),
)
# The first of two pairs with the same word wins, and never is left out, not turned into always.
_SWAPS = {
    **{b: a for a, b in reversed(_OPPOSITES)},
    **dict(_OPPOSITES),
    **{f"{word}n't": word for word in ("is", "are", "was", "were", "does", "do", "has", "have")},
    "cannot": "can",
    "can't": "can",
    "won't": "will",
    "not": "",
    "never": "",
}
_SWAP = re.compile(rf"\b({'|'.join(sorted(_SWAPS, key=len, reverse=True))})\b", re.IGNORECASE)
_INSERT = re.compile(rf"\b({'|'.join(_AFTER)})\b", re.IGNORECASE)


class Parts(NamedTuple):
    """A generation taken apart.

    Attributes:
      explanation: what stands before the first delimiter; all of the text without one.
      answer: what stands after it on its line, stripped; "" without a delimiter.
      complete: the delimiter is there.
    """

    explanation: str
    answer: str
    complete: bool


def split_generation(text: str, delimiter: str) -> Parts:
    """Explanation and answer of what a model wrote.

    Args:
      text: what it wrote after the prompt.
      delimiter: what it writes between the two, such as "Answer:".

    Raises:
      UserError: an empty delimiter.
    """
    if not delimiter:
        raise UserError("delimiter='' must be a text, such as 'Answer:'")
    explanation, found, rest = text.partition(delimiter)
    return Parts(explanation, rest.split("\n", 1)[0].strip(), bool(found))


def steps(explanation: str) -> list[str]:
    """Its steps; joined they are the explanation without its blank lines."""
    return [line for line in _LINE.findall(explanation) if line.strip()]


def early(explanation: str) -> list[str]:
    """The explanation up to the end of step 0, 1, ..., s: s + 1 texts.

    The first is empty; the last is all of it, blank lines too (if there is a step). Each continues
    the one before it.
    """
    lines = _LINE.findall(explanation)
    ends = [i + 1 for i, line in enumerate(lines) if line.strip()]
    if ends:
        ends[-1] = len(lines)
    return ["", *("".join(lines[:end]) for end in ends)]


def same_answer(a: str, b: str) -> bool:
    """Whether two answers say the same.

    Numbers are compared by value: "1,000", "1000.0" and "$1000" are one. Other texts are compared
    without regard to case and to how many blanks are between words. A full stop at the end counts
    for nothing.
    """
    return _meaning(a) == _meaning(b)


def corrupt_step(step: str, rng: np.random.Generator) -> str | None:
    """A step with one mistake in it; None if no rule applies.

    1. The last number becomes another with as many digits (its comma, point and sign stay; no 0 in
       front of other digits), each alike likely.
    2. Without a number: the last negation or word that has an opposite on a short list (more, less;
       true, false; ...) is left out or turned round; without one, "not" comes after the last "is",
       "can", "has" and the like.

    Args:
      step: a line.
      rng: draws the number.
    """
    number = _last(_NUMBER, step)
    if number:
        return _put(step, number, _other_number(number[0], rng))
    word = _last(_SWAP, step)
    if word:
        other = _SWAPS[word[0].lower()]
        if not other:
            left = _left_out(step, word)
            return left if left.strip() else None
        return _put(step, word, _in_case_of(word[0], other))
    verb = _last(_INSERT, step)
    return _put(step, verb, f"{verb[0]} not") if verb else None


def corrupted(explanation: str, number: int, rng: np.random.Generator) -> str | None:
    """The explanation with a mistake in one step, all else as it was; None if no rule applies.

    Args:
      explanation: of s steps.
      number: which step, from 0.
      rng: as for `corrupt_step`.

    Raises:
      ValueError: it has no such step.
    """
    lines = _LINE.findall(explanation)
    places = [i for i, line in enumerate(lines) if line.strip()]
    if not 0 <= number < len(places):
        raise ValueError(f"number={number}: the explanation has steps 0 to {len(places) - 1}")
    changed = corrupt_step(lines[places[number]], rng)
    if changed is None:
        return None
    lines[places[number]] = changed
    return "".join(lines)


def filler_ids(explanation_ids: Sequence[int], unit_id: int) -> list[int]:
    """As many tokens as the explanation has, all the same: that of "." or a newline, say."""
    return [unit_id] * len(explanation_ids)


def distractors(
    answer: str, right: str, others: Sequence[str], number: int, rng: np.random.Generator
) -> list[str]:
    """Options for one prompt: number + 2 of them, no two the `same_answer`.

    The model's answer comes first, then the right one if it is another, then wrong ones: drawn from
    `others`, and where these are too few, numbers near the right one (+-1, +-2, +-10, then +-3, +-4
    and so on, negative only if one of the given answers is). An empty `answer` is left out: the
    right one then comes first.

    Args:
      answer: the model's.
      right: the right one.
      others: where wrong ones are drawn from, such as the right answers of other prompts.
      number: wrong ones besides a wrong answer of the model; one more where it is right.
      rng: draws them.

    Raises:
      UserError: too few others, and the right answer isn't a number.
      ValueError: number < 0, or no right answer.
    """
    if number < 0:
        raise ValueError(f"number={number} must be at least 0")
    if _meaning(right) == "":
        raise ValueError(f"right={right!r} holds no answer")
    options: dict[decimal.Decimal | str, str] = {}
    for given in (answer, right):
        if _meaning(given) != "":
            options.setdefault(_meaning(given), given)
    wrong = {_meaning(o): o for o in reversed(others)}
    pool = [o for key, o in reversed(wrong.items()) if key not in options and key != ""]
    need = number + 2 - len(options)
    drawn = [pool[i] for i in rng.permutation(len(pool))[:need]]
    if len(drawn) == need:
        return [*options.values(), *drawn]
    if isinstance(_meaning(right), str):
        raise UserError(
            f"{need} wrong answers are needed beside {right!r}, which isn't a number, and other "
            f"prompts give {len(drawn)}: fewer distractors or more prompts would do"
        )
    found = [*options.values(), *drawn]
    taken = {_meaning(a) for a in found}
    low = any(isinstance(v, decimal.Decimal) and v < 0 for v in (*taken, *wrong))
    for near in _near(right, negative=low):
        if len(found) == number + 2:
            break
        if _meaning(near) not in taken:
            found.append(near)
    return found


def _meaning(answer: str) -> decimal.Decimal | str:
    """What two answers that are the same share: a value or a text."""
    text = " ".join(answer.casefold().split())
    text = text.removesuffix(".").strip()
    match = _VALUE.fullmatch(text.replace("\N{MINUS SIGN}", "-"))
    if match is None or not (match[4] or match[5]) or (match[1].strip() and match[3].strip()):
        return text
    return decimal.Decimal(f"{match[2]}{(match[4] or '0').replace(',', '')}{match[5] or ''}")


def _near(right: str, *, negative: bool) -> Iterator[str]:
    """Numbers near it, written as it is, without end."""
    value = _meaning(right)
    if isinstance(value, str):
        return
    exact = decimal.Context(prec=len(right) + 30)
    sign = "".join(c for c in right if c in "$€£")
    for distance in itertools.chain((1, 2, 10), range(3, 10), itertools.count(11)):
        for d in (distance, -distance):
            near = exact.add(value, decimal.Decimal(d))
            if near >= 0 or negative:
                yield f"{'-' if near < 0 else ''}{sign}{abs(near):{',' if ',' in right else ''}f}"


def _other_number(text: str, rng: np.random.Generator) -> str:
    whole = len(text.split(".")[0].replace(",", ""))
    while True:
        digits = rng.integers(0, 10, size=sum(c.isdigit() for c in text))
        if whole > 1 and digits[0] == 0:
            continue
        rest = iter(digits.tolist())
        found = "".join(str(next(rest)) if c.isdigit() else c for c in text)
        if found != text:
            return found


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = list(pattern.finditer(text))
    return found[-1] if found else None


def _put(text: str, match: re.Match[str], new: str) -> str:
    return text[: match.start()] + new + text[match.end() :]


def _left_out(text: str, match: re.Match[str]) -> str:
    """Without the word, and without the blank after it (or, at an end, before it)."""
    before, after = text[: match.start()], text[match.end() :]
    if after[:1] == " ":
        return before + after[1:]
    return before.removesuffix(" ") + after


def _in_case_of(word: str, other: str) -> str:
    return other.capitalize() if word[:1].isupper() else other
