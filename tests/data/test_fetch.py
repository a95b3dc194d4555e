"""Fetching from a real pip index: a folder with small wheels that the test builds."""

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llama_fast.data.fetch import SUMS, FetchError, Package, cache_dir, fault, fetch

FILES = {
    "tiny_data/sets/a.arrow": b"first " * 5000,
    "tiny_data/sets/deep/b.arrow": b"second",
    "tiny_data/code.py": b"raise SystemExit('never run')",
}
WHEEL = "tiny_data-1.0-py3-none-any.whl"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def build_wheel(folder: Path, files: dict[str, bytes], extra: str = "") -> Path:
    info = "tiny_data-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n{extra}"
    tag = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    content = files | {f"{info}/METADATA": metadata.encode(), f"{info}/WHEEL": tag.encode()}
    content[f"{info}/RECORD"] = "".join(f"{n},,\n" for n in [*content, f"{info}/RECORD"]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / WHEEL, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return folder / WHEEL


def package_of(wheel: Path) -> Package:
    sums = "".join(
        f"{sha256(FILES[name])}  {name.removeprefix('tiny_data/')}\n"
        for name in sorted(FILES)
        if "/sets/" in name
    )
    return Package(
        name="tiny-data",
        version="1.0",
        wheel=WHEEL,
        size=wheel.stat().st_size,
        sha256=sha256(wheel.read_bytes()),
        members=("tiny_data/sets/*",),
        strip="tiny_data/",
        sums_sha256=sha256(sums.encode()),
    )


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def unpacked(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != SUMS)
    return {f"tiny_data/{p.relative_to(folder)}": p.read_bytes() for p in files}


WANTED = {name: data for name, data in FILES.items() if "/sets/" in name}


def test_downloads_and_unpacks_the_wanted_files_only(index: Path, cache: Path) -> None:
    package = package_of(build_wheel(index, FILES))
    reports = []
    folder = fetch(package, cache=cache, progress=lambda *report: reports.append(report))
    assert unpacked(folder) == WANTED
    assert sorted(p.name for p in cache.iterdir()) == ["tiny-data-1.0"]  # no rubbish
    assert reports[0][2] == "check"
    assert reports[-1] == (package.size, package.size, "ready")
    assert all(0 <= done <= total == package.size for done, total, _ in reports)
    # The list of sums is one that the sha256sum tool understands.
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=folder, check=True)


def test_what_is_right_is_left_alone(index: Path, cache: Path) -> None:
    wheel = build_wheel(index, FILES)
    package = package_of(wheel)
    folder = fetch(package, cache=cache)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    wheel.unlink()
    assert fetch(package, cache=cache) == folder  # nothing to download from any more
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


@pytest.mark.parametrize("damage", ["changed", "shortened", "deleted", "no list", "other list"])
def test_damage_is_found_and_repaired(index: Path, cache: Path, damage: str) -> None:
    package = package_of(build_wheel(index, FILES))
    folder = fetch(package, cache=cache)
    victim = folder / (SUMS if "list" in damage else "sets/a.arrow")
    data = victim.read_bytes()
    if damage in ("deleted", "no list"):
        victim.unlink()
    else:
        victim.write_bytes(data[:-1] if damage == "shortened" else b"F" + data[1:])
    assert str(victim) in fault(package, folder)
    with pytest.raises(FetchError, match="downloads are off"):
        fetch(package, download=False, cache=cache)
    fetch(package, cache=cache)
    assert unpacked(folder) == WANTED


def test_offline_says_what_to_put_where(index: Path, cache: Path) -> None:
    package = package_of(build_wheel(index, FILES))
    with pytest.raises(FetchError) as error:
        fetch(package, download=False, cache=cache)
    place = cache / "wheels" / WHEEL
    for part in (WHEEL, package.sha256, str(place), "pip download --no-deps", "tiny-data==1.0"):
        assert part in str(error.value)
    # Doing what it says helps.
    place.parent.mkdir()
    place.write_bytes((index / WHEEL).read_bytes())
    assert unpacked(fetch(package, download=False, cache=cache)) == WANTED
    assert place.exists()


def test_damaged_wheel_in_the_cache(index: Path, cache: Path) -> None:
    wheel = build_wheel(index, FILES)
    package = package_of(wheel)
    place = cache / "wheels" / WHEEL
    place.parent.mkdir(parents=True)
    place.write_bytes(wheel.read_bytes()[:-100])
    with pytest.raises(FetchError, match="is damaged: its SHA-256 is"):
        fetch(package, download=False, cache=cache)
    assert unpacked(fetch(package, cache=cache)) == WANTED  # downloads it instead


def test_another_file_of_the_same_name_is_refused(index: Path, cache: Path) -> None:
    package = package_of(build_wheel(index, FILES))
    build_wheel(index, FILES | {"tiny_data/sets/a.arrow": b"swapped"})
    with pytest.raises(FetchError, match=f"instead of {package.sha256}"):
        fetch(package, cache=cache)
    assert list(cache.iterdir()) == []


def test_truncated_download(index: Path, cache: Path) -> None:
    wheel = build_wheel(index, FILES)
    package = package_of(wheel)
    wheel.write_bytes(wheel.read_bytes()[: package.size // 2])
    with pytest.raises(FetchError, match=WHEEL):
        fetch(package, cache=cache)
    assert list(cache.iterdir()) == []


def test_not_in_the_index(index: Path, cache: Path, tmp_path: Path) -> None:
    package = package_of(build_wheel(tmp_path / "elsewhere", FILES))
    with pytest.raises(FetchError, match=r"No matching distribution(.|\n)*put it here"):
        fetch(package, cache=cache)


def test_the_running_python_does_not_matter(index: Path, cache: Path) -> None:
    package = package_of(build_wheel(index, FILES, extra="Requires-Python: >=99\n"))
    assert unpacked(fetch(package, cache=cache)) == WANTED


def test_wrong_content_of_a_right_wheel(index: Path, cache: Path) -> None:
    """A pin of the unpacked files that does not fit the wheel: our mistake, but no half folder."""
    good = package_of(build_wheel(index, FILES))
    wrong = Package(**{**good.__dict__, "sums_sha256": "0" * 64})
    with pytest.raises(FetchError, match="unpacked to something unexpected"):
        fetch(wrong, cache=cache)
    assert list(cache.iterdir()) == []


def test_many_at_once(index: Path, cache: Path) -> None:
    wheel = build_wheel(index, FILES)
    package = package_of(wheel)
    (cache / "wheels").mkdir(parents=True)
    (cache / "wheels" / WHEEL).write_bytes(wheel.read_bytes())
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: fetch(package, cache=cache), range(8)))
    assert unpacked(folders[0]) == WANTED
    assert sorted(p.name for p in cache.iterdir()) == ["tiny-data-1.0", "wheels"]


def test_cache_that_cannot_be_written(index: Path, tmp_path: Path) -> None:
    package = package_of(build_wheel(index, FILES))
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(FetchError, match="cannot write the cache folder"):
        fetch(package, cache=tmp_path / "file" / "cache")


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("LLAMA_FAST_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("LLAMA_FAST_CACHE")
    assert cache_dir() == tmp_path / "xdg" / "llama_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "llama_fast"


def test_interrupt_ends_pip_and_leaves_nothing(
    index: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while an index does not answer."""
    asked = threading.Event()
    release = threading.Event()

    class Stalling(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.set()
            release.wait(60)

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Stalling)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    package = package_of(build_wheel(tmp_path / "elsewhere", FILES))
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    script = f"""
        from pathlib import Path
        from llama_fast.data.fetch import Package, fetch
        fetch({package!r}, cache=Path({str(cache)!r}))
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert asked.wait(60)
        started = time.monotonic()
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=30)
        assert time.monotonic() - started < 10
        assert "KeyboardInterrupt" in said
        assert list(cache.iterdir()) == []
    finally:
        child.kill()
        release.set()
        server.shutdown()
