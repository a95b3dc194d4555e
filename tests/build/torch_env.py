"""Makes build/torch-env-VERSION: a virtual environment with that torch, for tests/ops on a CPU.

    python tests/build/torch_env.py 2.11.0

torch is the one that pip installs (on x86-64 Linux: built with CUDA). Of the packages that it
requires, those that hold CUDA's libraries are 3 to 5 GB, of which a CPU uses nothing but the
addresses of their functions when torch's libraries are loaded. So only CUDA's runtime is installed,
which says that there is no GPU; libraries made here stand for the others. Every function in them
returns an error. The last line of the output is the Python of the environment.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What tests/ops needs besides torch.
TESTS = ("numpy", "pytest>=8", "pytest-xdist", "hypothesis")
STAND_IN = "int {name}(void) {{ return 999; }}\n"  # CUDA's "unknown error"


def make(version: str) -> Path:
    """The Python of the environment, which is made where it is not there yet."""
    environment = ROOT / "build" / f"torch-env-{version}"
    python = environment / "bin" / "python"
    ready = environment / f".ready-{sysconfig.get_python_version()}"
    if not ready.exists():
        shutil.rmtree(environment, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        install(python, "--no-deps", f"torch=={version}")
        site = next(environment.glob("lib/python3*/site-packages"))
        install(python, *TESTS, *requirements(site))
        stand_in_for_cuda(site)
        ready.touch()
    return python


def install(python: Path, *requirements: str) -> None:
    """pip install, of wheels alone."""
    command = [str(python), "-m", "pip", "install", "--progress-bar=off", "--only-binary=:all:"]
    subprocess.run([*command, *requirements], check=True, stdout=sys.stderr)


def requirements(site: Path) -> list[str]:
    """What the torch in `site` requires, without CUDA's libraries but with CUDA's runtime."""
    (torch,) = importlib.metadata.distributions(name="torch", path=[str(site)])
    wanted = []
    for line in torch.requires or []:
        if "extra ==" in line:
            continue
        if found := re.fullmatch(r"cuda-toolkit\[.*\](.*)", line):
            wanted.append(f"cuda-toolkit[cudart]{found[1]}")
        elif line.startswith("nvidia-cuda-runtime") or not line.startswith(("nvidia-", "cuda-")):
            wanted.append(line)
    return wanted


def stand_in_for_cuda(site: Path) -> None:
    """Puts a library beside torch's for each that those need and that is not there."""
    folder = site / "torch" / "lib"
    libraries = sorted(folder.glob("*.so*"))
    needed = {name for library in libraries for name in needs(library)}
    have = {library.name for library in (*libraries, *site.glob("nvidia/**/*.so*"))}
    # libcuda is the driver, which torch opens only where there is a GPU.
    missing = sorted(
        n for n in needed - have if re.match(r"lib(cu|nv|nccl)", n) and n != "libcuda.so.1"
    )
    owners = {v: n for library in libraries for n, v in versions(library) if n in missing}
    functions: dict[tuple[str, str], set[str]] = defaultdict(set)  # of a library and version
    for library in libraries:
        for name, _, version in (s.partition("@") for s in symbols(library, "--undefined-only")):
            if version in owners:
                functions[owners[version], version].add(name)
            elif not version and missing and re.match(r"(cu|nv|nccl)", name):
                functions[missing[0], ""].add(name)
    for name in missing:
        build_stand_in(
            folder / name, {v: sorted(f) for (n, v), f in functions.items() if n == name}
        )
    print(f"stand-ins for {', '.join(missing) or 'no library'}", file=sys.stderr)


def needs(library: Path) -> set[str]:
    """The names of the libraries that `library` is linked with."""
    return set(re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "-d", str(library))))


def versions(library: Path) -> list[tuple[str, str]]:
    """(library, version) of the symbol versions that `library` asks of others."""
    found = re.split(r"File: (\S+)", run("readelf", "-V", "--wide", str(library)))
    files = zip(found[1::2], found[2::2], strict=True)
    return [(file, version) for file, text in files for version in re.findall(r"Name: (\S+)", text)]


def symbols(library: Path, which: str) -> set[str]:
    """The names in nm's table of `library`, weak ones left out; their versions after an @."""
    lines = run("nm", "-D", which, str(library)).splitlines()
    return {f[-1].replace("@@", "@") for f in map(str.split, lines) if f[-2] not in "wv"}


def run(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def build_stand_in(path: Path, functions: dict[str, list[str]]) -> None:
    """The library `path` with these functions of each version ("" for those without one)."""
    source, script = path.with_name(path.name + ".c"), path.with_name(path.name + ".map")
    names = [name for some in functions.values() for name in some]
    source.write_text("".join(STAND_IN.format(name=name) for name in names))
    versioned = {version: some for version, some in functions.items() if version}
    nodes = [
        f"{version} {{ global: {'; '.join(some)}; }};\n" for version, some in versioned.items()
    ]
    script.write_text("".join(nodes))
    command = ["cc", "-shared", "-fPIC", "-fno-builtin", "-w", str(source), "-o", str(path)]
    command += [f"-Wl,-soname,{path.name}"]
    command += [f"-Wl,--version-script={script}"] if versioned else []
    subprocess.run(command, check=True)
    source.unlink()
    script.unlink()


def main() -> None:
    """The command line of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("version", help="of torch, for example 2.11.0")
    try:
        print(make(parser.parse_args().version))
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"torch_env: failed: {' '.join(map(str, error.cmd))}") from error


if __name__ == "__main__":
    main()
