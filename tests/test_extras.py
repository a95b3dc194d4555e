"""Without the packages of the extras all tests can be collected, and those without need of them."""

import subprocess
import sys
import textwrap
from pathlib import Path

from tests.extras import EXTRAS

ROOT = Path(__file__).resolve().parents[1]
# Imports of these fail as where they are not installed. torch may import triton itself.
WITHOUT = f"""
import sys
sys.modules.update(dict.fromkeys({sorted(EXTRAS - {"triton", "yaml", "jinja2"})!r}))
import pytest
sys.exit(pytest.main([*sys.argv[1:], "-q", "-p", "no:cacheprovider", "--collect-only"]))
"""


def collect(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-c", textwrap.dedent(WITHOUT), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_ops_need_no_extra() -> None:
    code, output = collect("tests/ops", "tests/cuda")
    assert code == 0, output
    assert "not installed" not in output


def test_modules_that_need_an_extra_are_skipped() -> None:
    code, output = collect("tests/eval/scenarios", "tests/tokenizers", "-m", "gpu")
    # 5: no test is about a GPU where there is none
    assert code in (0, 5), output
    assert "lm_eval is not installed" in output


def test_other_failures_stay_errors(tmp_path: Path) -> None:
    (tmp_path / "test_missing.py").write_text("import no_such_package_at_all\n")
    code, output = collect(str(tmp_path), "-p", "tests.conftest", "--rootdir", str(ROOT))
    assert code == 2, output
    assert "no_such_package_at_all" in output
