"""The benchmarks run, check themselves, write what they print, and say clearly what is wrong."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from moe_kernels import backends, gpu_packages

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "kernels" / "benchmarks"
SHAPE = "24,8,16,3,2"
COUNTS = {"olmoe": {"num_experts": 8, "counts": {"c4": [[1] * 8, [93, 1, 1, 1, 1, 1, 1, 1]]}}}


def run(*flags, script="layer.py"):
    env = {**os.environ, "PYTHONPATH": str(ROOT / "kernels"), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(FOLDER / script), *flags]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def loads(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import loads

    return loads


@pytest.fixture(scope="module")
def everybody(tmp_path_factory):
    """One run with all rivals, a plot and a file of counts."""
    folder = tmp_path_factory.mktemp("everybody")
    (folder / "counts.json").write_text(json.dumps(COUNTS))
    done = run(
        f"--shapes={SHAPE}",
        "--repeats=1",
        "--peers=all",
        "--force",
        "--load=olmoe",
        f"--load_file={folder / 'counts.json'}",
        "--load_layer=c4:1",
        f"--plot={folder / 'plot.png'}",
        f"--json_out={folder / 'layer.json'}",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "layer.json").read_text()), folder / "plot.png"


def table(text):
    """The rows of a plain table, by column."""
    lines = [line.split() for line in text.splitlines()]
    head = next(i for i, line in enumerate(lines) if line and line[0] == "T,d,f,E,k")
    rows = [line for line in lines[head + 1 :] if line and "," in line[0]]
    return [dict(zip(lines[head], row, strict=True)) for row in rows]


def test_table_and_json_agree(everybody):
    text, found, _ = everybody
    rows = table(text)
    assert [row["what"] for row in found["figures"]] == ["forward", "forward+backward"]
    for printed, row in zip(rows, found["figures"], strict=True):
        assert printed["T,d,f,E,k"] == SHAPE
        assert printed["what"] == row["what"]
        assert printed["dense_ms"] == f"{row['dense_ms']:.2f}"
        assert printed["moe_ffn_ms"] == f"{row['moe_ffn_ms']:.2f}"
        assert printed["ratio"] == f"{row['ratio']:.2f}"
        assert printed["GFLOP/s"] == f"{row['flops_per_s'] / 1e9:.1f}"
        assert row["ratio"] == pytest.approx(row["moe_ffn_ms"] / row["dense_ms"])
        for name, peer in row["peers"].items():
            assert peer["ratio"] == pytest.approx(row["moe_ffn_ms"] / peer["ms"])
            assert name == "dense" or printed[f"x_{name}"] == f"{peer['ratio']:.2f}"
        work = (6 if row["what"] == "forward" else 18) * 24 * 8 * 16 * 2
        assert row["flops_per_s"] == pytest.approx(1e3 * work / row["moe_ffn_ms"])
        assert 0 < row["floor_share"] == pytest.approx(row["floor_ms"] / row["moe_ffn_ms"])
    assert found["machine"]["cores"] == os.cpu_count()
    assert found["settings"]["load"]["kind"] == "olmoe"


def test_every_rival_is_timed_or_its_absence_is_explained(everybody):
    text, found, _ = everybody
    absent = {one["peer"]: one["reason"] for one in found["missing"]}
    timed = set(found["figures"][0]["peers"])
    assert timed | set(absent) == {
        *("dense", "einsum", "ragged_dot", "tokamax", "xla", "torch_eager", "torch_grouped_mm")
    }
    assert {"dense", "einsum", "ragged_dot", "xla"} <= timed
    assert not timed & set(absent)
    if importlib.util.find_spec("torch"):
        assert "torch_eager" in timed
    for name, reason in absent.items():
        assert f"not there: {name} at {SHAPE}: {reason}" in text


@pytest.mark.parity
def test_torch_rivals_agree_with_the_oracle():
    # They are compared with it before they are timed: one that is wrong ends the run.
    done = run("--shapes=24,8,16,3,2", "--repeats=1", "--peers=torch_eager,torch_grouped_mm")
    assert done.returncode == 0, done.stderr
    assert "x_torch_eager" in done.stdout
    assert "not there" not in done.stdout


def test_help_teaches():
    done = run("--help")
    assert "python kernels/benchmarks/layer.py --shapes=cpu --peers=all" in done.stdout
    assert all(f"--{flag}:" in done.stdout for flag in ("shapes", "load", "peers", "plot"))


def test_the_plot_is_a_png(everybody):
    assert everybody[2].read_bytes().startswith(b"\x89PNG\r\n")


def test_published_figures_are_shown_beside_their_kind_of_device_only(loads):
    import plots

    row = {**loads.SETS["30B"][1]._asdict(), "what": "forward", "dtype": "bfloat16"}
    assert plots.published("NVIDIA H200", row) == (503e12, 323e12)
    sonic, _ = plots.published("NVIDIA H100 80GB HBM3", row | {"what": "forward+backward"})
    assert 503e12 < sonic < 511e12
    assert plots.published("NVIDIA A100", row) is None
    assert plots.published("NVIDIA H200", row | {"dtype": "float32"}) is None
    assert plots.published("NVIDIA H200", row | {"tokens": 1}) is None
    assert set(plots.PUBLISHED_H100) == set(loads.parse("1.4B,7B,30B,120B"))


def test_absurd_rivals_are_left_out_with_the_reason():
    done = run("--shapes=64,4,4,32,1", "--repeats=1", "--peers=ragged_dot")
    assert done.returncode == 0, done.stderr
    assert "not there: ragged_dot at 64,4,4,32,1: it would take 32 times" in done.stdout
    assert [row["x_ragged_dot"] for row in table(done.stdout)] == ["-", "-"]


def test_a_wrong_rival_is_caught(monkeypatch, loads):
    import checks
    import peers

    shape = loads.Shape(24, 8, 16, 3, 2)
    data = loads.routed(shape, seed=0, dtype="float32")
    peer = peers.build("ragged_dot", shape, data, False)
    assert checks.check("ragged_dot", peer.both, data) < 1e-4
    with pytest.raises(checks.Disagreement, match=r"ragged_dot: .* is off by"):
        checks.check("ragged_dot", peer.both, data | {"w_out": 1.01 * data["w_out"]})


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--shapes=12,x", "shape '12,x' is neither of cpu, tiny, olmoe,"),
        ("--shapes=4,4,4,2,3", "shape '4,4,4,2,3' needs sizes of at least 1 and k of at most E"),
        ("--peers=dens", "peer 'dens' is none of dense, einsum,"),
        ("--load=odd", "load 'odd' is none of dirichlet, uniform, zipf, olmoe"),
        ("--load=olmoe", "load 'olmoe' needs --load_file=PATH"),
        ("--load=olmoe --load_file=nowhere.json", "load file 'nowhere.json' cannot be read: No su"),
        ("--backend=odd", "backend='odd' is none of "),
        ("--plot=no/such/folder.png", "no folder to write 'no/such/folder.png' into"),
    ],
)
def test_a_mistake_is_one_clear_line(flag, message, in_process):
    code, error = in_process("layer", *flag.split(" "))
    assert code == 2
    assert error.splitlines()[-1].startswith(f"error: {message}")


@pytest.fixture
def in_process(loads, capsys):
    """Runs main() of a script here, with flags, which are set back afterwards: fast."""
    from absl import flags

    def call(script, *words):
        main = importlib.import_module(script).main
        saved = dict(flags.FLAGS.flag_values_dict())
        try:
            flags.FLAGS([script, *words])
            with pytest.raises(SystemExit) as stop:
                main([script])
        finally:
            for name, value in saved.items():
                if getattr(flags.FLAGS, name) != value:
                    setattr(flags.FLAGS, name, value)
        return stop.value.code, capsys.readouterr().err

    return call


@pytest.mark.parametrize("script", ["gpu.py", "tune.py"])
def test_the_gpu_scripts_refuse_without_a_gpu_and_need_no_installed_package(script, tmp_path):
    # From a copy elsewhere; PYTHONPATH says nothing of it.
    copy = tmp_path / "kernels"
    shutil.copytree(ROOT / "kernels", copy, ignore=shutil.ignore_patterns("__pycache__"))
    env = {**os.environ, "PYTHONPATH": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(copy / "benchmarks" / script)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    if reason := backends.missing("triton_gpu"):
        assert line == (
            f"error: {script} needs triton_gpu: {reason}; without a network: run `pip download "
            "--no-deps -d .whl jax-triton==0.4.1` where there is one, and bring the folder .whl "
            "along, beside kernels/"
        )
    else:
        assert line == f"error: {script} needs a GPU; JAX has only cpu here"


def test_the_ten_minutes_on_a_gpu_end_at_once_without_one(tmp_path):
    script = FOLDER / "gpu.sh"
    assert script.stat().st_size < 2000  # the most that some such machines take as a command
    (tmp_path / "python3").symlink_to(sys.executable)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "JAX_PLATFORMS": "cpu"}
    env |= {"OUT": str(tmp_path / "out"), "PYTHONPATH": str(Path(pytest.__file__).parents[1])}
    done = subprocess.run(["bash", script], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "error: gpu.py needs " in (tmp_path / "out" / "gpu.err").read_text()


@pytest.fixture
def carried(loads, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    import carried

    return carried


def test_the_gpu_scripts_time_nothing_but_the_triton_kernels(carried, monkeypatch, capsys):
    def refused(backend, dtype="bfloat16"):
        with pytest.raises(SystemExit) as stop:
            carried.require_gpu("gpu.py", backend, dtype)
        assert stop.value.code == 2
        return capsys.readouterr().err

    assert "gpu.py is for triton_gpu, not --backend=xla: layer.py times others" in refused("xla")
    monkeypatch.setattr(gpu_packages, "missing", lambda: "no room for it")
    assert "gpu.py needs triton_gpu: no room for it; without a network: run `pip" in refused(None)
    assert carried.BRING in refused("triton_gpu")
    monkeypatch.setattr(gpu_packages, "missing", lambda: None)
    assert "gpu.py needs a GPU; JAX has only cpu here" in refused(None)
    monkeypatch.setattr(backends.jax, "default_backend", lambda: "gpu")
    carried.require_gpu("gpu.py", None, "bfloat16")
    carried.require_gpu("gpu.py", "triton_gpu", "float32")
    assert "but float64 on this GPU would run by xla" in refused(None, "float64")
    monkeypatch.setattr(backends, "_platform", lambda: "rocm")
    assert "but bfloat16 on this GPU would run by xla" in refused(None)


def test_a_carried_wheel_is_found_first(tmp_path):
    (tmp_path / ".whl").mkdir()
    folder = tmp_path / "kernels" / "benchmarks"
    folder.mkdir(parents=True)
    (folder / "carried.py").write_text((FOLDER / "carried.py").read_text())
    wheel = tmp_path / ".whl" / "jax_triton-0.4.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("jax_triton/__init__.py", "here = __file__")
        notes = "Metadata-Version: 2.1\nName: jax-triton\nVersion: 0.4.1\n"
        file.writestr("jax_triton-0.4.1.dist-info/METADATA", notes)
    code = (
        "import carried, jax_triton, importlib.metadata as m;"
        "print(jax_triton.here, m.version('jax-triton'))"
    )
    env = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.split() == [str(wheel / "jax_triton" / "__init__.py"), "0.4.1"], done.stderr


def test_the_gpu_tests_need_nothing_of_the_root_conftest(carried):
    import gpu

    # Without plugins, Flax and hypothesis: what gpu.py runs can be collected by pytest alone.
    blocked = "import sys; sys.modules.update(dict.fromkeys(('flax', 'hypothesis', 'moe_jax')));"
    words = [word for word in gpu.test_command() if word not in ("-n", "8")][3:]
    code = f"{blocked} import pytest; sys.exit(pytest.main({[*words, '--collect-only']!r}))"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "kernels"), "JAX_PLATFORMS": "cpu"}
    env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_several_tiles" in done.stdout
    assert "test_wide_tiles" in done.stdout


def test_short_calls_are_timed_together_where_calls_do_not_wait(loads, monkeypatch):
    import interleave

    clock = [0.0]
    ran = []

    def call(name, ms):
        ran.append(name)
        clock[0] += ms / 1e3

    monkeypatch.setattr(interleave.time, "perf_counter", lambda: clock[0])
    rivals = {"short": lambda: call("short", 2), "long": lambda: call("long", 50)}
    found = interleave.measure(rivals, 3)
    assert (found["short"].wall, found["long"].wall) == pytest.approx((2, 50))
    assert ran.count("short") == ran.count("long") == 1 + 3  # on a CPU one by one
    ran.clear()
    monkeypatch.setattr(interleave.jax, "default_backend", lambda: "gpu")
    found = interleave.measure(rivals, 3)
    assert (found["short"].wall, found["long"].wall) == pytest.approx((2, 50))
    assert ran.count("short") == 2 + 3 * 10
    assert ran.count("long") == 2 + 3


def test_parts_gives_every_operation_and_the_share_of_routing(tmp_path):
    out = tmp_path / "parts.json"
    done = run(f"--shapes={SHAPE}", "--repeats=1", f"--json_out={out}", script="parts.py")
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    rows = table(done.stdout.partition("routing (")[0])
    assert len(rows) == len(found["figures"]) == 15
    for printed, row in zip(rows, found["figures"], strict=True):
        assert (printed["operation"], printed["what"]) == (row["operation"], row["what"])
        assert printed["ms"] == f"{row['ms']:.3f}"
    ms = {row["operation"]: row["ms"] for row in found["figures"] if row["what"] == "forward"}
    share = 1 - (2 * ms["grouped_gemm_up"] + ms["grouped_gemm_down"]) / ms["layer"]
    assert found["routing_share"][SHAPE]["forward"] == pytest.approx(share)


def spread(loads, kind, **more):
    """Busiest and least busy expert's load over the mean; every token's experts differ."""
    shape = loads.Shape(4096, 4, 4, 16, 3)
    expert = loads.choices(shape, loads.Load(kind, **more), seed=0)
    assert expert.shape == (4096, 3)
    assert all(len(set(row)) == 3 for row in expert.tolist())
    counts = np.bincount(expert.reshape(-1), minlength=16)
    assert counts.size == 16
    return counts.max() / counts.mean(), counts.min() / counts.mean()


def test_loads_are_as_uneven_as_they_say(loads):
    most, least = spread(loads, "uniform")
    assert 0.85 < least < most < 1.15
    for kind, peak in (("dirichlet", 1.5), ("zipf", 2.5)):
        most, least = spread(loads, kind)
        assert most > peak
        assert least < 0.6


def test_a_file_of_counts_gives_the_popularities(loads, tmp_path):
    path = tmp_path / "counts.json"
    path.write_text(json.dumps(COUNTS))
    rng = np.random.default_rng(0)
    even, uneven = (loads.Load("olmoe", str(path), f"c4:{layer}") for layer in (0, 1))
    np.testing.assert_allclose(loads.popularity(even, 8, rng), 1 / 8)
    np.testing.assert_allclose(loads.popularity(uneven, 8, rng), [0.93] + [0.01] * 7)
    # Another number of experts: the same part of them does the same part of the work.
    half = np.sort(loads.popularity(uneven, 4, rng))
    np.testing.assert_allclose(half, [0.02, 0.02, 0.02, 0.94])
    double = np.sort(loads.popularity(uneven, 16, rng))
    np.testing.assert_allclose(double, [0.005] * 14 + [0.465] * 2)
    most, _ = spread(loads, "olmoe", file=str(path), layer="c4:1")
    assert most > 2.5
    with pytest.raises(ValueError, match=r"layer 'c4:2' is not in the file, which has c4:0\.\.1"):
        loads.counts_of(loads.Load("olmoe", str(path), "c4:2"))


def test_shape_names_and_numbers_can_be_joined(loads):
    assert loads.parse("tiny,30B;8,4,4,2,1") == (
        *loads.SETS["tiny"],
        *loads.SETS["30B"],
        loads.Shape(8, 4, 4, 2, 1),
    )
    published = [shape for name in ("1.4B", "7B", "30B", "120B") for shape in loads.SETS[name]]
    assert len(set(published)) == 12
    assert {shape.d_expert * shape.k for shape in loads.SETS["7B"]} == {2048}
