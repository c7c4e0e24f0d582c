r"""The token-to-factor model on three-fragment texts from Wikipedia, 12 labels.

  python launch/train.py --config=configs/rationale_wikipedia.py --workdir=runs/wikipedia \
      --config.data.path=FOLDER

FOLDER holds train.jsonl (1,500 texts), test.jsonl (500) and labels.json. Expected: a macro F1 of
.76 on test tokens (docs/RESULTS.md has the spread over seeds). On 2 idle CPU cores encoding takes
1.5 minutes (once: the states are cached in --config.context.cache=FOLDER, if given), everything
after it under half a minute.
"""

from moe_jax.data import CorpusConfig
from moe_jax.rationale import ContextConfig, LossWeights, ModelConfig, RationaleConfig
from moe_jax.training import TrainConfig


def get_config() -> RationaleConfig:
    """The benchmark's run."""
    return RationaleConfig(
        data=CorpusConfig(path="data/rationale_wikipedia"),
        context=ContextConfig(windows=(12,), stride=2),
        model=ModelConfig(num_factors=12),
        losses=LossWeights(sentence=1.0, entropy=0.002, overlap=0.1, diversity=0.001, balance=2.0),
        batch_size=64,
        train=TrainConfig(steps=200, learning_rate=2e-3, schedule="cosine", log_every=20),
    )
