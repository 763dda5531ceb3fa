"""Edits of own networks, as the code that does them: what a patch shows is what was run."""

from __future__ import annotations

import sys

import numpy as np

from vegrad.flow.edits import Edit, Scale, Shift, Zero, parts
from vegrad.flow.subject import Code, Refusal
from vegrad.networks.mlp import MLP


def clone(network: MLP) -> MLP:
    """Return a copy, to the bit."""
    twin = MLP(**(network.config | {"seed": network.config["seed"] or 0}))
    twin.config["seed"] = network.config["seed"]
    for name, array in network.parameters.items():
        twin.parameters[name][...] = array
    return twin


def edited(network: MLP, edit: Edit) -> tuple[MLP, Code] | Refusal:
    """Do an edit to a network, in place where its shape allows it; else to a new one."""
    lines: list[str] = []
    changed: list[str] = []
    for part in parts(edit):
        found = _lines(network, part)
        if isinstance(found, Refusal):
            return found
        lines += found[0]
        changed += found[1]
    names = {"np": np, "network": network, "vegrad": sys.modules["vegrad"]}
    exec("\n".join(lines), names)
    return network, Code(tuple(lines), tuple(changed))


def _lines(network: MLP, edit: Edit) -> tuple[list[str], list[str]] | Refusal:
    """Return the code for a single edit, and the names of the parameters that it changes."""
    match edit:
        case Scale(names, factor):
            does = f"*= {factor!r}"
        case Zero(names):
            does = "= 0.0"
        case Shift(names, amount):
            does = f"+= {amount!r}"
        case _:
            return Refusal(f"a network cannot be edited like this: {type(edit).__name__}")
    unknown = [name for name in names if name not in network.parameters]
    if unknown:
        return Refusal(f"the network has no parameter {unknown[0]}")
    return [f'network.parameters["{name}"][...] {does}' for name in names], list(names)
