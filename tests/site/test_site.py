"""The site as a browser shows it: built without a warning, on desktops and phones, light and dark.

VEGRAD_SITE names a folder with the site as it was just built; without it the site is built here.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
PROBE = """<html><body><script>
const pages = {pages}, found = {{}};
async function look(page) {{
  const frame = document.createElement("iframe");
  frame.width = {width}; frame.height = 900; frame.src = page;
  const loaded = new Promise(done => frame.onload = done);
  document.body.append(frame);
  await loaded;
  const inside = frame.contentDocument, root = inside.documentElement;
  const body = frame.contentWindow.getComputedStyle(inside.body);
  found[page] = {{
    wide: root.scrollWidth, window: frame.contentWindow.innerWidth, title: inside.title,
    broken: [...inside.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src),
    ground: body.backgroundColor, ink: body.color,
  }};
  frame.remove();
}}
(async () => {{
  for (const page of pages) await look(page);
  document.body.setAttribute("data-found", JSON.stringify(found));
}})();
</script></body></html>"""

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="an installed package has no site")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the site."""
    if "VEGRAD_SITE" in os.environ:
        return Path(os.environ["VEGRAD_SITE"])
    for package in ("sphinx", "furo", "myst_parser", "sphinx_copybutton"):
        pytest.importorskip(package, reason="the site is built with the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(DOCS), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def pages(site: Path) -> list[str]:
    found = [path.relative_to(site).as_posix() for path in sorted(site.rglob("*.html"))]
    return [page for page in found if not page.startswith(("_", "search", "genindex", "py-modin"))]


def test_nothing_comes_from_the_network(site: Path) -> None:
    """Scripts, styles and pictures are the site's own, so that it can be read anywhere."""
    loaded = re.compile(r"<(?:script|img|link)\b[^>]*?(?:src|href)=\"(https?:[^\"]+)", re.DOTALL)
    for page in pages(site):
        text = (site / page).read_text(encoding="utf-8")
        assert loaded.findall(text) == [], page


def test_what_is_generated_is_there(site: Path) -> None:
    for page, word in {
        "glossary": 'id="term-gain"',
        "explanation/causes": 'id="dead-units"',
        "explanation/rules": 'id="exploding',
        "explanation/field": "keras#9097",
        "explanation/zoo": "Seed 6",
        "gallery/index": "arxiv.org/abs/1611.01232",
    }.items():
        text = (site / f"{page}.html").read_text(encoding="utf-8")
        assert word in text, page
        assert "<!-- generated" not in text, page


@pytest.mark.skipif(not BROWSER, reason="no browser is installed")
@pytest.mark.parametrize(("width", "dark"), [(360, True), (390, False), (1280, False)])
def test_in_a_browser(site: Path, width: int, dark: bool, tmp_path: Path) -> None:
    """Nothing to complain of on the console, no picture missing, no page wider than its window."""
    folder = tmp_path / "site"
    shutil.copytree(site, folder)
    probe = folder / "probe.html"
    probe.write_text(PROBE.format(pages=json.dumps(pages(site)), width=width), encoding="utf-8")
    options = "--headless --no-sandbox --disable-gpu --allow-file-access-from-files --dump-dom "
    options += "--enable-logging=stderr --window-size=1400,1000 --virtual-time-budget=60000 "
    options += f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [BROWSER, *options.split(), f"--user-data-dir={tmp_path / 'profile'}"]
    result = subprocess.run([*command, probe.as_uri()], capture_output=True, check=True)
    assert b"CONSOLE" not in result.stderr, result.stderr.decode()
    match = re.search(r'data-found="([^"]+)"', result.stdout.decode())
    assert match, result.stdout.decode()[-2000:]
    found = json.loads(match[1].replace("&quot;", '"').replace("&amp;", "&"))
    assert sorted(found) == sorted(pages(site))
    assert [page for page, one in found.items() if one["wide"] > one["window"]] == []
    assert [picture for one in found.values() for picture in one["broken"]] == []
    grounds = {one["ground"] for one in found.values()}
    assert len(grounds) == 1
    assert all(one["ink"] != one["ground"] for one in found.values())
    light = sum(map(int, re.findall(r"\d+", grounds.pop())[:3])) > 384
    assert light != dark
