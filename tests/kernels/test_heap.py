import platform
import subprocess
import sys

import moe_kernels

# Page faults of 32 arrays of 64 MB, made and freed one after the other. The thread that computed
# an array may let go of it a moment after Python has, so a few of them need memory of their own.
FAULTS = """
import resource, sys
import moe_kernels, jax, jax.numpy as jnp
if sys.argv[1] == "keep":
    print(moe_kernels.keep_heap())
fill = jax.jit(lambda x: jnp.full((4096, 4096), x))
jax.block_until_ready(fill(jnp.float32(0)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for i in range(32):
    jax.block_until_ready(fill(jnp.float32(i)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def printed(how: str) -> list[str]:
    command = [sys.executable, "-c", FAULTS, how]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def test_freed_memory_is_used_again_with_glibc():
    took_effect, kept = printed("keep")
    (left,) = printed("leave")
    assert took_effect == str(platform.libc_ver()[0] == "glibc")
    assert took_effect == "False" or int(kept) * 3 < int(left)


def test_without_glibc_nothing_is_done(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not moe_kernels.keep_heap()
