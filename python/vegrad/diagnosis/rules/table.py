"""The table of rules: each subject's rows, joined in the order in which they are asked.

Limits on gradients are decades (powers of ten) between layers, never absolute sizes, so that
neither the scale of the loss nor the size of the batch changes a verdict.
"""

from __future__ import annotations

from vegrad.diagnosis.rules import (
    chain,
    collapse,
    columns,
    cuts,
    departures,
    distributions,
    divergence,
    embeddings,
    first_loss,
    gradients,
    graph,
    loop,
    losses,
    memory,
    mixing,
    modules,
    nonfinite,
    normalization,
    operations,
    penalty,
    recorded,
    recurrent,
    silent,
    standing,
    steps,
    symmetry,
    targets,
    underflow,
    units,
)
from vegrad.diagnosis.rules import residual as streams

DEAD, SATURATED = units.RULES
# Of data that were not run.
DATA = (nonfinite.NONFINITE_DATA,)
# Of outputs beside targets at the loss, and of units and rows that are alike: known for certain.
LOSSES = (
    distributions.UNDEFINED,
    *losses.RULES,
    *targets.RULES,
    *symmetry.RULES,
    mixing.MIXED,
    penalty.PENALTY,
    units.LOGITS_HELD,
    units.SOFTMAX_WITHIN,
)
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
SINGLE, WHOLE = departures.SINGLE, departures.WHOLE
INPUTS = (departures.INPUTS, *columns.RULES)
GRAPH = (nonfinite.PASS, *graph.RULES)
# Of sizes that seem to be wrong, where normalizations do nothing.
UNSEEN = normalization.UNSEEN
# Where nothing else is wrong.
LEFT = (underflow.STORED, first_loss.ABSURD_LOSS)
REACH, SHRINKS, GROWS = graph.SHRINKS, chain.VANISHING, chain.EXPLODING
ENTRANCE = chain.ENTRANCE
# Of a monitor's report: modules that were watched. Of a recording: gradients alone.
LOOP = (*loop.RULES, *silent.RULES)
COURSE = (*divergence.RULES, *collapse.RULES, divergence.PROMISES)
NO_GRADIENT, GONE = underflow.NO_GRADIENT, (underflow.THROWN, underflow.GONE)
MODULES = (*LOOP, *COURSE, *modules.RULES, NO_GRADIENT, *GONE, collapse.GOES_NOWHERE)
GRADIENTS, NONFINITE = gradients.RULES, modules.NONFINITE
# Of residual streams and recurrent cells, in any network that has some.
STREAMS = (
    streams.DROWNING,
    embeddings.LARGE_EMBEDDING,
    embeddings.SMALL_EMBEDDING,
    streams.CLOSED_BRANCH,
)
CELLS = (recurrent.THROUGH_TIME, memory.FORGETS)
# Of a run of which only the steps were recorded.
RUNS = (
    recorded.NOTED,
    recorded.NONFINITE,
    recorded.DIVERGED,
    standing.NO_GRADIENT,
    standing.NO_RATE,
    recorded.BLOWN_UP,
    recorded.THROWN,
    standing.FADED,
    standing.STALLED,
)
# Of a training's steps, which read its history.
STEPS = steps.RULES
RULES = (
    *DATA,
    *LOSSES,
    SINGLE,
    WHOLE,
    *INPUTS,
    UNSEEN,
    *cuts.RULES,
    *LEFT,
    *operations.RULES,
    *CHAIN,
    *graph.RULES,
    *STREAMS,
    *CELLS,
    *MODULES,
    *GRADIENTS,
    *RUNS,
    *STEPS,
)
