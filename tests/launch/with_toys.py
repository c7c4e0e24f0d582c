"""A launch script as a process that knows the toy systems: python with_toys.py SCRIPT FLAGS."""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from launch import _systems as systems
from tests.training import moe_toy, toy

if __name__ == "__main__":
    systems.SYSTEMS.update(toy=toy.SYSTEM, moe_toy=moe_toy.SYSTEM)
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
