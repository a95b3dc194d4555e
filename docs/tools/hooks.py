"""What mkdocs does here besides its own: pages from outside of docs/, mathematics, docstrings.

- Files of the repository's root and of benchmarks/results are pages and pictures of the site too.
  Links are written as they hold in the repository (and so on any host of it) and translated here.
- Drawings (SVG) become part of the page, so that they follow its light or dark colours.
- Every name that the package exports has to be on a page, with a docstring that describes its
  parameters; an exception ends the build.
"""

from __future__ import annotations

import functools
import posixpath
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))
import mathml

ROOT = Path(__file__).resolve().parents[2]
# Page of the site -> file of the repository.
OUTSIDE = {f"{name.lower()}.md": f"{name}.md" for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY")}
OUTSIDE |= {
    f"results/{path.name}": f"benchmarks/results/{path.name}"
    for path in sorted((ROOT / "benchmarks" / "results").iterdir())
    if path.suffix in (".md", ".png", ".html")
}
# Exported names that are not described by themselves: modules that have pages, and the version.
MODULES = {"models", "nn", "losses", "__version__"}
LINK = re.compile(r"(\]\()([^)\s#]+)")


def on_config(config: Any) -> Any:
    """Add the mathematics to Markdown's extensions, and the version to the foot of every page."""
    version = runpy.run_path(str(ROOT / "llama_fast" / "_version.py"))["__version__"]
    config["copyright"] = f"llama_fast {version}"
    config["markdown_extensions"].append(mathml.MathExtension())
    config["mdx_configs"].setdefault("pymdownx.superfences", {})["custom_fences"] = [
        {"name": "math", "class": "math", "format": mathml.block}
    ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and pictures that lie outside of docs/."""
    for uri, source in OUTSIDE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Translate links from places in the repository to places on the site."""
    uri = page.file.src_uri
    source = OUTSIDE.get(uri, f"docs/{uri}")
    site_of = {file: page for page, file in OUTSIDE.items()}

    def translate(match: re.Match[str]) -> str:
        target = match[2]
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        to = site_of.get(path) or path.removeprefix("docs/")
        if to == path:  # not on the site: mkdocs says so
            return match[0]
        return match[1] + posixpath.relpath(to, posixpath.dirname(uri) or ".")

    markdown = LINK.sub(translate, markdown)
    return re.sub(r"^::: ([\w.]+)$", _with_heading, markdown, flags=re.MULTILINE)


def _with_heading(match: re.Match[str]) -> str:
    """An object by the name that users give it, from where it is defined."""
    name = match[1].rsplit(".", 1)[-1]
    options = f"\n    options:\n      heading: {_shown(match[1])}\n      toc_label: {name}"
    return f"::: {_place(match[1])}{options}"


def _shown(place: str) -> str:
    """The name that the package exports, or where the object is defined."""
    name = place.rsplit(".", 1)[-1]
    return f"llama_fast.{name}" if name in _exported() - MODULES else place


def _place(name: str) -> str:
    """Where an object is defined; `name` may be one that the package exports."""
    thing = _package()[name.removeprefix("llama_fast.")]
    thing = thing.final_target if thing.is_alias else thing
    last = name.rsplit(".", 1)[-1]
    if thing.is_module:  # llama_fast.ops.attention is a module and a function
        thing = thing.members[last]
    return str(thing.path)


def on_page_content(html: str, page: Any, config: Any, **_: Any) -> str:
    """Put drawings into the page, and wide tables into boxes that scroll."""

    def drawing(match: re.Match[str]) -> str:
        path = Path(config["docs_dir"], posixpath.dirname(page.file.src_uri), match[2])
        svg = path.read_text().replace("<svg ", f'<svg role="img" aria-label="{match[1]}" ', 1)
        return f'<figure class="drawing">{svg}</figure>'

    html = re.sub(r'<p><img alt="([^"]*)" src="([^"]+\.svg)" ?/?></p>', drawing, html)
    return html


def on_env(env: Any, config: Any, files: Any) -> Any:
    """Refuse a site that leaves an exported name without a description."""
    described = set()
    for file in files.documentation_pages():
        described |= set(re.findall(r"^::: ([\w.]+)", file.content_string, re.MULTILINE))
    faults = [fault for name in described for fault in _faults(name)]
    shown = {_shown(place).removeprefix("llama_fast.") for place in described}
    faults += [f"llama_fast.{name} is on no page" for name in _exported() - shown - MODULES]
    if faults:
        raise PluginError("documentation is missing:\n  " + "\n  ".join(sorted(faults)))
    return env


@functools.cache
def _package() -> Any:
    return griffe.load("llama_fast", search_paths=[ROOT], resolve_aliases=True)


@functools.cache
def _exported() -> frozenset[str]:
    names = frozenset(str(name).strip("'\"") for name in _package().exports or ())
    if not names:
        raise PluginError("llama_fast/__init__.py: no __all__ that can be read")
    return names


def _faults(name: str) -> list[str]:
    """What is missing from the docstrings of an object of the package."""
    thing = _package()[_place(name).removeprefix("llama_fast.")]
    if thing.docstring is None:
        return [f"{name} has no docstring"]
    faults = []
    if thing.is_function:
        taken = {p.name.lstrip("*") for p in thing.parameters} - {"self"}
        sections = thing.docstring.parse("google", warnings=False)
        told = {
            part.strip().lstrip("*")
            for section in sections
            if section.kind is griffe.DocstringSectionKind.parameters
            for p in section.value
            for part in p.name.split(",")
        }
        if told:  # a short docstring may say all in its first line
            faults += [f"{name}: {each} is not described" for each in sorted(taken - told)]
    for member in thing.members.values() if thing.is_class else ():
        if member.is_function and not member.name.startswith("_") and member.docstring is None:
            faults.append(f"{name}.{member.name} has no docstring")
    return faults
