"""Troubles that people reported in public, rebuilt in small, and what vegrad says of each.

    python bench/field/run.py [NN ...]      a line for each case, then the figures
    python bench/field/run.py --truth       no vegrad: does the sick one fail, does the fixed learn?

A module of cases/ has `sick()` and `fixed()`, each giving (model, loss_fn, x, target) and, if it
matters, a function from the parameters to an optimizer; or, where the trouble is in the loop,
`run(monitor_factory, fixed) -> monitor, losses`. `error(model)` measures the trained model, and
`GOAL` is what the fixed one reaches and the sick one does not. Each runs in a process of its own.

A case is told right if the first finding of `diagnose` (before the first step) or of a Monitor
(which watches a training) has an accepted cause at an accepted site (expected.json), and neither
begins with another cause. Both must call the fixed one healthy.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.util
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CASES = HERE / "cases"
SHORT = 60  # steps that a Monitor watches if it is to be fast: most troubles show early


def load(number: str) -> Any:
    """Import a case by its number."""
    (path,) = CASES.glob(f"{number}_*.py")
    sys.path.insert(0, str(CASES))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(module: Any, case: tuple[Any, ...], steps: int, monitor_factory: Any) -> Any:
    """Train a case for some steps; `monitor_factory` gets the model first."""
    import torch

    model, loss_fn, x, target, *rest = case
    monitor = monitor_factory(model)
    make = rest[0] if rest else lambda parameters: torch.optim.Adam(parameters, lr=1e-3)
    optimizer = make(model.parameters())
    several = isinstance(x, tuple)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        index = torch.randperm(len(target), generator=generator)[: getattr(module, "BATCH", 32)]
        optimizer.zero_grad()
        rows = tuple(one[index] for one in x) if several else (x[index],)
        loss_fn(model(*rows), target[index]).backward()
        optimizer.step()
    return monitor


def truth(number: str, which: str) -> dict[str, Any]:
    """Train without vegrad; the error that is left, and the goal."""
    import torch

    module, models = load(number), []
    if hasattr(module, "run"):
        module.run(models.append, which == "fixed")
    else:
        train(module, getattr(module, which)(), module.STEPS, models.append)
    torch.manual_seed(0)
    with torch.no_grad():
        return {"error": round(module.error(models[0]), 3), "goal": module.GOAL}


def told(diagnosis: Any) -> dict[str, Any] | None:
    """Cause, kind and words of the first finding; None where there is none."""
    if not diagnosis.findings:
        return None
    first = diagnosis.findings[0]
    return {
        "cause": getattr(first, "cause", None) or f"({first.kind})",
        "site": f"{getattr(first, 'sites', '')} {first.message} {first.advice}",
        "all": [f"{one.kind}: {getattr(one, 'cause', None)}" for one in diagnosis.findings],
    }


def ask(number: str, which: str) -> dict[str, Any]:
    """Give a case to `diagnose` and to a Monitor."""
    import vegrad.torch as vt

    module, answers = load(number), {}

    def attempt(name: str, call: Any) -> None:
        try:
            answers[name] = told(call())
        except Exception as error:  # a crash is a result
            answers[name] = {"crash": f"{type(error).__name__}: {error}"[:300]}

    def watched() -> Any:
        steps = min(module.STEPS, 2 * SHORT)
        return train(module, getattr(module, which)(), steps, vt.Monitor).report()

    if hasattr(module, "sick"):
        attempt("diagnose", lambda: vt.diagnose(*getattr(module, which)()[:4]))
    if hasattr(module, "run"):
        attempt("monitor", lambda: module.run(vt.Monitor, which == "fixed")[0].report())
    else:
        attempt("monitor", watched)
    return answers


def one(number: str, which: str, what: str) -> None:
    """Print the answer of one case as JSON: the child's end of `in_a_process`."""
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(json.dumps((truth if what == "truth" else ask)(number, which)))


def in_a_process(number: str, which: str, what: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", number, which, what]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=600, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return {"process": {"crash": "no answer in 600 s"}}
    if done.returncode != 0 or not done.stdout:
        return {"process": {"crash": done.stderr[-300:]}}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def judge(number: str, wanted: dict[str, Any], sick: Any, fixed: Any) -> dict[str, Any]:
    """Compare what was said with what was wanted."""
    words = [w for w in sick.values() if w and "crash" not in w]
    good = [
        w
        for w in words
        if w["cause"] in wanted["causes"] and re.search(wanted.get("site", ""), w["site"])
    ]
    crashed = [w for result in (sick, fixed) for w in result.values() if w and "crash" in w]
    alarm = any(w and "crash" not in w for w in fixed.values())
    false = len(words) > len(good)
    return {
        "number": number,
        "right": bool(good) and not false and not crashed,
        "false": false,
        "alarm": alarm,
        "crash": bool(crashed),
        "wanted": wanted["causes"],
        "said": {"sick": sick, "fixed": fixed},
    }


def short(result: dict[str, Any]) -> str:
    """Write the answers of a case in one line."""
    parts = []
    for tool, words in result.items():
        if words is None:
            parts.append(f"{tool} healthy")
        else:
            parts.append(f"{tool} {words.get('cause') or 'CRASH ' + words['crash'][:90]}")
    return ", ".join(parts)


def print_figures(rows: list[dict[str, Any]]) -> None:
    count = {key: sum(row[key] for row in rows) for key in ("right", "false", "alarm", "crash")}
    print(
        f"told right {count['right']} of {len(rows)}; a false cause first {count['false']}; "
        f"alarms on fixed ones {count['alarm']}; crashes {count['crash']}"
    )


def check_truth(numbers: list[str]) -> bool:
    """Print what plain PyTorch makes of each case; True if all are as they should be."""
    fine = True
    for number in numbers:
        sick, fixed = (in_a_process(number, which, "truth") for which in ("sick", "fixed"))
        ok = "goal" in sick and "goal" in fixed
        ok = ok and not sick["error"] <= sick["goal"] and fixed["error"] <= fixed["goal"]
        fine = fine and ok
        print(f"{number} {'as it should be' if ok else 'NOT SO'}: sick {sick}, fixed {fixed}")
    return fine


def compare(numbers: list[str], jobs: int) -> list[dict[str, Any]]:
    """Ask vegrad about every case and print a line each."""
    expected = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
    rows = []

    def both(number: str) -> dict[str, Any]:
        sick, fixed = (in_a_process(number, which, "ask") for which in ("sick", "fixed"))
        return judge(number, expected[number], sick, fixed)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for row in pool.map(both, numbers):
            rows.append(row)
            marks = "right" if row["right"] else "WRONG"
            marks += " CRASH" * row["crash"] + " FALSE ALARM" * row["alarm"]
            said = row["said"]
            print(f"{row['number']} {marks}  wanted {'/'.join(row['wanted'])}", flush=True)
            print(f"     sick: {short(said['sick'])};  fixed: {short(said['fixed'])}", flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("numbers", nargs="*")
    parser.add_argument("--truth", action="store_true")
    parser.add_argument("--json", type=Path, help="write all answers into this file")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    numbers = options.numbers or sorted(path.name[:2] for path in CASES.glob("[0-9]*.py"))
    if options.truth:
        return 0 if check_truth(numbers) else 1
    rows = compare(numbers, options.jobs)
    print_figures(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0 if all(row["right"] and not row["alarm"] for row in rows) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
    else:
        sys.exit(main())
