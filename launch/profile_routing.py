"""Which experts of a language model do prompts of each difficulty use? (Stage 1)

  python launch/profile_routing.py --model=DIR --prompts=FILE.jsonl --workdir=DIR

It writes profile.html, profile.json, profile.csv and usage.csv to the workdir; launch/misroute.py
(Stage 2) takes the experts that it selects. From Python: moe_jax.misrouting.profile.run.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch import _cache as cache
from launch import _cli as cli
from launch import _memory as memory
from moe_jax.misrouting import ProfileConfig


def main(argv: Sequence[str]) -> None:
    """Parse the flags, profile, print."""
    config = cli.parse(argv, ProfileConfig, __doc__)

    from rich.console import Console

    from moe_jax.misrouting import profile
    from moe_jax.misrouting.profile_files import FILES
    from moe_jax.misrouting.profile_report import print_summary

    result = profile.run(config)
    console = Console()
    print_summary(result, console if console.is_terminal else Console(width=100))
    for name in ("profile.html", *FILES):
        print(config.workdir / name)


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv, memory.keep_heap_on_cpu, cache.keep_programs))
