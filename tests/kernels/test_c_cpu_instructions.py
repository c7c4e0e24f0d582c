"""The C kernels compiled for less than this processor has: AVX-512 without AMX, AVX2, SSE."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from moe_kernels.c_cpu import building, compiler

WITHOUT = {
    "x86_64": ["-mno-amx-bf16", "-mno-avx512f", "-mno-avx"],
    "AMD64": ["-mno-amx-bf16", "-mno-avx512f", "-mno-avx"],
}.get(platform.machine(), ["-O1"])  # elsewhere there is one set of vectors: another way to compile
CASES = "large or is_the_same or tiny or finite or whole_range"


@pytest.mark.sanitize
@pytest.mark.parametrize("flag", WITHOUT)
def test_kernels_compiled_without(flag, tmp_path):
    env = os.environ | {
        "CC": f"{' '.join(compiler.command())} {flag}",
        building.CACHE: str(tmp_path),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-k", CASES, "-p", "no:cacheprovider"]
    cases = Path(__file__).with_name("test_c_cpu.py")
    done = subprocess.run([*command, str(cases)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert len(list(tmp_path.glob("*.so"))) == 1  # these very kernels were used
