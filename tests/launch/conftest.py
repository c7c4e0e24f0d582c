"""What the tests of launch scripts share: warnings as they were, small models quickly compiled."""

import functools
import os
import warnings

import jax
import pytest

from moe_jax.models import causal_pretrained

# Scripts that run as processes here leave nothing in the user's cache (test_cache.py tests it).
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")


@pytest.fixture
def own_warnings(monkeypatch):
    """`cli.run` replaces `showwarning`; this puts it back."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)


@pytest.fixture(scope="module")
def quick():
    """A model that is loaded twice is compiled twice; so small a one needs no optimised code."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(causal_pretrained, "load_lm", functools.lru_cache(causal_pretrained.load_lm))
        yield
    jax.config.update("jax_disable_most_optimizations", before)
