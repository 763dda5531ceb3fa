"""A rule on rows of a batch that a model mixes, though each is judged by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.finding import Finding
from vegrad.flow.reading import Reading
from vegrad.flow.site import Site

SAYS = {
    "softmax": "a softmax{where} is taken along the first axis of {before}, over the rows of the "
    "batch",
    "view": "{where_first} makes {after} of {before}, which keeps the numbers in their order and "
    "so mixes the rows of the batch",
    "along": "{site} goes along the first axis of {before}, from row to row of the batch",
}
SAID = ("wrong-reduction", "double-softmax")  # of a softmax over the rows, at the output
ADVISES = {
    "softmax": "take it along the axis whose weights are to sum to 1, the last in attention.",
    "view": "{words.exchanges}.",
    "along": "{words.batch_first}.",
}


def _mixed(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find the first operation for which the outputs of rows depend on the rows beside them."""
    if not reading.mixing or any(one.cause in SAID for one in earlier):
        return
    one = reading.mixing[0]
    name = one.module
    yield Finding(
        kind=rule.kind,
        severity="warning" if one.kind == "softmax" else "critical",
        rule=rule.name,
        cause="mixed-rows",
        sites=(Site("module", name) if name else Site("model"),),
        says=SAYS[one.kind] + " (outputs of rows change as other rows stand beside them)",
        advises=ADVISES[one.kind],
        facts={
            "where": f" in {name}" if name else "",
            "where_first": f"a view in {name}" if name else "a view",
            "before": _shape(one.before),
            "after": _shape(one.after),
        },
        evidence={"axis": float(one.before[0])},
    )


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


MIXED = Rule(
    name="mixed-rows",
    kind="stalled",
    warning=1,
    critical=1,
    measured="outputs of rows, in evaluation mode, with other rows beside them; looked at where a "
    "softmax, a view, a recurrent module or attention takes the first axis for another",
    reason="An answer that depends on which rows happen to stand beside its own cannot be learnt.",
    source="PyTorch's documentation: Tensor.view, Softmax (dim), LSTM and MultiheadAttention "
    "(batch_first)",
    find=_mixed,
)
