#!/usr/bin/env bash
# Ten minutes on one GPU, from the root of a checkout: tests, table, memory check; results in $OUT.
# Without a network there, first elsewhere: pip download --no-deps -d .whl jax-triton==0.4.1
set -uo pipefail
OUT=${OUT:-gpu_run}
mkdir -p "$OUT"
export PATH=$PATH:/usr/local/cuda/bin PYTHONUNBUFFERED=1

# Without XLA's Triton products the dense rival is cuBLAS's, and little time goes into tuning it.
XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_triton_gemm=false" timeout 470 \
  python3 kernels/benchmarks/gpu.py --minutes=7.5 --test_minutes=2.8 --json_out="$OUT/gpu.json" \
  2>"$OUT/gpu.err" | tee "$OUT/gpu.log"
status=$?
tail -n 40 "$OUT/gpu.err"
[ $status -ne 2 ] || exit 2

# Every array gets memory of its own, so that a read past its end is seen.
export XLA_PYTHON_CLIENT_ALLOCATOR=platform
PYTHONPATH=kernels:$(echo .whl/*.whl) timeout 90 compute-sanitizer --error-exitcode 9 \
  python3 -m pytest -q -m gpu tests/kernels/test_triton_device.py -k 'several_tiles and bfloat16' \
  --confcutdir=tests/kernels -p no:cacheprovider -p no:benchmark \
  -o addopts=--import-mode=importlib -o filterwarnings=default 2>&1 |
  tee "$OUT/memcheck.log" | tail -n 8
memory=$?
echo "gpu.py: exit code $status; memory check: exit code $memory"
[ $status -eq 0 ] && exit $memory
exit $status
