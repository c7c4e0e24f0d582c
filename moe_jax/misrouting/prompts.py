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

from moe_jax.common.files import check_text, json_lines, local_path, read_text, shown
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
    text = read_text(local_path(file, "prompts"))
    lines = json_lines(text, str(file), _FIELDS[:3], skip_empty=True)
    found = [_prompt(values, where) for where, values in lines]
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


def _prompt(values: dict[str, Any], where: str) -> Prompt:
    text, group, explanation = (
        check_text(values.get(name, ""), name, where) for name in ("prompt", "group", "explanation")
    )
    if not text:
        raise UserError(f"{where}: prompt is empty")
    difficulty = _difficulty(values["difficulty"], where)
    return Prompt(text, difficulty, _answer(values["answer"], where), group, explanation)


def _difficulty(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{where}: difficulty={shown(value)} must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        raise UserError(f"{where}: difficulty={shown(value)} must be a number: it is too large")
    if math.isnan(number):
        raise UserError(f"{where}: difficulty={shown(value)} must be a number")
    return number


def _answer(value: Any, where: str) -> str:
    if isinstance(value, str):
        return check_text(value, "answer", where)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or (isinstance(value, float) and not math.isfinite(value)):
        raise UserError(f"{where}: answer={shown(value)} must be a text or a number")
    return str(value)
