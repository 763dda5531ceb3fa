"""The page and the picture of a model that is no chain: complete, small and harmless."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402

from tests.reports.test_page import BROWSER, PROBE, Page  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore::vegrad.torch.FindingWarning"),
]
MOST = 300_000


class Words(nn.Module):
    """A small transformer that predicts letters."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, 20)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(blocks)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def watched(blocks: int = 20, steps: int = 30, spike: int = 20) -> ours.Monitor:
    torch.manual_seed(0)
    model = Words(blocks)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    monitor = ours.Monitor(model, on_finding=None)
    for step in range(steps):
        x = torch.randint(0, 20, (4, 8))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x).flatten(0, 1), x.flatten())
        (loss * (50 if step == spike else 1)).backward()
        ours.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        monitor.step(batch=f"shard {step}")
    return monitor


@pytest.fixture(scope="module")
def report() -> Any:
    return watched().report()


def test_the_page_of_a_transformer_has_everything(report: Any, tmp_path: Path) -> None:
    html = report.to_html(tmp_path / "page.html")
    assert len(html.encode()) < MOST / 2
    page = Page(html)
    for words in (
        "Gradient by depth over time",
        "before the clip",
        "Spikes",
        "Step 20, batch shard 20: loss",
        "moved first",
        "The gradient, module by module",
        "blocks.0.self_attn.out_proj",
        "modules in the middle are not shown",
    ):
        assert words in page.text, words
    assert len(page.all("image")) == 2
    assert len(page.all("svg")) > 6
    rows = [a for a in page.all("th") if a.get("scope") == "row"]
    assert len(rows) >= 80
    content = json.loads(page.scripts[0])
    assert content["modules_left_out"] + len(content["modules"]) == len(report.rows)
    assert not re.search(r"\bnan\b|\bNone\b", page.text)


def test_weights_of_a_module_that_was_never_run_stand_where_they_are_used(report: Any) -> None:
    names = [row["module"] for row in report._modules().rows]
    place = names.index("blocks.3.self_attn.out_proj")
    assert names[place - 1] == "blocks.3.self_attn"
    assert sorted(names) == sorted(row["module"] for row in report.rows)
    assert report.run.modules.index("blocks.3.self_attn.out_proj") == (
        report.run.modules.index("blocks.3.self_attn") + 1
    )


def test_a_thousand_modules_make_a_small_page() -> None:
    torch.manual_seed(0)
    pairs = (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(500))
    model = nn.Sequential(*pairs)
    monitor = ours.Monitor(model, on_finding=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(12):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    report = monitor.report()
    assert len(report.rows) == 1000
    html = report.to_html()
    assert len(html.encode()) < MOST
    assert "1000 modules share 60 rows" in Page(html).text
    assert len(report._repr_html_().encode()) < 60_000
    model = nn.Sequential(nn.Embedding(8, 4), nn.Sequential(*(Two() for _ in range(400))))
    found = ours.diagnose(model, lambda out, _: out.square().mean(), torch.arange(8))
    assert len(found.rows) > 800
    assert len(found.to_html().encode()) < MOST


class Two(nn.Module):
    """Two branches, which make no chain."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.01 * self.left(x).tanh() * self.right(x).sigmoid()


def test_names_cannot_harm() -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    model = nn.Sequential()
    model.add_module(evil, nn.Linear(4, 4))
    monitor = ours.Monitor(model, on_finding=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        monitor.step(batch=evil)
    report = monitor.report()
    for html in (report.to_html(), report._repr_html_()):
        page = Page(html)
        assert not page.all("img")
        assert "onerror=alert(1)" in page.text


def test_a_single_step_has_no_training(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = watched(2, 1).report()
    page = Page(report.to_html())
    assert "The training" not in page.text
    assert "The gradient, module by module" in page.text
    assert len(report.plot().axes) == 1
    monitor = ours.Monitor(Words(1), on_finding=None)
    monitor.step()
    with pytest.raises(ValueError, match="there is no gradient of a module to draw"):
        monitor.report().plot()


def test_the_picture(report: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = report.plot(tmp_path / "run.svg")
    assert [axes.get_ylabel() for axes in figure.axes][1:3] == ["loss", "gradient norm"]
    assert (tmp_path / "run.svg").stat().st_size > 10_000


@pytest.mark.skipif(not BROWSER, reason="no browser is installed")
@pytest.mark.parametrize(("width", "dark"), [(360, True), (1280, False)])
def test_in_a_browser(report: Any, width: int, dark: bool, tmp_path: Path) -> None:
    """The page's image is seen, and nothing but tables is wider than the window."""
    report.to_html(tmp_path / "page.html")
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.format(page="page.html", width=width), encoding="utf-8")
    options = "--headless --no-sandbox --disable-gpu --allow-file-access-from-files --dump-dom "
    options += "--enable-logging=stderr --window-size=1400,1000 --virtual-time-budget=3000 "
    options += f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [shutil.which(BROWSER) or BROWSER, *options.split()]
    command += [f"--user-data-dir={tmp_path / 'profile'}", probe.as_uri()]
    result = subprocess.run(command, capture_output=True, check=True, timeout=600)
    assert b"CONSOLE" not in result.stderr, result.stderr.decode()
    match = re.search(r'data-found="([^"]+)"', result.stdout.decode())
    assert match, result.stdout.decode()[-2000:]
    found = json.loads(match[1].replace("&quot;", '"'))
    assert found["wide"] <= found["window"] <= width + 4
    assert 200 < found["chart"] < width
    assert found["dark"] == dark
