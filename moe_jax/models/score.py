"""Log-probabilities of answers and texts that a model is given, under interventions.

    scores = score_options(model, contexts, options, edit=edit)
    option_probs(scores.logp, length=scores.length)        # [n o], see faithfulness

`edit` and `edit_where` are those of `generate`; an edit of [l n ...] has a row for each prompt, so
one call runs prompts x interventions as rows of one compiled program, and a list has an edit for
each, with a row for each of its tokens (`rows.Edits`). Rows are read in batches of
nearly equal length, each padded to batch_size rows; no result depends on the others in its batch,
but for the draws of random experts (`random_k`) and rounding. Every program takes an edit, the
identity where none is given: an edit that changes nothing gives the same bits as none.

Letters: n prompts, o options, t tokens read, r tokens of a text, l layers with experts, k choices,
v vocabulary; in here b rows of a batch, s padded length.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from moe_jax.common import checks
from moe_jax.errors import UserError
from moe_jax.gating import RoutingEdit
from moe_jax.gating.edit import WITHOUT_TOKENS
from moe_jax.models.causal_config import CausalConfig
from moe_jax.models.causal_lm import CausalLM
from moe_jax.models.compiled import flat_model
from moe_jax.models.generate_checks import Prompt, check_edit, checked_ids, checked_masks
from moe_jax.models.rows import (
    Edits,
    batches,
    by_position,
    identity_edit,
    padded,
    padded_masks,
    rounded,
)
from moe_jax.models.score_programs import option_logp, read_rows

# Options are short: their tokens grow by this many positions.
_OPTION_STRIDE = 4

Masks = Sequence[Bool[np.ndarray, " _"]]


class OptionScores(NamedTuple):
    """Log-probabilities of the options of each prompt.

    Attributes:
      logp: l(y | c), natural, summed over the option's tokens.
      length: |y|, tokens of each option.
    """

    logp: Float[np.ndarray, "n o"]
    length: Int[np.ndarray, "n o"]


class TextScore(NamedTuple):
    """A text read after its context; t tokens are read, the context's first, r are the text's.

    Attributes:
      logp: of each token of the text, given all before it.
      expert: as `Routing.expert`; None for a dense model.
      weight: as `Routing.weight`; None for a dense model.
      vocabulary: log-probabilities of every token in the place of each of the text's: row j is what
        the model said before it read token j. None unless asked for.
    """

    logp: Float[np.ndarray, " r"]
    expert: Int[np.ndarray, "t l k"] | None
    weight: Float[np.ndarray, "t l k"] | None
    vocabulary: Float[np.ndarray, "r v"] | None


def score_options(
    model: CausalLM,
    contexts: Sequence[Prompt],
    options: Sequence[Sequence[Prompt]],
    *,
    edit: Edits | None = None,
    edit_where: Masks | None = None,
    edit_options: Edits | None = None,
    batch_size: int = 64,
    pad_id: int = 0,
) -> OptionScores:
    """l(y | c) = sum_j log p(y_j | c, y_<j) of each option y after its context c.

    The context is read once, the options from its cache. What is read: all of c under `edit`, and
    y_1 .. y_(m-1) of an option of m tokens under `edit_options`. The last token of c gives y_1 its
    probability and the last of y is never read: an option of ONE token is scored by `edit` alone,
    whatever `edit_options` says. To intervene where the answer is drawn, edit the end of the
    context too.

    Args:
      model: the model; it is not changed.
      contexts: token ids of each prompt, at least one.
      options: of each prompt, token ids of its options: as many for each prompt.
      edit: acts while contexts are read; leaves [l 1 ...], or [l n ...], one for each context; or
        a list of edits with leaves [l 1 ...] or [l t ...].
      edit_where: for each context, at which of its tokens [t]; None: at all.
      edit_options: acts at all tokens of options that are read; as `edit`, the same for all options
        of a context: edits of a list have a row for each token but the last of the longest option.
      batch_size: contexts read together.
      pad_id: read, and ignored, beside short rows.

    Raises:
      UserError: ids that the model does not have, an empty context or option, no room in the
        context, batch_size < 1. Logits that are not numbers.
      ValueError: numbers of options that differ, an edit or masks that don't fit.
    """
    checks.whole("", "batch_size", batch_size, 1)
    config, n = model.config, len(contexts)
    rows = [checked_ids(f"context {i}", c, config.vocab_size) for i, c in enumerate(contexts)]
    answers = _checked_options(options, rows, config)
    masks = checked_masks("edit_where", edit_where, [len(r) for r in rows])
    shape = (n, len(answers[0]) if answers else 0)
    length = np.array([[len(y) for y in ys] for ys in answers], np.int64).reshape(shape)
    context_lengths, most = [len(row) for row in rows], int(length.max(initial=1)) - 1
    check_edit("edit", edit, n, context_lengths)
    check_edit("edit_options", edit_options, n, [most] * n)
    logp = np.zeros(shape, np.float32)
    if not logp.size:
        return OptionScores(logp, length)
    run = option_logp.of(flat_model(model))
    # One width for all batches: less to compile.
    read = rounded(most, _OPTION_STRIDE)
    for mine, line in batches(context_lengths, batch_size):
        ids_bs, where_bs = padded([rows[i] for i in line], pad_id)
        ids_bor = np.full((batch_size, length.shape[1], read + 1), pad_id, np.int32)
        for b, i in enumerate(line):
            for o, y in enumerate(answers[i]):
                ids_bor[b, o, : len(y)] = y
        where_bs[mine:] = False
        found = run(
            ids_bs,
            where_bs,
            _rows_of(edit, line, config, context_lengths, ids_bs.shape[1]),
            padded_masks([masks[i] for i in line], ids_bs.shape[1]) & where_bs,
            ids_bor,
            length[line],
            _rows_of(edit_options, line, config, [most] * n, read, left=False),
        )
        logp[line[:mine]] = np.asarray(found)[:mine]
    _check_numbers(list(logp))
    return OptionScores(logp, length)


def score_text(
    model: CausalLM,
    contexts: Sequence[Prompt],
    texts: Sequence[Prompt],
    *,
    edit: Edits | None = None,
    edit_where: Masks | None = None,
    full: bool = False,
    batch_size: int = 64,
    pad_id: int = 0,
) -> list[TextScore]:
    """Each token of a text r after its context c: log p(r_j | c, r_<j), and the routing of both.

    All tokens are read at once, the text's last too: its routing is there, though it scores
    nothing. Token j of the text gets its probability where the token before it is read.

    Args:
      model: the model; it is not changed.
      contexts: token ids of each prompt, at least one.
      texts: token ids of the text after each; may be empty.
      edit: leaves [l 1 ...], or [l n ...], one for each prompt; or a list of edits with leaves
        [l 1 ...] or [l t ...].
      edit_where: for each prompt, at which tokens of context + text [t]; None: at all.
      full: give `vocabulary` too, r * v numbers for each prompt.
      batch_size: prompts read together.
      pad_id: read, and ignored, before short rows.

    Raises:
      UserError: as `score_options`.
      ValueError: another number of texts than contexts, an edit or masks that don't fit.
    """
    checks.whole("", "batch_size", batch_size, 1)
    config, n = model.config, len(contexts)
    if len(texts) != n:
        raise ValueError(f"texts has {len(texts)} texts for {n} contexts")
    before = [checked_ids(f"context {i}", c, config.vocab_size) for i, c in enumerate(contexts)]
    after = [
        checked_ids(f"text {i}", x, config.vocab_size) if len(x) else np.zeros(0, np.int32)
        for i, x in enumerate(texts)
    ]
    rows = [np.concatenate(both) for both in zip(before, after, strict=True)]
    for i, row in enumerate(rows):
        _check_room(f"context {i} and its text", len(row), config)
    lengths = [len(row) for row in rows]
    masks = checked_masks("edit_where", edit_where, lengths)
    check_edit("edit", edit, n, lengths)
    run = read_rows.of(flat_model(model))
    found: dict[int, TextScore] = {}
    for mine, line in batches(lengths, batch_size):
        ids_bs, where_bs = padded([rows[i] for i in line], pad_id)
        where_bs[mine:] = False
        s = ids_bs.shape[1]
        # Rows end together, so the texts are in the last positions.
        last = min(rounded(max(len(after[i]) for i in line)), s - 1)
        on_bs = padded_masks([masks[i] for i in line], s) & where_bs
        mine_edit = _rows_of(edit, line, config, lengths, s)
        out = jax.device_get(run(ids_bs, where_bs, mine_edit, on_bs, last, full))
        for b, i in enumerate(line[:mine].tolist()):
            text, whole = last - len(after[i]), s - len(rows[i])
            found[i] = TextScore(
                out.logp[b, text:],
                None if out.expert is None else out.expert[b, whole:],
                None if out.weight is None else out.weight[b, whole:],
                None if out.vocabulary is None else out.vocabulary[b, text:],
            )
    _check_numbers([found[i].logp for i in range(n)])
    return [found[i] for i in range(n)]


def _rows_of(
    edit: Edits | None,
    line: Int[np.ndarray, " rows"],
    config: CausalConfig,
    lengths: Sequence[int],
    s: int,
    *,
    left: bool = True,
) -> RoutingEdit | None:
    """The edit of these prompts, [l rows ...] whatever it was, so that all take one program.

    A list becomes [l rows s ...], at the positions of the tokens.
    """
    if edit is not None and not isinstance(edit, RoutingEdit):
        return by_position([edit[i] for i in line], [lengths[i] for i in line], s, left=left)
    if edit is None:
        if config.experts is None or not config.expert_layers:
            return None
        edit = identity_edit(config.experts.gate, len(config.expert_layers))
    leaves: dict[str, Any] = {}
    for name, leaf in edit._asdict().items():
        a = np.asarray(leaf)
        if name not in WITHOUT_TOKENS:
            a = a[:, line] if a.shape[1] > 1 else np.repeat(a, len(line), axis=1)
        leaves[name] = a
    return RoutingEdit(**leaves)


def _checked_options(
    options: Sequence[Sequence[Prompt]], contexts: list[np.ndarray], config: CausalConfig
) -> list[list[np.ndarray]]:
    if len(options) != len(contexts):
        raise ValueError(f"options has {len(options)} entries for {len(contexts)} contexts")
    found = []
    for i, (mine, context) in enumerate(zip(options, contexts, strict=True)):
        if len(mine) != len(options[0]):
            raise ValueError(
                f"context {i} has {len(mine)} options, context 0 has {len(options[0])}: all must "
                "have as many"
            )
        found.append(
            [
                checked_ids(f"option {o} of context {i}", y, config.vocab_size)
                for o, y in enumerate(mine)
            ]
        )
        _check_room(
            f"context {i} and its longest option",
            len(context) + max((len(y) for y in found[-1]), default=0),
            config,
        )
    return found


def _check_room(name: str, length: int, config: CausalConfig) -> None:
    if length > config.max_length:
        raise UserError(
            f"{name} have {length} tokens: more than the context of {config.max_length}"
        )


def _check_numbers(logp: Sequence[np.ndarray]) -> None:
    for i, values in enumerate(logp):
        if np.isnan(values).any():
            raise UserError(
                f"the model's logits are not numbers for prompt {i}: are its weights whole?"
            )
