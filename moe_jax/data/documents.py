"""The default corpus: fragments of the documentation that Python and the packages carry."""

from moe_jax.data.corpus import Corpus


def build(*, num_train: int, num_test: int, seed: int) -> Corpus:
    """Cut examples of three fragments with three labels out of the documentation."""
    raise NotImplementedError("the default corpus is being written")
