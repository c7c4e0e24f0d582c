"""The configs of both stages: what they refuse, and what is recorded of them."""

from pathlib import Path

import pytest

from moe_jax.errors import UserError
from moe_jax.misrouting import MisrouteConfig, ProfileConfig, StudyConfig
from moe_jax.misrouting.profile_config import ProfileSettings

GIVEN = {"model": "m", "prompts": "p", "workdir": Path("w")}
BY_HAND = {**GIVEN, "experts": "1:0"}


def test_settings_are_the_fields_of_the_flags():
    config = ProfileConfig(**GIVEN, chat=True, system="s", usage="gate", weights=(-1.0, 1.0))
    assert config.settings() == ProfileSettings(
        prompts="p", chat=True, system="s", usage="gate", weights=(-1.0, 1.0)
    )
    study = MisrouteConfig(**BY_HAND, interventions=("scale", "zero@answer"), seed=3)
    assert type(study.settings()) is StudyConfig
    assert study.settings() == StudyConfig(interventions=("scale=0.5@all", "zero@answer"), seed=3)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"system": "s"}, "^--system without --chat=true: only a chat"),
        ({"workdir": Path(__file__)}, "^--workdir=.*: is a file; name a folder"),
        ({"workdir": Path("gs:/bucket")}, "^--workdir=gs:/bucket: must be a file or folder of"),
        ({"compare": "x", "routes": "y"}, "^--compare reads the same tokens with both models"),
        ({"compare": "x", "generate": 2}, "leave out --generate and --routes"),
        ({"usage": "some"}, "^usage='some': must be one of selection, share, gate, soft"),
        ({"permutations": 18}, "^permutations=18: must be at least 19 .with fewer no p"),
        ({"samples": 0}, "^samples=0: must be at least 1"),
        ({"tokens": "aftr:x"}, "did you mean after?"),
        ({"tokens": "generated", "generate": 1}, "needs generate of at least 2"),
        ({"batch_size": 0}, "batch_size at least 1"),
    ],
)
def test_what_a_profile_refuses_before_it_loads(change, says):
    with pytest.raises(UserError, match=says):
        ProfileConfig(**{**GIVEN, **change}).validate()


@pytest.mark.parametrize(
    "change, says",
    [
        ({"system": "s"}, "^--system without --chat=true: only a chat"),
        ({"experts": ""}, "^which experts. Give one of --profile=DIR"),
        ({"profile": "x"}, "^which experts. Give one of --profile=DIR"),
        ({"planted_uses": "x"}, "^--planted_uses without --planted_ignores: diagnosticity"),
        ({"planted_ignores": "x"}, "^--planted_ignores without --planted_uses"),
        ({"interventions": ()}, "^interventions=..: must name at least one"),
        ({"controls": 19}, "^controls=19: must be at least 20"),
        ({"filler": ""}, "^filler='': must be a text that isn't empty"),
        ({"margin": 1.0}, "^margin=1.0: must be more than 0 and less than 1"),
    ],
)
def test_what_a_study_refuses_before_it_loads(change, says):
    with pytest.raises(UserError, match=says):
        MisrouteConfig(**{**BY_HAND, **change}).validate()


def test_messages_name_where_a_config_stands():
    with pytest.raises(UserError, match=r"^study\.margin=2.0: must be more than 0"):
        StudyConfig(margin=2.0).validate("study")
    with pytest.raises(UserError, match=r"^study\.system without study\.chat=true"):
        MisrouteConfig(**BY_HAND, system="s").validate("study")
    with pytest.raises(UserError, match=r"^stage_1\.seed=-1: must be at least 0"):
        ProfileConfig(**GIVEN, seed=-1).validate("stage_1")
