"""The settings of a training run."""

import dataclasses

from moe_jax.common.checks import (
    flag,
    joined,
    nested,
    number,
    one_of,
    setting,
    text,
    whole,
    wrong,
)
from moe_jax.training.retention import Best, Retention

SCHEDULES = ("constant", "cosine")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(kw_only=True)
class MeshConfig:
    """The devices of a run as a grid, whose axes are all axes of the batch too.

    One of the sizes may be -1: as many as the machine's devices allow. Their product may be less
    than the number of devices; the first ones are used then.

    Attributes:
      data: devices that hold copies of the parameters.
      fsdp: devices over which each large parameter, its gradient and its optimizer state are split;
        it is put together for the step (ZeRO).
      expert: devices over which the experts of every MoE layer are split; it divides their number.
      pmap: map the step by `jax.pmap` over `data`, the only axis then, instead of `jax.shard_map`;
        one process only. The results are the same.
    """

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    pmap: bool = False

    def validate(self, path: str = "") -> None:
        """Check every field; a UserError names the first wrong one as `path.field`."""
        flag(path, "pmap", self.pmap)
        sizes = {"data": self.data, "fsdp": self.fsdp, "expert": self.expert}
        for name, size in sizes.items():
            if type(size) is not int or size != -1:
                whole(path, name, size, 1, why="or -1: as many as there are devices for")
        rest = [name for name, size in sizes.items() if size == -1]
        if len(rest) > 1:
            must = f"be at least 1 where {joined(path, rest[0])} is -1: only one can be"
            raise wrong(path, rest[1], -1, must)
        for name in ("fsdp", "expert"):
            if self.pmap and sizes[name] != 1:
                must = f"be 1: {joined(path, 'pmap')} has the axis data alone"
                raise wrong(path, name, sizes[name], must)


@dataclasses.dataclass(kw_only=True)
class TrainConfig:
    """How long to train, how fast, and what to keep.

    Attributes:
      steps: how many steps; one batch each.
      learning_rate: the peak of the schedule, for AdamW (b1 0.9, b2 0.999, eps 1e-8).
      warmup_steps: the rate climbs linearly from 0 and reaches the peak at this step.
      schedule: what follows the warm-up: "constant", or "cosine" down to 0 at the last step.
      weight_decay: decoupled decay of the weights with two axes or more (never of biases).
      accumulate: work through each device's part of the batch in so many equal pieces, one after
        the other, and take their mean gradient: less memory, the same batch. What a loss sums over
        the batch (balance) it then sums over a piece.
      dtype: of the parameters as the loss sees them. "bfloat16": float32 ones are rounded for the
        step (not those of routers), which halves what fsdp sends to put them together; parameters,
        gradients' sums and optimizer stay float32. A model computes in it as far as its inputs and
        its own `dtype`s do.
      grad_clip: the largest global norm of the gradient; larger ones are scaled; 0 = no clipping.
      seed: of initialisation and of every random draw of the loss.
      log_every: one line of metrics.jsonl per so many steps: means over them.
      eval_every: evaluate after every so many steps and after the last; 0 = not in the loop.
      checkpoint_every: save after every so many steps (always at step 0 and after the last).
      keep_checkpoints: how many of the newest to keep. 1 leaves none to fall back to.
      keep_every: keep also those whose step is a multiple of this; 0 = none.
      keep_best: keep also the best by a figure of the evaluation: "max:NAME", "min:NAME", or "".
      max_bad_steps: stop after so many steps in a row with a loss or gradient that is not finite.
      tensorboard: write TensorBoard events too (needs the package tensorboardX).
      mesh: the devices; an interrupted run may go on with others.
    """

    steps: int = 1000
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    schedule: str = "constant"
    weight_decay: float = 0.0
    accumulate: int = 1
    dtype: str = "float32"
    grad_clip: float = 1.0
    seed: int = 0
    log_every: int = 50
    eval_every: int = 0
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    keep_every: int = 0
    keep_best: str = ""
    max_bad_steps: int = 10
    tensorboard: bool = False
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def validate(self, path: str = "") -> None:
        """Check every field; a UserError names the first wrong one as `path.field`."""
        for name, low in _INTEGERS.items():
            whole(path, name, getattr(self, name), low, _INTEGER_LIMIT)
        number(path, "learning_rate", self.learning_rate, above=0)
        number(path, "weight_decay", self.weight_decay, low=0)
        number(path, "grad_clip", self.grad_clip, low=0)
        one_of(path, "schedule", self.schedule, SCHEDULES)
        one_of(path, "dtype", self.dtype, DTYPES)
        flag(path, "tensorboard", self.tensorboard)
        nested(path, "mesh", self.mesh, MeshConfig)
        self._check_keeping(path)
        if self.warmup_steps >= self.steps:
            last = setting(path, "steps", self.steps)
            raise wrong(path, "warmup_steps", self.warmup_steps, f"be less than {last}")

    def retention(self) -> Retention:
        """Which checkpoints the run keeps."""
        return Retention(self.keep_checkpoints, self.keep_every, Best.parse(self.keep_best))

    def _check_keeping(self, path: str) -> None:
        saved = setting(path, "checkpoint_every", self.checkpoint_every)
        if self.keep_every % self.checkpoint_every:
            raise wrong(path, "keep_every", self.keep_every, f"be a multiple of {saved}")
        text(path, "keep_best", self.keep_best, empty=True)
        if Best.parse(self.keep_best, joined(path, "keep_best")) is None:
            return
        if not self.eval_every or self.checkpoint_every % self.eval_every:
            evaluated = setting(path, "eval_every", self.eval_every)
            must = f"come with evaluations: {saved} must be a multiple of {evaluated}"
            raise wrong(path, "keep_best", self.keep_best, must)


_INTEGERS = {
    "steps": 1,
    "warmup_steps": 0,
    "accumulate": 1,
    "seed": 0,
    "log_every": 1,
    "eval_every": 0,
    "checkpoint_every": 1,
    "keep_checkpoints": 1,
    "keep_every": 0,
    "max_bad_steps": 1,
}
_INTEGER_LIMIT = 2**31 - 1  # steps and seeds live in int32 on the device
