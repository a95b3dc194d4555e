"""setuptools' side of the build: what is compiled, and how, is in build_native.py."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # build front ends run this file from elsewhere

from build_backend import BadSetting  # noqa: E402
from build_native import EMULATE, LIBRARY, SANITIZE, NativeBuild  # noqa: E402
from build_report import notice, tell  # noqa: E402

# Parts of the package that have a folder of their own beside it.
BESIDE = {"llama_fast.kernels": "kernels", "llama_fast.benchmarks": "benchmarks"}


def replace(destination: Path, source: Path) -> None:
    """Puts a copy of `source` at `destination` at once: a running process keeps the old file."""
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}")
    shutil.copy2(source, temporary)
    os.replace(temporary, destination)


class BuildNative(build_ext):
    """setuptools' build_ext with ninja underneath; a part that cannot be built is left out."""

    def run(self) -> None:
        native = NativeBuild()
        try:
            native.run()
        except BadSetting as error:
            raise SystemExit(f"llama_fast: {error}") from None
        if not (SANITIZE or EMULATE):
            self._place(native)
        print(native.table(), flush=True)
        failed = native.failed()
        if failed and (SANITIZE or EMULATE or os.environ.get("LLAMA_FAST_BUILD") == "1"):
            reasons = "".join(f"\n  {name}: {native.parts[name][1]}" for name in failed)
            raise SystemExit(f"llama_fast: could not build: {', '.join(failed)}{reasons}")
        if native.missing():
            tell(notice(native.missing()))

    def _place(self, native: NativeBuild) -> None:
        package = ROOT / "llama_fast" if self.inplace else Path(self.build_lib) / "llama_fast"
        package.mkdir(parents=True, exist_ok=True)
        if LIBRARY in native.outputs:
            replace(package / LIBRARY, native.directory / LIBRARY)
        else:  # one of an earlier build would not match the Python files
            (package / LIBRARY).unlink(missing_ok=True)
        (package / "_build.json").write_text(json.dumps(native.facts, indent=1) + "\n")

    # Which files come out is known only after the build, so setuptools is told of none.
    def get_source_files(self) -> list[str]:
        return []

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class BdistWheel(bdist_wheel):
    """setuptools' bdist_wheel; the tag says that the library serves every version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    packages=[*find_packages(include=["llama_fast", "llama_fast.*"]), *BESIDE],
    package_dir=BESIDE,
    # An extension has to be declared, or the wheel would be marked as pure Python.
    ext_modules=[Extension("llama_fast.libllama_fast", sources=[])],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": BdistWheel},
)
