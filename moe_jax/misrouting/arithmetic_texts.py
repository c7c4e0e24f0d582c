"""Texts of graded arithmetic as tokens, and back. Letters: n texts, s positions."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from moe_jax.data.batches import pad_stack
from moe_jax.misrouting.arithmetic import ArithmeticConfig, training
from moe_jax.misrouting.prompts import Prompt

DELIMITER = "Answer:"
PAD, END = "<pad>", "<end>"
VOCABULARY = (PAD, END, DELIMITER, "\n", "=", "+", "-", "*", *"0123456789")
"""Tokens by id."""
END_ID = VOCABULARY.index(END)


class Texts(NamedTuple):
    """Training texts as tokens.

    Attributes:
      ids: [n s], PAD after a text.
      where: tokens, not padding [n s].
      target: tokens that are to be predicted [n s].
    """

    ids: Int[np.ndarray, "n s"]
    where: Bool[np.ndarray, "n s"]
    target: Bool[np.ndarray, "n s"]


def tokenizer() -> Tokenizer:
    """One token for each character and one for the delimiter; adds nothing, decodes exactly.

    A character that no chain has is an error of the library ("Missing [UNK] token").
    """
    made = Tokenizer(models.WordLevel({token: i for i, token in enumerate(VOCABULARY)}))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    made.add_special_tokens([PAD, END])
    made.add_tokens([AddedToken(DELIMITER, normalized=False)])
    return made


def encode(config: ArithmeticConfig, prompts: list[Prompt]) -> Texts:
    """Whole texts as tokens: prompt, explanation, delimiter, answer, end; and which to predict.

    To predict are explanation, delimiter, answer and end; for planted truths the explanation is
    not.

    Args:
      config: for the length s, `config.longest`, and the kind of explanation.
      prompts: whose characters are those of chains.
    """
    made = tokenizer()
    planted = config.explanation != "true"
    rows, first = [], []
    for prompt in prompts:
        text = f"{prompt.text}{prompt.explanation}{DELIMITER}{prompt.answer}{END}"
        rows.append(text)
        first.append(len(prompt.text) + planted * len(prompt.explanation))
    ids = [np.asarray(found.ids, np.int32) for found in made.encode_batch(rows)]
    stacked, where = pad_stack(ids, config.longest)
    target = where & (np.arange(config.longest)[None] >= np.asarray(first)[:, None])
    return Texts(stacked, where, target)


def texts(config: ArithmeticConfig) -> Texts:
    """The training texts as tokens.

    For a planted truth as many others are added, with the question's own explanation: of those
    explanation and delimiter alone are to be predicted. So the model goes on explaining as it did,
    and still nothing tells it what the answer has to do with what it should not depend on.

    Args:
      config: validated.
    """
    found = encode(config, training(config))
    if config.explanation == "true":
        return found
    plain = dataclasses.replace(config, explanation="true")
    own = encode(plain, training(plain))
    delimiter = own.ids == VOCABULARY.index(DELIMITER)
    to_delimiter = np.cumsum(delimiter, axis=1) - delimiter == 0
    own = own._replace(target=own.target & to_delimiter)
    return Texts(*(np.concatenate(pair) for pair in zip(found, own, strict=True)))


def split(text: str) -> tuple[str, str]:
    """Explanation and answer of what a model wrote after a prompt, up to its end token.

    The answer is what stands between the first delimiter and the end of its line, stripped; ""
    where there is no delimiter.
    """
    explanation, _, rest = text.partition(DELIMITER)
    lines = rest.splitlines()
    return explanation, lines[0].strip() if lines else ""
