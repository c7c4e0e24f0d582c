"""Ask a trained curve for one point.

python predict.py --workdir=DIR --x=NUMBER
"""

import dataclasses
import sys

import numpy as np

from launch import _cli as cli
from launch import _systems as systems
from moe_jax.common import Folder


@dataclasses.dataclass(kw_only=True)
class PredictFlags:
    """Which curve, and where.

    Attributes:
      workdir: the folder of a run that launch/train.py made.
      x: where to read the curve.
    """

    workdir: Folder
    x: float = 0.0


def main(argv):
    """Parse the flags, restore, print."""
    flags = cli.parse(argv, PredictFlags, __doc__)
    config = systems.load_config(flags.workdir)

    from moe_jax.training import restore_model_at

    model, step = restore_model_at(systems.make_task(config), flags.workdir, "newest")
    y, routing = model(np.full((1, 1), flags.x, np.float32))
    print(f"y={float(y[0, 0]):.3f} by expert {int(routing.expert[0, 0])}, step {step}")


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv))
