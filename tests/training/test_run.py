"""`run` and `evaluate`: the files of a whole run, from Python as from the launch script."""

import json
import shutil

import pytest

from moe_jax.errors import UserError
from moe_jax.training import Evaluation, ProfileSteps, TrainConfig, evaluate, run
from tests.training import toy


def config(**changes):
    fields = {"steps": 12, "learning_rate": 0.03, "log_every": 4, "checkpoint_every": 4}
    return toy.ToyConfig(train=TrainConfig(**fields | changes))


class Judged(toy.ToyTask):
    """Counts how often it is asked, and may fail."""

    def __init__(self, fails=False):
        super().__init__()
        self.fails, self.asked = fails, []

    def init(self, rngs):
        if self.fails:
            raise UserError("data.path=nowhere: no such file")
        return super().init(rngs)

    def evaluate(self, model):
        self.asked.append("evaluate")
        return {"accuracy": 0.5, "ratio": float("nan")}

    def report(self, model, workdir):
        self.asked.append("report")
        super().report(model, workdir)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(workdir, task, result) of a whole run."""
    workdir, task = tmp_path_factory.mktemp("run") / "new", Judged()
    return workdir, task, run(task, config(), workdir)


def test_a_run_leaves_its_files(finished):
    workdir, task, result = finished
    assert result == Evaluation(12, {"accuracy": 0.5, "ratio": None}, was_finished=False)
    assert task.asked == ["evaluate", "report"]
    assert json.loads((workdir / "finished.json").read_text()) == {"step": 12}
    assert json.loads((workdir / "evaluation.json").read_text()) == {
        "step": 12,
        "figures": {"accuracy": 0.5, "ratio": None},
    }
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 12
    assert (workdir / "report.html").exists()
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["12", "8"]


def test_a_finished_run_is_only_read(finished):
    workdir, _, result = finished
    task = Judged(fails=True)
    assert run(task, config(), str(workdir)) == result._replace(was_finished=True)
    assert task.asked == []
    with pytest.raises(UserError, match=r"--profile_steps=2:3: the run in .* is finished"):
        run(task, config(), workdir, profile=ProfileSteps(2, 3))
    with pytest.raises(UserError, match=r"train.steps=12, not 13"):
        run(task, config(steps=13), workdir)


def test_a_run_that_was_stopped_before_its_report_ends_with_it(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "finished.json").unlink()
    task = Judged()
    assert run(task, config(), tmp_path / "run") == finished[2]
    assert task.asked == ["evaluate", "report"]
    assert (tmp_path / "run" / "finished.json").exists()


def test_a_new_run_that_fails_at_once_leaves_no_folder(tmp_path):
    with pytest.raises(UserError, match=r"data\.path=nowhere"):
        run(Judged(fails=True), config(), tmp_path / "run")
    with pytest.raises(UserError, match=r"train\.steps=0"):
        run(Judged(), config(steps=0), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_evaluating_a_checkpoint(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    task = Judged()
    assert evaluate(task, tmp_path / "run", "8").step == 8
    assert task.asked == ["evaluate", "report"]
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["step"] == 8
    with pytest.raises(UserError, match="there is no checkpoint 9; there are 8, 12"):
        evaluate(task, tmp_path / "run", "9")
