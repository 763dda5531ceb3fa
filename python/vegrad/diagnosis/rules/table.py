"""The table of rules: each subject's rows, joined in the order in which they are asked.

Limits on gradients are decades (powers of ten) between layers, never absolute sizes, so that
neither the scale of the loss nor the size of the batch changes a verdict.
"""

from __future__ import annotations

from vegrad.diagnosis.rules import (
    chain,
    cuts,
    departures,
    embeddings,
    gradients,
    graph,
    loop,
    modules,
    nonfinite,
    operations,
    recurrent,
    steps,
    units,
)
from vegrad.diagnosis.rules import residual as streams

DEAD, SATURATED = units.RULES
# Of data that were not run.
DATA = (nonfinite.NONFINITE_DATA,)
# Of any network, before all else: what is not finite, and operations that let nothing pass.
OPERATIONS = (nonfinite.KNOWN, *cuts.RULES, *operations.RULES)
# Of a chain of layers, causes before effects.
CHAIN = (
    nonfinite.PASS,
    DEAD,
    chain.EXPLODING,
    chain.EXPLODING_LAYER,
    chain.ENTRANCE,
    SATURATED,
    chain.VANISHING,
    chain.VANISHING_LAYER,
)
# Of any network whose graph was read.
SINGLE, WHOLE, INPUTS = departures.SINGLE, departures.WHOLE, departures.INPUTS
GRAPH = (nonfinite.PASS, *graph.RULES)
REACH, SHRINKS, GROWS = graph.SHRINKS, chain.VANISHING, chain.EXPLODING
# Of a monitor's report: modules that were watched. Of a recording: gradients alone.
LOOP = loop.RULES
MODULES = (*LOOP, *modules.RULES)
GRADIENTS = gradients.RULES
# Of residual streams and recurrent cells, in any network that has some.
STREAMS = (
    streams.DROWNING,
    embeddings.LARGE_EMBEDDING,
    embeddings.SMALL_EMBEDDING,
    streams.CLOSED_BRANCH,
)
CELLS = (recurrent.THROUGH_TIME,)
# Of a training's steps, which read its history.
STEPS = steps.RULES
RULES = (
    *DATA,
    SINGLE,
    WHOLE,
    INPUTS,
    *cuts.RULES,
    *operations.RULES,
    *CHAIN,
    *graph.RULES,
    *STREAMS,
    *CELLS,
    *MODULES,
    *GRADIENTS,
    *STEPS,
)
