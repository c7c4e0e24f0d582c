"""Triton's interpreter in place of a GPU: NumPy arrays in, NumPy arrays out, no torch."""

import os

import jax
import numpy as np


class Tensor:
    """The part of torch's tensor that the interpreter touches, over a NumPy array."""

    def __init__(self, array):
        self.array = array
        self.dtype = array.dtype

    def data_ptr(self):
        return self.array.ctypes.data

    def untyped_storage(self):
        return self

    def cpu(self):
        return self

    def new_empty(self, *_, **__):
        return Tensor(self.array)

    def set_(self, storage, *_):
        self.array = storage.array

    def storage_offset(self):
        return 0

    def size(self):
        return self.array.shape

    def stride(self):
        return tuple(s // self.array.itemsize for s in self.array.strides)

    def copy_(self, _):
        """Nothing: the copy on the host shares its memory with this."""


class Interpreter:
    """What `launch` uses of jax_triton, on the host.

    Outputs start as NaN (or the largest integer), so that what a kernel doesn't write shows.
    """

    def triton_call(self, *inputs, kernel, out_type, grid, **constants):
        for name in ("num_warps", "num_stages", "compute_capability", "backend_options"):
            del constants[name]

        def run(*arrays):
            arrays = [np.ascontiguousarray(a) for a in arrays]
            outputs = [_poisoned(o) for o in out_type]
            tensors = [Tensor(a) for a in (*arrays, *outputs)]
            with np.errstate(all="ignore"):
                kernel[grid](*tensors, **constants)
            return outputs

        return jax.pure_callback(run, out_type, *inputs, vmap_method="sequential")


def install(monkeypatch):
    """Kernels run on the host, in a program for the CPU."""
    assert os.environ.get("TRITON_INTERPRET") == "1", "run `make triton`"
    from moe_kernels import backends, gpu_packages
    from moe_kernels.triton_gpu import launch

    monkeypatch.setattr(launch, "load", Interpreter)
    monkeypatch.setattr(gpu_packages, "missing", lambda: None)
    monkeypatch.setitem(backends.RUNS_ON, "triton_gpu", ("cpu",))


def _poisoned(out):
    integer = np.issubdtype(out.dtype, np.integer)
    return np.full(out.shape, np.iinfo(out.dtype).max if integer else np.nan, out.dtype)
