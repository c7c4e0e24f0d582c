"""How a model of each kind reads prompts and writes after them, so that `reading` needn't know.

A decoder-only model reads the prompt and what it writes with the same layers. An encoder-decoder
(Switch Transformers) reads the prompt with its encoder and what it writes with its decoder, whose
layers and experts are others: a profile is of the one or the other. Letters: t tokens.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

from moe_jax.errors import UserError
from moe_jax.gating import GateConfig
from moe_jax.misrouting.reading_tokens import special_tokens, with_generated
from moe_jax.misrouting.subsets import PromptTokens
from moe_jax.models.causal_lm import CausalLM
from moe_jax.models.causal_pretrained import PretrainedLM
from moe_jax.models.compiled import per_structure
from moe_jax.models.generate import OnToken, ReadRouting, generate
from moe_jax.models.rows import rounded
from moe_jax.models.switch import SwitchTransformer
from moe_jax.models.switch_generate import generate_switch
from moe_jax.models.switch_pretrained import PretrainedSwitch

Ids = Int[np.ndarray, " t"]
Read = tuple[PromptTokens, ReadRouting]
"""Tokens that one pass read, and their routing."""
R = TypeVar("R")


class Reader(NamedTuple):
    """A model as `reading.read` uses it.

    Attributes:
      name: what it was loaded as, with the stack that is read, if there are two.
      tokenizer: the model's.
      special: ids that stand for no text.
      expert_layers: number in its stack of each layer with experts.
      num_layers: of its stack, with experts and without.
      gate: of all these layers.
      max_length: of prompt and new tokens together; None: no bound.
      forward: prompts, of one or more tokens each -> what was read.
      write: (prompts, most new tokens, text to stop at or "", text to be looked for or "", called
        after each token) -> the same, with what was written.
    """

    name: str
    tokenizer: Tokenizer
    special: frozenset[int]
    expert_layers: tuple[int, ...]
    num_layers: int
    gate: GateConfig
    max_length: int | None
    forward: Callable[[Sequence[PromptTokens]], list[Read]]
    write: Callable[[Sequence[PromptTokens], int, str, str, OnToken | None], list[Read]]


def make_reader(lm: PretrainedLM | PretrainedSwitch, *, writes: bool) -> Reader:
    """The reader of a loaded model.

    Args:
      lm: the model.
      writes: will it write? Of an encoder-decoder it is then the decoder that is profiled.

    Raises:
      UserError: it has no experts there, or no tokenizer.
    """
    if isinstance(lm, PretrainedSwitch):
        return _encoder_decoder(lm, writes=writes)
    if lm.config.experts is None or not lm.config.expert_layers:
        raise UserError(
            f"model {lm.name!r}: this model has no experts, so there is no routing to read"
        )
    return Reader(
        lm.name,
        lm.tokenizer,
        frozenset(special_tokens(lm.tokenizer) | set(lm.stop_ids)),
        lm.config.expert_layers,
        lm.config.num_layers,
        lm.config.experts.gate,
        lm.config.max_length,
        functools.partial(_forward, lm.model, 0),
        functools.partial(_write, lm),
    )


def _encoder_decoder(lm: PretrainedSwitch, *, writes: bool) -> Reader:
    config, stack = lm.config, "decoder" if writes else "encoder"
    layers = config.decoder_layers if writes else config.encoder_layers
    if not layers:
        raise UserError(
            f"model {lm.name!r}: its {stack} has no experts, so there is no routing to read "
            f"{'while it writes: leave out generate' if writes else 'in prompts: give generate'}"
        )
    if lm.tokenizer is None:
        raise UserError(f"model {lm.name!r}: its folder has no tokenizer.json")
    special = special_tokens(lm.tokenizer) | {*config.stop_ids, config.pad_id, config.start_id}
    return Reader(
        f"{lm.name} ({stack})",
        lm.tokenizer,
        frozenset(special),
        layers,
        config.num_decoder_layers if writes else config.num_layers,
        config.gate,
        None,
        functools.partial(_forward, lm.model, config.pad_id),
        functools.partial(_write_switch, lm, lm.tokenizer),
    )


@per_structure()
def _routes(
    model: CausalLM | SwitchTransformer, ids_bs: jax.Array, where_bs: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Experts, weights and scores [b s l ...] of the tokens of a batch."""
    if isinstance(model, SwitchTransformer):
        routing = model.encode(ids_bs, where_bs).routing
    else:
        routing = model(ids_bs, where_bs, last_only=True).routing
    known = _known(routing)
    return known.expert, known.weight, known.probs


def _forward(
    model: CausalLM | SwitchTransformer, pad_id: int, prompts: Sequence[PromptTokens]
) -> list[Read]:
    s = rounded(max(len(prompt.ids) for prompt in prompts))
    ids_bs = np.full((len(prompts), s), pad_id, np.int32)
    where_bs = np.zeros(ids_bs.shape, bool)
    for b, prompt in enumerate(prompts):
        ids_bs[b, : len(prompt.ids)], where_bs[b, : len(prompt.ids)] = prompt.ids, True
    found = jax.device_get(_routes(model, jnp.asarray(ids_bs), jnp.asarray(where_bs)))
    return [
        (prompt, ReadRouting(*(a[b, : len(prompt.ids)] for a in found)))
        for b, prompt in enumerate(prompts)
    ]


def _write(
    lm: PretrainedLM,
    prompts: Sequence[PromptTokens],
    most: int,
    stop: str,
    sought: str,
    on_token: OnToken | None,
) -> list[Read]:
    found = generate(
        lm.model,
        [prompt.ids for prompt in prompts],
        max_new_tokens=most,
        stop_ids=lm.stop_ids,
        stop_texts=[stop] if stop else [],
        decode=lm.tokenizer.decode,
        on_token=on_token,
    )
    return [
        (with_generated(prompt, one.ids, lm.tokenizer, show=(stop, sought)), _known(one.routing))
        for prompt, one in zip(prompts, found, strict=True)
    ]


def _write_switch(
    lm: PretrainedSwitch,
    tokenizer: Tokenizer,
    prompts: Sequence[PromptTokens],
    most: int,
    stop: str,
    sought: str,
    on_token: OnToken | None,
) -> list[Read]:
    """What the decoder reads: its first token, which stands for no text, and what it wrote."""
    found = generate_switch(
        lm.model,
        [prompt.ids for prompt in prompts],
        max_new_tokens=most,
        stop_texts=[stop] if stop else [],
        decode=tokenizer.decode,
        on_token=on_token,
    )
    start = PromptTokens(np.asarray([lm.config.start_id], np.int32), "", np.zeros((1, 2), np.int64))
    return [
        (
            with_generated(start, one.ids, tokenizer, show=(stop, sought)),
            _known(one.decoder_routing),
        )
        for one in found
    ]


def _known(routing: R | None) -> R:
    if routing is None:
        raise ValueError("the model gave no routing")
    return routing
