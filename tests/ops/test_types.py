"""A type checker sees what the ops return: mypy over typed_calls.py, with torch's own types."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_types_of_the_ops(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed")
    # The project's settings treat torch as untyped, which would let every type pass.
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\npython_version = 3.10\nexplicit_package_bases = true\nfollow_imports = silent\n"
        "check_untyped_defs = true\nwarn_unused_ignores = true\n"
        "[mypy-triton.*]\nignore_missing_imports = true\n"
        "[mypy-llama_fast.kernels.*]\nignore_missing_imports = true\n"
    )
    command = [
        sys.executable, "-m", "mypy", "--config-file", str(tmp_path / "mypy.ini"),
        "--cache-dir", str(ROOT / ".mypy_cache" / "with_torch"), "tests/ops/typed_calls.py",
    ]  # fmt: skip
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
