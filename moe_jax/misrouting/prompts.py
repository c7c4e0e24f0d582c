"""Prompts with their difficulty and answer: one JSON object a line.

    {"prompt": "2+3=", "difficulty": 1, "answer": "5", "group": "sums", "explanation": "2+3=5"}

`group` and `explanation` may be left out. Letters: n prompts.
"""

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from moe_jax.errors import UserError

_FIELDS = ("prompt", "difficulty", "answer", "group", "explanation")


class Prompt(NamedTuple):
    """One task for a language model.

    Attributes:
      text: what the model reads.
      difficulty: a number; larger is harder.
      answer: the right one, as text.
      group: data set or topic; labels are permuted within groups only.
      explanation: a right explanation, "" where none is known.
    """

    text: str
    difficulty: float
    answer: str
    group: str = ""
    explanation: str = ""


class Levels(NamedTuple):
    """Difficulties as levels.

    Attributes:
      level: of each prompt, 0 the easiest.
      difficulty: of each level, rising.
    """

    level: Int[np.ndarray, " n"]
    difficulty: tuple[float, ...]


def read_prompts(file: str | pathlib.Path) -> list[Prompt]:
    """The prompts of a JSON Lines file, in order; empty lines are passed over.

    Raises:
      UserError: the file can't be read, a line isn't such an object (which line, which field), or
        there is no prompt.
    """
    try:
        # Not splitlines: it takes characters that JSON allows within a text for ends of lines.
        lines = pathlib.Path(file).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts {file}: can't be read ({error})") from None
    found = [
        _prompt(line, f"{file}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not found:
        raise UserError(f"prompts {file}: holds no prompt")
    return found


def write_prompts(prompts: Sequence[Prompt], file: pathlib.Path) -> None:
    """Write them so that `read_prompts` gives them back."""
    lines = []
    for prompt in prompts:
        values = dict(zip(_FIELDS, prompt, strict=True))
        kept = {name: value for name, value in values.items() if value != "" or name == "answer"}
        lines.append(json.dumps(kept, ensure_ascii=False))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def levels(prompts: Sequence[Prompt], *, at_least: int = 2) -> Levels:
    """The different difficulties, in order, as levels 0, 1, ...

    Args:
      prompts: of a study.
      at_least: prompts that each level must have.

    Raises:
      UserError: one level only, or a level with too few prompts.
    """
    values = np.array([prompt.difficulty for prompt in prompts], np.float64)
    difficulty, level, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(difficulty) < 2:
        raise UserError(
            f"all {len(prompts)} prompts have difficulty {difficulty[0]:g}: a trend needs 2 levels"
            if len(prompts)
            else "there is no prompt"
        )
    if counts.min() < at_least:
        few = int(counts.argmin())
        raise UserError(
            f"difficulty {difficulty[few]:g} has {counts[few]} prompt(s), must have at least "
            f"{at_least}: add some, or give them the difficulty of their neighbours"
        )
    return Levels(level.reshape(-1), tuple(float(d) for d in difficulty))


def strata(prompts: Sequence[Prompt]) -> Int[np.ndarray, " n"]:
    """A number for each group, in alphabetical order."""
    return np.unique([prompt.group for prompt in prompts], return_inverse=True)[1].reshape(-1)


def _prompt(line: str, place: str) -> Prompt:
    try:
        values: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not JSON ({error.msg})") from None
    if not isinstance(values, dict):
        raise UserError(f"{place}: must be an object with {', '.join(_FIELDS[:3])}")
    for name in _FIELDS[:3]:
        if name not in values:
            raise UserError(f"{place}: has no {name!r}")
    difficulty = values["difficulty"]
    number = isinstance(difficulty, (int, float)) and not isinstance(difficulty, bool)
    if not number or not math.isfinite(difficulty):
        raise UserError(f"{place}: difficulty={difficulty!r} must be a number")
    for name in ("prompt", "group", "explanation"):
        if not isinstance(values.get(name, ""), str):
            raise UserError(f"{place}: {name}={values[name]!r} must be a text")
    answer = values["answer"]
    if isinstance(answer, bool) or not isinstance(answer, (str, int, float)):
        raise UserError(f"{place}: answer={answer!r} must be a text or a number")
    if not values["prompt"]:
        raise UserError(f"{place}: prompt is empty")
    return Prompt(
        values["prompt"],
        float(difficulty),
        str(answer),
        values.get("group", ""),
        values.get("explanation", ""),
    )
