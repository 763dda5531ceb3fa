"""The rule on a training whose last steps have no numbers any more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from vegrad.diagnosis.rules.digest import Digest
from vegrad.diagnosis.rules.rule import RuleOf
from vegrad.flow.finding import Finding
from vegrad.flow.site import Site


def _lost(digest: Digest, rule: RuleOf[Digest], earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find that loss or gradient is no number from some step to the end."""
    history = digest.history
    good = np.isfinite(history.loss) & np.isfinite(history.gradient_norm)
    count = int(np.argmax(np.append(good[::-1], True)))
    if count < rule.warning or any(one.kind == "nonfinite" for one in earlier):
        return
    step = history.steps - count
    thrown = any(one.cause == "learning-rate-high" for one in earlier)
    yield Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="learning-rate-high" if thrown else "",
        sites=(Site("step", f"step {step}", step),),
        says="loss or gradient is NaN or infinite in all of the last {count:d} steps, from step "
        "{step:d} on: nothing is learned any more",
        advises="begin anew, or go back to a checkpoint from before that"
        + (", with shorter steps." if thrown else ", and see what diagnose says of it."),
        evidence={"step": step, "count": count},
    )


LOST = RuleOf[Digest](
    name="steps-nonfinite",
    kind="nonfinite",
    warning=3,
    critical=3,
    measured="steps on end, the last ones, whose loss or gradient is NaN or infinite",
    reason="A clip may leave out single steps; from weights that are lost there is no way back.",
    source="an arithmetic fact",
    find=_lost,
)
