#!/usr/bin/env bash
# Builds, tests and measures on a machine with a GPU and without network.
# Needs a Python with torch 2.10 or newer (made for CUDA), triton, numpy, ninja,
# setuptools >= 77, matplotlib, rich and pytest; a C++ compiler and nvcc where there are kernels
# for them. compute-sanitizer is used where it is installed.
#   PYTHON=python3.12 benchmarks/run_gpu.sh OUT [arguments of llama-fast bench]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${1:-bench-results}
shift || true
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

"$python" - <<'CHECK'
import sys

import torch

if not torch.cuda.is_available():
    sys.exit(f"run_gpu.sh: torch {torch.__version__} finds no GPU")
print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}, Python {sys.version.split()[0]}")
CHECK

mkdir -p "$out"
# In place: nothing is installed, so nothing is fetched.
"$python" setup.py -q build_ext --inplace 2>&1 | tee "$out/build.log"
"$python" -m llama_fast info | tee "$out/info.txt"

# A failing test is reported at the end; the figures are wanted all the same. Code 5: no such tests.
tests=0 memcheck=0
"$python" -m pytest tests -m gpu -q -p no:cacheprovider 2>&1 | tee "$out/tests.log" || tests=$?
if command -v compute-sanitizer >/dev/null; then
  # One small call of every op, forward and backward: nothing may be touched outside its tensors.
  # Without torch's memory pool, whose blocks would hide it.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 90 compute-sanitizer --tool memcheck --error-exitcode 3 \
    "$python" - >"$out/memcheck.log" 2>&1 <<'MEMCHECK' || memcheck=$?
import torch

import llama_fast
from tests.ops.calls import CALLS, total

available = llama_fast.backends().available
for name, call in CALLS.items():
    for backend in ("auto", *({"cuda"} & set(available[call.op]))):
        leaves = [leaf.detach().float().cuda().requires_grad_() for leaf in call.leaves()]
        with llama_fast.use_backend(**{call.op: backend}):
            torch.autograd.grad(total(call.function(*leaves)), leaves)
        torch.cuda.synchronize()
        print(name, backend, flush=True)

# Lengths and pages that there cannot be among good ones, on every backend that runs on a GPU.
held = torch.tensor([0, 37, 79, 80, -1, 2**31 - 1], dtype=torch.int32, device="cuda")
table = torch.arange(30, dtype=torch.int32, device="cuda").view(6, 5).flip(0)
table[1, 2], table[2, 0] = 30, -1
for backend in {"triton", "cuda"} & set(available["attention_decode"]):
    for cache, pages in (((30, 2, 16, 64), table), ((6, 2, 80, 64), None)):
        k, v = torch.randn(2, *cache, device="cuda").bfloat16()
        q, new = (torch.randn(6, n, 1, 64, device="cuda").bfloat16() for n in (8, 2))
        with llama_fast.use_backend(attention_decode=backend):
            out = llama_fast.attention_decode(
                q, k, v, k=new, v=new, cache_seqlens=held, page_table=pages
            )
        bad = {3, 4, 5} | ({1, 2} if pages is not None else set())
        assert {i for i in range(6) if out[i].isnan().any()} == bad, backend
    print(f"attention_decode by {backend}", flush=True)
MEMCHECK
fi
"$python" -m llama_fast bench --device cuda --out "$out" "$@" 2>&1 | tee "$out/bench.log"
# The CUDA kernels in the place of Triton's, beside the same baselines.
cuda_ops=$("$python" -c "import llama_fast as f; a = f.backends().available
print(','.join(op for op in a if 'cuda' in a[op]))")
if [ -n "$cuda_ops" ]; then
  LLAMA_FAST_BACKEND=cuda "$python" -m llama_fast bench --device cuda --op "$cuda_ops" \
    --out "$out/cuda-kernels" "$@" 2>&1 | tee "$out/bench-cuda-kernels.log"
fi

if [ "$tests" -ne 0 ] && [ "$tests" -ne 5 ]; then
  echo "run_gpu.sh: tests failed, see $out/tests.log" >&2
  exit 1
fi
if [ "$memcheck" -ne 0 ]; then
  echo "run_gpu.sh: compute-sanitizer found errors or took too long, see $out/memcheck.log" >&2
  exit 1
fi
