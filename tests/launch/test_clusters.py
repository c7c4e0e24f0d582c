"""The files of launch/clusters/, with Slurm, Kubernetes and gcloud played by a few lines."""

import dataclasses
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launch import _configs
from moe_jax.misrouting.config import MisroutingConfig
from tests.training.moe_toy import MoEToyConfig

ROOT = Path(__file__).resolve().parents[2]
CLUSTERS = ROOT / "launch" / "clusters"
LIMIT = 240
SHORT = [
    "--config=tests/training/moe_toy.py",
    "--config.train.steps=4",
    "--config.train.checkpoint_every=2",
    "--config.train.eval_every=2",
]


def environment(**more):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    own = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": paths}
    return os.environ | own | more


def executable(path, text):
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)


def toy_python(folder):
    """A Python whose launch scripts know the toy systems."""
    with_toys = [sys.executable, str(ROOT / "tests" / "launch" / "with_toys.py")]
    command = f"{with_toys} + sys.argv[1:]"
    executable(folder / "python", f"import os, sys\nos.execv({sys.executable!r}, {command})")
    return folder / "python"


def finished(workdir):
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert (workdir / "finished.json").exists()


# What srun gives its two tasks, as JAX reads it; the exit status is the highest of theirs.
SRUN = """
import os, subprocess, sys
command = [a for a in sys.argv[1:] if not a.startswith("--kill")]
step = {"SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
tasks = [
    subprocess.Popen(command, env=os.environ | step | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)})
    for i in range(2)
]
sys.exit(max(task.wait() for task in tasks))
"""


@pytest.fixture
def slurm(tmp_path):
    """A folder with srun and scontrol, and a job number whose port is free."""
    folder = tmp_path / "bin"
    folder.mkdir()
    executable(folder / "srun", SRUN)
    requeued = tmp_path / "requeued"
    executable(
        folder / "scontrol",
        f"import sys; open({str(requeued)!r}, 'w').write(' '.join(sys.argv[1:]))",
    )
    with socket.socket() as probe:
        for job in range(os.getpid() % 4096, 8192):
            port = job % 2**12 + (65535 - 2**12 + 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            break
    return {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": str(job),
        "MOE_PYTHON": str(toy_python(folder)),
    }


@pytest.mark.slow
def test_the_slurm_script_trains(slurm, tmp_path):
    workdir = tmp_path / "run"
    command = ["bash", str(CLUSTERS / "slurm.sbatch"), *SHORT, f"--workdir={workdir}"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(**slurm), capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    finished(workdir)
    assert not (tmp_path / "requeued").exists()


@pytest.mark.parametrize(("status", "again"), [(143, True), (2, False), (0, False)])
def test_a_job_that_ran_out_of_time_goes_back_into_the_queue(slurm, tmp_path, status, again):
    executable(tmp_path / "bin" / "srun", f"import sys; sys.exit({status})")
    command = ["bash", str(CLUSTERS / "slurm.sbatch"), "--config=x"]
    done = subprocess.run(command, cwd=ROOT, env=environment(**slurm), check=False)
    assert done.returncode == status
    asked = tmp_path / "requeued"
    assert asked.exists() == again
    if again:
        assert asked.read_text() == f"requeue {slurm['SLURM_JOB_ID']}"


def test_the_arguments_reach_srun_unharmed(slurm, tmp_path):
    seen = tmp_path / "seen.json"
    executable(
        tmp_path / "bin" / "srun",
        f"import json, sys; json.dump(sys.argv, open({str(seen)!r}, 'w'))",
    )
    given = ["--config=configs/a b.py", "--workdir=x 'y'"]
    subprocess.run(
        ["bash", str(CLUSTERS / "slurm.sbatch"), *given],
        cwd=ROOT,
        env=environment(**slurm),
        check=True,
    )
    assert json.loads(seen.read_text())[-4:] == ["launch/train.py", "--coordinator=auto", *given]


@pytest.fixture(scope="module")
def jobset():
    return yaml.safe_load((CLUSTERS / "jobset.yaml").read_text())


def container(jobset):
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (only,) = spec["template"]["spec"]["containers"]
    return job, spec, only


def test_the_manifest_agrees_with_itself(jobset):
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    job, spec, only = container(jobset)
    assert spec["parallelism"] == spec["completions"]
    assert f"--num_processes={spec['completions']}" in only["args"]
    name = jobset["metadata"]["name"]
    assert f"--coordinator={name}-{job['name']}-0-0.{name}:8476" in only["args"]
    assert spec["completionMode"] == "Indexed"
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    pod = spec["template"]["spec"]
    assert {v["name"] for v in pod["volumes"]} == {m["name"] for m in only["volumeMounts"]}
    mounts = [m["mountPath"] for m in only["volumeMounts"]]
    (workdir,) = [a.split("=")[1] for a in only["args"] if a.startswith("--workdir")]
    assert any(workdir.startswith(mount) for mount in mounts)


@pytest.mark.slow
def test_the_pods_of_the_manifest_train(jobset, tmp_path):
    """Each pod's command, its variables filled in as Kubernetes does."""
    _, spec, only = container(jobset)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workdir = tmp_path / "run"
    pods = []
    for index in range(spec["completions"]):
        values = {entry["name"]: str(index) for entry in only["env"]}
        args = [re.sub(r"\$\((\w+)\)", lambda m, v=values: v[m[1]], a) for a in only["args"]]
        args = [re.sub(r"^--coordinator=.*", f"--coordinator=127.0.0.1:{port}", a) for a in args]
        args = [a for a in args if not a.startswith(("--config", "--workdir"))]
        command = [
            toy_python(tmp_path),
            *only["command"][1:],
            *args,
            *SHORT,
            f"--workdir={workdir}",
        ]
        inside = environment(KUBERNETES_SERVICE_HOST="10.0.0.1", **values)
        pods.append(
            subprocess.Popen(
                command, cwd=ROOT, env=inside, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
    outputs = [pod.communicate(timeout=LIMIT)[0].decode() for pod in pods]
    assert [pod.returncode for pod in pods] == [0, 0], outputs
    finished(workdir)
    assert not any("Kubernetes" in output for output in outputs)


def test_the_command_for_all_tpu_hosts(tmp_path):
    """The fake gcloud runs --command in a shell, as a host would, on a fake python."""
    home, seen = tmp_path / "home", tmp_path / "seen.json"
    folder = tmp_path / "bin"
    (home / "moe_jax" / ".venv" / "bin").mkdir(parents=True)
    folder.mkdir()
    executable(
        home / "moe_jax" / ".venv" / "bin" / "python",
        f"import json, os, sys; json.dump([os.getcwd(), *sys.argv[1:]], open({str(seen)!r}, 'w'))",
    )
    executable(
        folder / "gcloud",
        "import subprocess, sys\n"
        "assert sys.argv[1:6] == ['compute', 'tpus', 'tpu-vm', 'ssh', 'my-slice']\n"
        "assert sys.argv[6:8] == ['--zone=a zone', '--worker=all']\n"
        "sys.exit(subprocess.call(sys.argv[8].split('=', 1)[1], shell=True))",
    )
    given = ["--config=it's.py", '--workdir=/mnt/a "b" $c', "--config.train.mesh.fsdp=8"]
    subprocess.run(
        ["bash", str(CLUSTERS / "cloud_tpu.sh"), "my-slice", "a zone", *given],
        env=environment(HOME=str(home), PATH=f"{folder}{os.pathsep}{os.environ['PATH']}"),
        check=True,
    )
    where, script, *flags = json.loads(seen.read_text())
    assert where == str(home / "moe_jax")
    assert (script, flags) == ("launch/train.py", ["--coordinator=auto", *given])


@pytest.mark.parametrize(("argv", "status"), [(["--help"], 0), ([], 2), (["a", "b"], 2)])
def test_how_the_tpu_script_is_used(argv, status):
    done = subprocess.run(
        ["bash", str(CLUSTERS / "cloud_tpu.sh"), *argv], capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    assert "cloud_tpu.sh NAME ZONE" in (done.stderr if status else done.stdout)


TEXT = (ROOT / "docs" / "launching.md").read_text(encoding="utf-8")


def test_the_page_names_files_that_exist():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]
    paths = [ROOT / "docs" / link for link in links]
    paths += [ROOT / name for name in re.findall(r"(?:launch|configs|constraints)/[\w./]+\w", TEXT)]
    assert paths
    assert [path for path in paths if not path.exists()] == []


def test_the_page_names_flags_that_exist():
    from launch import train

    known = {field.name for field in dataclasses.fields(train.TrainFlags)}
    used = set()
    for line in TEXT.splitlines():
        if "launch/train.py" in line or "--coordinator" in line or line.startswith("|"):
            used |= set(re.findall(r"(?<![\w-])--(\w+)(?![\w.])", line))
    assert used - {"no", "require"} <= known | {"config"}
    fields = set(re.findall(r"--config\.([\w.]+)=", TEXT))
    known = {*_configs.field_paths(MoEToyConfig()), *_configs.field_paths(MisroutingConfig())}
    assert fields <= known


def test_the_page_shell_parses():
    for block in re.findall(r"(?:^    .*\n)+", TEXT, re.MULTILINE):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
        assert shlex.split(block, comments=True)
