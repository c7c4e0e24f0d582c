"""Which experts a Stage 2 study misroutes, on which prompts: from a profile or named by hand.

Users write (layer of the model, expert); a `Selection` counts layers among those with experts.
Letters: l layers with experts, e experts of each.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from moe_jax.common.files import read_object, shown
from moe_jax.errors import UserError
from moe_jax.misrouting.prompts import Prompt
from moe_jax.misrouting.reading import OnProgress, read
from moe_jax.misrouting.reading_tokens import tokenise
from moe_jax.misrouting.study_config import StudyConfig
from moe_jax.misrouting.usage import usage
from moe_jax.models.causal_config import CausalConfig
from moe_jax.models.causal_pretrained import PretrainedLM
from moe_jax.models.pieces import check_shown, piece_ids
from moe_jax.models.tokenizer import encode_text

_PAIR = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*", re.ASCII)


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


class Chosen(NamedTuple):
    """What to misroute, and what to test it on.

    Attributes:
      selection: the experts.
      numbers: of the prompts to test on, in their file.
      said: one sentence: where the experts are from, and what that means for the tests.
    """

    selection: Selection
    numbers: list[int]
    said: str


def check_model(lm: PretrainedLM, flag: str = "model") -> None:
    """Does the model have experts?

    Raises:
      UserError: it has none.
    """
    if lm.config.experts is None or not lm.config.expert_layers:
        raise UserError(f"--{flag}={lm.name}: this model has no experts: there is no routing")


def check_prompts(
    lm: PretrainedLM, prompts: Sequence[Prompt], numbers: Sequence[int], config: StudyConfig
) -> None:
    """Can the model read the prompts, with all that is written after them, and find its delimiter?

    Args:
      lm: the model.
      prompts: those to test on.
      numbers: of each, in its file, to name it.
      config: lengths and delimiter.

    Raises:
      UserError: one is too long (which, how long), empty for the tokenizer, or has a character
        that it doesn't know; the delimiter can't stand in what the model writes.
    """
    tokenizer = lm.tokenizer
    for prompt in prompts[:1]:
        check_shown(tokenizer, config.delimiter, "delimiter", before=prompt.text)
    delimiter = len(piece_ids(tokenizer, config.delimiter, "delimiter"))
    new = config.max_new_tokens + delimiter + config.answer_tokens
    tokens = tokenise(tokenizer, prompts, numbers)
    for number, prompt, mine in zip(numbers, prompts, tokens, strict=True):
        encode_text(tokenizer, prompt.answer, f"prompt {number}: its answer")
        encode_text(tokenizer, prompt.explanation, f"prompt {number}: its explanation")
        length = len(mine.ids)
        if not length:
            raise UserError(f"prompt {number}: the tokenizer makes no token of its text")
        if length + new > lm.config.max_length:
            raise UserError(
                f"prompt {number} has {length} tokens, and up to {new} are written after it "
                f"(max_new_tokens + delimiter + answer_tokens): more than the model's context of "
                f"{lm.config.max_length}: lower max_new_tokens, or leave the prompt out"
            )


def from_profile(
    path: Path, config: CausalConfig, prompts: int, *, chat: bool = False, system: str = ""
) -> Chosen:
    """The experts that Stage 1 selected, and the prompts that had no part in it.

    Args:
      path: profile.json or its folder.
      config: of the model to misroute.
      prompts: how many there are in the file of prompts.
      chat: are they asked through the model's chat template?
      system: the chat's system message.

    Raises:
      UserError: no such file, not a profile, or one of another model, of other prompts or of
        prompts asked in another way; no expert is selected, no prompt is left to test on.
    """
    file = path / "profile.json" if path.is_dir() else path
    missing = f"--profile: {file}: no such file; launch/profile_routing.py makes one"
    values = read_object(file, missing=missing)
    try:
        shape = [int(m) for m in values["expert_layers"]], int(values["num_experts"])
        pairs = [(int(m), int(e)) for m, e in values["selected"]]
        numbers = [int(i) for i in values["test_prompts"]]
        mean, z = (np.asarray(values[name], np.float64) for name in ("usage_mean", "z"))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{file}: not a profile ({type(error).__name__}: {error})") from None
    mine = list(config.expert_layers), _num_experts(config)
    if shape != mine:
        raise UserError(
            f"{file} is of a model with {shape[1]} experts in layers {_listed(shape[0])}; this "
            f"one has {mine[1]} in layers {_listed(mine[0])}: name the model that was profiled"
        )
    for name, array in (("usage_mean", mean), ("z", z)):
        if array.shape != (len(mine[0]), mine[1]):
            raise UserError(
                f"{file}: {name} is {array.shape}, must be {(len(mine[0]), mine[1])}: not a profile"
            )
    _check_numbers(file, values, numbers, prompts)
    _check_chat(file, values, chat, system)
    if not pairs:
        raise UserError(f"{file}: no expert is selected: there is nothing to misroute")
    target = _target(pairs, config, str(file))
    score = np.where(np.isfinite(z), np.abs(z), 0.0)
    selection = Selection(target, np.where(np.isfinite(mean), mean, 0.0), score)
    return Chosen(selection, numbers, _said(values, len(pairs), len(numbers), prompts))


def parse_experts(text: str, config: CausalConfig) -> Bool[np.ndarray, "l e"]:
    """The experts of "LAYER:EXPERT,LAYER:EXPERT,...", layers numbered as in the model.

    Raises:
      UserError: another form, an unknown layer or expert (says which there are), one named twice.
    """
    pairs: list[tuple[int, int]] = []
    for part in text.split(","):
        match = _PAIR.fullmatch(part)
        if match is None:
            raise UserError(
                f"--experts={text}: {part!r} is not LAYER:EXPERT; write for instance "
                f"--experts={config.expert_layers[0]}:0"
            )
        pair = int(match[1]), int(match[2])
        if pair in pairs:
            raise UserError(f"--experts={text}: {pair[0]}:{pair[1]} is there twice")
        pairs.append(pair)
    return _target(pairs, config, f"--experts={text}")


def by_hand(
    target: Bool[np.ndarray, "l e"],
    lm: PretrainedLM,
    prompts: Sequence[Prompt],
    *,
    batch_size: int,
    on_progress: OnProgress | None = None,
) -> Chosen:
    """Experts that the user named; controls are matched, and opposites chosen, by usage.

    Usage: a prompt's share of choices, mean over prompts, of an unedited run that reads them.

    Args:
      target: from `parse_experts`.
      lm: the model.
      prompts: all are tested on.
      batch_size: prompts read at once.
      on_progress: see `reading.read`.

    Raises:
      UserError: as `reading.read`.
    """
    mean = mean_usage(lm, prompts, batch_size=batch_size, on_progress=on_progress)
    said = (
        f"{_experts(int(target.sum()))} named by hand, tested on all {len(prompts):,} prompts. "
        "If they were found on these prompts, effects are larger here than they would be on others."
    )
    return Chosen(Selection(target, mean, mean), list(range(len(prompts))), said)


def mean_usage(
    lm: PretrainedLM,
    prompts: Sequence[Prompt],
    *,
    batch_size: int,
    on_progress: OnProgress | None = None,
) -> Float[np.ndarray, "l e"]:
    """Share of choices that each expert takes while the prompts are read, mean over prompts."""
    experts = _num_experts(lm.config)
    total = np.zeros((len(prompts), len(lm.config.expert_layers), experts))
    for one in read(lm, prompts, batch_size=batch_size, on_progress=on_progress):
        total[one.number] = usage(one.expert, experts, where=one.where, kind="share").rate
    return np.asarray(total.mean(axis=0))


def _check_numbers(file: Path, values: dict[str, Any], numbers: list[int], prompts: int) -> None:
    """Are these prompts of the file that was profiled?"""
    inner = values.get("profile")
    level = inner.get("level") if isinstance(inner, dict) else None
    profiled = len(level) if isinstance(level, list) else None
    if profiled is not None and profiled != prompts:
        raise UserError(
            f"{file} is of {profiled} prompts, --prompts holds {prompts}: name the same file"
        )
    outside = [i for i in numbers if not 0 <= i < prompts]
    if outside:
        raise UserError(
            f"{file}: prompt {outside[0]} of its test_prompts isn't among the {prompts} of "
            "--prompts: name the file that was profiled"
        )
    if len(set(numbers)) < len(numbers):
        raise UserError(f"{file}: test_prompts names a prompt twice")
    if not numbers:
        raise UserError(f"{file}: test_prompts is empty: there is no prompt to test on")


def _check_chat(file: Path, values: dict[str, Any], chat: bool, system: str) -> None:
    """Were the prompts asked as they are now? What isn't a whole profile doesn't say."""
    inner = values.get("profile")
    settings = inner.get("settings") if isinstance(inner, dict) else None
    if not isinstance(settings, dict):
        return
    theirs = settings.get("chat", False), settings.get("system", "")
    if theirs != (chat, system):
        said, mine = (_chat_flags(*asked) for asked in (theirs, (chat, system)))
        raise UserError(
            f"{file} was made with {said}, this study has {mine}: its experts were selected on "
            "other texts; give both the same"
        )


def _chat_flags(chat: Any, system: Any) -> str:
    """As the user writes them."""
    text = system if isinstance(system, str) else shown(system)
    return f"--chat={shown(chat).lower()}" + (f" --system={text}" if system else "")


def _said(values: dict[str, Any], experts: int, numbers: int, prompts: int) -> str:
    inner = values.get("profile")
    chosen = inner.get("selection") if isinstance(inner, dict) else None
    halved = chosen.get("halved", True) if isinstance(chosen, dict) else True
    if halved and numbers < prompts:
        return (
            f"{_experts(experts)} selected by Stage 1, tested on the {numbers:,} prompts that had "
            "no part in their selection."
        )
    return (
        f"{_experts(experts)} selected by Stage 1 on the same {numbers:,} prompts that they are "
        "tested on: effects are larger here than they would be on others."
    )


def _experts(count: int) -> str:
    return f"{count} expert{'s' if count != 1 else ''}"


def _target(
    pairs: Sequence[tuple[int, int]], config: CausalConfig, where: str
) -> Bool[np.ndarray, "l e"]:
    layers, experts = list(config.expert_layers), _num_experts(config)
    target = np.zeros((len(layers), experts), bool)
    for layer, expert in pairs:
        if layer not in layers:
            raise UserError(
                f"{where}: layer {layer} has no experts; layers with experts: {_listed(layers)}"
            )
        if not 0 <= expert < experts:
            raise UserError(
                f"{where}: layer {layer} has no expert {expert}: its experts are 0 to {experts - 1}"
            )
        target[layers.index(layer), expert] = True
    return target


def _num_experts(config: CausalConfig) -> int:
    return 0 if config.experts is None else config.experts.gate.num_experts


def _listed(layers: Sequence[int]) -> str:
    """Numbers in a row as a range."""
    if len(layers) > 3 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]} to {layers[-1]}"
    return ", ".join(map(str, layers)) or "none"
