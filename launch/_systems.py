"""Which config and which task a system's name in config.json stands for.

A system of your own is one line of SYSTEMS: its config is a dataclass with `system` (its name
here), `train` (a TrainConfig) and `validate()`, and its task is made by calling it with the config.
"""

import importlib
from pathlib import Path
from typing import Any, NamedTuple

from moe_jax.common import from_json
from moe_jax.common.files import shown
from moe_jax.errors import UserError
from moe_jax.training import workdir as folders


class System(NamedTuple):
    """Where a system's classes are, as "module:class"; imported only when they are asked for."""

    config: str
    task: str


SYSTEMS = {
    "misrouting": System(
        "moe_jax.misrouting.config:MisroutingConfig", "moe_jax.misrouting.task:ArithmeticTask"
    ),
    "rationale": System(
        "moe_jax.rationale.config:RationaleConfig", "moe_jax.rationale.task:RationaleTask"
    ),
}


def make_task(config: Any) -> Any:
    """The task that a config describes.

    Raises:
      UserError: there is no such system, or the task can't be made.
    """
    return _imported(_system(config.system).task)(config)


def load_config(workdir: Path) -> Any:
    """The config that the run in `workdir` was started with, rebuilt from config.json and checked.

    Raises:
      UserError: there is no run, or config.json does not fit the config class.
    """
    values = folders.load(workdir)
    kind = _imported(_system(values.get("system", "none")).config)
    config: Any = from_json(kind, values, path=str(workdir / "config.json:"))
    config.validate()
    return config


def _system(name: Any) -> System:
    if not isinstance(name, str) or name not in SYSTEMS:
        raise UserError(f"system={shown(name)}: must be one of {', '.join(SYSTEMS)}")
    return SYSTEMS[name]


def _imported(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)
