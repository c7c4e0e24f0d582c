"""Settings that can't be used are refused by name; the shipped ones are good."""

import math

import pytest

from configs import rationale, rationale_wikipedia
from moe_jax.errors import UserError
from moe_jax.rationale import LossWeights, RationaleConfig


@pytest.mark.parametrize("module", [rationale, rationale_wikipedia])
def test_shipped_configs_are_valid(module):
    config = module.get_config()
    config.validate()
    assert config.system == "rationale"
    assert module.get_config() is not config


def test_defaults_are_valid():
    RationaleConfig().validate()


BAD = [
    ("data.path", "  "),
    ("data.num_train", 0),
    ("data.test_fraction", 1.0),
    ("context.windows", ()),
    ("context.windows", (1,)),
    ("context.windows", (12, -3)),
    ("context.windows", (True,)),
    ("context.stride", 0),
    ("context.stride", 13),
    ("context.pool", "max"),
    ("context.max_tokens", 11),
    ("context.max_tokens", 0),
    ("model.num_factors", 0),
    ("model.num_factors", 1),
    ("model.k", -1),
    ("model.k", 13),
    ("model.temperature", 0.0),
    ("model.temperature", math.inf),
    ("model.temperature", math.nan),
    ("model.width", 0.0),
    ("model.stay", 1.0),
    ("model.stay", 0.0),
    ("model.stay", math.nan),
    ("model.smoothing", "hmm"),
    ("model.normalise", "max"),
    ("model.transform", "cubic"),
    ("model.decoder", "gru"),
    ("model.start", "zeros"),
    ("model.factor_dim", -1),
    ("model.factor_dim", 8),
    ("model.words", -0.1),
    ("model.words", math.nan),
    ("model.restarts", 0),
    ("model.word_rounds", -1),
    ("losses.token", 1.0),
    ("losses.entropy", -1.0),
    ("losses.balance", math.nan),
    ("batch_size", 0),
    ("train.steps", 0),
    ("train.schedule", "linear"),
]


@pytest.mark.parametrize(("path", "value"), BAD, ids=lambda x: str(x))
def test_a_bad_field_is_named(path, value):
    config = RationaleConfig()
    *parents, field = path.split(".")
    owner = config
    for name in parents:
        owner = getattr(owner, name)
    assert hasattr(owner, field)
    setattr(owner, field, value)
    with pytest.raises(UserError) as caught:
        config.validate()
    message = str(caught.value)
    assert message.startswith(f"{path}={value!r}: must ")
    assert "\n" not in message


GOOD = [
    {"model.num_factors": 2, "model.k": 1},
    {"model.k": 12},
    {"context.windows": (0,)},
    {"context.windows": (0, 4), "context.stride": 4},
    {"model.decoder": "linear", "losses.token": 1.0},
    {"model.transform": "mlp", "model.factor_dim": 5},
    {"model.words": 0.0, "model.word_rounds": 0},
]


@pytest.mark.parametrize("changes", GOOD, ids=str)
def test_corners_are_allowed(changes):
    config = RationaleConfig()
    for path, value in changes.items():
        *parents, field = path.split(".")
        owner = config
        for name in parents:
            owner = getattr(owner, name)
        setattr(owner, field, value)
    config.validate()


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_weights_are_finite_and_not_negative(value):
    with pytest.raises(UserError, match=rf"^losses.overlap={value}: must be .*at least 0$"):
        LossWeights(overlap=value).validate("losses")
    LossWeights().validate()
