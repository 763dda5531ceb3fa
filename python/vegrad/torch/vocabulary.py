"""A rule's sentence about layers of an MLP, said of a torch model's modules."""

from __future__ import annotations

import re
from dataclasses import replace

from vegrad.flow.finding import Finding

# What the rules say of MLP's arguments, and the same in PyTorch.
PHRASES = (
    ('activation="relu" with init="he_normal", or "tanh" with "lecun_normal"',
     'torch.nn.ReLU with kaiming_normal_(weight, nonlinearity="relu"), or torch.nn.Tanh with '
     "weights of standard deviation 1/√fan_in"),
    ('activation="relu" with init="he_normal"',
     'torch.nn.ReLU with kaiming_normal_(weight, nonlinearity="relu")'),
    ('zero biases and init="lecun_normal"',
     "zero biases and weights of standard deviation 1/√fan_in"),
    ('activation="leaky_relu"', "torch.nn.LeakyReLU"),
    ('activation="relu"', "torch.nn.ReLU"),
    ('norm="layer"', "torch.nn.LayerNorm after each Linear"),
    ("residual=True", "skip connections, x + f(x)"),
    (" in .gradients;", " in .grad;"),
)  # fmt: skip

PARTS = {"weights": "weight", "biases": "bias"}


def begun(names: list[str]) -> str:
    """What is to be said of weights that begin at 0."""
    several = " and others are" if len(names) > 1 else " is"
    return (
        f"{names[0]}{several} 0, so that what lies below gets no gradient from there; diagnose "
        "again after a step."
    )


def said(finding: Finding, names: list[str], *, drawn: bool = False) -> Finding:
    """The finding, with modules' and parameters' names in message and advice.

    `drawn` tells whether what is expected is from weights drawn anew.
    """
    message = _said(finding.message, names)
    if drawn:
        message = message.replace("theory expects", "weights drawn anew give")
    return replace(finding, message=message, advice=_said(finding.advice, names))


def _said(sentence: str, names: list[str]) -> str:
    for words, instead in PHRASES:
        sentence = sentence.replace(words, instead)

    def name(found: re.Match[str]) -> str:
        if found["part"]:
            return f"{names[int(found['of'])]}.{PARTS[found['part']]}"
        if found["after"]:
            return f"the activation of {names[int(found['after'])]}"
        return f"{names[int(found['number'])]}."

    # All at once: a module may itself be called layers.3.
    return re.sub(
        r"the (?P<part>weights|biases) of layer (?P<of>\d+)|the activation of layer (?P<after>\d+)"
        r"|layers\.(?P<number>\d+)\.",
        name,
        sentence,
    )
