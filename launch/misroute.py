r"""Misroute experts of a language model: what becomes of answers and explanations? (Stage 2)

  python launch/misroute.py --model=DIR --prompts=FILE.jsonl --workdir=DIR --profile=DIR

Flags:
  --model=DIR         a Hugging Face folder, a .gguf file, or a known name; it needs experts
  --prompts=FILE      one JSON object a line: {"prompt": ..., "difficulty": 1, "answer": ...};
                      with "explanation" (a right one), planted models are measured on it
  --workdir=DIR       where to write misroute.html, misroute.json, misroute.csv and the runs
  --profile=DIR       what launch/profile_routing.py wrote (or its profile.json): its selected
                      experts, on the prompts that had no part in selecting them
  --experts=L:E,...   or experts named by hand, such as 1:0,1:3 (layer of the model:expert), on
                      all prompts
  --chat=B            true: ask an instruct model as it was trained to be asked: each prompt becomes
                      the user's message in the model's own chat template (chat_template.jinja, or
                      tokenizer_config.json), and what is written after it is the model's turn. A
                      profile must be made with the same --chat and --system; planted models read
                      the same chats. false (the default): prompts are read as they are in the file
  --system=TEXT       the chat's system message, with --chat=true (default: none, or the template's
                      own); a place to ask for the delimiter
  --interventions=... with commas between (default
                      {interventions}):
                      on the experts suppress, exclude, zero, mean (their mean output in place of
                      their own), force, steer=-0.01 (below all other logits; 0.01: above), bias=2,
                      scale=0.5, permute; on all tokens of their layers random, rank_shift, gumbel=1
                      (noise of that temperature), top_1, donor (the routes of a prompt of another
                      difficulty), donor_peer (of the same), replay (those of --routes); each acts
                      always, or with @prompt, @explanation or @answer only while that is read
  --controls=N        matched random sets for each intervention on experts: at least 20, or 0 for
                      none (default {controls})
  --routes=FILE       an .npz with the experts that another engine chose for the prompts' tokens,
                      for replay: an array [tokens, layers, k] for each prompt of the file, in
                      order, layers being those with experts or all (as vLLM records them)
  --delimiter=TEXT    what the model writes between explanation and answer, a special token too
                      (default {delimiter})
  --max_new_tokens=N  of the explanation with the delimiter (default {max_new_tokens})
  --answer_tokens=N   of the answer (default {answer_tokens})
  --filler=TEXT       a text that is one token inside a text, which takes the place of
                      explanations; \n is a line break (default {filler})
  --options=N         wrong answers that an answer is compared with (default {options})
  --max_steps=N       of an explanation that are looked at (default {max_steps})
  --faithfulness_prompts=N   prompts on which faithfulness is measured, 0: all (default
                      {faithfulness_prompts})
  --margin=X          of accuracy, within which it counts as kept (default {margin})
  --planted_ignores=DIR   a model known to ignore its explanation, and
  --planted_uses=DIR      one known to use it: do the measures tell them apart?
  --batch_size=N      prompts read at once (default {batch_size})
  --seed=N            of all that is drawn (default {seed})
  --help              this text

Example, after launch/train.py --config=configs/graded_arithmetic.py --workdir=runs/sums:
  python launch/profile_routing.py --model=runs/sums/model --prompts=runs/sums/prompts.jsonl \
      --workdir=runs/profile
  python launch/misroute.py --model=runs/sums/model --prompts=runs/sums/prompts.jsonl \
      --workdir=runs/misroute --profile=runs/profile --max_new_tokens=64

The same command in the same folder goes on with an interrupted study (Ctrl-C, SIGTERM, a crash):
runs that are done are not done again. A finished study is only shown.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch import _memory as memory
from launch import _old_cli as cli
from moe_jax.common.schema import to_json
from moe_jax.errors import UserError
from moe_jax.training import workdir as folders

if TYPE_CHECKING:
    import numpy as np

    from moe_jax.misrouting.prompts import Prompt
    from moe_jax.misrouting.selection import Chosen
    from moe_jax.misrouting.study import StudyOf
    from moe_jax.misrouting.study_config import StudyConfig
    from moe_jax.misrouting.study_runs import Planted
    from moe_jax.models.causal_pretrained import PretrainedLM

_NEEDED = {
    "model": "a folder with a model, such as runs/sums/model",
    "prompts": "a .jsonl file of prompts",
    "workdir": "a folder to write to, such as runs/misroute",
}
_OPTIONAL = {
    "profile": "",
    "experts": "",
    "routes": "",
    "planted_ignores": "",
    "planted_uses": "",
    "chat": "false",
    "system": "",
}
_PATHS = ("model", "prompts", "workdir", "profile", "routes", "planted_ignores", "planted_uses")


def main(argv: Sequence[str]) -> None:
    """Parse the flags, load, run what isn't done yet, write."""
    from moe_jax.misrouting.study_config import StudyConfig

    defaults = _texts(StudyConfig())
    if cli.wants_help(argv):
        cli.print_help(_help(defaults), argv)
        return
    given = cli.parse(argv, _NEEDED, _OPTIONAL | defaults, _PATHS)
    workdir, config = Path(given["workdir"]), _config(given)
    _check(given, workdir)
    chat, system = cli.chat_flags(given)

    from moe_jax.misrouting import chat_prompts, selection, study
    from moe_jax.misrouting.probing import filler_id
    from moe_jax.misrouting.prompts import read_prompts
    from moe_jax.models.causal_pretrained import load_lm

    prompts = read_prompts(given["prompts"])
    if chat:
        template = chat_prompts.template_of(given["model"])
        prompts = chat_prompts.as_chat(prompts, template, system=system)
    lm = load_lm(given["model"])
    selection.check_model(lm)
    lm = chat_prompts.reads_chats(lm) if chat else lm
    chosen = _chosen(given, lm, prompts, config)
    tested = [prompts[i] for i in chosen.numbers]
    selection.check_prompts(lm, tested, chosen.numbers, config)
    filler_id(lm, config)
    planted, routes = _planted(given), _routes(given, lm, len(prompts), chosen.numbers)
    this = study.study_of(
        lm, tested, chosen.selection, planted, config, chat=chat, system=system, recorded=routes
    )
    _run(this, lm, tested, chosen, planted, routes, workdir)
    cli.print_files(workdir)


def _run(
    this: "StudyOf",
    lm: "PretrainedLM",
    tested: "list[Prompt]",
    chosen: "Chosen",
    planted: "Planted | None",
    routes: "list[np.ndarray] | None",
    workdir: Path,
) -> None:
    """Run, write and print the study."""
    from rich.console import Console

    from moe_jax.common.log import Log
    from moe_jax.misrouting import study, study_progress
    from moe_jax.misrouting.misroute_files import write_files
    from moe_jax.misrouting.misroute_report import print_summary, write_report
    from moe_jax.misrouting.study_summary import summarise

    config = this.config
    with folders.claimed(workdir, this), folders.lock(workdir):
        progress = study_progress.StudyProgress(len(Log(workdir / "conditions.jsonl").records))
        with study_progress.stoppable(progress):
            records = study.run_study(
                lm,
                tested,
                chosen.selection,
                config,
                workdir,
                planted=planted,
                recorded=routes,
                progress=progress,
                detail=progress.detail,
            )
        found = summarise(
            records,
            tested,
            config,
            model=lm.name,
            expert_layers=lm.config.expert_layers,
            settings=_settings(this, chosen.said),
        )
        write_files(found, workdir)
        title = f"Misrouting: {lm.name}"
        write_report(found, workdir / "misroute.html", title=title, selection=chosen.said)
    console = Console()
    print_summary(found, console if console.is_terminal else Console(width=110))


def _texts(config: "StudyConfig") -> dict[str, str]:
    """The fields as the flags have them."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        found[field.name] = text.replace("\n", "\\n").replace("\t", "\\t")
    return found


def _help(defaults: dict[str, str]) -> str:
    text = __doc__ or ""
    for name, value in defaults.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def _config(given: dict[str, str]) -> "StudyConfig":
    from moe_jax.misrouting.study_config import StudyConfig

    values: dict[str, Any] = {}
    for field in dataclasses.fields(StudyConfig):
        text, kind = given[field.name], type(field.default)
        if kind is int:
            values[field.name] = cli.whole_number(field.name, text)
        elif kind is float:
            values[field.name] = _number(field.name, text)
        elif kind is tuple:
            values[field.name] = tuple(part.strip() for part in text.split(","))
        else:
            values[field.name] = text.replace("\\n", "\n").replace("\\t", "\t")
    config = StudyConfig(**values)
    config.interventions = tuple(str(spec) for spec in config.specs())
    config.validate()
    return config


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--{name}={text}: must be a number") from None


def _check(given: dict[str, str], workdir: Path) -> None:
    """What can be said of the flags before anything is loaded."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir}: is a file; name a folder")
    if bool(given["profile"]) == bool(given["experts"]):
        raise UserError(
            "which experts? Give one of --profile=DIR (from launch/profile_routing.py) and "
            "--experts=LAYER:EXPERT,..."
        )
    if bool(given["planted_ignores"]) != bool(given["planted_uses"]):
        there = "planted_ignores" if given["planted_ignores"] else "planted_uses"
        other = "planted_uses" if given["planted_ignores"] else "planted_ignores"
        raise UserError(f"--{there} without --{other}: diagnosticity compares the two models")


def _chosen(
    given: dict[str, str], lm: "PretrainedLM", prompts: "list[Prompt]", config: "StudyConfig"
) -> "Chosen":
    from moe_jax.misrouting import selection
    from moe_jax.misrouting.reading import ReadingProgress

    if given["profile"]:
        chat, system = cli.chat_flags(given)
        return selection.from_profile(
            Path(given["profile"]), lm.config, len(prompts), chat=chat, system=system
        )
    return selection.by_hand(
        selection.parse_experts(given["experts"], lm.config),
        lm,
        prompts,
        batch_size=config.batch_size,
        on_progress=ReadingProgress("usage: reading"),
    )


def _planted(given: dict[str, str]) -> "Planted | None":
    from moe_jax.misrouting.chat_prompts import reads_chats
    from moe_jax.misrouting.selection import check_model
    from moe_jax.misrouting.study_runs import Planted
    from moe_jax.models.causal_pretrained import load_lm

    if not given["planted_uses"]:
        return None
    ignores, uses = (load_lm(given[f"planted_{name}"]) for name in ("ignores", "uses"))
    check_model(ignores, "planted_ignores")
    check_model(uses, "planted_uses")
    if cli.chat_flags(given)[0]:
        ignores, uses = reads_chats(ignores), reads_chats(uses)
    return Planted(ignores=ignores, uses=uses)


def _routes(
    given: dict[str, str], lm: "PretrainedLM", prompts: int, numbers: Sequence[int]
) -> "list[np.ndarray] | None":
    """Recorded routes of the prompts to test on, from a file with those of all."""
    from moe_jax.misrouting.profile_data import ModelShape
    from moe_jax.misrouting.recorded_readings import read_recorded
    from moe_jax.misrouting.scoped import gate_of

    if not given["routes"]:
        return None
    gate = gate_of(lm)
    shape = ModelShape(lm.name, lm.config.expert_layers, gate.num_experts, gate.k)
    found = read_recorded(given["routes"], shape, prompts, num_layers=lm.config.num_layers)
    return [found[i] for i in numbers]


def _settings(this: Any, said: str) -> str:
    """What the study is of, a line a field."""
    values = to_json(this)
    inner = values.pop("config")
    lines = [f"{name} = {value!r}" for name, value in (values | inner).items()]
    return "\n".join([*lines, "", said])


if __name__ == "__main__":
    if not cli.wants_help(sys.argv):
        memory.keep_heap_on_cpu()
    sys.exit(cli.run(main, sys.argv))
