"""A notebook's outputs in a browser: nothing around them changes, and they follow the theme."""

import json
import re
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from vegrad.reports import style

from tests.reports.test_notebook import OUTPUTS
from tests.reports.test_page import BROWSER

# What stands around the outputs has elements and classes of the same names.
PROBE = """<!DOCTYPE html><html style="overflow-y: scroll"><body>
<div id="around" class="row"><h2 class="verdict">a</h2><h3>b</h3><p class="soft">c</p>
<figure class="card"><figcaption class="legend">d</figcaption></figure>
<table class="words"><thead><tr><th>e</th></tr></thead><tbody><tr class="marked"><td>f</td></tr>
</tbody></table><ul class="findings"><li class="card">g</li></ul><pre>h</pre>
<dl class="numbers"><dt>i</dt><dd>j</dd></dl><details open><summary>k</summary></details>
<svg class="chart"><text class="tick">l</text><path class="line s-ink" d="M0 0h9"/></svg></div>
<div id="outputs"></div><template>{outputs}</template>
<script>
const all = (where) => [...document.querySelectorAll(where + " *")];
const styles = () => all("#around").flatMap((one) => [...getComputedStyle(one)].map(
  (name) => [one.tagName, name, getComputedStyle(one)[name]].join(" ")));
const before = styles();
document.getElementById("outputs").append(document.querySelector("template").content);
const frame = document.querySelector(".vegrad");
const ground = () => getComputedStyle(frame).backgroundColor;
const themes = {{"the system's": ground()}};
for (const [name, value] of [["data-jp-theme-light", "true"], ["data-jp-theme-light", "false"],
                             ["data-theme", "light"], ["data-theme", "dark"],
                             ["data-theme", "auto"], ["class", "vscode-dark"]]) {{
  document.body.setAttribute(name, value);
  themes[name + " " + value] = ground();
  document.body.removeAttribute(name);
}}
document.body.setAttribute("data-found", JSON.stringify({{
  changed: styles().filter((one, place) => one !== before[place]),
  themes, wide: document.documentElement.scrollWidth, window: innerWidth,
  bordered: getComputedStyle(frame).borderTopLeftRadius,
  charts: all("#outputs").filter((one) => one.matches("svg.chart")).map(
    (one) => one.getBoundingClientRect().width),
}}));
</script></body></html>"""


def looked_at(folder: Path, width: int, *, dark: bool) -> dict[str, Any]:
    html = "".join(one._repr_html_() for name, one in OUTPUTS.items() if name != "measurement")
    page = folder / "outputs.html"
    page.write_text(PROBE.format(outputs=html), encoding="utf-8")
    options = "--headless --no-sandbox --disable-gpu --dump-dom --enable-logging=stderr "
    options += f"--window-size={width},1000 --virtual-time-budget=3000 "
    options += f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [BROWSER, *options.split(), f"--user-data-dir={folder / 'profile'}", page.as_uri()]
    run = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, timeout=600)
    assert "CONSOLE" not in run.stderr
    found = re.search(r'data-found="([^"]*)"', run.stdout)
    assert found is not None
    content: dict[str, Any] = json.loads(unescape(found[1]))
    return content


def ground(colours: str) -> str:
    found = re.search(r"--ground: #(..)(..)(..);", colours)
    assert found is not None
    return f"rgb({', '.join(str(int(part, 16)) for part in found.groups())})"


@pytest.mark.skipif(not BROWSER, reason="no browser is installed")
@pytest.mark.parametrize(("width", "dark"), [(500, True), (1280, False)])
def test_outputs_keep_to_themselves(width: int, dark: bool, tmp_path: Path) -> None:
    found = looked_at(tmp_path, width, dark=dark)
    assert found["changed"] == []
    assert found["wide"] <= found["window"]
    assert found["bordered"] == "12px"  # the style is there
    assert len(found["charts"]) > 20
    assert min(found["charts"]) > 250
    light, black = ground(style.LIGHT), ground(style.DARK)
    system = black if dark else light
    assert found["themes"] == {
        "the system's": system,
        "data-jp-theme-light true": light,
        "data-jp-theme-light false": black,
        "data-theme light": light,
        "data-theme dark": black,
        "data-theme auto": system,
        "class vscode-dark": black,
    }
