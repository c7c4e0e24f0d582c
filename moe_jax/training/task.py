"""What a system gives to the training loop: one class with a few methods."""

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
from flax import nnx
from jaxtyping import Array, Float

Batch = Mapping[str, Any]
"""One batch: arrays by name, as the data iterator yields them (NumPy) or on the device (JAX)."""

Filter = Any
"""A Flax NNX filter: a Variable type, a tuple of them, or `callable(path, variable) -> bool`."""


@runtime_checkable
class Batches(Protocol):
    """What the loop needs of a data iterator: every `grain.DatasetIterator` has it."""

    def __next__(self) -> Batch:
        """The next batch; there is always one."""

    def get_state(self) -> dict[str, Any]:
        """The position, as JSON values."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a position that `get_state` gave."""

    def close(self) -> None:
        """Free what the iterator holds."""


class Task(abc.ABC):
    """What is trained, on what, and how it is judged.

    `train` calls the methods in this order. In a fresh run: `init`, `prepare`, then one `loss` per
    step on batches from `train_data`, and `evaluate` every `eval_every` steps. In a run that is
    resumed: `init` (only its shapes are used), then straight to the steps. The launch script ends
    with `evaluate` and `report`.

    Attributes:
      trainable: which variables the optimizer changes; the others are kept as they are unless
        `loss` itself assigns to them (running averages). The default is every `nnx.Param`. A
        function of (path, variable) freezes a part:
        `lambda path, variable: isinstance(variable, nnx.Param) and path[0] != "encoder"`.
    """

    trainable: Filter = nnx.Param

    @abc.abstractmethod
    def init(self, rngs: nnx.Rngs) -> nnx.Module:
        """Build the model. Must be traceable: it is also run under `nnx.eval_shape`."""

    def prepare(self, model: nnx.Module, rngs: nnx.Rngs) -> nnx.Module:
        """Finish the initialisation from data, once, before step 0 of a fresh run.

        The result is saved in the checkpoint of step 0, so a resumed run does not do it again.
        It must have the structure and shapes that `init` gives. The default changes nothing.
        """
        del rngs
        return model

    @abc.abstractmethod
    def loss(
        self, model: nnx.Module, batch: Batch, rngs: nnx.Rngs
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The scalar to minimise and other scalars to log, by name. Runs under `jax.jit`.

        `rngs` is a function of the seed and the step alone.
        """

    @abc.abstractmethod
    def train_data(self, part: tuple[int, int] = (0, 1)) -> Batches:
        """An endless iterator over batches that can save and restore its position (Grain's do).

        With several processes, process i of n asks for part (i, n): the i-th of n equal parts of
        each batch. A position must mean the same for every part and every n.
        """

    def batch_like(self) -> Batch:
        """The shapes and dtypes of a whole batch, for a dry run (`jax.ShapeDtypeStruct`).

        The default makes one; a task for which that takes long may know them without.
        """
        data = self.train_data()
        try:
            return jax.eval_shape(dict, next(data))
        finally:
            data.close()

    @abc.abstractmethod
    def evaluate(self, model: nnx.Module) -> dict[str, float]:
        """Figures by name, from held-out data. Must not change the model."""

    def report(self, model: nnx.Module, workdir: Path) -> None:
        """Write what a person reads (report.html, plots) into `workdir`. The default: nothing."""
        del model, workdir

    def show(self, workdir: Path) -> bool:
        """Print, for a person, what `report` wrote into `workdir`.

        Returns:
          False if there is nothing to show (the default): the caller then prints the bare figures.
        """
        del workdir
        return False
