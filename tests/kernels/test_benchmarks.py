"""The layer benchmark runs, checks itself and writes what it prints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
LAYER = ROOT / "kernels" / "benchmarks" / "layer.py"


def run(*flags):
    env = {**os.environ, "PYTHONPATH": str(ROOT / "kernels"), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, str(LAYER), *flags], env=env, capture_output=True, text=True, check=False
    )


def test_it_prints_a_table_and_writes_the_same_figures(tmp_path):
    out = tmp_path / "layer.json"
    done = run("--shapes=24,8,16,3,2", "--repeats=1", f"--json_out={out}")
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert [row["what"] for row in found["figures"]] == ["forward", "forward+backward"]
    for row in found["figures"]:
        assert row["ratio"] == pytest.approx(row["moe_ffn_ms"] / row["dense_ms"])
        assert f"{row['ratio']:.2f}" in done.stdout
    assert found["machine"]["cores"] == os.cpu_count()


def test_a_bad_shape_is_one_clear_line():
    done = run("--shapes=12,x")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: '12,x' is neither one of cpu, tiny nor")


def test_loads_are_uneven_and_a_tokens_experts_differ(monkeypatch):
    monkeypatch.syspath_prepend(str(LAYER.parent))
    import loads

    data = loads.routed(loads.Shape(512, 4, 4, 16, 3), seed=0, dtype="float32")
    expert = np.asarray(data["expert"])
    assert all(len(set(row)) == 3 for row in expert.tolist())
    counts = np.bincount(expert.reshape(-1), minlength=16)
    assert counts.size == 16
    assert counts.max() > 1.5 * counts.mean() > 3 * counts.min() / 2
