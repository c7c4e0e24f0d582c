"""--chat and --system of both scripts: what is read, what is told, what is refused."""

import json

import pytest
from tokenizers import Tokenizer, processors

from launch import _cli as cli
from launch import misroute, profile_routing
from moe_jax.misrouting import Prompt, study, write_prompts
from moe_jax.misrouting.profile_files import read_profile
from tests.misrouting import small_lm

TEMPLATE = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ messages[0].content }}:{% endif -%}
Q:{{ messages[-1].content }}\nA:
"""
BEGIN = small_lm.CHARACTERS.index("<begin>")
ASK = ("--chat=true", "--system=10+")


pytestmark = pytest.mark.usefixtures("own_warnings", "quick")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """(folder of a model whose tokenizer begins texts itself, with a template; 8 prompts)."""
    folder = tmp_path_factory.mktemp("given")
    prompts = [Prompt(f"{i}+2=", 1.0 + i % 2, str(i + 2)) for i in range(8)]
    write_prompts(prompts, folder / "prompts.jsonl")
    model = small_lm.write(folder / "model", "qwen3_moe")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<begin> $A", special_tokens=[("<begin>", BEGIN)]
    )
    tokenizer.save(str(model / "tokenizer.json"))
    (model / "chat_template.jinja").write_text(TEMPLATE)
    (model / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<begin>"}))
    return model, folder / "prompts.jsonl"


def call(script, given, workdir, *more):
    model, prompts = given
    flags = (f"--model={model}", f"--prompts={prompts}", f"--workdir={workdir}", *more)
    return cli.run(script.main, ["script.py", *map(str, flags)])


def stage_1(given, workdir, *more):
    return call(profile_routing, given, workdir, "--permutations=19", "--top=1", *more)


@pytest.fixture(scope="module")
def profiled(given, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("profile")
    assert stage_1(given, workdir, *ASK) == 0
    return workdir


def test_a_profile_of_chats(given, profiled, tmp_path):
    result = read_profile(profiled)
    assert (result.settings.chat, result.settings.system) == (True, "10+")
    chat = ["<begin>", *"10+:Q:0+2=\nA:"]
    assert list(result.samples[0].pieces) == chat  # <begin> once
    assert set(result.length.tolist()) == {len(chat)}
    page = (profiled / "profile.html").read_text()
    assert "<dt>chat</dt><dd>True</dd><dt>system</dt><dd>10+</dd>" in page.replace("\n", "")
    assert stage_1(given, tmp_path) == 0
    plain = read_profile(tmp_path)
    assert (plain.settings.chat, plain.settings.system) == (False, "")
    assert list(plain.samples[0].pieces) == ["<begin>", *"0+2="]


def test_a_second_model_reads_the_same_chats(given, tmp_path, capsys):
    assert stage_1(given, tmp_path, *ASK, f"--compare={given[0]}") == 0, capsys.readouterr().err
    (compared,) = read_profile(tmp_path).compared
    assert (compared.jaccard == 1).all()


def stage_2(monkeypatch, given, workdir, *more):
    """What the study would have been run on."""
    seen = {}

    def run_study(lm, prompts, selection, config, folder, **rest):
        seen.update(lm=lm, prompts=prompts, planted=rest["planted"])
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "run_study", run_study)
    assert call(misroute, given, workdir, "--max_new_tokens=5", "--answer_tokens=3", *more) == 130
    seen["config"] = json.loads((workdir / "config.json").read_text())
    return seen


def test_a_study_of_chats_after_a_profile(given, profiled, tmp_path, monkeypatch):
    planted = (f"--planted_ignores={given[0]}", f"--planted_uses={given[0]}")
    seen = stage_2(monkeypatch, given, tmp_path / "run", *ASK, f"--profile={profiled}", *planted)
    numbers = json.loads((profiled / "profile.json").read_text())["test_prompts"]
    assert [p.text for p in seen["prompts"]] == [f"<begin>10+:Q:{i}+2=\nA:" for i in numbers]
    assert [p.answer for p in seen["prompts"]] == [str(i + 2) for i in numbers]
    for lm in (seen["lm"], *seen["planted"]):
        assert lm.tokenizer.encode("<begin>1").ids.count(BEGIN) == 1
    assert (seen["config"]["chat"], seen["config"]["system_message"]) == (True, "10+")


def test_another_way_of_asking_is_another_study(given, tmp_path, monkeypatch, capsys):
    by_hand = "--experts=1:0"
    first = stage_2(monkeypatch, given, tmp_path / "run", by_hand, "--chat=TRUE")
    assert [p.text for p in first["prompts"]][:2] == ["<begin>Q:0+2=\nA:", "<begin>Q:1+2=\nA:"]
    assert first["config"]["system_message"] == ""
    plain = stage_2(monkeypatch, given, tmp_path / "plain", by_hand)
    assert plain["prompts"][0].text == "0+2="
    assert plain["lm"].tokenizer.encode("1").ids[0] == BEGIN  # not that of the chats, loaded once
    assert plain["config"]["chat"] is False
    assert plain["config"]["prompts"] != first["config"]["prompts"]
    more = (by_hand, "--max_new_tokens=5", "--answer_tokens=3")
    capsys.readouterr()
    assert call(misroute, given, tmp_path / "run", *more, *ASK) == 2
    assert "holds a run with system_message='', not '10+'" in capsys.readouterr().err
    assert call(misroute, given, tmp_path / "run", *more) == 2
    assert "holds a run with chat=True, not False" in capsys.readouterr().err


@pytest.mark.parametrize(
    "asked, message",
    [
        ((), "made with --chat=true --system=10+, this study has --chat=false"),
        (("--chat=true",), "made with --chat=true --system=10+, this study has --chat=true: its"),
    ],
)
def test_a_profile_of_other_texts_is_refused(given, profiled, tmp_path, capsys, asked, message):
    short = ("--max_new_tokens=5", "--answer_tokens=3")
    assert call(misroute, given, tmp_path / "run", f"--profile={profiled}", *short, *asked) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_profile_that_does_not_say_how_it_asked(given, profiled, tmp_path, monkeypatch, capsys):
    values = json.loads((profiled / "profile.json").read_text())
    for name in ("chat", "system"):
        del values["profile"]["settings"][name]
    (tmp_path / "old.json").write_text(json.dumps(values))  # from before there were chats
    assert call(misroute, given, tmp_path / "no", f"--profile={tmp_path / 'old.json'}", *ASK) == 2
    assert "made with --chat=false, this study has --chat=true" in capsys.readouterr().err
    del values["profile"]
    (tmp_path / "hand.json").write_text(json.dumps(values))
    stage_2(monkeypatch, given, tmp_path / "run", *ASK, f"--profile={tmp_path / 'hand.json'}")


@pytest.mark.parametrize("script", [profile_routing, misroute])
@pytest.mark.parametrize(
    "more, message",
    [
        (["--system=10"], "--system without --chat=true: only a chat has a system message"),
        (["--system=10", "--chat=false"], "--system without --chat=true"),
        (["--chat=maybe"], "--chat=maybe: must be true or false"),
        (["--chat=true", "--model={plain}"], "has no chat template (chat_template.jinja, or"),
        (["--chat=true", "--model={broken}"], "chat_template.jinja: the chat template is no Jin"),
        (["--chat=true", "--model={raises}"], "chat_template.jinja: the chat template fails: No!"),
        (["--chat=true", "--model=nowhere"], "'nowhere' is not a folder with config.json"),
    ],
)
def test_one_line_for_a_mistake(given, tmp_path, capsys, script, more, message):
    folders = {"plain": None, "broken": "{{", "raises": "{{ raise_exception('No!') }}"}
    for name, template in folders.items():
        (tmp_path / name).mkdir()
        if template:
            (tmp_path / name / "chat_template.jinja").write_text(template)
    more = [flag.format(**{name: tmp_path / name for name in folders}) for flag in more]
    if script is misroute:
        more.append("--experts=1:0")
    assert call(script, given, tmp_path / "run", *more) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("error: ") == 1
    assert message in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("script", [profile_routing, misroute])
def test_help_teaches(script, capsys):
    assert cli.run(script.main, ["script.py", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--[no]chat true: ask an instruct model as it was trained to be asked" in text
    assert "--system=TEXT the chat's system message, with --chat=true" in text
