"""Writers and running means."""

import json
import math
import struct
import sys

import jax.numpy as jnp
import pytest

from moe_jax.common import files
from moe_jax.errors import UserError
from moe_jax.training import TrainConfig, metrics
from moe_jax.training.evaluation import read_evaluation, write_evaluation


def test_lines_are_json_and_what_is_not_finite_is_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = metrics.JsonlWriter(path)
    writer.write(3, {"loss": math.nan, "a": 0.1, "skipped": 2})
    writer.write(4, {"loss": math.inf})
    assert path.read_text() == '{"step": 3, "loss": null, "a": 0.1, "skipped": 2}\n' + (
        '{"step": 4, "loss": null}\n'
    )
    writer.close()


@pytest.mark.parametrize(
    "tail",
    [
        "",
        '{"step": 2, "lo',
        '{"step": 2}',
        "\n",
        "[]\n",
        "nonsense\n",
        "[" * 100_000 + "\n",
        "\0\0",
    ],
)
def test_truncating_drops_later_steps_and_what_was_half_written(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    whole = [json.dumps({"step": n, "loss": n / 3}) + "\n" for n in (1, 2, 2, 3, 4)]
    path.write_text("".join(whole) + tail)
    metrics.truncate(path, 2)
    assert path.read_text() == "".join(whole[:3])
    metrics.truncate(path, 0)
    assert path.read_text() == ""
    metrics.truncate(tmp_path / "none.jsonl", 0)
    assert not (tmp_path / "none.jsonl").exists()


def test_the_evaluation_of_a_step_is_found_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert metrics.evaluation_at(path, 2) is None
    writer = metrics.JsonlWriter(path)
    writer.write(2, {"loss": 1.0})
    writer.write(2, {"eval/a": 0.1, "eval/b": math.nan})
    writer.close()
    found = metrics.evaluation_at(path, 2)
    assert found["a"] == 0.1
    assert math.isnan(found["b"])
    assert metrics.evaluation_at(path, 1) is None


def scalars(step, ok=True):
    return {"loss": jnp.float32(step / 3), "ok": jnp.bool_(ok)}


def test_the_window_gives_means_of_the_steps_taken():
    window = metrics.Window()
    for step in range(5):
        window.add(scalars(step, ok=step != 2))
    line = window.close()
    assert line == {"loss": pytest.approx((0 + 1 + 3 + 4) / 3 / 4, rel=1e-6), "skipped": 1}
    assert window.close() == {"skipped": 0}


def test_a_window_saved_half_way_goes_on_to_the_same_bits():
    def means(cuts):
        window = metrics.Window()
        for step in range(300):
            window.add(scalars(step))
            if step in cuts:
                window = metrics.Window(json.loads(json.dumps(window.save())))
        return window.close()

    assert means([]) == means([0, 127, 128, 200]) == means([298])


def test_the_backlog_is_fetched_now_and_then():
    window = metrics.Window()
    fetched = [window.add(scalars(step)) for step in range(2 * metrics.Window.BACKLOG)]
    assert [n for n, was in enumerate(fetched, 1) if was] == [128, 256]


def records(path):
    """The payloads of a TFRecord file: length, its CRC, data, its CRC."""
    content, place = path.read_bytes(), 0
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        yield content[place + 12 : place + 12 + length]
        place += 16 + length


def test_tensorboard_events_hold_the_scalars(tmp_path):
    from tensorboardX.proto import event_pb2

    config = TrainConfig(tensorboard=True)
    writers = metrics.open_writers(tmp_path, config, resumed_at=4)
    for writer in writers:
        writer.write(7, {"loss": 0.5, "eval/a": 2.0})
        writer.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    events = [event_pb2.Event.FromString(data) for data in records(path)]
    values = {(e.step, v.tag): v.simple_value for e in events for v in e.summary.value}
    assert values == {(7, "loss"): 0.5, (7, "eval/a"): 2.0}
    # Tells TensorBoard to hide what an interrupted run wrote after the step it resumes from.
    assert [e.step for e in events if e.session_log.status] == [5]
    assert metrics.read(tmp_path / "metrics.jsonl") == [{"step": 7, "loss": 0.5, "eval/a": 2.0}]


def test_without_tensorboardx_the_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"pip install 'moe-jax\[tensorboard\]'"):
        metrics.TensorBoardWriter(tmp_path, 0)


def test_a_full_disk_under_metrics_is_one_line(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    writer = metrics.JsonlWriter(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match=r"metrics\.jsonl: can't be written: No space left"):
        writer.write(1, {"loss": 1.0})
    with pytest.raises(OSError, match="No space"):
        writer.close()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "evaluation.json"
    write_evaluation(tmp_path, 3, {"a": 1, "b": math.nan})
    assert json.loads(target.read_text()) == {"step": 3, "figures": {"a": 1.0, "b": None}}

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_evaluation(tmp_path, 4, {"a": 2.0})
    assert json.loads(target.read_text())["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.json"]


def test_separators_within_a_line_do_not_end_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    line = '{"step": 1, "eval/a\u2028b": 0.5}\n'
    path.write_bytes(line.encode() + b'{"step": 2, "\xff": 1}\n{"step": 3, "lo')
    assert metrics.evaluation_at(path, 1) == {"a\u2028b": 0.5}
    assert [read["step"] for read in metrics.read(path)] == [1]
    metrics.truncate(path, 5)
    assert path.read_text(encoding="utf-8") == line


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"step": 1}', '{"figures": [1]}', '{"figures": {"a": "b"}}', "[" * 9999]
)
def test_a_damaged_evaluation_is_one_line(tmp_path, content):
    figures = write_evaluation(tmp_path, 3, {"a": 0.5, "b": math.nan})
    assert read_evaluation(tmp_path) == figures == {"a": 0.5, "b": None}
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(UserError, match=r"evaluation\.json: "):
        read_evaluation(tmp_path)
