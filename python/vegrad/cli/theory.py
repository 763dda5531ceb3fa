"""`vegrad theory`: the predictions of mean-field theory for an activation at a point (σ_w, σ_b).

With --cell it is about a recurrent cell at its initialization instead.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from functools import partial
from math import isfinite, isnan

from vegrad import _core, theory
from vegrad.cli.options import add_common_options, add_name, positive
from vegrad.cli.outputs import PICTURES, settle
from vegrad.cli.terminal import print_files, print_json, spinner, width
from vegrad.reports import recurrence_theory
from vegrad.reports import theory as theory_report
from vegrad.theory.cells import GATES
from vegrad.theory.gaussian import activation_of, check_positive, check_sigma
from vegrad.theory.meanfield import CRITICAL_SIGMA_B


def run(options: argparse.Namespace) -> int:
    """Print the predictions, and draw a picture if one is asked for; return 0."""
    if options.named is not None:
        if options.activation not in (None, options.named):
            both = f"{options.activation} and {options.named}"
            raise ValueError(f"activation must be given once, not as {both}")
        options.activation = options.named
    if options.cell is not None:
        return _run_cell(options)
    options.activation = options.activation or "tanh"
    point = _point(options.activation, options.sigma_w, options.sigma_b)
    settle(options)
    picture = None
    if options.plot is not None:
        with spinner(options, "drawing the picture"):
            picture = theory_report.plot_phases(
                options.activation, options.plot, sigma_w=point[0], sigma_b=point[1]
            )
    if options.json:
        content = _content(options.activation, *point)
        print_json({name: _plain(value) for name, value in content.items()} | {"picture": picture})
        return 0
    told = theory_report.theory_verdict if options.quiet else theory_report.theory_table
    print(told(options.activation, *point, width=width()))
    print_files({"picture": picture})
    return 0


def _run_cell(options: argparse.Namespace) -> int:
    """Print what is expected of a recurrent cell; return 0."""
    for option in ("activation", "sigma_w", "sigma_b", "plot"):
        if getattr(options, option) is not None:
            name = option if option == "activation" else "--" + option.replace("_", "-")
            raise ValueError(f"{name} does not go with --cell")
    sizes: dict[str, int] = {
        "hidden": positive("--width", options.hidden),
        "inputs": positive("--inputs", options.inputs),
    }
    rms = check_positive("--input-rms", options.input_rms)
    if options.json:
        rows = recurrence_theory.expected_cells(options.cell, **sizes, input_rms=rms)
        content = recurrence_theory.expected_content(options.cell, rows)
        plain = [{name: _plain(value) for name, value in row.items()} for row in content]
        print_json({"cell": options.cell, **sizes, "input_rms": rms, "initializations": plain})
        return 0
    told = partial(recurrence_theory.recurrence_table, options.cell)
    if options.quiet:
        told = partial(recurrence_theory.recurrence_verdict, options.cell)
    print(told(**sizes, input_rms=rms, width=width()))
    return 0


def _point(activation: str, sigma_w: float | None, sigma_b: float | None) -> tuple[float, float]:
    """Return the point that is asked for: the critical one, unless σ_w is given."""
    activation_of(activation)
    if sigma_w is not None:
        return check_sigma("--sigma-w", sigma_w), check_sigma("--sigma-b", sigma_b or 0.0)
    usual = CRITICAL_SIGMA_B.get(activation, 0.0)
    b = usual if sigma_b is None else check_sigma("--sigma-b", sigma_b)
    critical = theory.critical_point(activation, b)
    if critical is None:
        where = "" if sigma_b is None else f" at sigma_b {b:g}"
        raise ValueError(f"{activation} has no critical point{where}: --sigma-w is needed")
    return critical.sigma_w, b


def _content(activation: str, sigma_w: float, sigma_b: float) -> dict[str, object]:
    at = (activation, sigma_w, sigma_b)
    critical = theory.critical_point(activation, sigma_b)
    return {
        "activation": activation,
        "sigma_w": sigma_w,
        "sigma_b": sigma_b,
        "phase": theory_report.phase(*at),
        "fixed_point": theory.fixed_point(*at),
        "saturated": theory_report.saturated(activation, theory.fixed_point(*at)),
        "chi_parallel": theory.chi_parallel(*at),
        "correlation_fixed_point": theory.correlation_fixed_point(*at),
        "chi": theory.chi(*at),
        "depth_scales": asdict(theory.depth_scales(*at)),
        "critical_point": None if critical is None else asdict(critical),
        "gain": theory.gain(activation),
        "normalized_chi": theory.normalized_chi(activation),
    }


def _plain(value: object) -> object:
    """Replace nan by None, and infinities by "inf" and "-inf", as in the files of histories."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if not isinstance(value, float) or isfinite(value):
        return value
    return None if isnan(value) else str(value)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vegrad theory`."""
    add = parser.add_argument
    names = f"{', '.join(_core.ACTIVATIONS)} (default tanh)"
    add("activation", nargs="?", choices=_core.ACTIVATIONS, metavar="ACTIVATION", help=names)
    add("--activation", dest="named", choices=_core.ACTIVATIONS, help=argparse.SUPPRESS)
    weights = "weights N(0, X²/fan-in) (default: the critical ones)"
    biases = "biases N(0, Y²) (default: where there is a critical point, or 0 with --sigma-w)"
    add("--sigma-w", type=float, metavar="X", help=weights)
    add("--sigma-b", type=float, metavar="Y", help=biases)
    add = parser.add_argument_group("recurrent cell, in place of an activation").add_argument
    add_name(add, "--cell", GATES, "what is expected of it at its initialization")
    width = "units of the cell (default 128)"
    add("--width", dest="hidden", type=int, default=128, metavar="N", help=width)
    add("--hidden", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add("--inputs", type=int, default=64, metavar="I", help="inputs of the cell (default 64)")
    rms = "size of its inputs (default 1)"
    add("--input-rms", type=float, default=1.0, metavar="X", help=rms)
    group = parser.add_argument_group("output")
    picture = f"save a picture of the phases ({', '.join(PICTURES)})"
    group.add_argument("--plot", metavar="PATH", help=picture)
    add_common_options(group, quiet="no more than a sentence and the names of files")
