r"""Show which factor of a trained rationale model took which word of a text.

  python launch/explain.py --workdir=DIR [--input=FILE] [--format=text|json|html] [--output=FILE]
  echo "some text" | python launch/explain.py --workdir=DIR

Flags:
  --workdir=DIR    the folder of a run that launch/train.py made
  --input=FILE     one text a line, or a .jsonl file with {"text": ...} a line; without it the
                   texts come from standard input
  --format=NAME    text: words coloured by factor in a terminal, in brackets elsewhere (default);
                   json: the tokens with their offsets and the probability of each factor;
                   html: a page
  --output=FILE    write it there instead of on the screen
  --checkpoint=WHICH   newest (the default), best (by the run's train.keep_best), or a step
  --help           this text
"""

import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch import cli, systems
from moe_jax.errors import UserError

_FORMATS = ("text", "json", "html")
_NEEDED = {"workdir": "the folder of a run, such as runs/first"}
_DEFAULTS = {"input": "", "format": "text", "output": "", "checkpoint": "newest"}


def main(argv: Sequence[str]) -> None:
    """Parse the flags, read the texts, restore the model, explain."""
    if cli.wants_help(argv):
        cli.print_help(__doc__ or "", argv)
        return
    given = _flags(argv)
    workdir, output = Path(given["workdir"]), given["output"]
    config = systems.load_config(workdir)
    if config.system != "rationale":
        raise UserError(
            f"workdir {workdir} holds a run of {config.system!r}; explain.py needs one of "
            "'rationale'"
        )

    from moe_jax.rationale import explain

    if output:
        explain.check_output(Path(output))
    texts = _texts(given["input"])

    from moe_jax.training.checkpoint import restore_model_at

    task = config.make_task()
    model, _ = restore_model_at(task, workdir, given["checkpoint"])
    rationales = task.rationales(model, texts)
    names = explain.stored_names(workdir, rationales[0].probs.shape[1])
    _show(rationales, names, given["format"], output)


def _flags(argv: Sequence[str]) -> dict[str, str]:
    given = cli.parse(argv, _NEEDED, _DEFAULTS, paths=("workdir", "input", "output"))
    if given["format"] not in _FORMATS:
        raise UserError(f"--format={given['format']}: must be one of {', '.join(_FORMATS)}")
    return given


def _texts(name: str) -> list[str]:
    from moe_jax.data import readers

    if name in ("", "-") and sys.stdin.isatty():
        print("one text a line; end with Ctrl-D", file=sys.stderr)
    return readers.read_texts(name or "-", name="--input")


def _show(rationales: list, names: list[str], kind: str, output: str) -> None:
    from rich.console import Console

    from moe_jax.common.files import write_atomically
    from moe_jax.rationale import explain

    if kind == "text" and not output:
        with contextlib.suppress(AttributeError):
            # A terminal that lacks a character shows its number instead of a traceback.
            sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        explain.print_texts(rationales, names, Console())
        return
    if kind == "text":
        console = Console(file=io.StringIO(), no_color=True, width=100)
        explain.print_texts(rationales, names, console)
        content = console.file.getvalue()  # type: ignore[attr-defined]
    elif kind == "json":
        content = explain.as_json(rationales, names)
    else:
        content = explain.as_page(rationales, names, title="Which factor took which word")
    if output:
        write_atomically(Path(output), content)
    else:
        sys.stdout.buffer.write(content.encode("utf-8"))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv))
