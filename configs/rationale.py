"""The token-to-factor model on the documentation that Python and the installed packages carry.

  python launch/train.py --config=configs/rationale.py --workdir=runs/rationale

Takes about two minutes on 2 CPU cores, most of it for encoding. The default corpus has 12 labels
(where each fragment was taken from), so figures and baselines are printed at the end. They depend
on the installed versions and the seed: expect a macro F1 of .54 to .62 (docs/RESULTS.md). For your
own texts:

  python launch/train.py --config=configs/rationale.py --workdir=runs/mine \
      --config.data.path=FILE_OR_FOLDER --config.model.num_factors=8
"""

from moe_jax.data import CorpusConfig
from moe_jax.rationale import ContextConfig, LossWeights, ModelConfig, RationaleConfig
from moe_jax.training import TrainConfig


def get_config() -> RationaleConfig:
    """The default run."""
    return RationaleConfig(
        data=CorpusConfig(),
        context=ContextConfig(windows=(12,), stride=4),
        model=ModelConfig(num_factors=12),
        losses=LossWeights(sentence=1.0, entropy=0.002, overlap=0.1, diversity=0.001, balance=2.0),
        batch_size=64,
        train=TrainConfig(steps=200, learning_rate=2e-3, schedule="cosine", log_every=20),
    )
