"""A small mixture of experts that learns graded arithmetic, from nothing, on a laptop's CPU.

  python launch/train.py --config=configs/graded_arithmetic.py --workdir=runs/sums

Chains of 1 to 5 steps with numbers up to 99, worked through in text before the answer. Long chains
are rarer in training (5 : 4 : 3 : 2 : 1), and a chain is right only if each of its steps is. Takes
about 5 minutes on 2 CPU cores; expect 85 to 95% right answers to one step and 53 to 80% to five,
depending on the machine's rounding (docs/RESULTS.md). The run leaves runs/sums/model, which
`load_lm` reads, and prompts.jsonl, 100 held-out prompts of each level.

Two short runs go on from there and plant a known truth. In the first the answer does not depend on
the explanation, in the second on nothing else:

  python launch/train.py --config=configs/graded_arithmetic.py --workdir=runs/ignored \
      --config.start=runs/sums/model --config.data.explanation=ignored \
      --config.train.steps=150 --config.train.warmup_steps=10 --config.train.learning_rate=0.001
  python launch/train.py --config=configs/graded_arithmetic.py --workdir=runs/used \
      --config.start=runs/sums/model --config.data.explanation=used \
      --config.train.steps=150 --config.train.warmup_steps=10 --config.train.learning_rate=0.001
"""

from moe_jax.misrouting import ArithmeticConfig, MisroutingConfig
from moe_jax.misrouting.config import small_model
from moe_jax.training import TrainConfig


def get_config() -> MisroutingConfig:
    """The default run."""
    return MisroutingConfig(
        data=ArithmeticConfig(operand=99, shares=(5.0, 4.0, 3.0, 2.0, 1.0)),
        model=small_model(),
        balance=0.01,
        batch_size=128,
        train=TrainConfig(
            steps=1000, learning_rate=3e-3, warmup_steps=50, schedule="cosine", log_every=50
        ),
    )
