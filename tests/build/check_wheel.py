"""Run by build_wheels.py with the Python of a clean environment, outside the source tree.

    python check_wheel.py [FOLDER]

Fails unless the package is installed below FOLDER (default: the environment of this Python) and
brings its compiled library, the kernels run from it with the right results, and the command line
starts.
"""

import subprocess
import sys
import warnings
from pathlib import Path

warnings.simplefilter("error", RuntimeWarning)  # "the compiled library is missing" is one

import torch  # noqa: E402

import llama_fast  # noqa: E402
from llama_fast import kernels  # noqa: E402
from llama_fast.ops.backends import library  # noqa: E402


def check_kernels() -> None:
    """Attention and cross-entropy on the compiled backend, against torch in float64."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    q, k, v = normal(2, 4, 9, 16), normal(2, 4, 9, 16), normal(2, 4, 9, 16)
    logits, target = normal(7, 50), torch.arange(7)
    with llama_fast.use_backend(attention="cpu", cross_entropy="cpu"):
        ours = [
            llama_fast.attention(q, k, v, causal=True),
            llama_fast.cross_entropy(logits, target),
        ]
    theirs = [
        torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True),
        torch.nn.functional.cross_entropy(logits, target),
    ]
    for name, a, b, inputs in zip(
        ("attention", "cross_entropy"), ours, theirs, ((q, k, v), (logits,)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        for got, wanted in zip(
            torch.autograd.grad(a.sum(), inputs), torch.autograd.grad(b.sum(), inputs), strict=True
        ):
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
        print(f"{name}: the compiled kernel agrees with torch, forward and backward")


def main() -> None:
    """All checks; an exception is the failure."""
    folder = Path(*sys.argv[1:] or [sys.prefix]).resolve()
    package = Path(llama_fast.__file__).resolve().parent
    assert folder in package.parents, f"imported from {package}, not from {folder}"
    assert library.missing_reason is None, library.missing_reason
    assert (package / "libllama_fast.so").is_file()
    assert (package / "integrations" / "hub_kernels" / "kernel" / "metadata.json").is_file()
    licences = {file.name for file in package.parent.glob("llama_fast-*.dist-info/licenses/*")}
    assert licences >= {"LICENSE", "THIRD_PARTY.md"}, licences
    assert Path(kernels.__file__).resolve().parent == package / "kernels"
    check_kernels()
    script = Path(sys.executable).parent / "llama-fast"  # where a package is only unpacked, none
    command = [script] if script.exists() else [sys.executable, "-m", "llama_fast"]
    for package_file in ("suite.py", "bench_attention.py"):
        assert (package / "benchmarks" / package_file).is_file()
    text = subprocess.run([*command, "info"], check=True, capture_output=True, text=True).stdout
    assert llama_fast.__version__ in text and library.isa() in text, text
    print(text)


if __name__ == "__main__":
    main()
