"""Show which factor of a trained rationale model took which word of a text.

  python launch/explain.py --workdir=DIR [--input=FILE] [--format=text|json|html] [--output=FILE]
  echo "some text" | python launch/explain.py --workdir=DIR

text is words coloured by factor in a terminal, in brackets elsewhere; json the tokens with their
offsets and the probability of each factor; html a page.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch import _cache as cache
from launch import _cli as cli
from launch import _memory as memory
from launch import _systems as systems
from moe_jax.common import File, FlagText, Folder
from moe_jax.errors import UserError


@dataclasses.dataclass(kw_only=True)
class ExplainFlags:
    """What to explain, with which run, and where to.

    Attributes:
      workdir: the folder of a run that launch/train.py made, such as runs/first.
      input: one text a line, a .jsonl file with {"text": ...} a line, or a .csv file with a column
        text; without it, or with -, the texts come from standard input.
      format: of what is written.
      output: write it there instead of on the screen.
      checkpoint: newest, best (by the run's train.keep_best), or a step.
    """

    workdir: Folder
    input: File | None = None
    format: Literal["text", "json", "html"] = "text"
    output: File | None = None
    checkpoint: Annotated[str, FlagText("WHICH")] = "newest"


def main(argv: Sequence[str]) -> None:
    """Parse the flags, read the texts, restore the model, explain."""
    flags = cli.parse(argv, ExplainFlags, __doc__)
    config = systems.load_config(flags.workdir)
    if config.system != "rationale":
        raise UserError(
            f"workdir {flags.workdir} holds a run of {config.system!r}; explain.py needs one of "
            "'rationale'"
        )

    from moe_jax.rationale import explain

    if flags.output is not None:
        explain.check_output(flags.output)
    texts = _texts(flags.input)

    from moe_jax.training import restore_model_at

    task = systems.make_task(config)
    model, _ = restore_model_at(task, flags.workdir, flags.checkpoint)
    rationales = task.rationales(model, texts)
    names = explain.stored_names(flags.workdir, rationales[0].probs.shape[1])
    explain.write(rationales, names, flags.format, flags.output)


def _texts(path: Path | None) -> list[str]:
    from moe_jax.data import readers

    source = "-" if path is None else str(path)
    if source == "-" and sys.stdin.isatty():
        print("one text a line; end with Ctrl-D", file=sys.stderr)
    return readers.read_texts(source, name="--input")


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv, memory.collect_seldom, cache.keep_programs))
