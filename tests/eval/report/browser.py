"""A real browser for the tests: headless Chromium, driven by a page around those under test."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--enable-logging=stderr",
)

# Every page runs in a frame of the wished width, of the same origin as the script that drives it.
DRIVER = """<!DOCTYPE html><meta charset="utf-8"><body><pre id="said"></pre>
<script>
// The browser's clock leaps when nothing is to be done; reading a blob takes time that is real, as
// what is waited for does.
const wait = async (is) => {
  for (let turn = 0; turn < 400 && !is(); turn++) {
    await new Response(new Blob(["turn"]).stream()).text();
    await new Promise((go) => setTimeout(go, 5));
  }
};
async function drive(width, text, script) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `border:0;width:${width}px;height:800px`;
  frame.srcdoc = text;
  const loaded = new Promise((go) => { frame.onload = go; });
  document.body.prepend(frame);
  await loaded;
  const page = frame.contentDocument;
  const find = (what) => page.querySelector(what);
  const all = (what, of = page) => [...of.querySelectorAll(what)];
  const set = async (id, value) => {
    const list = find("#list");
    delete list.dataset.found;
    find("#" + id).value = value;
    find("#" + id).dispatchEvent(new Event(id === "search" ? "input" : "change"));
    await wait(() => list.dataset.found !== undefined);
    return Number(list.dataset.found);
  };
  const said = {};
  try {
    await wait(() => page.documentElement.dataset.ready === "yes" || !find("#trouble").hidden);
    await script({ page, find, all, set, wait }, said);
  } catch (error) { said.error = String(error.stack); }
  said.trouble = find("#trouble").textContent;
  frame.remove();
  return said;
}
const drives = [$drives];
(async () => {
  const said = [];
  for (const [width, text, script] of drives) said.push(await drive(width, text, script));
  document.getElementById("said").textContent = JSON.stringify(said);
})();
</script>
"""


@dataclass(frozen=True)
class Drive:
    """A script for a page: it has `page`, `find`, `all`, `set` and `wait`, and fills `said`."""

    page: str
    script: str
    width: int = 1280

    def __str__(self) -> str:
        body = "async ({ page, find, all, set, wait }, said) => {" + self.script + "}"
        text = json.dumps(self.page).replace("<", "\\u003c")
        return f"[{self.width}, {text}, {body}]"


@dataclass(frozen=True)
class Browser:
    """A browser program, and a folder for its profile."""

    program: str
    folder: Path

    def run(self, url: str, width: int = 1280, height: int = 900) -> tuple[str, list[str]]:
        """The document after its scripts ran, and what the console said."""
        profile = self.folder / "profile"
        command = [
            self.program,
            *FLAGS,
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
            "--virtual-time-budget=60000",
            "--dump-dom",
            url,
        ]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
        shutil.rmtree(profile, ignore_errors=True)
        assert ran.returncode == 0, ran.stderr[-2000:]
        return ran.stdout, [line for line in ran.stderr.splitlines() if "CONSOLE" in line]

    def drive(self, drives: Sequence[Drive]) -> tuple[list[dict[str, Any]], list[str]]:
        """What each script put into `said`, one after the other, and what the console said."""
        path = self.folder / "driver.html"
        script = ",\n".join(map(str, drives))
        path.write_text(DRIVER.replace("$drives", script), encoding="utf-8")
        document, console = self.run(path.as_uri(), max(drive.width for drive in drives))
        match = re.search(r'<pre id="said">(.+?)</pre>', document, re.DOTALL)
        assert match, (document[-1000:], console)
        said: list[dict[str, Any]] = json.loads(html.unescape(match[1]))
        errors = [one["error"] for one in said if "error" in one]
        assert not errors, errors
        return said, console


def find_browser(folder: Path) -> Browser:
    """Skips the test where there is no Chromium."""
    for name in NAMES:
        program = shutil.which(name)
        if program:
            return Browser(program, folder)
    pytest.skip(f"needs a browser: none of {', '.join(NAMES)} is installed")
