"""Compiles every Triton kernel with the tiles that would be chosen, for GPUs that need not be here.

  PYTHONPATH=.:kernels python scripts/compile_triton.py [--arch=80,90,100] [--dtype=bfloat16,tf32]

Prints a table: registers spilled, shared memory, and which instructions were found (wgmma on sm_90,
tcgen05 on sm_100, cp.async for the pipelined loads). Ends with exit code 1 if a kernel spills, asks
for more shared memory than a block may have, or has no matrix instruction where it should.
"""

import argparse
import importlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton
from moe_kernels.triton_gpu.launch import blocks
from moe_kernels.triton_gpu.precision import EXACT
from moe_kernels.triton_gpu.tiles import Tile, matmul_tile, row_tile, topk_tile, weight_grad_tile
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
MATRIX = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}


class Case(NamedTuple):
    """One kernel with its constants; arguments without `_ptr` are sizes, int32."""

    name: str
    kernel: Any
    tile: Tile
    constants: dict[str, Any]
    dtype: str
    matrix: bool  # made of matrix products

    @property
    def rows(self) -> int:
        """Of the result of one product: x^T dy contracts the tile's rows."""
        return self.tile.block_k if self.name == "weight_grad" else self.tile.block_m


def cases(
    rows: int, d: int, f: int, e: int, dtype: str, arch: int, precision: str = EXACT
) -> list[Case]:
    """All kernels of one layer with `rows` (token, choice) pairs, for one kind of GPU."""

    def kernel(module: str, name: str) -> Any:
        return getattr(importlib.import_module(f"moe_kernels.triton_gpu.{module}"), name)

    def tiled(tile: Tile, n: int) -> dict[str, Any]:
        return {"COLUMNS": -(-n // tile.block_n), "PRECISION": precision}

    def tile(n: int, k: int, held: int) -> Tile:
        return matmul_tile(
            rows, e, n, k, dtype, held=held, precision=precision, compute_capability=arch
        )

    up, down, hidden = tile(f, d, 2), tile(d, f, 1), tile(f, d, 4)
    grad = weight_grad_tile(d, f, dtype)
    parts = {"K_PARTS": -(-d // grad.block_k), "N_PARTS": -(-f // grad.block_n)}
    flags = {"GLU": True, "BIAS_IN": False, "BIAS_GATE": False, "ACTIVATION": "silu", "KEEP": True}
    plain = {"N": d, "K": f, "W_K": d, "W_N": 1, "INDEX": False, "BIAS": False, "SECOND": False}
    back = plain | {"W_K": 1, "W_N": f, "SECOND": True}
    wide = row_tile(d)
    found = [
        ("up", kernel("up", "_up"), up, {**tiled(up, f), "D": d, "F": f, **flags}, True),
        ("down", kernel("grouped_matmul", "_grouped_matmul"), down, tiled(down, d) | plain, True),
        ("dx", kernel("grouped_matmul", "_grouped_matmul"), down, tiled(down, d) | back, True),
        (
            "hidden_grad",
            kernel("hidden_grad", "_hidden_grad"),
            hidden,
            {**tiled(hidden, f), "D": d, "F": f, "GLU": True, "ACTIVATION": "silu"},
            True,
        ),
        (
            "weight_grad",
            kernel("weight_grad", "_weight_grad"),
            grad,
            {**parts, "K": d, "N": f, "X_INDEX": True, "DY_INDEX": False, "PRECISION": precision},
            True,
        ),
        (
            "combine",
            kernel("sums", "_combine"),
            wide,
            {"COLUMNS": -(-d // wide.block_n), "D": d, "CHOICES": 8, "WEIGHTED": True},
            False,
        ),
        (
            "segment_pool",
            kernel("sums", "_segment_pool"),
            wide._replace(block_n=min(wide.block_n, 128)),
            {"COLUMNS": -(-d // 128), "D": d, "INDEX": True, "WEIGHTED": True},
            False,
        ),
        (
            "topk_route",
            kernel("topk_route", "_topk_route"),
            topk_tile(e),
            {"EXPERTS": e, "CHOICES": 8, "SOFTMAX": True},
            False,
        ),
    ]
    return [Case(n, k, t, c, dtype, m) for n, k, t, c, m in found]


INTEGERS = ("token_ptr", "index_ptr", "offset_ptr", "row_ptr", "rows_ptr", "kept_ptr", "count_ptr")


def compile_case(case: Case, arch: int) -> dict[str, int]:
    """Compiles; returns bytes of stack (spilled registers) and shared memory, and how many matrix
    and asynchronous copy instructions the PTX has.
    """
    built = triton.compile(
        _source(case),
        target=GPUTarget("cuda", arch, 32),
        options={
            "num_warps": case.tile.num_warps,
            "num_stages": case.tile.num_stages,
            "enable_fp_fusion": True,
        },
    )
    ptx = built.asm["ptx"]
    return {
        "stack": _stack(built.asm["cubin"]),
        "shared": built.metadata.shared,
        # wgmma and tcgen05 work on at least 64 rows; smaller tiles take the older instruction.
        "matrix": ptx.count(MATRIX[arch] if case.rows >= 64 else "mma.sync"),
        "cp.async": ptx.count("cp.async.c"),
    }


def faults(case: Case, arch: int, found: dict[str, int]) -> list[str]:
    """What is wrong with a compiled kernel, in words."""
    wrong = []
    if found["stack"]:
        wrong.append(f"spills {found['stack']} bytes")
    if found["shared"] > SHARED_LIMIT[arch]:
        wrong.append(f"{found['shared']} bytes of shared memory")
    exact = case.dtype == "float32" and case.constants.get("PRECISION") == EXACT
    if case.matrix and not exact:  # exact products of float32 run on ordinary units
        wrong += [f"no {name}" for name in ("matrix", "cp.async") if not found[name]]
    return wrong


def _source(case: Case) -> ASTSource:
    constants = case.constants | blocks(case.kernel, case.tile)
    signature, attrs = {}, {}
    for i, name in enumerate(case.kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        if not name.endswith("_ptr"):
            signature[name] = "i32"
            continue
        integer = name.endswith(INTEGERS) or name == "tile_expert_ptr"
        integer |= case.name == "topk_route" and name == "expert_ptr"
        single = name in ("weight_ptr", "part_ptr", "score_ptr")
        kind = "i32" if integer else "fp32" if single else TYPES[case.dtype]
        signature[name] = f"*{kind}"
        attrs[(i,)] = [["tt.divisibility", 16]]
    values = {(case.kernel.arg_names.index(n),): v for n, v in constants.items()}
    return ASTSource(case.kernel, signature, values, attrs)


def _stack(cubin: bytes) -> int:
    """Bytes of stack a thread, by the tool that comes with Triton: where spilled registers go."""
    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", usage)[1])


# (token, choice) pairs, d, f, experts
SHAPES = {
    "7B": (24576 * 8, 1536, 256, 128),
    "30B": (32768 * 8, 4096, 512, 128),
    "decode": (64 * 8, 2048, 1024, 64),
    "odd": (4096, 1000, 300, 24),
    "ragged": (2560, 512, 512, 64),
}


def main() -> int:
    """Compiles all, prints the table, returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="80,90,100", help="compute capabilities, times ten")
    parser.add_argument(
        "--dtype",
        default="bfloat16,float16,float32,tf32,tf32x3",
        help="float32 is exact; tf32 and tf32x3 are float32 at a lower precision",
    )
    parser.add_argument("--shapes", default=",".join(SHAPES))
    args = parser.parse_args()
    print(
        f"{'shape':8}{'dtype':10}{'kernel':14}{'sm':>4}{'tile':>16}{'shared':>8}{'matrix':>8}"
        f"{'cp.async':>10}  faults"
    )
    bad = 0
    for name in args.shapes.split(","):
        for kind in args.dtype.split(","):
            dtype, precision = ("float32", kind) if kind.startswith("tf32") else (kind, EXACT)
            for arch in map(int, args.arch.split(",")):
                for case in cases(*SHAPES[name], dtype, arch, precision):
                    found = compile_case(case, arch)
                    wrong = faults(case, arch, found)
                    bad += bool(wrong)
                    tile = "x".join(map(str, case.tile[:3]))
                    print(
                        f"{name:8}{kind:10}{case.name:14}{arch:>4}{tile:>16}{found['shared']:>8}"
                        f"{found['matrix']:>8}{found['cp.async']:>10}  {', '.join(wrong)}",
                        flush=True,
                    )
    print(f"{bad} kernels with faults")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
