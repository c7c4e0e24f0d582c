"""The C kernels under the sanitizers, called by a program of their own (harness/)."""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import jax
import pytest
from moe_kernels.c_cpu import compiler

HARNESS = Path(__file__).parent / "harness"
NATIVE = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
MEMORY = ("-O0", "-fsanitize=address,undefined")
THREADS = ("-O1", "-fsanitize=thread")
HALT = "halt_on_error=1:abort_on_error=0:print_stacktrace=1:exitcode=77"
# Those of this processor, the narrower ones of the one before it, and the least.
ALL_VECTORS = [(NATIVE,), (NATIVE, "-mno-avx512f"), ()]
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]


def build(folder: Path, program: str, flags: tuple[str, ...]) -> Path:
    """The compiled harness; the oracle in it is not watched, which would take long."""
    common = (
        program,
        "-std=gnu11",
        "-pthread",
        "-ffp-contract=fast",
        "-Wall",
        "-Wextra",
        "-Werror",
    )
    oracle, made = folder / "oracle.o", folder / "harness"
    run_compiler(*common, "-O2", NATIVE, "-c", str(HARNESS / "oracle.c"), "-o", str(oracle))
    run_compiler(
        *(*common, *flags, "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"),
        *("-I", str(compiler.SOURCES), "-isystem", jax.ffi.include_dir()),
        *(str(HARNESS / "harness.c"), str(oracle), "-lm", "-o", str(made)),
    )
    return made


def run_compiler(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    lacks = re.search(
        r".*(cannot find .*san|fsanitize.* not supported|unsupported.*fsanitize).*", done.stderr
    )
    if done.returncode and lacks:
        pytest.skip(f"{command[0]} comes without this sanitizer: {lacks[0]}")
    assert done.returncode == 0, done.stderr[-3000:]


def run_harness(made: Path, rounds: int, seed: int, work: int) -> str:
    """What it prints; it must end well, with every call compared."""
    env = os.environ | {f"{name}_OPTIONS": HALT for name in ("ASAN", "UBSAN", "TSAN")}
    command = [str(made), str(rounds), str(seed), str(work)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if "unexpected memory mapping" in done.stderr:
        # Addresses at random take a place that the sanitizer wants: the same with fixed ones.
        fixed = ["setarch", platform.machine(), "-R", *command]
        done = subprocess.run(fixed, env=env, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert done.stdout.startswith(f"rounds {rounds}, failures ")
    return done.stdout


@pytest.mark.parametrize("program", COMPILERS[:1])
@pytest.mark.parametrize(
    "flags, lanes",
    [((*MEMORY, NATIVE), ""), (MEMORY, "lanes 4,"), ((*THREADS, NATIVE), "")],
    ids=["memory", "memory, least vectors", "threads"],
)
def test_nothing_is_found(program, flags, lanes, tmp_path):
    printed = run_harness(build(tmp_path, program, flags), rounds=40, seed=1, work=3000)
    assert lanes in printed


@pytest.mark.sanitize
@pytest.mark.parametrize("program", COMPILERS)
@pytest.mark.parametrize("vectors", ALL_VECTORS, ids=" ".join)
@pytest.mark.parametrize("kind", ["address,undefined", "thread"])
def test_nothing_is_found_in_a_long_run(kind, vectors, program, tmp_path):
    made = build(tmp_path, program, ("-O1", f"-fsanitize={kind}", *vectors))
    for seed in range(3):
        run_harness(made, rounds=200, seed=seed, work=20_000)


FAULTS = {
    "c[j] = add ? c[j] + whole[j] : whole[j];": (
        "c[j + columns] = add ? c[j] + whole[j] : whole[j];",
        "AddressSanitizer|: number .* is ",
    ),
    "while (atomic_load(&job->done) < units)": ("while (0)", "AddressSanitizer|: number .* is "),
    "if (!load) {": ("if (0) {", "dw of moe_weight_grad: number .* is -?nan, not 0"),
    "if (!scratch) return no_memory(frame, sizeof(float) * floats);": (
        "",
        "AddressSanitizer: SEGV",
    ),
    "  free(made);\n  return error;\n}\n\n#endif\n": (
        "  return error;\n}\n#endif\n",
        "leaked in",
    ),
}
"""What is in a source, what it is changed to, and what the harness must then find, whichever thread
comes first."""


@pytest.mark.sanitize
@pytest.mark.parametrize("fault", FAULTS)
def test_the_harness_finds_faults(fault, tmp_path, monkeypatch):
    after, finding = FAULTS[fault]
    sources = tmp_path / "sources"
    shutil.copytree(compiler.SOURCES, sources, ignore=shutil.ignore_patterns("*.py"))
    changed = 0
    for path in sources.rglob("*.h"):
        text = path.read_text()
        changed += text.count(fault)
        path.write_text(text.replace(fault, after))
    assert changed
    monkeypatch.setattr(compiler, "SOURCES", sources)
    made = build(tmp_path, COMPILERS[0], ("-O0", "-fsanitize=address"))
    with pytest.raises(AssertionError, match=finding):
        run_harness(made, rounds=40, seed=1, work=3000)
