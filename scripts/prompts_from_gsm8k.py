r"""Turn GSM8K's lines into prompts with a difficulty: the number of steps of the solution.

  python scripts/prompts_from_gsm8k.py IN.jsonl OUT.jsonl [--limit=N] [--levels=2,3,4,5,6]

  --limit=N      of each level, the first ones of the file (default: all)
  --levels=...   difficulties to keep (default 2,3,4,5,6)

Each line of IN is {"question": ..., "answer": "steps\n#### number"}. The explanation is the steps
without the calculator's marks (<<48/2=24>>), the answer the number without commas.
"""

import argparse
import collections
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moe_jax.common import json_lines, local_path, read_text
from moe_jax.common.files import check_text
from moe_jax.errors import UserError
from moe_jax.misrouting import Prompt, write_prompts

_MARK = re.compile(r"<<[^<>]*>>")


def prompt_from(values: Mapping[str, Any], where: str) -> Prompt:
    """One line of GSM8K as a prompt.

    Args:
      values: the line's object, with "question" and "answer".
      where: "FILE, line N", for messages.

    Raises:
      UserError: it isn't one.
    """
    question = check_text(values["question"], "question", where).strip()
    steps, mark, answer = check_text(values["answer"], "answer", where).rpartition("####")
    if not mark:
        raise UserError(f"{where}: the answer has no '####'")
    # Not splitlines: a step may hold U+2028 and other separators.
    lines = [_MARK.sub("", step).strip() for step in steps.split("\n") if step.strip()]
    return Prompt(
        text=f"Question: {question}\n",
        difficulty=float(len(lines)),
        answer=answer.strip().replace(",", ""),
        group="gsm8k",
        explanation="".join(f"{step}\n" for step in lines),
    )


def choose(prompts: Iterable[Prompt], levels: Sequence[int], limit: int | None) -> list[Prompt]:
    """Those of the levels, by level, at most `limit` of each."""
    found = collections.defaultdict(list)
    for prompt in prompts:
        if limit is None or len(found[prompt.difficulty]) < limit:
            found[prompt.difficulty].append(prompt)
    return [prompt for level in sorted(levels) for prompt in found[float(level)]]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--levels", default="2,3,4,5,6")
    given = parser.parse_args(argv)
    try:
        levels = [int(level) for level in given.levels.split(",")]
        source, target = (local_path(getattr(given, n), n) for n in ("source", "target"))
        lines = json_lines(read_text(source), str(source), ("question", "answer"), skip_empty=True)
        prompts = [prompt_from(values, where) for where, values in lines]
        kept = choose(prompts, levels, given.limit)
        if not kept:
            raise UserError(f"no prompt of the levels {given.levels}")
        write_prompts(kept, target)
    except (UserError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    counts = collections.Counter(prompt.difficulty for prompt in kept)
    print(", ".join(f"difficulty {d:g}: {n}" for d, n in sorted(counts.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
