"""The examples run as a user runs them: each by itself, in an empty folder."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
# What each says, and the files that it leaves.
SAYS = {
    "clip_and_step_on_numpy": (["clipped: norm 1.71 → 0.1", "step 600: loss 0."], []),
    "cure_a_model": (["cured: vanishing → healthy", "patch:", "% right after 100 steps"], []),
    "first_diagnosis": (["vanishing (weight-scale) at 10", "('10.weight',)", "healthy: "], []),
    "lightning_trainer": (["healthy: ", "logged: vegrad/", "vegrad/gradient_norm"], ["logs"]),
    "monitor_a_loop": (["ALARM at step ", "overshooting: ", "epoch 5: loss 0.0"], []),
    "own_network": (
        ["critical  loss", "held-out rows: ", "MLP([64, 64, "],
        ["network.safetensors", "training.png", "training.safetensors"],
    ),
    "recurrent_truncation": (["Go back ", "the window "], ["truncation.png"]),
    "theory_picture": (["relu     critical at σ_w = 1.414"], ["theory.png"]),
}
NOTEBOOKS = {"model_in_a_notebook": 4, "sequences_in_a_notebook": 5}
"""Their names, and how many results of each show themselves."""

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the tests of an installed package")


def skip_without(code: str) -> None:
    """Skip, naming the package, if one that the code imports is not installed."""
    for node in ast.walk(ast.parse(code)):
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            pytest.importorskip(name.partition(".")[0])


def test_all_are_tried() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == SAYS.keys()
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == NOTEBOOKS.keys()


@pytest.mark.parametrize("name", SAYS)
def test_an_example_is_short_and_says_how_to_run_it(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert 30 <= len(text.splitlines()) <= 60
    assert f"&& python {name}.py" in (ast.get_docstring(ast.parse(text)) or "")


@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    path = EXAMPLES / f"{name}.py"
    skip_without(path.read_text(encoding="utf-8"))
    environment = os.environ | {"MPLBACKEND": "agg", "PYTHONIOENCODING": "utf-8"}
    run = subprocess.run(
        [sys.executable, path],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert run.returncode == 0, run.stderr
    said, files = SAYS[name]
    assert [words for words in said if words not in run.stdout] == []
    assert sorted(one.name for one in tmp_path.iterdir()) == files


@pytest.mark.filterwarnings("ignore:Proactor event loop:RuntimeWarning")  # zmq, on Windows
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    skip_without("\n".join(cell.source for cell in cells))
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in cells for output in cell.outputs]
    shown = [
        output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})
    ]
    assert len(shown) == NOTEBOOKS[name]
    assert max(len(html.encode()) for html in shown) < 60_000
    if name == "model_in_a_notebook":
        assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    # Warnings and logs would stand there in red; progress, where there are no widgets, is one line.
    said = "".join(one.text for one in outputs if one.get("name") == "stderr")
    assert said.count("\n") <= 1
