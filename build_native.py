"""Compiles the native parts of llama_fast (called by setup.py).

They are one library, libllama_fast.so: torch's stable ABI, nothing of Python's, so that it serves
every version of both. ninja does the compiling, in build/native, so that a second build compiles
only what changed. A part that cannot be built is left out, and the table at the end says why.

Environment:
    CXX, CXXFLAGS           compiler and extra flags
    MAX_JOBS                number of compilers at once
    LLAMA_FAST_TORCH        folder of the torch package to build against, in place of the installed
                            one's; fetch_torch.py makes one for any version and processor
    LLAMA_FAST_TARGET       aarch64: cross-compile for 64-bit Arm, in build/native-aarch64, against
                            the torch for Arm that LLAMA_FAST_TORCH names
    LLAMA_FAST_BUILD        0: compile nothing; 1: fail if a part cannot be built
    LLAMA_FAST_CUDA         0: without CUDA; 1: with CUDA, even against a torch without it
    LLAMA_FAST_CUDA_ARCHS   GPU architectures to compile for, such as "80;90a", "8.0 9.0a" or
                            "sm_80,sm_90a+PTX"; the default is those of 80;90a;100 that nvcc knows
    LLAMA_FAST_SANITIZE     1: the ops library alone, with AddressSanitizer and UBSan, as
                            build/sanitize/libllama_fast.so (load it by LLAMA_FAST_LIBRARY)
    LLAMA_FAST_EMULATE_CUDA 1: the CUDA kernels alone, compiled for the CPU to be tested there, as
                            build/emulated/libllama_fast_cuda.so (loaded where this is set)
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from build_backend import (
    MINIMUM_TORCH,
    CannotBuild,
    NotATorch,
    NotWanted,
    is_recent,
    torch_directory,
    torch_facts,
)
from build_cuda import find_cuda, gencode
from build_isas import CROSS, ISAS, OTHERS, TARGET

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
SANITIZE = os.environ.get("LLAMA_FAST_SANITIZE") == "1"
EMULATE = os.environ.get("LLAMA_FAST_EMULATE_CUDA", "0") != "0"
LIBRARY = "libllama_fast.so"
EMULATED = "libllama_fast_cuda.so"

# Sources of csrc/cpu that call the kernels of the instruction set in use and hold none themselves.
COMPILED_ONCE = ("attention_cache.cpp", "bin_packing.cpp", "decode_layers.cpp", "dispatch.cpp")

CXX_FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden"]
# GCC 12 warns of uninitialised variables in its own AVX-512 headers.
CXX_FLAGS += ["-Wall", "-Wno-psabi", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
# Floating-point errno and traps are never looked at; a*b+c may be one fused multiply-add.
CXX_FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
# The kernels say themselves what is a vector: -O3 measured no faster, and compiles half as fast.
OPTIMIZE = ["-O2", "-g0"]
SMALL_FRAMES = "-Werror=frame-larger-than=32768"
if SANITIZE:
    # The last flag keeps fused multiply-adds, which -O1 leaves out: same roundings, same tests.
    OPTIMIZE = ["-O1", "-g1", "-fno-omit-frame-pointer", "-fexpensive-optimizations"]
    OPTIMIZE += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

# Sources of csrc/glue that the CUDA operators need too.
SHARED_GLUE = ("memory", "output_cache", "scratch", "tensors")

# What says why a command failed, in the output of compilers, linkers, nvcc and ninja.
ERROR_LINE = r"undefined reference.*|^.*error:.*|^.*fatal.*"


@dataclass
class Toolchain:
    """The C++ compiler and ninja."""

    cxx: list[str]
    version: str
    ninja: str

    @classmethod
    def find(cls) -> Toolchain:
        """The tools of this machine; `CannotBuild` where one is missing."""
        if os.name == "nt":
            raise CannotBuild("compiling on Windows is not supported")
        asked = os.environ.get("CXX")
        usual = [f"{TARGET}-linux-gnu-g++"] if CROSS else ["g++", "clang++", "c++"]
        names = [asked] if asked else usual
        cxx = next((shlex.split(n) for n in names if shutil.which(shlex.split(n)[0])), None)
        if cxx is None:
            raise CannotBuild(f"no C++ compiler found ({', '.join(names)}); install g++ or set CXX")
        version = subprocess.run([*cxx, "--version"], capture_output=True, text=True)
        if version.returncode or not version.stdout.strip():
            why = first_error(version.stderr) or f"exit code {version.returncode}"
            raise CannotBuild(f"{shlex.join(cxx)} --version fails: {why}")
        return cls(cxx, version.stdout.splitlines()[0], find_ninja())

    def accepts(self, flags: list[str]) -> bool:
        """Whether the compiler knows `flags`."""
        command = [*self.cxx, *flags, "-x", "c++", "-c", os.devnull, "-o", os.devnull]
        return subprocess.run(command, capture_output=True).returncode == 0

    def instruction_sets(self) -> dict[str, list[str]]:
        """Those that the compiler knows of the processor's, with the flags of each."""
        known = ISAS.get(TARGET, OTHERS)
        return {name: flags for name, flags in known.items() if self.accepts(flags)}


def first_error(output: str) -> str:
    """The line of a compiler's or ninja's output that says what is wrong; its last if none does."""
    found = re.search(ERROR_LINE, output, re.MULTILINE)
    lines = [found[0]] if found else output.strip().splitlines()[-1:]
    return lines[0].strip()[:200] if lines else ""


def find_ninja() -> str:
    """Path of ninja: that of the Python package, or else one on the PATH."""
    try:
        import ninja

        found = shutil.which("ninja", path=ninja.BIN_DIR)
    except ImportError:
        found = None
    found = found or shutil.which("ninja")
    if found is None:
        raise CannotBuild("ninja not found (pip install ninja)")
    return found


def find_torch() -> tuple[Path, str, str | None]:
    """Folder, version and CUDA version of the torch to build against."""
    try:
        directory = torch_directory()
    except NotATorch as error:
        raise CannotBuild(str(error)) from error
    if CROSS and "LLAMA_FAST_TORCH" not in os.environ:
        raise CannotBuild(f"LLAMA_FAST_TARGET={TARGET} needs the torch that LLAMA_FAST_TORCH names")
    if directory is None:
        raise CannotBuild("torch not found (pip install torch, or build with isolation)")
    facts = torch_facts(directory)
    if not is_recent(facts["__version__"]):
        wanted = ".".join(map(str, MINIMUM_TORCH))
        raise CannotBuild(f"expected torch {wanted} or later, found {facts['__version__']}")
    return directory, facts["__version__"], facts["cuda"]


@dataclass
class BuildFile:
    """A build.ninja in the making: one compile edge a call, then one link edge a library."""

    directory: Path
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for rule, dependencies in {"compile": True, "link": False}.items():
            self.lines += [f"rule {rule}", "  command = $command", "  description = $out"]
            if dependencies:
                self.lines += ["  depfile = $out.d", "  deps = gcc"]

    def _edge(self, rule: str, output: str, inputs: list[str], command: list[str]) -> str:
        def escape(path: str) -> str:
            return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

        self.lines.append(f"build {escape(output)}: {rule} {' '.join(map(escape, inputs))}")
        self.lines.append("  command = " + shlex.join(command).replace("$", "$$"))
        return output

    def compile(self, command: list[str], source: Path, suffix: str = "") -> str:
        """Adds the compilation of `source` with `command`; returns the object file's name."""
        output = "_".join(source.relative_to(CSRC).with_suffix("").parts) + suffix + ".o"
        options = ["-MD", "-MF", output + ".d", "-c", str(source), "-o", output]
        return self._edge("compile", output, [str(source)], [*command, *options])

    def link(self, cxx: list[str], output: str, objects: list[str], flags: list[str]) -> None:
        """Adds a shared library made of `objects`."""
        self._edge("link", output, objects, [*cxx, "-shared", *objects, *flags, "-o", output])

    def run(self, ninja: str, targets: list[str]) -> dict[str, str | None]:
        """Builds `targets`; for each, the first error line, or None when it was built."""
        (self.directory / "build.ninja").write_text("\n".join(self.lines) + "\n")
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        command = [ninja, "-C", str(self.directory), *jobs]
        # In English, in which `first_error` finds what is wrong.
        env = {**os.environ, "LC_ALL": "C"}
        if subprocess.run([*command, "-k", "0", *targets], env=env).returncode == 0:
            return dict.fromkeys(targets)
        errors: dict[str, str | None] = {}
        for target in targets:  # which of them failed, and with what message
            again = subprocess.run([*command, target], capture_output=True, text=True, env=env)
            reason = first_error(again.stdout + again.stderr) or "the compiler failed"
            errors[target] = reason if again.returncode else None
        return errors


class NativeBuild:
    """What there is to build here, and the table that says what became of it.

    With a `variant` the library is <variant>/libllama_fast.so, beside those of other variants: they
    share the objects of what does not depend on torch.
    """

    def __init__(self, variant: str = "") -> None:
        self.folder, self.suffix = (f"{variant}/", f".{variant}") if variant else ("", "")
        kind = "sanitize" if SANITIZE else "emulated" if EMULATE else "native"
        kind += f"-{TARGET}" if CROSS else ""
        self.directory = ROOT / "build" / kind
        self.parts: dict[str, tuple[bool, str]] = {}  # name -> (built, what or why not)
        self.not_wanted: set[str] = set()  # the parts that are left out on purpose
        self.does_not_compile: set[str] = set()
        self.facts: dict[str, object] = {}  # for llama_fast/_build.json
        self.outputs: list[str] = []  # files in `directory` that were built
        self.with_cuda = True

    def run(self) -> None:
        """Builds what can be built; afterwards `parts`, `facts` and `outputs` tell."""
        begin = time.monotonic()
        try:
            if os.environ.get("LLAMA_FAST_BUILD") == "0":
                raise NotWanted("LLAMA_FAST_BUILD=0")
            self.tools = Toolchain.find()
            self.facts["compiler"] = self.tools.version
            self.directory.mkdir(parents=True, exist_ok=True)
            with open(self.directory / "lock", "w") as lock:
                import fcntl  # two builds of one tree take turns

                fcntl.flock(lock, fcntl.LOCK_EX)
                self._build()
        except CannotBuild as reason:
            for part in self._plans():
                self._leave_out(part, reason)
        self.facts["seconds"] = round(time.monotonic() - begin, 1)
        order = [n for n in (*self._plans(), "CUDA") if n in self.parts]
        self.parts = {n: self.parts[n] for n in order}
        self.facts["parts"] = {n: {"built": b, "detail": d} for n, (b, d) in self.parts.items()}
        self.facts["missing"] = list(self.missing())

    def _leave_out(self, part: str, reason: CannotBuild) -> None:
        self.parts[part] = (False, str(reason))
        self.not_wanted |= {part} if isinstance(reason, NotWanted) else set()

    def _plans(self) -> dict[str, tuple[str, Callable[[BuildFile], str]]]:
        """The parts that are wanted: name -> (library, what plans it)."""
        if EMULATE:
            return {"emulated CUDA kernels": (self.folder + EMULATED, self._plan_emulated)}
        return {"ops library": (self.folder + LIBRARY, self._plan_library)}

    def _build(self) -> None:
        ninja_file = BuildFile(self.directory)
        extra = shlex.split(os.environ.get("CXXFLAGS", ""))
        flags = [*CXX_FLAGS, *OPTIMIZE, *extra]
        self.facts["flags"] = " ".join(flags)
        # Threads may have small stacks (OMP_STACKSIZE, threading.stack_size). Who only installs is
        # not to be kept from it by a compiler that lays frames out otherwise.
        if os.environ.get("LLAMA_FAST_BUILD") == "1" and not SANITIZE and not EMULATE:
            flags += filter(lambda flag: self.tools.accepts([flag]), [SMALL_FRAMES])
        # Error messages quote source paths, and torch's: relative ones, wherever the build was.
        self.flags = [*flags, f"-ffile-prefix-map={ROOT}/=", f"-I{CSRC}"]
        self.flags += [] if SANITIZE else ["-include", str(CSRC / "old_glibc.h")]
        wanted = {}
        for part, (target, plan) in self._plans().items():
            try:
                wanted[target] = (part, plan(ninja_file))
            except CannotBuild as reason:
                self._leave_out(part, reason)
        errors = ninja_file.run(self.tools.ninja, list(wanted))
        if errors.get(LIBRARY) and self.with_cuda:
            # If that is CUDA's fault, it must not cost the CPU kernels.
            self.with_cuda = False
            self.parts["CUDA"] = (False, errors[LIBRARY] or "")
            self._build()
            if self.parts["ops library"][0]:
                self.does_not_compile.add("CUDA")
            else:
                self.parts["CUDA"] = (False, "the ops library does not compile")
                self.not_wanted.add("CUDA")  # the reason is that of the ops library
            return
        for target, error in errors.items():
            part, detail = wanted[target]
            self.parts[part] = (error is None, error or detail)
            self.outputs += [] if error else [target]

    def _torch(self) -> tuple[str, str | None, list[str], list[str]]:
        """Version, CUDA version, compiler flags and linker flags of torch."""
        torch, version, torch_cuda = find_torch()
        self.facts["torch"] = version
        # TORCH_TARGET_VERSION: the oldest torch that the binary has to load into.
        target = "-DTORCH_TARGET_VERSION=0x%02x%02x000000000000" % MINIMUM_TORCH  # noqa: UP031
        # No run path: Python has loaded torch's libraries before ours is opened.
        # libstdc++ comes first: some releases of torch export copies of its functions.
        link_flags = ["-lstdc++"] if sys.platform == "linux" else []
        link_flags += [f"-L{torch}/lib", "-ltorch", "-ltorch_cpu", "-lc10"]
        flags = [f"-I{torch}/include", f"-ffile-prefix-map={torch.parent}/=", target]
        return version, torch_cuda, flags, link_flags

    def _plan_library(self, ninja_file: BuildFile) -> str:
        version, torch_cuda, torch_flags, link_flags = self._torch()
        isas = self.tools.instruction_sets()
        self.facts["instruction_sets"] = list(isas)
        have = [f"-DLLAMA_FAST_HAVE_{name.upper()}=1" for name in isas]
        cuda_objects, cuda_flags = self._plan_cuda(ninja_file, torch_cuda, torch_flags)
        torch_flags += ["-DLLAMA_FAST_HAVE_CUDA=1"] if cuda_objects else []

        command = [*self.tools.cxx, *self.flags]
        sources = [CSRC / "ops.cpp", *sorted((CSRC / "glue").glob("*.cpp"))]
        objects = [ninja_file.compile([*command, *torch_flags], s, self.suffix) for s in sources]
        sources = sorted((CSRC / "cpu").glob("*.cpp"))
        once = [s for s in sources if s.name in COMPILED_ONCE]
        objects += [ninja_file.compile([*command, *have], s) for s in once]
        kernels = [s for s in sources if s not in once]
        # Of an inline function that several objects hold, the linker keeps the first copy. It has
        # to be one that every processor runs: objects for newer instruction sets come last.
        for isa, isa_flags in isas.items():
            isa_command = [*command, *isa_flags, f"-DLLAMA_FAST_ISA={isa}"]
            objects += [ninja_file.compile(isa_command, s, f".{isa}") for s in kernels]
        link_flags += cuda_flags
        if SANITIZE:  # its run-time libraries are preloaded, so undefined symbols are expected
            link_flags += [f for f in OPTIMIZE if f.startswith("-fsanitize")]
        elif sys.platform == "linux":
            link_flags += ["-Wl,-z,defs", f"-Wl,--version-script={CSRC / 'exports.map'}"]
        ninja_file.link(self.tools.cxx, self.folder + LIBRARY, objects + cuda_objects, link_flags)
        return f"{LIBRARY}: {', '.join(isas)}; torch {version}"

    def _plan_cuda(
        self, ninja_file: BuildFile, torch_cuda: str | None, torch_flags: list[str]
    ) -> tuple[list[str], list[str]]:
        """Objects and link flags of the CUDA kernels, both empty where they are left out."""
        if not self.with_cuda:  # tried and failed
            return [], []
        try:
            if SANITIZE:
                raise NotWanted("sanitizer build")
            if CROSS:
                raise NotWanted(f"cross-compiled for {TARGET}")
            home, architectures = find_cuda(torch_cuda, CSRC)
        except CannotBuild as reason:
            self.with_cuda = False
            self._leave_out("CUDA", reason)
            return [], []
        nvcc = [f"{home}/bin/nvcc", "-std=c++17", "-O3", f"-ccbin={self.tools.cxx[-1]}"]
        nvcc += ["-Xcompiler=-fPIC,-fvisibility=hidden", f"-I{CSRC}"]
        nvcc += [flag for flag in torch_flags if flag.startswith(("-I", "-D"))]
        for arch in architectures:
            nvcc += gencode(arch)
        sources = sorted((CSRC / "cuda").glob("*.cu"))
        self.parts["CUDA"] = (True, f"{home}: sm_{', sm_'.join(architectures)}")
        # The static runtime: the library then loads where there is no CUDA at all.
        flags = [f"-L{home}/lib64", f"-L{home}/lib", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        objects = [ninja_file.compile(nvcc, s, ".cuda") for s in sources]
        command = [*self.tools.cxx, *self.flags, *torch_flags]
        glue = sorted((CSRC / "cuda" / "glue").glob("*.cpp"))
        return objects + [ninja_file.compile(command, s) for s in glue], [*flags, "-ldl"]

    def _plan_emulated(self, ninja_file: BuildFile) -> str:
        version, _, torch_flags, link_flags = self._torch()
        # As on a GPU, a*b+c is one operation where the processor can.
        command = [*self.tools.cxx, *self.flags, "-march=native", "-DLLAMA_FAST_EMULATION=1"]
        command += ["-Wno-unknown-pragmas"]
        folder = CSRC / "cuda"
        objects = [ninja_file.compile(command, folder / "emulation.cpp")]
        kernels = [*command, "-x", "c++"]
        objects += [ninja_file.compile(kernels, s) for s in sorted(folder.glob("*.cu"))]
        glue = [*command, *torch_flags]
        shared = [CSRC / "glue" / f"{n}.cpp" for n in SHARED_GLUE]
        sources = [*sorted((folder / "glue").glob("*.cpp")), *shared]
        objects += [ninja_file.compile(glue, s, self.suffix) for s in sources]
        if sys.platform == "linux":
            link_flags += ["-ldl", "-Wl,-z,defs"]
        ninja_file.link(self.tools.cxx, self.folder + EMULATED, objects, link_flags)
        return f"{self.directory / self.folder / EMULATED}: torch {version}"

    def missing(self) -> dict[str, str]:
        """Name of each part that could not be built, and why. What is not wanted is not missing."""
        return {
            name: detail
            for name, (built, detail) in self.parts.items()
            if not built and name not in self.not_wanted
        }

    def failed(self) -> list[str]:
        """The parts without which a strict build (LLAMA_FAST_BUILD=1) fails.

        A missing CUDA toolkit is a failure only if CUDA is asked for: an ordinary machine with a
        GPU has torch's CUDA libraries and no toolkit.
        """
        asked = os.environ.get("LLAMA_FAST_CUDA") == "1"
        optional = set() if asked else {"CUDA"} - self.does_not_compile
        return [name for name in self.missing() if name not in optional]

    def table(self) -> str:
        """One line a part: what was built, or why it was not."""
        rows = [(n, "built" if b else "not built", d) for n, (b, d) in self.parts.items()]
        rows += [(n, "", str(self.facts[n])) for n in ("compiler", "seconds") if n in self.facts]
        width = max(12, *(len(name) for name, _, _ in rows))
        return "llama_fast build\n" + "\n".join(f"  {n:<{width}} {b:<10} {d}" for n, b, d in rows)
