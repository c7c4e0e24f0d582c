r"""Misroute experts of a language model: what becomes of answers and explanations? (Stage 2)

  python launch/misroute.py --model=DIR --prompts=FILE.jsonl --workdir=DIR --profile=DIR

Example, after launch/train.py --config=configs/graded_arithmetic.py --workdir=runs/sums:
  python launch/profile_routing.py --model=runs/sums/model --prompts=runs/sums/prompts.jsonl \
      --workdir=runs/profile
  python launch/misroute.py --model=runs/sums/model --prompts=runs/sums/prompts.jsonl \
      --workdir=runs/misroute --profile=runs/profile --max_new_tokens=64

It writes misroute.html, misroute.json and misroute.csv to the workdir, and each run as it is done.
The same command in the same folder resumes an interrupted study (Ctrl-C, SIGTERM, a crash): runs
that are done are not done again. A finished study is only shown. From Python:
moe_jax.misrouting.study.run.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch import _cache as cache
from launch import _cli as cli
from launch import _memory as memory
from moe_jax.misrouting import MisrouteConfig


def main(argv: Sequence[str]) -> None:
    """Parse the flags, run what isn't done yet, print."""
    config = cli.parse(argv, MisrouteConfig, __doc__)

    from rich.console import Console

    from moe_jax.misrouting import study
    from moe_jax.misrouting.misroute_report import print_summary

    found = study.run(config)
    console = Console()
    print_summary(found, console if console.is_terminal else Console(width=110))
    cli.print_files(config.workdir)


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv, memory.keep_heap_on_cpu, cache.keep_programs))
