"""Time `vegrad.sklearn`'s estimators beside scikit-learn's own, and compare what they learn.

    python bench/estimators.py               # the tables, and results/estimators.json
    python bench/estimators.py --quick       # a smoke run
    python bench/estimators.py --markdown    # the tables of the docs, from the JSON

Both do the same work: the same weights to begin with, batch size, epochs and optimizer. Fits are
taken in turns, on one thread, and timed in processor time, which other programs disturb little.
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev

import numpy as np
import sklearn
from sklearn.datasets import load_digits, make_classification, make_regression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler
from vegrad import sklearn as ours
from vegrad.benchmark.machine import machine, versions

RESULTS = Path(__file__).parent / "results" / "estimators.json"
SEEDS = 10


@dataclass(frozen=True)
class Case:
    """A task, as arrays, and the estimators' arguments."""

    name: str
    data: Callable[[], tuple[np.ndarray, np.ndarray]]
    epochs: int
    numeric: bool = False
    learn: int = 60  # epochs of the comparison of what is learnt

    def estimators(self, epochs: int, seed: int) -> dict[str, object]:
        """Return both, for as many epochs."""
        of = (
            (MLPRegressor, ours.MLPRegressor)
            if self.numeric
            else (MLPClassifier, ours.MLPClassifier)
        )
        always = {"max_iter": epochs, "n_iter_no_change": 10**6, "random_state": seed}
        return {
            "scikit-learn": of[0](hidden_layer_sizes=(100,), **always),
            "vegrad": of[1](hidden_layer_sizes=(100,), **always),
        }


def digits() -> tuple[np.ndarray, np.ndarray]:
    """1,797 × 64, 10 classes."""
    x, y = load_digits(return_X_y=True)
    return x / 16, y


def classes() -> tuple[np.ndarray, np.ndarray]:
    """20,000 × 100, 5 classes."""
    return make_classification(20000, 100, n_informative=30, n_classes=5, random_state=0)


def numbers() -> tuple[np.ndarray, np.ndarray]:
    """20,000 × 100, one number, scaled."""
    x, y = make_regression(20000, 100, n_informative=30, noise=20.0, random_state=0)
    return x, StandardScaler().fit_transform(y[:, None]).ravel()


CASES = (
    Case("digits", digits, 50),
    Case("20,000 × 100, 5 classes", classes, 8, learn=20),
    Case("20,000 × 100, a number", numbers, 8, numeric=True, learn=20),
)


def seconds(estimator: object, x: np.ndarray, y: np.ndarray) -> float:
    """Return the processor time of a fit."""
    begin = time.process_time()
    estimator.fit(x, y)
    return time.process_time() - begin


def timed(case: Case, turns: int) -> list[dict[str, object]]:
    """Return a row for each dtype of X."""
    rows = []
    x, y = case.data()
    for dtype in ("float64", "float32"):
        table, taken = x.astype(dtype), {"scikit-learn": [], "vegrad": []}
        for turn in range(turns + 1):
            for name, estimator in case.estimators(case.epochs, seed=turn).items():
                taken[name].append(seconds(estimator, table, y))
        own, theirs = (taken[name][1:] for name in ("vegrad", "scikit-learn"))  # one to warm up
        ratios = [b / a for a, b in zip(own, theirs, strict=True)]
        row = {"case": case.name, "X": dtype, "epochs": case.epochs}
        row |= {"scikit-learn": median(theirs), "vegrad": median(own), "ratio": median(ratios)}
        rows.append(row | {"least": min(ratios)})
    return rows


def learnt(case: Case, seeds: int) -> dict[str, object]:
    """Return scores on a quarter of the rows, held out, over seeds."""
    x, y = case.data()
    scores = {"scikit-learn": [], "vegrad": []}
    for seed in range(seeds):
        known, held, y_known, y_held = train_test_split(x, y, test_size=0.25, random_state=seed)
        for name, estimator in case.estimators(case.learn, seed).items():
            scores[name].append(estimator.fit(known, y_known).score(held, y_held))
    apart = [a - b for a, b in zip(scores["vegrad"], scores["scikit-learn"], strict=True)]
    found = {name: [mean(values), stdev(values)] for name, values in scores.items()}
    error = stdev(apart) / len(apart) ** 0.5
    return {"case": case.name, "epochs": case.learn, **found, "difference": [mean(apart), error]}


def markdown(found: dict[str, list[dict]]) -> str:
    """Write both tables."""
    lines = ["| fit of | X | epochs | scikit-learn | vegrad | times as fast |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: |")
    for row in found["speed"]:
        times = " | ".join(f"{row[name]:.3f} s" for name in ("scikit-learn", "vegrad"))
        lines.append(
            f"| {row['case']} | {row['X']} | {row['epochs']} | {times} | {row['ratio']:.1f} |"
        )
    lines += ["", "| score, held out | epochs | scikit-learn | vegrad | difference |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for row in found["learnt"]:
        pair = " | ".join(
            f"{row[name][0]:.4f} ± {row[name][1]:.4f}" for name in ("scikit-learn", "vegrad")
        )
        apart, error = row["difference"]
        lines.append(f"| {row['case']} | {row['epochs']} | {pair} | {apart:+.4f} ± {error:.4f} |")
    return "\n".join(lines)


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    if options.markdown:
        print(markdown(json.loads(RESULTS.read_text(encoding="utf-8"))))
        return
    warnings.simplefilter("ignore")
    turns, seeds = (1, 2) if options.quick else (11, SEEDS)
    cases = CASES[:1] if options.quick else CASES
    found = {
        "machine": machine(),
        "versions": versions() | {"scikit-learn": sklearn.__version__},
        "speed": [row for case in cases for row in timed(case, turns)],
        "learnt": [learnt(case, seeds) for case in cases],
    }
    print(markdown(found))
    if not options.quick:
        RESULTS.write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
