import gc
import importlib.util

import moe_kernels
import pytest

from launch import _memory as memory


@pytest.mark.parametrize(
    "platforms, installed, kept",
    [
        ("cpu", (), True),
        ("cpu", ("jax_plugins",), True),
        ("cpu,cuda", ("jax_plugins",), True),
        ("cuda,cpu", (), False),
        ("tpu", (), False),
        (None, (), True),
        ("", (), True),
        (None, ("jax_plugins",), False),
        (None, ("libtpu",), False),
    ],
)
def test_the_heap_is_kept_where_jax_runs_on_cpu(monkeypatch, platforms, installed, kept):
    calls = []
    monkeypatch.setattr(moe_kernels, "keep_heap", lambda: calls.append(1) or True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in installed or None)
    if platforms is None:
        monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    else:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert memory.keep_heap_on_cpu() == kept
    assert calls == [1] * kept


def test_cycles_are_looked_for_seldom_but_still():
    before = gc.get_threshold()
    try:
        memory.collect_seldom()
        assert gc.get_threshold() == (100_000, *before[1:])
        assert gc.isenabled()
    finally:
        gc.set_threshold(*before)
