"""Readings from routes that another engine recorded.

Letters: t tokens, l layers with experts, k choices.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

from moe_jax.common.files import local_path
from moe_jax.errors import UserError
from moe_jax.misrouting.profile_data import ModelShape
from moe_jax.misrouting.prompts import Prompt
from moe_jax.misrouting.reading import Reading
from moe_jax.misrouting.reading_tokens import special_tokens, token_pieces, tokenise
from moe_jax.misrouting.recorded import UNREADABLE, read_routes, reason
from moe_jax.misrouting.subsets import TokenSubset

_NUMBERED = re.compile(r"arr_(0|[1-9][0-9]{0,8})")


def read_recorded(
    file: str, model: ModelShape, prompts: int, *, num_layers: int | None = None
) -> list[Int[np.ndarray, "_ l k"]]:
    """The routes of every prompt from an .npz file, one array each, in order.

    Args:
      file: its arrays are [tokens, layers, k], with a row for each layer that has experts.
      model: its experts.
      prompts: how many there are.
      num_layers: of the model, with experts and without; arrays with so many rows are then taken
        too, as vLLM records them.

    Raises:
      UserError: the file can't be read, holds another number of arrays, or one of them isn't the
        routing of a prompt by this model (`recorded.read_routes`).
    """
    found = _arrays(file)
    if len(found) != prompts:
        raise UserError(f"routes {file}: holds {len(found)} arrays for {prompts} prompts")
    return [
        read_routes(
            a,
            num_experts=model.num_experts,
            num_layers=len(model.expert_layers),
            k=model.k,
            layers=None if num_layers is None else model.expert_layers,
            all_layers=num_layers,
            name=f"routes {file}, prompt {i}",
        )
        for i, a in enumerate(found)
    ]


def _arrays(file: str) -> list[np.ndarray]:
    """The arrays of an .npz file; those that NumPy named by number, in order of it."""
    try:
        # Opened here, because np.load leaves a file that is no zip open.
        with (
            local_path(file, "routes").open("rb") as stream,
            np.load(stream, allow_pickle=False) as loaded,
        ):
            found = {name: loaded[name] for name in loaded.files}
    except UNREADABLE as error:
        raise UserError(f"routes {file}: can't be read as .npz: {reason(error)}") from error
    numbers = [int(match[1]) for name in found if (match := _NUMBERED.fullmatch(name))]
    if len(numbers) < len(found):
        return list(found.values())
    missing = next((i for i in range(len(found)) if i not in numbers), None)
    if missing is not None:
        raise UserError(f"routes {file}: has no arr_{missing}, but {len(found)} arrays")
    return [found[f"arr_{i}"] for i in range(len(found))]


def recorded(
    routes: Sequence[np.ndarray],
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    subset: TokenSubset | None = None,
) -> Iterator[Reading]:
    """Readings from routes that another engine recorded, without weights and scores.

    Args:
      routes: of each prompt [t l k], as `recorded.read_routes` gives them; one row may be missing
        at the end, since engines don't run the last token: it isn't counted then.
      tokenizer: the model's.
      prompts: what was read.
      subset: which tokens count.

    Raises:
      UserError: the number of rows isn't that of the prompt's tokens (names its number), or the
        subset picks none.
    """
    subset = TokenSubset() if subset is None else subset
    if len(routes) != len(prompts):
        raise UserError(f"there are routes of {len(routes)} prompts, and {len(prompts)} prompts")
    special = special_tokens(tokenizer)
    for number, (prompt, rows) in enumerate(zip(tokenise(tokenizer, prompts), routes, strict=True)):
        missing = len(prompt.ids) - len(rows)
        if missing not in (0, 1):
            raise UserError(
                f"prompt {number}: routes of {len(rows)} tokens, the tokenizer makes "
                f"{len(prompt.ids)} of its text"
            )
        if missing and prompt.offsets is not None:
            prompt = prompt._replace(ids=prompt.ids[:-1], offsets=prompt.offsets[:-1])
        where = subset.mask(prompt, special=special, number=number)
        pieces = token_pieces(prompt, tokenizer)
        yield Reading(
            number, prompt.text or "", prompt.ids, pieces, len(rows), where, rows, None, None
        )
