"""Ways through the graph of a pass: where the inputs come in, and what is last before the loss."""

from __future__ import annotations

from vegrad.activations import ACTIVATIONS
from vegrad.flow.reading import INPUT, MAPS, Operation, Reading

ADDED = {"add", "radd", "iadd"}
# What only scales, drops out or reshapes.
NEUTRAL = {
    *("mul", "rmul", "imul", "div", "truediv", "dropout", "feature_dropout", "clone", "identity"),
    *("get", "getitem", "t", "view", "reshape", "flatten", "transpose", "permute", "expand"),
    *("squeeze", "unsqueeze", "chunk", "split", "unbind", "to", "contiguous"),
}
OTHER_ACTIVATIONS = {
    "celu",
    "clamp",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "mish",
    "prelu",
    "relu6",
}
PASSED_OVER = {*NEUTRAL, *ACTIVATIONS, *OTHER_ACTIVATIONS}
RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
TAKERS = {*MAPS, *RECURRENT}


def entries(reading: Reading) -> list[Operation]:
    """Return the maps and recurrent modules that inputs come to without passing another.

    A residual stream that begins with the inputs does not bring them to each of its branches, nor
    does a mask that each layer's output is multiplied with.
    """
    open_ways, mapped = list[bool](), list[bool]()
    found = []
    for one in reading.operations:
        behind, from_input = False, False
        for n in one.below:
            behind = behind or (n != INPUT and mapped[n])
            from_input = from_input or (n not in one.factors and (n == INPUT or open_ways[n]))
        from_input &= not (behind and one.kind in ADDED)
        is_map = one.kind in TAKERS and bool(one.parameters)
        if is_map and from_input:
            found.append(one)
        open_ways.append(from_input and not is_map)
        mapped.append(behind or is_map)
    return found


def joined(reading: Reading) -> set[str]:
    """Return the maps whose outputs are taken beside another's without a sum, as a U-Net's skips.

    There a map's gradient says nothing of what the one above passes on: it comes by both ways, or
    is that of one way of two.
    """
    found, origins = set[int](), list[frozenset[int]]()
    for place, one in enumerate(reading.operations[:-1]):  # the last is the loss
        below = {origins[n] for n in one.below if n != INPUT}
        maps = frozenset[int]().union(*below)
        if len(below) > 1 and len(maps) > 1 and one.kind not in ADDED:
            found |= maps
        origins.append(frozenset([place]) if one.kind in MAPS and one.parameters else maps)
    return {reading.operations[n].parameters[0] for n in found}


def heads(reading: Reading) -> set[str]:
    """Return the maps that are the last on their way to the loss, which often begin small."""
    used, found = set[int](), set[str]()
    for place in range(len(reading.operations) - 1, -1, -1):
        one = reading.operations[place]
        above = place in used
        if one.kind in MAPS and not above:
            found.update(one.parameters[:1])
        if one.kind in MAPS or above:
            used.update(one.below)
    return found


def taken_by(reading: Reading) -> dict[str, frozenset[str]]:
    """Return the kinds of the operations that take what each parameter's operation makes.

    What only scales, drops out or reshapes is passed over, and so are activations.
    """
    above: dict[int, set[int]] = {}
    for place, one in enumerate(reading.operations):
        for below in one.below:
            above.setdefault(below, set()).add(place)
    found: dict[str, frozenset[str]] = {}
    views = set[str]()  # parameters of which only views are known
    for place, one in enumerate(reading.operations):
        if not one.parameters:
            continue
        kinds, ahead, seen = set[str](), list(above.get(place, ())), set[int]()
        while ahead:
            next_place = ahead.pop()
            if next_place in seen:
                continue
            seen.add(next_place)
            taker = reading.operations[next_place]
            if taker.kind in PASSED_OVER:
                ahead += above.get(next_place, ())
            else:
                kinds.add(taker.kind)
        for name in one.parameters:
            if name not in found or name in views:
                found[name] = frozenset(kinds)
                (views.add if one.kind in NEUTRAL else views.discard)(name)
    return found
