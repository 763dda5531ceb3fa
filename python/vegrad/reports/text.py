"""A diagnosis as text: the tables and sentences for the terminal, 80 columns wide unless told."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import numpy as np

from vegrad.arrays.measurement import Measurement
from vegrad.flow.flow import Flow
from vegrad.flow.wording import named
from vegrad.reports import time_flow
from vegrad.reports.protocols import BesideFlow, ShownDiagnosis
from vegrad.reports.values import count_of, gain, number, size
from vegrad.theory.expected import ExpectedFlow

WIDTH = 80
ENDS = 5  # layers shown at either end of a deep network
PICKED = 4  # layers shown in between, because a finding is about them
NAME = 22  # letters of a module's path shown beside its layer
# The columns of the table of layers, each with its width and its two lines of words.
COLUMNS = {
    "layer": 5,
    "output": 10,
    "flat": 6,
    "gradient": 10,
    "gain": 9,
    "expected": 9,
    "weights": 9,
    "derivative": 9,
}
HEADS = (
    (
        "layer",
        "    output",
        "  flat",
        "  gradient",
        "     gain",
        " expected",
        "  weights",
        "   deriv.",
    ),
    ("     ", "       rms", "     %", "     log10", "", "", "", ""),
)
# A single gain is remarkable if it lies this many spreads and this far (log2; a factor of ten) from
# the expected one.
FAR_SPREADS, FAR_LOG2 = 8.0, 3.32


# Whole reports ---------------------------------------------------------------------------------


def text(diagnosis: ShownDiagnosis, *, all_layers: bool = False, names: Sequence[str] = ()) -> str:
    """Write the network, the table of layers, the verdict, findings and advice.

    Args:
        diagnosis: what to show.
        all_layers: show the middle layers of a deep network too.
        names: the layers' modules, to stand beside them.
    """
    head = measurements(diagnosis, all_layers=all_layers, names=names)
    return "\n".join([head, "", verdict(diagnosis), *remarks(diagnosis)])


def measurements(
    diagnosis: ShownDiagnosis,
    *,
    all_layers: bool = False,
    names: Sequence[str] = (),
    width: int = WIDTH,
) -> str:
    """Write what was looked at and, if it was run, the table of its layers or gradients."""
    lines = describe(diagnosis).splitlines()
    head = "\n".join(textwrap.fill(line, width) for line in lines)
    if diagnosis.measurement is not None:
        rows = gradients(diagnosis, diagnosis.measurement, all_layers=all_layers)
    elif diagnosis.layer_flow is not None:
        flow = diagnosis.layer_flow
        rows = table(diagnosis, flow, all_layers=all_layers, names=names, width=width)
    elif diagnosis.time_flow is not None:
        rows = [time_flow.text(diagnosis.time_flow, width)]
    else:
        return head
    return "\n".join([head, "", *rows])


def describe(diagnosis: ShownDiagnosis) -> str:
    """Describe what was looked at, as far as it is known; a network takes two lines."""
    config, measurement = diagnosis.config, diagnosis.measurement
    if measurement is not None:
        return (
            f"{len(measurement.names)} gradients, {measurement.total.count} elements, "
            f"joint norm {measurement.total.norm:.4g}"
        )
    if "cell" not in config and "sizes" not in config:
        return ", ".join(str(v) if n == "model" else f"{v} {n}" for n, v in config.items())
    return describe_network(config, diagnosis.loss)


def describe_network(config: Mapping[str, object], loss: float | None = None) -> str:
    """Describe a network of vegrad's own in two lines."""
    if "cell" in config:
        return _recurrent(config, loss)
    sizes = cast(Sequence[int], config["sizes"])
    hidden = sizes[1:-1]
    line = count_of(len(sizes) - 1, "layer")
    if hidden:
        line += f" of width {min(hidden)}"
        line += f" to {max(hidden)}" if len(set(hidden)) > 1 else ""
    line += f" ({_ends(sizes[0], sizes[-1])}), {config['dtype']}"
    line += "" if loss is None else f", loss {loss:.4g}"
    options = [str(config["activation"]), str(config["init"])]
    options += [f"{name} {config[name]:g}" for name in ("sigma_w", "sigma_b") if config[name]]
    options += [f"norm {config['norm']}"] if config["norm"] is not None else []
    options += ["residual"] if config["residual"] else []
    return f"{line}\n{', '.join([*options, str(config['loss'])])}"


def _ends(inputs: object, outputs: object) -> str:
    return f"{count_of(inputs, 'input')}, {count_of(outputs, 'output')}"


def _recurrent(config: Mapping[str, object], loss: float | None) -> str:
    """Describe a recurrent network in two lines."""
    line = f"{count_of(config['layers'], 'layer')} of {config['hidden']} {config['cell']} units"
    line += f" ({_ends(config['inputs'], config['outputs'])}), {config['dtype']}"
    line += "" if loss is None else f", loss {loss:.4g}"
    numbers = (("forget_bias", "forget bias"), ("time_scale", "time scale"))
    options = [f"{config['init']} initialization"]
    options += [f"{words} {config[name]:g}" for name, words in numbers if config[name] is not None]
    targets = "the last step" if config["targets"] == "last" else "every step"
    return f"{line}\n{', '.join(options)}, {config['loss']} of {targets}"


def brief(diagnosis: ShownDiagnosis) -> str:
    """Write the verdict and its sentence, and how many findings there are beside it, in a line."""
    more = len(diagnosis.findings) - 1
    others = f" (and {more} more finding{'s' * (more != 1)})" if more > 0 else ""
    return f"{diagnosis.summary}{others}"


def verdict(diagnosis: ShownDiagnosis, width: int = WIDTH) -> str:
    """Write the verdict and its sentence."""
    return textwrap.fill(diagnosis.summary, width)


def remarks(diagnosis: ShownDiagnosis, width: int = WIDTH) -> list[str]:
    """Write the advice, the further findings with theirs, and what the dtype lost."""
    lines = []
    for place, finding in enumerate(diagnosis.findings):
        if place > 0:
            lines.append(textwrap.fill(f"also {finding.kind}: {finding.message}", width))
        lines.append(indented("→ ", finding.advice, width))
    causes = dict.fromkeys(one.cause for one in diagnosis.findings if one.cause)
    if causes:
        lines.append(indented("? ", f"vegrad explain {' '.join(causes)}", width))
    if diagnosis.findings and diagnosis.left_out:  # else the verdict says it
        lines.append(indented("! ", f"{diagnosis.left_out}.", width))
    dtype = diagnosis.config.get("dtype")
    for layers, value in ((diagnosis.underflowed, "all 0"), (diagnosis.overflowed, "inf")):
        if layers:
            lost = f"{dtype} cannot hold the weight gradients of {named(layers)}, which are {value}"
            lost += " in .gradients; the table has their true size."
            lines.append(indented("! ", lost, width))
    return lines


# Tables ----------------------------------------------------------------------------------------


def table(
    diagnosis: BesideFlow,
    flow: Flow,
    *,
    all_layers: bool = False,
    names: Sequence[str] = (),
    width: int = WIDTH,
) -> list[str]:
    """Write the table of layers, one a line.

    Deep networks lose the middle layers that nothing is said about, unless `all_layers`. If
    `names` has a layer's module, that stands in place of the note, and an arrow marks it. Columns
    are left out where the terminal is narrow.
    """
    notes = _notes(diagnosis, flow)
    lost = {*diagnosis.underflowed, *diagnosis.overflowed}
    shown = chosen(len(flow.delta_log2), all_layers, picked=notes)
    aside = max((len(notes.get(layer, "")) + 2 for layer in shown if layer in notes), default=0)
    left_out = _left_out(width - aside)
    expected = None if diagnosis.expected_flow is None else diagnosis.expected_flow.gain_log2
    gains = {
        "gain": flow.gain_log2,
        "expected": expected,
        "weights": flow.weight_gain_log2,
        "derivative": flow.activation_gain_log2,
    }

    def row(layer: int) -> str:
        cells = {
            "layer": f"{layer:>5}",
            "output": f"  {number(flow.activation_rms[layer]):>8}",
            "flat": f" {100 * flow.saturated[layer]:>5.0f}",
            "gradient": f"  {size(flow.delta_log2[layer]):>8}{'!' if layer in lost else ' '}",
        }
        if layer < len(flow.gain_log2):
            for name, values in gains.items():
                cell = "" if values is None else gain(values[layer])
                cells[name] = f"{cell:>{8 if name == 'gain' else 9}}"
        line = "".join(cell for name, cell in cells.items() if name not in left_out)
        if layer < len(names):
            return f"{line:<67}  {names[layer][-NAME:]}{' ←' if layer in notes else ''}"
        room = sum(COLUMNS[name] for name in COLUMNS if name not in left_out)
        return f"{line:<{room}}  {notes.get(layer, '')}".rstrip()

    heads = [
        "".join(words for name, words in zip(COLUMNS, line, strict=True) if name not in left_out)
        for line in HEADS
    ]
    heads[1] += "" if left_out else "     (gain = weights × derivative)"
    return [*heads, *with_gaps(shown, row, lambda count: f"    ⋮  {count} layers not shown")]


def _left_out(room: int) -> set[str]:
    """Choose the columns that a table of this width has no room for."""
    left_out: set[str] = set()
    for name in ("expected", "flat", "output"):
        if sum(COLUMNS[one] for one in COLUMNS if one not in left_out) > room:
            left_out.add(name)
    return left_out


def gradients(
    diagnosis: ShownDiagnosis, measurement: Measurement, *, all_layers: bool = False
) -> list[str]:
    """Write the table of recorded gradients: those of the chain, from the input on."""
    chain = diagnosis.config["chain"]
    buffers = [measurement.buffers[measurement.names.index(name)] for name in chain]
    wide = max(map(len, ["gradient", *chain]))

    def row(place: int) -> str:
        one, passed = buffers[place], ""
        if place + 1 < len(chain):
            with np.errstate(invalid="ignore"):
                passed = gain(float(np.subtract(one.norm_log2, buffers[place + 1].norm_log2)))
        line = f"{chain[place]:<{wide}}  {one.count:>9}  {size(one.norm_log2):>10}  {passed:>8}"
        line += f"  {100 * one.zeros / max(one.count, 1):>3.0f} %"
        return line + ("  ← " + ", ".join(one.marks) if one.marks else "")

    picked = [layer for finding in diagnosis.findings for layer in finding.layers]
    return [
        f"{'gradient':<{wide}}  {'elements':>9}  log10 norm      gain  zeros",
        *with_gaps(
            chosen(len(chain), all_layers, picked=picked),
            row,
            lambda count: f"{'⋮':<{wide}}  {count} not shown",
        ),
    ]


def chosen(
    count: int, everything: bool, *, ends: int = ENDS, picked: Iterable[int] = ()
) -> list[int]:
    """Choose the rows to show: all, or both ends and a few picked ones between them."""
    if everything or count <= 2 * ends + 2:
        return list(range(count))
    middle = [place for place in picked if ends <= place < count - ends][:PICKED]
    return [*range(ends), *sorted(middle), *range(count - ends, count)]


def with_gaps(
    shown: Sequence[int], row: Callable[[int], str], gap: Callable[[int], str]
) -> list[str]:
    """Write the rows at these places, and a line where several between them are not shown."""
    lines, previous = [], -1
    for place in shown:
        if place == previous + 2:  # a line that says so would take as much room
            lines.append(row(place - 1))
        elif place > previous + 2:
            lines.append(gap(place - previous - 1))
        lines.append(row(place))
        previous = place
    return lines


def _notes(diagnosis: BesideFlow, flow: Flow) -> dict[int, str]:
    """Return what the table says beside single layers, the most telling layers first."""
    notes: dict[int, str] = {}
    for finding in diagnosis.findings:
        if finding.kind in ("dead", "saturated", "nonfinite") or len(finding.layers) == 1:
            for layer in sorted(finding.layers, key=lambda i: i != finding.evidence.get("layer")):
                notes.setdefault(layer, finding.kind)
    for layer, word in _unlike_its_draw(diagnosis.expected_flow, flow).items():
        notes.setdefault(layer, word)
    return notes


def _unlike_its_draw(expected: ExpectedFlow | None, flow: Flow) -> dict[int, str]:
    """Return single gains that freshly drawn weights cannot have, where the others are as drawn.

    They are no finding, as they may be meant and mostly train: of 167 networks of the benchmark zoo
    166 trained with one layer times 0.02, 119 with one times 50. Training moves gains as well, but
    mostly many at once: of 218 trained networks 7 had such a gain, and in none did it stand alone.
    """
    if expected is None:
        return {}
    apart = np.abs(expected.deviations(flow))
    with np.errstate(invalid="ignore"):
        off = flow.gain_log2 - expected.gain_log2
    far = (apart > FAR_SPREADS) & (np.abs(off) > FAR_LOG2)
    others = apart[~far]
    if not far.any() or far.sum() > 2 or len(others) < 3 or np.mean(others < 4) < 0.9:
        return {}
    return {int(i): f"{'≪' if off[i] < 0 else '≫'} expected" for i in np.flatnonzero(far)}


def indented(mark: str, sentence: str, width: int = WIDTH) -> str:
    """Write a sentence behind a mark, its further lines as far in."""
    return textwrap.fill(sentence, width, initial_indent=f"  {mark}", subsequent_indent="    ")
