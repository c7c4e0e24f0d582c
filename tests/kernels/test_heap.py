import platform
import subprocess
import sys

import moe_kernels

# Page faults of one more array of 64 MB, after three that were freed.
FAULTS = """
import resource, sys
import moe_kernels, jax, jax.numpy as jnp
if sys.argv[1] == "keep":
    print(moe_kernels.keep_heap())
fill = jax.jit(lambda x: jnp.full((4096, 4096), x))
for i in range(3):
    jax.block_until_ready(fill(jnp.float32(i)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
jax.block_until_ready(fill(jnp.float32(9)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def printed(how: str) -> list[str]:
    command = [sys.executable, "-c", FAULTS, how]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def test_freed_memory_is_used_again_with_glibc():
    took_effect, kept = printed("keep")
    (left,) = printed("leave")
    assert took_effect == str(platform.libc_ver()[0] == "glibc")
    assert took_effect == "False" or int(kept) * 5 < int(left)


def test_without_glibc_nothing_is_done(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not moe_kernels.keep_heap()
