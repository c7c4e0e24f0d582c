"""Which config class a system's name in config.json stands for."""

import importlib
from pathlib import Path
from typing import Any

from moe_jax.common.files import shown
from moe_jax.common.schema import from_json
from moe_jax.errors import UserError
from moe_jax.training import workdir as folders

SYSTEMS = {
    "misrouting": ("moe_jax.misrouting.config", "MisroutingConfig"),
    "rationale": ("moe_jax.rationale.config", "RationaleConfig"),
}
"""Module and class by name; the module is imported only when it is asked for."""


def config_class(name: str) -> type:
    """The config dataclass of a system.

    Raises:
      UserError: there is no such system.
    """
    if not isinstance(name, str) or name not in SYSTEMS:
        raise UserError(f"system={shown(name)}: must be one of {', '.join(SYSTEMS)}")
    module, attribute = SYSTEMS[name]
    return getattr(importlib.import_module(module), attribute)


def load_config(workdir: Path) -> Any:
    """The config that the run in `workdir` was started with, rebuilt from config.json and checked.

    Raises:
      UserError: there is no run, or config.json does not fit the config class.
    """
    values = folders.load(workdir)
    kind = config_class(values.get("system", "none"))
    config: Any = from_json(kind, values, path=str(workdir / "config.json:"))
    config.validate()
    return config
