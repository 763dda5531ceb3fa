"""The page: complete, well-formed, harmless, and as a browser sees it."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.history import History
from vegrad.flow.finding import Finding
from vegrad.networks.diagnosis import diagnose
from vegrad.reports import style
from vegrad.reports import words as said
from vegrad.reports.glossary import term_of
from vegrad.reports.svg import Chart, plain_ticks, power_ticks, thinned

RNG = np.random.default_rng(3)
X, LABELS = RNG.standard_normal((100, 16)), RNG.integers(0, 10, 100)
VOID = {"meta", "link", "br", "hr", "img", "input"}


def network(depth: int = 20, **options: Any) -> vegrad.MLP:
    options = {"activation": "sigmoid", "loss": "cross_entropy", "seed": 0} | options
    return vegrad.MLP([16, *[32] * (depth - 1), 10], **options)


def judge(depth: int = 20, **options: Any) -> Diagnosis:
    return diagnose(network(depth, **options), X, LABELS, resamples=0)


def history(epochs: int = 2, every: int = 1, **options: Any) -> History:
    net, optimizer = network(3, activation="tanh", **options), vegrad.SGD(0.1)
    chosen = {"epochs": epochs, "batch_size": 20, "seed": 0, "gauge_every": every}
    return net.fit(X, LABELS, optimizer=optimizer, progress=False, validation=(X, LABELS), **chosen)


class Page(HTMLParser):
    """Elements, attributes and text; asserts that every element is closed where it must be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def judge_sequences(steps: int, **options: Any) -> Diagnosis:
    rng = np.random.default_rng(3)
    net = vegrad.RNN(3, 6, 2, **{"seed": 0} | options)
    return vegrad.diagnose(net, rng.standard_normal((8, steps, 3)), rng.standard_normal((8, 2)))


SICK: dict[str, Diagnosis] = {
    "vanishing": judge(50),
    "exploding": judge(activation="relu", init="normal", sigma_w=9.0, depth=60),
    "healthy": judge(activation="relu", init="he_normal"),
    "one layer": judge(1),
    "two layers": judge(2),
    "no theory": replace(judge(), expected_flow=None),
    "zero": diagnose(network(3, loss="mse"), X, network(3, loss="mse").forward(X)),
    "recurrent": judge_sequences(40, layers=2),
    "recurrent, one step": judge_sequences(1, cell="relu"),
    "not run": diagnose(network(), np.where(X > 2, np.nan, X), LABELS),
}


@pytest.mark.parametrize("name", SICK)
def test_the_page_is_whole(name: str) -> None:
    diagnosis = SICK[name]
    html = diagnosis.to_html()
    page = Page(html)
    for finding in diagnosis.findings:
        for words in (finding.message[1:], finding.advice[1:], finding.severity):
            assert words in page.text
    assert re.search(rf"\b{diagnosis.verdict}\b", page.text, flags=re.IGNORECASE)
    assert f"vegrad {vegrad.__version__}" in page.text
    assert len(html.encode()) < 150_000
    (data,) = page.scripts
    assert json.loads(data) == diagnosis.to_dict() | {"version": vegrad.__version__}
    rows = [e for e in page.elements if e == ("th", {"scope": "row"})]
    assert len(rows) == (0 if diagnosis.flow is None else len(diagnosis.flow.delta_log2))
    in_time = diagnosis.config.get("layers") is not None and diagnosis.flow is not None
    assert ("The flow through time" in page.text) == in_time
    assert not re.search(r"\bnan\b|\bNone\b", page.text.replace("is nan", ""))


@pytest.mark.parametrize("name", SICK)
def test_the_page_is_alone_and_for_everybody(name: str) -> None:
    page = Page(SICK[name].to_html())
    policy = page.all("meta")[1]["content"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    for _, attributes in page.elements:
        for attribute, value in attributes.items():
            assert not attribute.startswith("on")
            if attribute in ("href", "src", "action", "data", "xlink:href"):
                assert value == "data:,"
    assert "//" not in style.STYLE
    assert "url(" not in style.STYLE
    assert page.all("html") == [{"lang": "en"}]
    assert page.all("script")[0]["type"] == "application/json"
    headings = [tag for tag, _ in page.elements if tag in ("h1", "h2", "h3")]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1
    assert all("scope" in attributes for attributes in page.all("th"))
    names = [a["id"] for _, a in page.elements if "id" in a]
    assert len(names) == len(set(names))
    for drawing in page.all("svg"):
        if drawing.get("class") == "chart":
            assert drawing["role"] == "img"
            assert set((drawing["aria-labelledby"] or "").split()) <= set(names)


def test_expected_stands_beside_measured() -> None:
    net = network(activation="tanh", init="critical")
    net.parameters["layers.7.weight"][...] *= 0.01
    page = Page(diagnose(net, X, LABELS).to_html())
    assert re.search(r"layer 6: expected \d\.\d\d×, measured 0\.0\d+×", page.text)
    assert "gain expected" in page.text
    assert "lie where theory expects" in Page(SICK["vanishing"].to_html()).text
    assert "expected" not in Page(SICK["no theory"].to_html()).text


def test_charts_are_described_in_words() -> None:
    flow = SICK["vanishing"].flow
    assert flow is not None
    least, most = 2 ** flow.gain_log2.min(), 2 ** flow.gain_log2.max()
    text = Page(SICK["vanishing"].to_html()).text
    assert f"Gains of 49 layers, from {least:.2f}× to {most:.2f}×." in text


def test_small_departures_may_add_up() -> None:
    diagnosis = SICK["healthy"]
    expected = diagnosis.expected_flow
    assert expected is not None
    shifted = replace(expected, delta_log2=expected.delta_log2 + 50.0)
    page = Page(replace(diagnosis, expected_flow=shifted).to_html())
    assert re.search(r"but together they leave \S+ of δ at the first layer", page.text)


def test_text_is_escaped() -> None:
    evil = "</script><img src=x onerror=alert(1)>\"'&<b>"
    words = {"says": "{evil}", "advises": "{evil}", "facts": {"evil": evil}}
    finding = Finding(kind=evil, severity=evil, evidence={evil: 1.0}, blame=evil, **words)
    config = SICK["healthy"].config | {"activation": evil, "init": evil}
    diagnosis = replace(SICK["healthy"], findings=(finding,), config=config)
    proof = {"before": history(1), "after": history(1), "text": evil}
    page = Page(diagnosis.to_html(proof=proof))
    assert not page.all("img")
    assert not page.all("b")[1:]  # the one is "What to do"
    assert page.text.count("onerror=alert(1)") >= 8
    assert json.loads(page.scripts[0])["summary"] == f"{evil}: {evil}"


def test_many_layers_are_counted_where_naming_them_would_not_fit() -> None:
    net = network(40, activation="tanh", residual=True)
    for layer in range(0, 40, 2):
        net.parameters[f"layers.{layer}.weight"][...] = 0
    text = Page(diagnose(net, X, LABELS).to_html()).text
    assert re.search(r"exactly 0 in \d+ layers|in layers? [\d–, ]{1,20} ", text)


def test_deep_networks_stay_usable() -> None:
    html = judge(500).to_html()
    assert len(html.encode()) < 600_000
    assert "stored as 0.0 in float32" in Page(html).text


# ------------------------------------------------------------------------------------- training


def test_history_and_proof() -> None:
    before, after = history(2), history(4, every=3)
    page = Page(SICK["vanishing"].to_html(history=before, proof={"before": before, "after": after}))
    for words in ("The descent", "2 epochs, 10 steps", "The proof", "held-out rows", "before"):
        assert words in page.text
    for finding in before.findings:
        assert finding.message in page.text
    accuracy = f"{100 * after.validation_accuracy[-1]:.4g} %"
    assert accuracy in page.text
    proof = SimpleNamespace(before=before.to_dict(), after=after, text="seed 0")
    assert "seed 0" in Page(SICK["one layer"].to_html(proof=proof)).text


def test_the_proof_of_a_cure() -> None:
    found = vegrad.cure(network(12), X, LABELS, steps=40, batch_size=20, goal=0.1, budget=4.0)
    assert found.proof is not None
    page = Page(found.before.to_html(proof=found.proof))
    assert f"{found.proof.steps} steps from seed 0" in page.text
    for figure in (*found.proof.loss, *(100 * share for share in found.proof.accuracy)):
        assert f"{figure:.4g}" in page.text
    assert "before: loss of the batches" in page.text


def test_a_history_with_little_in_it() -> None:
    assert "0 epochs, 0 steps" in Page(SICK["healthy"].to_html(history=History())).text
    columns = history(1).to_dict()
    columns["loss"][2] = float("nan")
    columns["loss_after"] = [float("nan")] * 5
    columns["validation_loss"] = columns["validation_accuracy"] = [float("nan")]
    page = Page(SICK["healthy"].to_html(history=History.from_dict(columns)))
    assert "nan" not in page.text


def test_findings_of_the_history_are_shown() -> None:
    net = network(3, activation="tanh")
    options = {"epochs": 5, "batch_size": 20, "seed": 0, "gauge_every": 1}
    with pytest.warns(UserWarning, match="overshooting"):
        wild = net.fit(X, LABELS, optimizer=vegrad.SGD(60.0), progress=False, **options)
    assert [finding.kind for finding in wild.findings]
    page = Page(SICK["healthy"].to_html(history=wild))
    for finding in wild.findings:
        assert finding.message[1:] in page.text
    assert "up the other side" in page.text


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match=r"history must be a vegrad\.History, not int"):
        SICK["healthy"].to_html(history=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r'proof\["after"\] must be a vegrad\.History, not None'):
        SICK["healthy"].to_html(proof={"before": history(1)})


# --------------------------------------------------------------------- what is not a flow, files


def test_plain_gradients() -> None:
    gradients = {f"<{n}>.weight": RNG.normal(0, 10.0**-n, (9, 9)) for n in range(12)}
    gradients |= {"third": np.zeros((3, 3)), "bias": np.ones(3)}
    order = [*(f"<{n}>.weight" for n in range(11, -1, -1)), "third"]
    diagnosis = vegrad.diagnose_gradients(gradients, gradients, order)
    text = Page(diagnosis.to_html()).text
    assert diagnosis.summary.partition(": ")[2] in text
    assert all(name in text for name in gradients)
    assert "14 gradients, 984 elements" in text
    assert "exactly 0 in third" in text


def test_a_history_alone() -> None:
    seen = history(2)
    diagnosis = vegrad.diagnose_history(seen)
    page = Page(diagnosis.to_html(history=seen))
    assert "2 epochs" in page.text
    for finding in seen.findings:
        assert page.text.count(finding.advice[1:]) == 1


def test_the_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    html = SICK["two layers"].to_html(path)
    assert path.read_text(encoding="utf-8") == html
    with pytest.raises(FileNotFoundError) as error:
        SICK["two layers"].to_html(tmp_path / "no" / "page.html")
    assert error.value.filename == str(tmp_path / "no" / "page.html")
    assert list(tmp_path.iterdir()) == [path]


# --------------------------------------------------------------------------------------- drawing


def test_ticks() -> None:
    assert [label for _, label in plain_ticks(0, 49, whole=True)] == ["0", "10", "20", "30", "40"]
    assert [label for _, label in plain_ticks(0, 1, whole=True)] == ["0", "1"]
    assert [label for _, label in power_ticks(-32, 1)] == ["10⁻³⁰", "10⁻²⁰", "10⁻¹⁰", "1"]
    assert [label for _, label in power_ticks(-0.7, 0.4, "×")] == ["0.2×", "0.5×", "1×", "2×"]
    assert len(power_ticks(-1e5, 1e5)) <= 7


def test_long_lines_keep_their_ends() -> None:
    y = np.zeros(100_000)
    y[70_123], y[5], y[99] = 9.0, -3.0, np.nan
    x, kept = thinned(np.arange(100_000), y)
    assert len(x) <= 600
    assert (np.diff(x) > 0).all()
    assert (np.nanmax(kept), np.nanmin(kept)) == (9.0, -3.0)


def test_lines_have_gaps_and_dots_no_length() -> None:
    chart = Chart("a", "b", "c", (0, 4), (0, 1))
    chart.line(range(5), [0, 1, np.nan, 0, 1], "css")
    chart.dots([1, 2], [0.5, np.inf], "css")
    chart.band([0, 1], [np.nan, 0], [1, 1], "css")
    assert 'd="M0 240L250 0M750 240L1000 0"' in str(chart)
    assert 'd="M250 120h0"' in str(chart)
    assert str(chart).count("<path") == 2


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", ["LIGHT", "DARK"])
def test_contrast(mode: str) -> None:
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", getattr(style, mode)))
    grounds = ["ground", "card", "shade", "good-ground", "warning-ground", "alarm-ground"]
    pairs = [(text, ground, 4.5) for text in ("ink", "soft") for ground in grounds]
    pairs += [(s, g, 4.5) for s in ("good", "warning", "alarm") for g in (f"{s}-ground", "card")]
    pairs += [(line, "card", 3.0) for line in ("gradient", "weights", "derivative", "faint")]
    for front, behind, least in pairs:
        bright, dark = sorted((luminance(colours[front]), luminance(colours[behind])))[::-1]
        assert (bright + 0.05) / (dark + 0.05) >= least, (front, behind)


# --------------------------------------------------------------------------------------- browser

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
PROBE = """<html><body><iframe id="page" src="{page}" width="{width}" height="900"></iframe>
<script>
const frame = document.getElementById("page");
frame.onload = () => {{
  const inside = frame.contentDocument, root = inside.documentElement;
  const chart = inside.querySelector("svg.chart");
  document.body.setAttribute("data-found", JSON.stringify({{
    wide: root.scrollWidth, window: frame.contentWindow.innerWidth,
    sideways: inside.querySelector(".scroll").scrollWidth,
    chart: chart.getBoundingClientRect().width,
    dark: frame.contentWindow.matchMedia("(prefers-color-scheme: dark)").matches,
    ground: frame.contentWindow.getComputedStyle(inside.body).backgroundColor,
    ink: frame.contentWindow.getComputedStyle(inside.body).color,
  }}));
}};
</script></body></html>"""


@pytest.mark.skipif(not BROWSER, reason="no browser is installed")
@pytest.mark.parametrize(("width", "dark"), [(360, False), (390, True), (1280, False)])
def test_in_a_browser(width: int, dark: bool, tmp_path: Path) -> None:
    """Nothing to complain of on the console, and only the table scrolls sideways."""
    SICK["vanishing"].to_html(tmp_path / "page.html", history=history())
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.format(page="page.html", width=width), encoding="utf-8")
    options = "--headless --no-sandbox --disable-gpu --allow-file-access-from-files --dump-dom "
    options += "--enable-logging=stderr --window-size=1400,1000 --virtual-time-budget=3000 "
    options += f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [BROWSER, *options.split(), f"--user-data-dir={tmp_path / 'profile'}"]
    result = subprocess.run(
        [*command, probe.as_uri()], capture_output=True, check=True, timeout=600
    )
    assert b"CONSOLE" not in result.stderr, result.stderr.decode()
    match = re.search(r'data-found="([^"]+)"', result.stdout.decode())
    assert match, result.stdout.decode()[-2000:]
    found = json.loads(match[1].replace("&quot;", '"'))
    assert found["wide"] <= found["window"] <= width + 4
    assert 200 < found["chart"] < width
    assert found["dark"] == dark
    assert found["ground"] == ("rgb(15, 20, 24)" if dark else "rgb(243, 245, 247)")
    assert found["ink"] != found["ground"]
    if width < 500:
        assert found["sideways"] > width


def test_a_page_explains_its_words() -> None:
    page = Page(SICK["vanishing"].to_html())
    assert "Words" in page.text
    for name in ("vanishing", "δ, delta", "gain"):
        assert name in page.text
    assert "time scale" not in page.text
    for names in (said.FLOW, said.THEORY, said.TIME, said.GRADIENTS, said.TRAINING, said.PROOF):
        assert all(term_of(name) is not None for name in names)
