"""What a model reads in Stage 2: prompt, explanation, delimiter; and which part a token is of.

Letters: t tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import Tokenizer

from moe_jax.models.tokenizer import encode_text

PROMPT, EXPLANATION, ANSWER = 0, 1, 2


class Context(NamedTuple):
    """Tokens to be read, with the part that each belongs to.

    Attributes:
      ids: token ids.
      part: PROMPT, EXPLANATION, or ANSWER (the delimiter and what follows it).
    """

    ids: Int[np.ndarray, " t"]
    part: Int[np.ndarray, " t"]

    def within(self, scope: str) -> Bool[np.ndarray, " t"]:
        """The tokens of a scope of `conditions.SCOPES`."""
        if scope == "all":
            return np.ones(len(self.ids), bool)
        return self.part == ("prompt", "explanation", "answer").index(scope)

    def with_explanation(self, ids: Sequence[int]) -> "Context":
        """The same with another explanation, in tokens."""
        parts = [
            (self.ids[self.part == PROMPT], PROMPT),
            (np.asarray(ids, np.int64), EXPLANATION),
            (self.ids[self.part == ANSWER], ANSWER),
        ]
        return Context(
            np.concatenate([some for some, _ in parts]),
            np.concatenate([np.full(len(some), part) for some, part in parts]),
        )


def make_context(
    tokenizer: Tokenizer, prompt: str, explanation: str, delimiter: str, *, answer: str = ""
) -> Context:
    """Tokenise all of it as one text; a token belongs to the part that its last character is of.

    Special tokens that the tokenizer puts before the text are the prompt's; those after are left
    out.

    Args:
      tokenizer: the model's.
      prompt: what the model is asked.
      explanation: what stands between it and the delimiter.
      delimiter: as "Answer:".
      answer: what follows.

    Raises:
      UserError: the tokenizer can't take the text.
    """
    text = prompt + explanation + delimiter + answer
    got = encode_text(tokenizer, text, "prompt, explanation, delimiter and answer")
    ids = np.asarray(got.ids, np.int64)
    ends = np.asarray([end for _, end in got.offsets], np.int64)
    special = np.asarray(got.special_tokens_mask, bool)
    last = len(ids) if not len(ids) or not special[-1] else int(np.flatnonzero(~special)[-1]) + 1
    ids, ends = ids[:last], ends[:last]
    part = np.where(ends <= len(prompt), PROMPT, ANSWER)
    part[(ends > len(prompt)) & (ends <= len(prompt) + len(explanation))] = EXPLANATION
    return Context(ids, part)
