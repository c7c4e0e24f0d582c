"""launch/profile_routing.py as a user meets it, and the script that makes prompts of GSM8K."""

import dataclasses
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest

from launch import _cli as cli
from launch import profile_routing as script
from moe_jax.errors import UserError
from moe_jax.misrouting import ProfileConfig, Prompt, profile, read_prompts, write_prompts
from moe_jax.misrouting.profile_files import read_profile
from moe_jax.misrouting.reading import read
from moe_jax.models import load_lm
from tests.misrouting import small_lm, small_switch_lm
from tests.models import small_causal

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("own_warnings")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """(folder of a model, file of 16 prompts)."""
    folder = tmp_path_factory.mktemp("given")
    prompts = [
        Prompt(("1+2=" if i % 2 else "3-9+1=") + f"{i % 10}\nAnswer: {i}", 1.0 + i % 2, str(i))
        for i in range(16)
    ]
    write_prompts(prompts, folder / "prompts.jsonl")
    return small_lm.write(folder / "model"), folder / "prompts.jsonl"


def call(*flags):
    return cli.run(script.main, ["profile_routing.py", *map(str, flags)])


def flags(given, workdir, *more):
    model, prompts = given
    return f"--model={model}", f"--prompts={prompts}", f"--workdir={workdir}", *more


def test_a_whole_study(given, tmp_path, capsys):
    workdir = tmp_path / "new" / "study"
    assert call(*flags(given, workdir, "--permutations=99", "--tokens=after:Answer:")) == 0
    out = capsys.readouterr().out
    assert "of 16 experts change" in out
    assert "selected on half A" in out
    names = ["profile.csv", "profile.html", "profile.json", "usage.csv"]
    assert sorted(p.name for p in workdir.iterdir()) == names
    result = read_profile(workdir)
    lm, prompts = load_lm(given[0]), read_prompts(given[1])
    assert result.model.expert_layers == (0, 1)
    np.testing.assert_array_equal(result.tokens, [2] * 10 + [3] * 6)
    reading = next(r for r in read(lm, prompts) if r.number == 3)
    times = np.bincount(reading.expert[-2:, 1].ravel(), minlength=8)
    np.testing.assert_allclose(result.usage[3, 1], times / 6)
    assert len(result.samples) == 4


def test_from_python_the_files_are_the_same(given, tmp_path):
    assert call(*flags(given, tmp_path / "script", "--permutations=99", "--top=2")) == 0
    config = ProfileConfig(
        model=str(given[0]),
        prompts=str(given[1]),
        workdir=tmp_path / "python",
        permutations=99,
        top=2,
    )
    result = profile.run(config)
    assert len(result.selection.expert) == 2
    for name in ("profile.csv", "profile.html", "profile.json", "usage.csv"):
        ours, theirs = ((tmp_path / one / name).read_bytes() for one in ("python", "script"))
        assert ours == theirs, name


def test_generation_weights_and_groups_reach_the_study(given, tmp_path, capsys):
    more = ("--generate=4", "--tokens=generated", "--usage=soft", "--weights=-2,2", "--top=3")
    more += ("--permutations=99", "--batch_size=5", "--select_half=false", "--seed=4")
    assert call(*flags(given, tmp_path, *more)) == 0, capsys.readouterr().err
    result = read_profile(tmp_path)
    assert result.settings.weights == (-2.0, 2.0)
    settings = result.settings
    assert (settings.usage, settings.seed, settings.generate) == ("soft", 4, 4)
    assert (settings.tokens, settings.prompts) == ("generated", str(given[1]))
    np.testing.assert_allclose(result.usage.sum(axis=2), 1, rtol=1e-5)
    assert result.tokens.max() <= 3
    assert not result.selection.halved
    assert len(result.selection.expert) == 3


def test_a_second_model_beside_it(given, tmp_path, capsys):
    other = small_lm.write(tmp_path / "other", seed=1)
    more = ("--permutations=99", f"--compare={other}")
    assert call(*flags(given, tmp_path / "run", *more)) == 0, capsys.readouterr().err
    (compared,) = read_profile(tmp_path / "run").compared
    assert compared.name == str(other)
    assert ((compared.jaccard > 0) & (compared.jaccard < 1)).all()


def test_routes_instead_of_a_run(given, tmp_path, capsys):
    lm, prompts = load_lm(given[0]), read_prompts(given[1])
    mine = {r.number: r.expert for r in read(lm, prompts)}
    np.savez(tmp_path / "routes.npz", *(mine[i] for i in range(16)))
    assert call(*flags(given, tmp_path / "own", "--permutations=99")) == 0
    routes = f"--routes={tmp_path / 'routes.npz'}"
    assert call(*flags(given, tmp_path / "run", "--permutations=99", routes)) == 0
    own, run = read_profile(tmp_path / "own"), read_profile(tmp_path / "run")
    np.testing.assert_array_equal(own.usage, run.usage)
    assert np.isnan(run.balance.entropy).all()
    capsys.readouterr()
    assert call(*flags(given, tmp_path / "no", routes, "--usage=gate")) == 2
    assert "recorded routes don't hold" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more, message",
    [
        (["--usage=some"], "usage='some': must be one of"),
        (["--weights=-1,0,1"], "3 numbers for 2 levels"),
        (["--weights=-1,2"], "must add up to 0"),
        (["--weights=a,b"], "--weights=a,b: must be numbers with commas between"),
        (["--tokens=aftr:x"], "did you mean after?"),
        (["--tokens=after:Result:"], "prompt 0: the text has no 'Result:'"),
        (["--tokens=generated"], "needs generate of at least 2"),
        (["--generate=-1"], "generate must be at least 0"),
        (["--generate=many"], "--generate=many: must be a whole number"),
        (["--generate=60"], "more than the model's context of 64"),
        (["--top=17"], "top=17 is more than the model's 16 experts"),
        (["--select_half=maybe"], "must be true or false"),
        (["--permutations=5"], "permutations=5: must be at least 19"),
        (["--compare=x", "--generate=3"], "leave out --generate"),
        (["--model=nowhere"], "is not a folder with config.json"),
        (["--prompts=nowhere.jsonl"], "can't be read"),
        (["--routes=nowhere.npz"], "can't be read as .npz"),
        (["--workdir={file}"], "is a file; name a folder"),
        (["--unknown=1"], "--unknown: no such flag"),
    ],
)
def test_one_line_for_a_mistake(given, tmp_path, capsys, more, message):
    (tmp_path / "file").write_text("")
    more = [flag.format(file=tmp_path / "file") for flag in more]
    assert call(*flags(given, tmp_path / "run", *more)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    error = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert message in error[0]
    assert not (tmp_path / "run").exists()


def test_a_model_without_experts_and_levels_of_one(given, tmp_path, capsys):
    dense = small_lm.write(tmp_path / "dense", "llama")
    assert call(*flags((dense, given[1]), tmp_path / "run")) == 2
    assert "this model has no experts" in capsys.readouterr().err
    single = [*read_prompts(given[1]), Prompt("7", 5.0, "")]
    write_prompts(single, tmp_path / "single.jsonl")
    assert call(*flags((given[0], tmp_path / "single.jsonl"), tmp_path / "run")) == 2
    assert "difficulty 5 has 1 prompt(s)" in capsys.readouterr().err


def test_help_names_every_flag(capsys):
    assert call("--help") == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(ProfileConfig):
        assert re.search(rf"^  --(\[no\])?{field.name}(=\S+)? ", text, re.MULTILINE), field.name
    assert call("--prompts=x", "--workdir=y") == 2
    assert "--model=DIR is missing: a Hugging Face folder" in capsys.readouterr().err


@pytest.fixture(scope="module")
def gsm8k():
    spec = importlib.util.spec_from_file_location("g", ROOT / "scripts" / "prompts_from_gsm8k.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LINES = [
    {"question": "Two and two? ", "answer": "2+2=<<2+2=4>>4.\nSo it is 4.\n#### 4"},
    {"question": "A lot?", "answer": "It is 1000*2 = $<<1000*2=2000>>2,000.\n#### 2,000"},
]


def test_gsm8k_lines_by_hand(gsm8k):
    first, second = (gsm8k.prompt_from(line, "x") for line in LINES)
    assert first == Prompt("Question: Two and two?\n", 2.0, "4", "gsm8k", "2+2=4.\nSo it is 4.\n")
    assert second == Prompt("Question: A lot?\n", 1.0, "2000", "gsm8k", "It is 1000*2 = $2,000.\n")
    assert gsm8k.choose([first, second, first], [1, 2], 1) == [second, first]
    for bad in ({"question": "a", "answer": "b"}, {"question": 1, "answer": "#### 2"}):
        with pytest.raises(UserError, match=r"^f, line 7: "):
            gsm8k.prompt_from(bad, "f, line 7")


def test_gsm8k_as_a_script(gsm8k, tmp_path, capsys):
    (tmp_path / "in").write_text("\n".join(json.dumps(line) for line in LINES))
    assert gsm8k.main([str(tmp_path / "in"), str(tmp_path / "out"), "--levels=1,2"]) == 0
    assert capsys.readouterr().out == "difficulty 1: 1, difficulty 2: 1\n"
    assert [p.answer for p in read_prompts(tmp_path / "out")] == ["2000", "4"]
    assert gsm8k.main([str(tmp_path / "in"), str(tmp_path / "out"), "--levels=9"]) == 2
    assert "no prompt of the levels 9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "stack"), [((), "encoder"), (("--generate=5", "--tokens=generated"), "decoder")]
)
def test_a_switch_transformer(given, tmp_path, capsys, more, stack):
    folder = small_switch_lm.write(tmp_path / "switch", seed=3)
    more = ("--permutations=99", "--usage=selection", *more)
    assert call(*flags((folder, given[1]), tmp_path / "run", *more)) == 0, capsys.readouterr().err
    result = read_profile(tmp_path / "run")
    assert result.model.name == f"{folder} ({stack})"
    whole = result.usage.sum(axis=2)
    if stack == "encoder":
        assert (whole < 1).any(), "room for two tokens an expert, of 13 at least: some are dropped"
    else:
        np.testing.assert_allclose(whole, 1, rtol=1e-5)
    assert stack in (tmp_path / "run" / "profile.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("escaped", [True, False])
def test_gsm8k_with_separators_within_its_texts(gsm8k, tmp_path, capsys, mark, escaped):
    row = {"question": "A\u2028b\u0085c?", "answer": "1+1\u2028=2\r\n2+1\u2029\x0c=3\n#### 3"}
    text = mark + f"{json.dumps(row, ensure_ascii=escaped)}\r\n" * 2
    (tmp_path / "in").write_bytes(text.encode())
    assert gsm8k.main([str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == "difficulty 2: 2\n"
    assert (
        read_prompts(tmp_path / "out")
        == [
            Prompt(
                "Question: A\u2028b\u0085c?\n", 2.0, "3", "gsm8k", "1+1\u2028=2\n2+1\u2029\x0c=3\n"
            )
        ]
        * 2
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"question": "\\ud83d", "answer": "a\\n#### 1"}', r"question holds \ud83d, half"),
        ('{"question": "a", "answer": "\\udfff\\n#### 1"}', r"answer holds \udfff, half"),
        (f'{{"question": "a", "answer": "b", "id": {"7" * 5000}}}', "4,300 digits"),
        ("[" * 100_000, "nested too deeply"),
        ("{}", "has no 'question'"),
        ("3", "must be an object with question, answer, not a number"),
    ],
)
def test_gsm8k_lines_that_are_wrong(gsm8k, tmp_path, capsys, line, says):
    (tmp_path / "in").write_text(f"{json.dumps(LINES[0])}\n\n{line}\n")
    assert gsm8k.main([str(tmp_path / "in"), str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {tmp_path / 'in'}, line 3: ")
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_half_a_character_stops_it_before_anything_is_read(given, tmp_path, capsys):
    row = {"prompt": "1+2=", "difficulty": 1, "answer": "3", "group": "set \ud83d"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    assert call(*flags(("nowhere", tmp_path / "p.jsonl"), tmp_path / "run")) == 2
    assert f"{tmp_path / 'p.jsonl'}, line 1: group holds \\ud83d" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_paths_in_flags(given, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(given[0].parent))
    monkeypatch.chdir(tmp_path)
    for name in ("model", "prompts", "workdir", "compare", "routes"):
        assert call(*flags(given, tmp_path / "run", f"--{name}=gs://bucket/x")) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: --{name}=gs://bucket/x: must be a file or folder of this")
    assert call(*flags(given, tmp_path / "run", "--system=\udcff")) == 2
    assert "holds bytes that are not UTF-8" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    mine = flags(("~/model", "~/prompts.jsonl"), "~/run", "--permutations=99")
    assert call(*mine) == 0, capsys.readouterr().err
    assert (given[0].parent / "run" / "profile.json").exists()
    assert not list(tmp_path.iterdir())


def test_routes_with_a_row_for_every_layer(tmp_path, capsys):
    """As engines record them: zeros where a layer has no experts."""
    kind = small_causal.CONFIGS["qwen3_moe"]
    model, rng = small_lm.write(tmp_path / "model", "qwen3_moe"), np.random.default_rng(0)
    prompts = [Prompt(f"{i % 10}+{i // 2}=", 1.0 + i % 2, "1") for i in range(16)]
    write_prompts(prompts, tmp_path / "prompts.jsonl")
    k, experts = kind["num_experts_per_tok"], kind["num_experts"]
    chosen = [
        np.stack([rng.permutation(experts)[:k] for _ in p.text])[:, None].astype(np.uint8)
        for p in prompts
    ]
    np.savez(tmp_path / "some.npz", *chosen)
    np.savez(tmp_path / "all.npz", *(np.pad(a, ((0, 0), (1, 0), (0, 0))) for a in chosen))
    for name in ("some", "all"):
        more = ("--permutations=99", f"--routes={tmp_path / name}.npz")
        mine = flags((model, tmp_path / "prompts.jsonl"), tmp_path / name, *more)
        assert call(*mine) == 0, capsys.readouterr().err
    for name in ("profile.csv", "usage.csv"):
        assert (tmp_path / "all" / name).read_bytes() == (tmp_path / "some" / name).read_bytes()
    assert read_profile(tmp_path / "all").model.expert_layers == (1,)
