"""Code that gives the recurrent cells of a PyTorch model other weights and biases."""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn import Module

from vegrad.flow.edits import Chrono, Orthogonal, Steady
from vegrad.treatment.script import quoted


def drawn(model: Module, edit: Orthogonal | Chrono | Steady, seed: int) -> Sequence[str]:
    """Return the lines that do an edit of recurrent parameters."""
    lines = ["with torch.no_grad():"]
    match edit:
        case Orthogonal(names):
            lines.insert(0, f"torch.manual_seed({seed})")
            for name in names:
                weight = model.get_parameter(name)
                at = f"model.get_parameter({quoted(name)})"
                lines += [
                    f"    for block in {at}.chunk({max(1, len(weight) // weight.shape[1])}):",
                    "        nn.init.orthogonal_(block)",
                ]
        case Chrono(names, rows, steps, opposite):
            first = f"model.get_parameter({quoted(names[0])})"
            lines.insert(0, f"torch.manual_seed({seed})")
            units = rows[1] - rows[0]
            lines.append(f"    scales = {first}.new_empty({units}).uniform_(1.0, {steps - 1.0})")
            for name in names:
                at = f"    model.get_parameter({quoted(name)})"
                for part, sign in ((rows, ""), (opposite, "-")):
                    if part is not None:
                        value = f"{sign}scales.log()" if name == names[0] else "0.0"
                        lines.append(f"{at}[{part[0]}:{part[1]}] = {value}")
        case Steady(names, drive, cell):
            for name in names:
                weight = f"model.get_parameter({quoted(name)})"
                made = f"vegrad.theory.steadied({weight}.double().cpu().numpy(), {drive!r}, "
                made += f'cell="{cell}", seed={seed})'
                lines.append(f"    {weight}.copy_(torch.from_numpy({made}))")
    return lines
