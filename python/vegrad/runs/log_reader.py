"""A reader of a run's log, line by line, however the bytes come."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import nan

from vegrad.diagnosis.noted import Json, as_number, from_plain
from vegrad.runs.form import COLUMNS, FORMAT, KEY, LONGEST
from vegrad.runs.gathered import MOST, TABLE, Gathered
from vegrad.runs.names import clean, cleaned
from vegrad.runs.run import Run
from vegrad.runs.spikes import Spike, SpikeStep

NAMES = 10_000  # modules


class LogReader:
    """The part of a log that was read so far.

    Args:
        most: steps that are kept at most, see `Gathered`.
        table: entries of a table of sizes.
    """

    def __init__(self, most: int = MOST, table: int = TABLE) -> None:
        self.gathered = Gathered(most, table)
        self.broken = 0
        """Lines that could not be read."""
        self._rest = b""
        self._order: list[int] | None = None
        self._begun = False

    def feed(self, content: bytes) -> None:
        """Take in the next bytes of the file; a line that is not whole yet waits for its rest.

        Raises:
            ValueError: it is no log, or one of another version.
        """
        lines = (self._rest + content).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b'{"step":') and not self.gathered.wants and self._begun:
                self.gathered.skip()
            elif line:
                self._line(line)
        if len(self._rest) > LONGEST:
            raise ValueError(f"a line must have {LONGEST} bytes at most, and one goes on beyond")

    def run(self) -> Run:
        """Return the run so far.

        Raises:
            ValueError: there is no header yet.
        """
        if not self._begun:
            raise ValueError("it is empty" if not self._rest else "its first line is cut off")
        cut = {"broken_lines": self.broken} if self.broken else {}
        self.gathered.about |= cut
        return self.gathered.run(self._order)

    def _line(self, line: bytes) -> None:
        try:
            content = json.loads(line)
            if not self._begun:
                self._header(content)
            else:
                self._entry(content)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            if not self._begun:
                raise ValueError(str(error) or "its first line is no header") from error
            self.broken += 1
        except RecursionError:
            self.broken += 1

    def _header(self, content: Mapping[str, Json]) -> None:
        if not isinstance(content, dict) or KEY not in content:
            raise ValueError("its first line is no header of a run's log")
        if content[KEY] != FORMAT:
            raise ValueError(f"its version must be {FORMAT}, not {content[KEY]!r}")
        names = content["modules"]
        if len(names) > NAMES:
            raise ValueError(f"it must have {NAMES} modules at most, not {len(names)}")
        gathered, about = self.gathered, content.get("about", {})
        gathered.modules = tuple(map(clean, names))
        gathered.floor_log2 = as_number(content["floor_log2"])
        if gathered.floor_log2 > 0:
            raise ValueError(f"floor_log2 must be below 0, not {gathered.floor_log2:g}")
        gathered.about = dict(cleaned(about))
        self._begun = True

    def _entry(self, content: Mapping[str, Json]) -> None:
        gathered = self.gathered
        if not isinstance(content, dict):
            raise ValueError("a line is no object")
        if "step" in content:
            known = {
                COLUMNS[name]: nan if value is None else float(value)
                for name, value in content.items()
                if name in COLUMNS
            }
            gathered.add(_step(content["step"]), known)
        elif "sizes" in content:
            log2 = [as_number(value) for value in content["log2"]]
            if len(log2) != len(gathered.modules):
                raise ValueError("another number of modules")
            gathered.add_sizes(_step(content["sizes"]), log2)
        elif "validated" in content:
            gathered.validated(_step(content["validated"]), as_number(content["loss"]))
        elif "from" in content:
            gathered.truncate(_step(content["from"]))
        elif "about" in content:
            gathered.about |= cleaned(content["about"])
        elif "order" in content:
            self._order = list(map(int, content["order"]))
        elif "finding" in content:
            gathered.note(from_plain(cleaned(content["finding"])))
        elif "spike" in content:
            gathered.spike(_spike(cleaned(content["spike"])))


def _step(value: Json) -> float:
    step = float(value)
    if not 0 <= step < 2**53:
        raise ValueError("no number of a step")
    return step


def _spike(content: Mapping[str, Json]) -> Spike:
    window = tuple(
        SpikeStep(int(step), batch, *map(as_number, numbers))
        for step, batch, *numbers in content["window"][:64]
    )
    return Spike(
        int(content["step"]),
        content["batch"],
        as_number(content["loss_times"]),
        as_number(content["norm_times"]),
        window,
    )
