"""Runs of Hugging Face's Trainer, from the `trainer_state.json` of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from vegrad.diagnosis.noted import Json
from vegrad.runs.run import Run
from vegrad.runs.tags import all_of, number

LARGEST = 1 << 26  # bytes
SOURCE = "Hugging Face Trainer"


def of_trainer_state(content: Mapping[str, Json]) -> Run:
    """Return the run of a Trainer's state.

    Raises:
        ValueError: there is no log in it, or no number that is known.
    """
    entries = content.get("log_history")
    if not isinstance(entries, list):
        raise ValueError("it is JSON without a log_history, as a Trainer's state has it")
    if not entries:
        raise ValueError("its log_history is empty: nothing was logged yet")
    about = {
        name: content[name]
        for name in ("max_steps", "logging_steps")
        if isinstance(content.get(name), int)
    }
    return all_of(_numbers(entries)).run(SOURCE, about)


def _numbers(entries: list[Json]) -> Iterator[tuple[str, float, float]]:
    numbered = any(isinstance(entry, dict) and "step" in entry for entry in entries)
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            continue
        step = number(entry.get("step"))
        if step is None and numbered:
            continue  # of a prediction
        for name, value in entry.items():
            size = number(value)
            # The last entry's train_loss is the mean of all steps.
            if size is not None and name not in ("step", "epoch", "train_loss"):
                yield str(name), float(place) if step is None else step, size


def parsed(text: bytes) -> Json:
    """Return the content of a JSON file.

    Raises:
        ValueError: it is too large, cut off, or nested too deeply.
    """
    if len(text) > LARGEST:
        raise ValueError(f"it must have {LARGEST >> 20} MiB at most")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"it is no whole JSON: {error}") from error
