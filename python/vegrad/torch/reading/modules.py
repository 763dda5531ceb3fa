"""The modules of a pass in the order in which they ran, with the sizes at what they returned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf, isnan, nan

import numpy as np

from vegrad.flow.reading import Module, Operation
from vegrad.flow.wording import exp2

PLAIN = {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"}


def modules_of(
    root: str,
    operations: Sequence[Operation],
    parameters: Iterable[str],
    gradients: Mapping[str, float],
) -> tuple[Module, ...]:
    """Return a row for each module that computes something, in run order.

    Args:
        root: the name of the model itself, for operations in its own forward().
        operations: of a pass.
        parameters: names of those that are trained; modules with some that no operation was seen
            of come last.
        gradients: log2 of the norms of the parameters' gradients, by name.
    """
    last: dict[str, Operation] = {}
    own: dict[str, list[str]] = {}
    for one in operations[:-1]:  # the last is the loss
        if isnan(one.rms_log2) or one.kind in PLAIN:
            continue
        before = last.get(one.name)
        # Of a module without parameters that is called often, the first call stands for all.
        if before is None or one.parameters or own.get(one.name):
            last[one.name] = one
        own.setdefault(one.name, []).extend(one.parameters)
    seen = {name for names in own.values() for name in names}
    for parameter in parameters:
        if parameter not in seen:
            name = parameter.rpartition(".")[0]
            last.setdefault(name, Operation("unseen", name))
            own.setdefault(name, []).append(parameter)
    found = []
    for name, one in last.items():
        sizes = np.array([gradients[n] for n in dict.fromkeys(own[name]) if n in gradients])
        with np.errstate(invalid="ignore"):
            norm = exp2(float(np.logaddexp2.reduce(2.0 * sizes)) / 2) if sizes.size else nan
        zero = one.rms_log2 == -inf
        weights = [n for n in own[name] if not n.endswith("bias")]
        found.append(
            Module(
                name or root,
                activation_rms=exp2(one.rms_log2),
                delta=exp2(one.delta_log2),
                gradient=norm,
                weighted=bool(own[name]),
                begun=zero and any(gradients.get(n, -inf) > -inf for n in weights),
            )
        )
    return tuple(found)
