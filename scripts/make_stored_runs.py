"""Makes tests/golden/stored_runs: a run, a profile and a study that later code has to go on with.

    python scripts/make_stored_runs.py

Made at commit 6780a15, with JAX 0.10.2 and Flax 0.12.8 on a CPU. The point of the files is that
older code wrote them: to make them again, check that commit out, with this script laid over it.

Everything runs through launch/, in one folder, so that all paths are relative; commands.json keeps
each command. Signals stop what is stored half done:

    sums/        a finished training run without its checkpoints: its model/ is used by the others
    more/        training that goes on from sums/model, stopped by SIGTERM in the middle
    profile/     the routing profile of sums/model
    study/       the misrouting study of sums/model and profile/, stopped by SIGTERM in the middle
    rationale/   a token-to-factor run, few of whose fields have their default, stopped by SIGTERM,
                 with its encoder/, its corpus/ and the cache/ of its states
    expected/    what the same commands leave in folders where nothing stops them, and the
                 evaluation of more/ where it was stopped
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

from tests.models import small_encoders

ROOT = pathlib.Path(__file__).resolve().parents[1]
TARGET = ROOT / "tests" / "golden" / "stored_runs"
SUMS = (
    *("--config={root}/configs/graded_arithmetic.py", "--config.data.levels=2"),
    *("--config.data.shares=(2.0,1.0)", "--config.data.examples=2000", "--config.data.held_out=8"),
    *("--config.data.largest=9", "--config.data.operand=4", "--config.data.factor=2"),
    *("--config.model.d_model=16", "--config.model.num_layers=1", "--config.model.num_heads=2"),
    *("--config.model.num_kv_heads=2", "--config.model.experts.gate.num_experts=4"),
    *("--config.model.experts.gate.k=2", "--config.model.experts.d_expert=16"),
    *("--config.model.max_length=64", "--config.batch_size=64"),
)
COMMANDS = {
    "sums": (
        *("train", "--workdir=sums", *SUMS, "--config.train.steps=600"),
        *("--config.train.learning_rate=0.02", "--config.train.log_every=100"),
    ),
    "more": (
        *("train", "--workdir=more", *SUMS, "--config.start=sums/model"),
        *("--config.data.explanation=used", "--config.data.seed=1", "--config.router_z=0.001"),
        *("--config.train.steps=40", "--config.train.warmup_steps=5", "--config.train.seed=1"),
        *("--config.train.log_every=8", "--config.train.eval_every=20"),
        *("--config.train.weight_decay=0.01", "--config.train.keep_checkpoints=1"),
    ),
    "profile": (
        *("profile_routing", "--model=sums/model", "--prompts=sums/prompts.jsonl"),
        *("--workdir=profile", "--top=2", "--permutations=99"),
    ),
    "study": (
        *("misroute", "--model=sums/model", "--prompts=sums/prompts.jsonl", "--workdir=study"),
        *("--profile=profile", "--interventions=suppress", "--controls=0"),
        *("--max_new_tokens=16", "--answer_tokens=4", "--batch_size=8", "--options=2"),
        "--faithfulness_prompts=6",
    ),
    "rationale": (
        *("train", "--workdir=rationale", "--config={root}/configs/rationale.py"),
        *("--config.data.path=corpus", "--config.data.num_train=12", "--config.data.num_test=4"),
        *("--config.data.test_fraction=0.25", "--config.data.seed=3"),
        *("--config.context.encoder=encoder", "--config.context.layer=1"),
        *("--config.context.windows=(4,6)", "--config.context.stride=2"),
        *("--config.context.pool=token", "--config.context.max_tokens=20"),
        "--config.context.cache=cache",
        *("--config.model.num_factors=3", "--config.model.k=2", "--config.model.temperature=0.7"),
        *("--config.model.smoothing=gaussian", "--config.model.width=1.5"),
        *("--config.model.stay=0.9", "--config.model.normalise=mean"),
        *("--config.model.transform=linear", "--config.model.factor_dim=8"),
        *("--config.model.decoder=mlp", "--config.model.words=0.5", "--config.model.restarts=2"),
        *("--config.model.word_rounds=1", "--config.losses.sentence=0.9"),
        *("--config.losses.token=0.1", "--config.losses.entropy=0.01"),
        *("--config.losses.overlap=0.2", "--config.losses.diversity=0.002"),
        *("--config.losses.balance=1.5", "--config.batch_size=4", "--config.baselines=false"),
        *("--config.train.steps=40", "--config.train.learning_rate=0.01", "--config.train.seed=2"),
        *("--config.train.schedule=constant", "--config.train.grad_clip=0.5"),
        *("--config.train.log_every=8", "--config.train.keep_checkpoints=1"),
    ),
}
CUT = {
    "more": ("metrics.jsonl", 1),
    "study": ("conditions.jsonl", 4),
    "rationale": ("metrics.jsonl", 1),
}
"""Which runs are stopped: once the file has so many lines."""
EXPECTED = {
    "more": ("metrics.jsonl", "evaluation.json"),
    "study": ("misroute.json",),
    "rationale": ("metrics.jsonl", "evaluation.json"),
}
"""What is kept of the folders where nothing was stopped."""
LEFT_OUT = (".lock", "*.html")
FOLDER = pathlib.Path("/tmp/stored_runs")
"""Where they are made: Orbax writes the path of a checkpoint into it, and run.json seals that."""


def start(folder: pathlib.Path, name: str, *flags: str) -> subprocess.Popen[str]:
    """A launch script as a process in the folder."""
    values = [flag.format(root=ROOT) for flag in flags]
    command = [sys.executable, str(ROOT / "launch" / f"{name}.py"), *values]
    path = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    environment = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(folder: pathlib.Path, *command: str) -> None:
    process = start(folder, *command)
    said, _ = process.communicate()
    if process.returncode:
        sys.exit(f"{command}: {process.returncode}\n{said.decode()}")


def stop(folder: pathlib.Path, file: pathlib.Path, lines: int, *command: str) -> None:
    """Start the command, and send SIGTERM as soon as the file has so many lines."""
    process = start(folder, *command)
    while not (file.exists() and file.read_bytes().count(b"\n") >= lines):
        if process.poll() is not None:
            sys.exit(f"{command}: ended early\n{process.communicate()[0].decode()}")
        time.sleep(0.001)
    process.terminate()
    said, _ = process.communicate()
    if process.returncode != 143:
        sys.exit(f"{command}: {process.returncode}, not stopped\n{said.decode()}")


def write_texts(folder: pathlib.Path) -> None:
    """An encoder and a corpus whose words it knows."""
    small_encoders.write(folder / "encoder", small_encoders.CONFIGS["bert"])
    (folder / "corpus").mkdir()
    records = [
        {"text": "a b c a b g h i g", "spans": [[0, 9, 0], [10, 17, 1]]},
        {"text": "h i h b c a c", "spans": [[0, 5, 1], [6, 13, 0]]},
    ]
    for name, times in (("train", 7), ("test", 3)):
        text = "".join(json.dumps(record) + "\n" for record in records * times)
        (folder / "corpus" / f"{name}.jsonl").write_text(text)
    (folder / "corpus" / "labels.json").write_text('["low", "high"]\n')


def make_stopped(folder: pathlib.Path, name: str) -> None:
    """A run twice: to its end, of which a part is kept as expected, and stopped by SIGTERM."""
    file, lines = CUT[name]
    finish(folder, *COMMANDS[name])
    (folder / name).rename(folder / "whole")
    stop(folder, folder / name / file, lines, *COMMANDS[name])
    done, whole = ((folder / place / file).read_bytes() for place in (name, "whole"))
    if not whole.startswith(done) or done == whole:
        sys.exit(f"{name}: {file} is not the first part of what an unbroken run writes")
    (folder / "expected" / name).mkdir(parents=True)
    for kept in EXPECTED[name]:
        shutil.copy(folder / "whole" / kept, folder / "expected" / name)
    shutil.rmtree(folder / "whole")


def make(folder: pathlib.Path) -> None:
    """Everything, in the folder."""
    write_texts(folder)
    finish(folder, *COMMANDS["sums"])
    shutil.rmtree(folder / "sums" / "checkpoints")
    finish(folder, *COMMANDS["profile"])
    for name in CUT:
        make_stopped(folder, name)
    shutil.copytree(folder / "more", folder / "stopped")
    finish(folder, "evaluate", "--workdir=stopped")
    shutil.copy(folder / "stopped" / "evaluation.json", folder / "expected" / "more_stopped.json")
    shutil.rmtree(folder / "stopped")
    (folder / "commands.json").write_text(json.dumps(COMMANDS, indent=1) + "\n")


def main() -> None:
    FOLDER.mkdir()
    make(FOLDER)
    shutil.rmtree(TARGET, ignore_errors=True)
    shutil.copytree(FOLDER, TARGET, ignore=shutil.ignore_patterns(*LEFT_OUT))
    shutil.rmtree(FOLDER)
    files = [path for path in TARGET.rglob("*") if path.is_file()]
    told = [path for path in files if bytes(ROOT) in path.read_bytes()]
    if told:
        sys.exit(f"the path of this checkout is in {', '.join(map(str, told))}")
    print(f"{len(files)} files, {sum(path.stat().st_size for path in files)} bytes")


if __name__ == "__main__":
    main()
