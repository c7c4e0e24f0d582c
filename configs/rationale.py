"""The token-to-factor model on the documentation that Python and the installed packages carry.

  python launch/train.py --config=configs/rationale.py --workdir=runs/rationale

For your own texts: --config.data.path=FILE_OR_FOLDER.
"""

from moe_jax.data.corpus import CorpusConfig
from moe_jax.losses import LossWeights
from moe_jax.rationale.config import ContextConfig, ModelConfig, RationaleConfig
from moe_jax.training.config import TrainConfig


def get_config() -> RationaleConfig:
    """The default run."""
    return RationaleConfig(
        data=CorpusConfig(),
        context=ContextConfig(windows=(16,), stride=4),
        model=ModelConfig(num_factors=12),
        losses=LossWeights(sentence=1.0, entropy=0.002, overlap=0.1, diversity=0.001, balance=2.0),
        batch_size=64,
        train=TrainConfig(steps=300, learning_rate=2e-3, schedule="cosine", log_every=20),
    )
