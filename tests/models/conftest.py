"""Encoders that several tests use."""

import pytest

from moe_jax.models import pretrained
from tests.models import small_encoders


@pytest.fixture(scope="session")
def minilm():
    """The embedded default encoder."""
    return pretrained.load_encoder()


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A small BERT with 24 positions and a tokenizer of letters."""
    folder = tmp_path_factory.mktemp("encoder") / "bert"
    return pretrained.load_encoder(
        str(small_encoders.write(folder, small_encoders.CONFIGS["bert"]))
    )
