"""What Stage 1 evaluates: the readings of a model, or routes recorded elsewhere, summed up."""

from collections.abc import Sequence

from moe_jax.common.progress import counting
from moe_jax.misrouting import reading, recorded_readings
from moe_jax.misrouting.chat_prompts import reads_chats
from moe_jax.misrouting.collect import collect
from moe_jax.misrouting.profile_config import ProfileConfig
from moe_jax.misrouting.profile_data import Collected, ModelShape
from moe_jax.misrouting.prompts import Prompt
from moe_jax.misrouting.readers import make_reader
from moe_jax.misrouting.subsets import TokenSubset
from moe_jax.models.language_model import load_language_model

_SAMPLES = 2  # texts of each level on the page


def read_and_collect(
    model: str, prompts: Sequence[Prompt], config: ProfileConfig
) -> tuple[ModelShape, Collected]:
    """A model's shape, and its readings of the prompts summed up.

    Args:
      model: what `load_language_model` takes: `config.model` or `config.compare`.
      prompts: as the model is asked them.
      config: how to read them; progress goes to stderr.

    Raises:
      UserError: the model can't be loaded or has no experts; a prompt can't be read; the recorded
        routes aren't of these prompts.
    """
    lm = load_language_model(model)
    if config.chat:
        lm = reads_chats(lm)
    reader = make_reader(lm, writes=config.generate > 0)
    shape = ModelShape(reader.name, reader.expert_layers, reader.gate.num_experts, reader.gate.k)
    subset = TokenSubset.parse(config.tokens)
    if config.routes:
        routes = recorded_readings.read_recorded(
            config.routes, shape, len(prompts), num_layers=reader.num_layers
        )
        readings = recorded_readings.recorded(routes, reader.tokenizer, prompts, subset=subset)
    else:
        readings = reading.read(
            lm,
            prompts,
            subset=subset,
            generate_tokens=config.generate,
            stop=config.stop,
            batch_size=config.batch_size,
            on_progress=counting("reading", "prompts"),
        )
    return shape, collect(readings, prompts, shape, kind=config.usage, samples=_SAMPLES)
