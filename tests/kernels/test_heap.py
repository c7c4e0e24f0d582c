import platform
import subprocess
import sys

import moe_kernels
import pytest

# Page faults of one more array of 64 MB, after three that were freed.
FAULTS = """
import resource, sys
import moe_kernels, jax, jax.numpy as jnp
if sys.argv[1] == "keep":
    print(moe_kernels.keep_heap(), file=sys.stderr)
fill = jax.jit(lambda x: jnp.full((4096, 4096), x))
for i in range(3):
    jax.block_until_ready(fill(jnp.float32(i)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
jax.block_until_ready(fill(jnp.float32(9)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    command = [sys.executable, "-c", FAULTS, how]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's heap is what is kept")
def test_freed_memory_is_used_again():
    assert faults("keep") * 5 < faults("leave")


def test_without_glibc_nothing_is_done(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not moe_kernels.keep_heap()
