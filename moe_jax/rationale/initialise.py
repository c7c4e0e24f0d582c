"""Where the gate's weights of words start: what each word says about the factors."""

import numpy as np
from jaxtyping import Float, Int

_PSEUDO_COUNT = 2.0  # a word seen n times weighs n / (n + 2) against the factors' own shares


def word_evidence(
    ids: Int[np.ndarray, " t"], probs: Float[np.ndarray, "t e"], vocab_size: int
) -> Float[np.ndarray, "v e"]:
    r"""What seeing word v says for factor k: log p(k|v) - log p(k), from soft assignments.

    p(k|v) = (sum_{t: id_t = v} pi_tk + c p(k)) / (n_v + c) with c = 2 and p(k) the mean of pi:
    a word that was never seen says nothing (0).

    Args:
      ids: word (piece) of each token.
      probs: pi, the probability of each factor for each token; rows sum to 1.
      vocab_size: V.
    """
    prior = np.maximum(probs.mean(axis=0, dtype=np.float64), 1e-6)
    counts = np.stack(
        [np.bincount(ids, weights=column, minlength=vocab_size) for column in probs.T], axis=1
    )
    smoothed = counts + _PSEUDO_COUNT * prior
    posterior = smoothed / (counts.sum(axis=1, keepdims=True) + _PSEUDO_COUNT)
    return (np.log(posterior) - np.log(prior)).astype(np.float32)
