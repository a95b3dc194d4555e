"""The documentation's drawings and tables are those that its scripts make; its site is whole."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import llama_fast
from tests.docs.pages import PAGES
from tests.eval.report.browser import FLAGS, NAMES
from tests.paths import REPOSITORY

TOOLS = REPOSITORY / "docs" / "tools"
MKDOCS = REPOSITORY / "build" / "docs-venv" / "bin" / "mkdocs"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of docs/tools, which import each other by their bare names."""
    monkeypatch.syspath_prepend(str(TOOLS))
    for module in ("canvas", "attention_drawings", "drawings", "speed"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return importlib.import_module(name)


def test_drawings_are_up_to_date(monkeypatch):
    drawings = load("drawings", monkeypatch)
    for name, draw in drawings.DRAWINGS.items():
        assert (drawings.HOW / f"{name}.svg").read_text() == draw().svg(), name
    assert {p.stem for p in drawings.HOW.glob("*.svg")} == set(drawings.DRAWINGS)


def test_every_kernel_page_shows_a_drawing():
    pages = [
        p
        for p in (REPOSITORY / "docs" / "how").glob("*.md")
        if p.name not in ("index.md", "walks.md")
    ]
    assert pages
    for page in pages:
        assert re.search(r"!\[[^\]]+\]\(\w+\.svg\)", page.read_text()), page


def test_speed_of_the_readme_is_that_of_the_results(monkeypatch):
    speed = load("speed", monkeypatch)
    assert speed.PICTURE.read_text() == speed.picture()
    assert "\n".join(speed.table()) in (REPOSITORY / "README.md").read_text()
    page = speed.PAGE.read_text()
    assert speed.details(page) == page


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 150


def test_links_of_the_repository_lead_somewhere():
    """As they are read outside of the site; `make docs` checks those of the site."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if "://" in target or target.startswith("#"):
                continue
            path = page.parent / target.partition("#")[0]
            assert path.exists(), f"{page.relative_to(REPOSITORY)}: {target}"


def test_citation_has_this_version():
    text = (REPOSITORY / "CITATION.cff").read_text()
    assert f"\nversion: {llama_fast.__version__}\n" in text
    assert "\ncff-version: 1.2.0\n" in f"\n{text}"
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    assert f"## [{llama_fast.__version__}]" in changelog


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """What the site is made of, to be changed."""
    if not MKDOCS.exists():
        pytest.skip("needs build/docs-venv, which `make docs` makes")
    folder = tmp_path_factory.mktemp("site")
    for name in ("docs", "llama_fast", "benchmarks/results"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    for path in [REPOSITORY / "mkdocs.yml", *REPOSITORY.glob("*.md")]:
        shutil.copy(path, folder)
    return folder


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MKDOCS, "build"], cwd=folder, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def site(sources):
    """The built site."""
    made = build(sources)
    assert made.returncode == 0, made.stderr
    return sources / "build" / "site"


@pytest.mark.slow
def test_the_site_needs_no_network(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        if page.parent.name == "results":
            continue  # reports of evaluations, pages of their own
        loaded = re.findall(
            r"<(?:script|img|iframe|source)[^>]* src=\"?([^\" >]+)"
            r"|<link[^>]* rel=\"?(?:stylesheet|preconnect|icon)[^>]* href=\"?([^\" >]+)",
            page.read_text(),
        )
        assert not [x for pair in loaded for x in pair if "//" in x], page


MEASURE = """<body><script>
const pages = %s;
async function width(page) {
  const frame = document.createElement("iframe");
  frame.style = "width:375px;height:800px;border:0";
  frame.src = page;
  await new Promise((loaded) => { frame.onload = loaded; document.body.append(frame); });
  await new Promise((scripts) => setTimeout(scripts, 200));
  const found = frame.contentDocument.documentElement.scrollWidth;
  frame.remove();
  return found;
}
(async () => {
  const widths = {};
  for (const page of pages) widths[page] = await width(page);
  document.body.textContent = "widths " + JSON.stringify(widths) + " end";
})();
</script>"""


@pytest.mark.slow
def test_no_page_is_wider_than_a_phone(site, tmp_path):
    """375 pixels: tables, code, formulas and drawings scroll by themselves."""
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        pytest.skip("needs a browser: chromium")
    pages = [p.as_uri() for p in site.rglob("*.html") if p.name not in ("404.html",)]
    pages = [p for p in pages if "llama2-suite" not in p]
    page = tmp_path / "measure.html"
    page.write_text(MEASURE % json.dumps(pages))
    shown = subprocess.run(
        [
            chromium, *FLAGS, "--disable-web-security", "--allow-file-access-from-files",
            f"--user-data-dir={tmp_path}/profile",
            "--virtual-time-budget=60000", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    widths = json.loads(re.search(r"widths (.*) end", shown.stdout)[1])
    assert len(widths) == len(pages)
    assert not {page: width for page, width in widths.items() if width > 375}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        (
            [
                ("docs/quickstart.md", r"\[patching\]\(patch.md\)", "[patching](absent.md)"),
                (
                    "docs/quickstart.md",
                    r"\[training\]\(training.md\)",
                    "[training](training.md#none)",
                ),
            ],
            ["absent.md", "#none"],
        ),
        (
            [
                ("docs/ops/swiglu.md", "::: llama_fast.swiglu", ""),
                ("llama_fast/ops/rope.py", r'(?s)(def rope\(.*?:\n    )"""', r'\1f"""'),
                ("llama_fast/ops/rms_norm.py", r"\n        eps: ", r"\n        epsilon: "),
            ],
            [
                "llama_fast.swiglu is on no page",
                "llama_fast.rope has no docstring",
                "llama_fast.rms_norm: eps is not described",
            ],
        ),
    ],
    ids=["links", "docstrings"],
)
def test_faults_of_the_site_end_the_build(sources, changes, messages):
    whole = {file: (sources / file).read_text() for file, _, _ in changes}
    for file, old, new in changes:
        text = (sources / file).read_text()
        changed, times = re.subn(old, new, text, count=1)
        assert times == 1, file
        (sources / file).write_text(changed)
    try:
        made = build(sources)
    finally:
        for file, text in whole.items():
            (sources / file).write_text(text)
    assert made.returncode != 0
    for message in messages:
        assert message in made.stderr + made.stdout
