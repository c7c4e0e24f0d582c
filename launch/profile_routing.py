r"""Which experts of a language model do prompts of each difficulty use? (Stage 1)

  python launch/profile_routing.py --model=DIR --prompts=FILE.jsonl --workdir=DIR

Flags:
  --model=DIR       a Hugging Face folder, a .gguf file, or a known name; it needs experts
  --prompts=FILE    one JSON object a line: {"prompt": ..., "difficulty": 1, "answer": ...};
                    with "group" (a data set), labels are permuted within groups only
  --workdir=DIR     where to write profile.html, profile.json, profile.csv and usage.csv
  --chat=B          true: ask an instruct model as it was trained to be asked: each prompt becomes
                    the user's message in the model's own chat template (chat_template.jinja, or
                    tokenizer_config.json), up to where the answer begins. The template's tokens
                    are read and counted too; --tokens=generated leaves them out.
                    false (the default): the model reads the prompts as they are in the file
  --system=TEXT     the chat's system message, with --chat=true (default: none, or the template's
                    own)
  --tokens=WHICH    which tokens count: all (the default), after:TEXT, after-first:TEXT, generated,
                    last:M, span:FROM:TO or chars:FROM:TO
  --usage=KIND      share of a prompt's choices (share, the default), of its tokens (selection),
                    mean combine weight (gate) or mean score before the cut (soft)
  --generate=N      let the model write up to N tokens after each prompt, and read them too
                    (default 0: only the prompts are read). Of an encoder-decoder (Switch
                    Transformers) the decoder's experts are then profiled, else the encoder's
  --stop=TEXT       text that ends what it writes, a special token too, besides the model's own
                    stop tokens
  --length_bins=N   compare prompts of like length only, in N bins (default 0: of any length)
  --weights=W,W,... of the levels, the easiest first; they add up to 0 (default: rising evenly)
  --top=N           experts to select for Stage 2 (default: a quarter of them, at most 10)
  --select_half=B   true (the default): select on half of the prompts, test on the other half
  --permutations=N  of the tests (default 9999)
  --compare=DIR     a second model or checkpoint that reads the same prompts
  --routes=FILE     an .npz with the experts that another engine chose, one array [tokens, layers,
                    k] for each prompt, in order, layers being those with experts or all (as
                    vLLM records them); --model then gives tokenizer and shape only
  --batch_size=N    prompts read at once (default 16)
  --seed=N          of permutations, bootstrap and halves (default 0)
  --help            this text
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch import _memory as memory
from launch import _old_cli as cli
from moe_jax.errors import UserError

if TYPE_CHECKING:
    from moe_jax.misrouting.profile_data import Collected, ModelShape, ProfileSettings
    from moe_jax.misrouting.prompts import Prompt

_NEEDED = {
    "model": "a folder with a model, such as runs/arithmetic/model",
    "prompts": "a .jsonl file of prompts",
    "workdir": "a folder to write to, such as runs/profile",
}
_DEFAULTS = {
    "chat": "false",
    "system": "",
    "tokens": "all",
    "usage": "share",
    "generate": "0",
    "stop": "",
    "length_bins": "0",
    "weights": "",
    "top": "0",
    "select_half": "true",
    "permutations": "9999",
    "compare": "",
    "routes": "",
    "batch_size": "16",
    "seed": "0",
}
_PATHS = ("model", "prompts", "workdir", "compare", "routes")
_SAMPLES = 2  # texts of each level on the page


def main(argv: Sequence[str]) -> None:
    """Parse the flags, read the prompts, evaluate, write."""
    if cli.wants_help(argv):
        cli.print_help(__doc__ or "", argv)
        return
    given = cli.parse(argv, _NEEDED, _DEFAULTS, _PATHS)
    workdir = Path(given["workdir"])
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir}: is a file; name a folder")
    if given["compare"] and (given["generate"] != "0" or given["routes"]):
        raise UserError(
            "--compare reads the same tokens with both models: leave out --generate and --routes"
        )

    from moe_jax.misrouting import profile as study
    from moe_jax.misrouting.chat_prompts import as_chat, template_of
    from moe_jax.misrouting.profile_files import FILES, write_profile
    from moe_jax.misrouting.profile_report import print_summary, write_report
    from moe_jax.misrouting.prompts import read_prompts

    settings = _settings(given)
    prompts = read_prompts(given["prompts"])
    if settings.chat:
        prompts = as_chat(prompts, template_of(given["model"]), system=settings.system)
    study.check(prompts, settings)
    shape, found = _collected(given["model"], prompts, settings, given)
    print(
        f"comparing {found.rate[0].size:,} experts over {len(prompts):,} prompts", file=sys.stderr
    )
    result = study.profile(found, prompts, shape, settings)
    if given["compare"]:
        _, other = _collected(given["compare"], prompts, settings, given)
        result = result._replace(compared=(study.compare(result, found, given["compare"], other),))
    write_profile(result, workdir)
    write_report(result, workdir / "profile.html", title=f"Routing by difficulty: {shape.name}")
    from rich.console import Console

    console = Console()
    print_summary(result, console if console.is_terminal else Console(width=100))
    for name in ("profile.html", *FILES):
        print(workdir / name)


def _settings(given: dict[str, str]) -> "ProfileSettings":
    from moe_jax.misrouting.profile_data import ProfileSettings

    def whole(name: str) -> int:
        return cli.whole_number(name, given[name])

    try:
        weights = tuple(float(w) for w in given["weights"].split(",")) if given["weights"] else ()
    except ValueError:
        raise UserError(
            f"--weights={given['weights']}: must be numbers with commas between, such as -1,0,1"
        ) from None
    chat, system = cli.chat_flags(given)
    return ProfileSettings(
        usage=given["usage"],
        weights=weights,
        select_half=cli.yes_or_no("select_half", given["select_half"]),
        length_bins=whole("length_bins"),
        permutations=whole("permutations"),
        top=whole("top"),
        seed=whole("seed"),
        tokens=given["tokens"],
        generate=whole("generate"),
        stop=given["stop"],
        prompts=given["prompts"],
        routes=given["routes"],
        chat=chat,
        system=system,
    )


def _collected(
    model: str, prompts: "Sequence[Prompt]", settings: "ProfileSettings", given: dict[str, str]
) -> "tuple[ModelShape, Collected]":
    """The model's shape, and its readings summed up."""
    from moe_jax.misrouting import reading, recorded_readings
    from moe_jax.misrouting.collect import collect
    from moe_jax.misrouting.profile_data import ModelShape
    from moe_jax.misrouting.subsets import TokenSubset

    subset = TokenSubset.parse(given["tokens"])
    batch_size = cli.whole_number("batch_size", given["batch_size"])

    reading.check_reading(subset, generate_tokens=settings.generate, batch_size=batch_size)

    from moe_jax.misrouting.chat_prompts import reads_chats
    from moe_jax.misrouting.readers import make_reader
    from moe_jax.models.language_model import load_language_model

    lm = load_language_model(model)
    if settings.chat:
        lm = reads_chats(lm)
    reader = make_reader(lm, writes=settings.generate > 0)
    shape = ModelShape(reader.name, reader.expert_layers, reader.gate.num_experts, reader.gate.k)
    if given["routes"]:
        routes = recorded_readings.read_recorded(
            given["routes"], shape, len(prompts), num_layers=reader.num_layers
        )
        readings = recorded_readings.recorded(routes, reader.tokenizer, prompts, subset=subset)
    else:
        readings = reading.read(
            lm,
            prompts,
            subset=subset,
            generate_tokens=settings.generate,
            stop=given["stop"],
            batch_size=batch_size,
            on_progress=reading.ReadingProgress(),
        )
    return shape, collect(readings, prompts, shape, kind=settings.usage, samples=_SAMPLES)


if __name__ == "__main__":
    if not cli.wants_help(sys.argv):
        memory.keep_heap_on_cpu()
    sys.exit(cli.run(main, sys.argv))
