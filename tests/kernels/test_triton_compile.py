"""The Triton kernels compile for GPUs that are not here, without spilled registers.

Part of `make triton`. The compiler runs in a process of its own: in this one, kernels are for the
interpreter. `python scripts/compile_triton.py` does all shapes, types and GPUs.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.triton
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "flags, kernels",
    [
        (("--shapes=30B,odd,decode", "--dtype=bfloat16"), 3 * 3 * 8),
        (("--shapes=ragged", "--dtype=float32,float16"), 2 * 3 * 8),
        (("--shapes=30B", "--dtype=tf32"), 3 * 8),
    ],
)
def test_all_kernels_compile_and_none_spills(flags, kernels):
    env = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"
    command = [sys.executable, str(ROOT / "scripts" / "compile_triton.py"), *flags]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "0 kernels with faults"
    assert len(lines) == kernels + 2


def test_faults_are_seen():
    # The script's own judgement, without Triton's compiler.
    code = (
        "import compile_triton as c; k = c.cases(256, 64, 64, 4, 'bfloat16', 90)[0];"
        "ok = {'stack': 0, 'shared': 1000, 'matrix': 4, 'cp.async': 8};"
        "print([len(c.faults(k, 90, ok | bad)) for bad in"
        " ({}, {'stack': 8}, {'shared': 10**6}, {'matrix': 0}, {'cp.async': 0})])"
    )
    path = os.pathsep.join(str(ROOT / p) for p in ("", "kernels", "scripts"))
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "[0, 1, 1, 1, 1]", done.stderr
