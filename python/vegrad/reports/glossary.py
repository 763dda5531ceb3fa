"""The words that messages, tables and pages use, each explained in a few sentences.

The glossary of the site is made from this table.
"""

from __future__ import annotations

from typing import NamedTuple


class Term(NamedTuple):
    """A word with its other forms, the one that is used most first, and what it means."""

    names: tuple[str, ...]
    says: str
    see: tuple[str, ...] = ()
    """Of a finding's kind: causes that it often has."""


TERMS = (
    # Sizes that travel through a network
    Term(
        ("δ", "delta"),
        "The gradient of the mean loss with respect to the pre-activations of a layer (or the "
        "output of a module, or the state of a recurrent cell at one step), for all rows and units "
        "together. Its size, ‖δ‖, is what vanishes and explodes; the gradient of a weight is δ "
        "times the layer's input.",
    ),
    Term(
        ("gain",),
        "The factor by which ‖δ‖ changes on its way from a layer to the one below it (or from a "
        "step to the one before). The gradient at the first layer is the product of all gains, so "
        "that 0.23 a layer leaves 1e-31 of it after 49 layers. A gain is the product of that of "
        "the weights and that of the activation's derivative.",
    ),
    Term(
        ("expected", "expected gain"),
        "The gain that theory gives for a network with this initialization, activation and width, "
        "before any pass; for PyTorch's models of which theory knows nothing, the gain of the "
        "same model with weights drawn anew.",
    ),
    Term(
        ("spread",),
        "The standard deviation that theory states for a gain that it expects: how far one draw of "
        "weights may be from the next by chance.",
    ),
    Term(
        ("chain",),
        "Layers that follow each other without another way round them, so that the gradient has to "
        "pass all of them. Skip connections within a layer belong to it.",
    ),
    Term(
        ("decade",),
        "A factor of ten. Three decades are a factor of 1000.",
    ),
    Term(
        ("rms", "root mean square"),
        "The size of a typical element: the root of the mean of all squares.",
    ),
    Term(
        ("first/last",),
        "‖δ‖ of the first layer over that of the last: the product of all gains.",
    ),
    # Verdicts
    Term(
        ("healthy",),
        "Nothing was found in what was looked at, which the sentence beside it names. It is no "
        "promise that the network learns.",
    ),
    Term(
        ("vanishing",),
        "The gradient becomes smaller from layer to layer on its way down (or from step to step on "
        "its way back), by three decades or more, so that early layers hardly learn.",
        see=(
            "activation-derivative",
            "weight-scale-all",
            "weight-scale",
            "saturated-units",
            "recurrent-weights",
            "gate-bias",
        ),
    ),
    Term(
        ("exploding",),
        "The gradient becomes larger from layer to layer on its way down, by three decades or "
        "more, so that steps are thrown far off.",
        see=(
            "weight-scale-all",
            "weight-scale",
            "recurrent-weights",
            "normalization-weight",
            "embedding-scale",
        ),
    ),
    Term(
        ("saturated", "flat"),
        "An element is saturated, or flat, where the derivative of its activation is below 5 % of "
        "the largest that it can be: at the ends of a sigmoid or tanh. Hardly any gradient passes "
        "there.",
        see=(
            "saturated-units",
            "weight-scale",
            "input-scale",
            "saturated-attention",
        ),
    ),
    Term(
        ("dead",),
        "A unit is dead if its activation has the derivative 0 for every row of the batch, as a "
        "ReLU has whose input is always negative. Its weights get no gradient.",
        see=(
            "dead-units",
            "input-scale",
        ),
    ),
    Term(
        ("nonfinite",),
        "A value that is NaN or infinite.",
        see=(
            "nonfinite-input",
            "nonfinite-target",
            "nonfinite-weights",
            "overflow",
            "zero-division",
        ),
    ),
    Term(
        ("collapsed", "collapse", "alike"),
        "Rows, or units, have become alike, so that what follows cannot tell them apart.",
    ),
    Term(
        ("stalled",),
        "A training whose loss hardly moves, or that cannot move.",
        see=(
            "learning-rate-low",
            "clip-too-small",
            "weight-decay",
        ),
    ),
    Term(
        ("overshooting",),
        "A training whose steps land beyond the minimum along themselves, so that the loss does "
        "not fall, or rises.",
        see=("learning-rate-high",),
    ),
    Term(
        ("oscillating",),
        "A training whose loss goes up and down from epoch to epoch.",
        see=("oscillating",),
    ),
    Term(
        ("idle",),
        "Something that is done and changes nothing, such as a clip before there are gradients.",
    ),
    Term(
        ("finding",),
        "One thing that is wrong: its kind, how bad it is, where, on what evidence, and what to "
        "do. Findings are ordered by cause, and the first gives the verdict.",
    ),
    Term(
        ("cause",),
        "Why something is wrong, by a name that stays: `vegrad explain CAUSE` prints its page. It "
        "is empty where no evidence decides.",
    ),
    Term(
        ("edit",),
        "What a finding advises, as data: a factor for a weight, another initialization, a "
        "learning rate. `Diagnosis.apply` does it, if it changes only values of parameters.",
    ),
    Term(
        ("drawn anew", "fresh"),
        "Weights as the initialization would have given them with another seed: the measure for "
        "what is chance and what is a fault.",
    ),
    Term(
        ("what-if pass",),
        "A pass of the model as if the suspect had been put right. If gradients elsewhere do not "
        "change by decades, it was not to blame, and nothing is said.",
    ),
    # Cures
    Term(
        ("cure",),
        "The smallest change that makes a network train, with its proof.",
    ),
    Term(
        ("proof",),
        "The same number of steps without and with a change, from the same seed and on the same "
        "rows.",
    ),
    Term(
        ("patch",),
        "A change as code, to be pasted into a program.",
    ),
    Term(
        ("too slow",),
        "The result of a change, in the table of a cure, with which training was ended before it "
        "had come near the goal: its loss did not fall fast enough.",
    ),
    Term(
        ("once", "by luck"),
        "The result of a change, in the table of a cure, with which the goal was reached, but not "
        "to stay, or not again with the rows in another order. It is once if nothing was better.",
    ),
    Term(
        ("best",),
        "The result, in the table of a cure, of the change that came nearest to a goal that none "
        "has reached.",
    ),
    Term(
        ("high loss",),
        "The result, in the table of a cure, of a diagnosis's own advice after which the loss "
        "begins far above that of guessing, so that gentler changes are tried before it.",
    ),
    Term(
        ("skipped",),
        "What a cure says of a diagnosis's own advice that it could not try; why stands below.",
    ),
    Term(
        ("no reach",),
        "The result of a change to a recurrent network, in the table of a cure, after which next "
        "to nothing of the gradient gets back to the steps that the target depends on.",
    ),
    Term(
        ("budget",),
        "The most that a cure may cost, in trainings of the given network.",
    ),
    Term(
        ("goal",),
        "The accuracy, or the loss, that a cured network has to reach.",
    ),
    Term(
        ("LSUV", "layer-sequential unit variance"),
        "A scaling of each layer's weights, from the first to the last, until its pre-activations "
        "have a standard deviation of 1 on the data (Mishkin & Matas 2016, arXiv:1511.06422).",
    ),
    Term(
        ("skip connection", "skip connections", "residual stream", "branch", "branches"),
        "What adds the input of a layer, or of a block, to its output, so that the gradient has a "
        "way round it. A network of such blocks has a stream, to which each branch adds something.",
    ),
    Term(
        ("normalization",),
        "What brings the pre-activations of a layer to mean 0 and deviation 1 (or to rms 1), over "
        "the units of a row (layer and rms norm) or over the rows of a batch (batch norm).",
    ),
    # Theory
    Term(
        ("pre-activation",),
        "What goes into the activation: z = W h + b.",
    ),
    Term(
        ("activation", "φ"),
        "The function that a layer applies to each of its pre-activations, such as tanh; also its "
        "value. φ′ is its derivative.",
    ),
    Term(
        ("mean-field theory",),
        "What becomes of signal and gradient in networks with random weights, exactly in the limit "
        "of wide layers (Poole et al. 2016, arXiv:1606.05340; Schoenholz et al. 2017, "
        "arXiv:1611.01232).",
    ),
    Term(
        ("σ_w", "σ_b", "sigma_w", "sigma_b"),
        "The sizes of weights and biases: weights have the variance σ_w² over the number of a "
        "unit's inputs, biases σ_b².",
    ),
    Term(
        ("χ", "χ₁"),
        "The factor of ‖δ‖² from a layer to the one below it, the square of the gain, in a wide "
        "network: below 1 gradients vanish, above 1 they explode.",
    ),
    Term(
        ("phase",),
        "What becomes of gradients in a deep network of these σ_w and σ_b: ordered, where they "
        "vanish, chaotic, where they explode, or critical, where they keep their size.",
    ),
    Term(
        ("q*",),
        "The variance of pre-activations at which layers leave it as it is; in a deep network that "
        "of nearly all layers.",
    ),
    Term(
        ("c*",),
        "The correlation that the pre-activations of any two samples come to in a deep network: "
        "at 1 they have become alike.",
    ),
    Term(
        ("critical point", "critical"),
        "The σ_w, for a given σ_b, at which χ is 1, so that gradients keep their size whatever the "
        'depth; init="critical" draws weights there.',
    ),
    Term(
        ("depth scale", "ξ"),
        "The number of layers in which something falls to 1/e. Networks train to about six depth "
        "scales of the gradient.",
    ),
    # Trainings
    Term(
        ("α", "alpha"),
        "Where a step lands on the parabola along it: -1 is where it began, 0 the minimum, 1 as "
        "high on the other side as it began, and more a climb (Cockpit, Schneider et al. 2021, "
        "arXiv:2102.06604).",
    ),
    Term(
        ("guessing",),
        "The loss of the best output that is the same for all rows, which takes no look at the "
        "inputs: log 10 = 2.30 of cross-entropy for ten classes of the same number.",
    ),
    Term(
        ("plateau",),
        "A stretch of a training on which the loss hardly falls, often at that of guessing.",
    ),
    Term(
        ("gauge",),
        "A look at a step of a training: the loss and its slope along the step, where the step "
        "begins and where it ends, on the same batch. It gives α.",
    ),
    Term(
        ("step",),
        "In a training, one change of the weights. In a sequence, one position in time.",
    ),
    Term(
        ("clip", "coefficient"),
        "To make a gradient smaller where its norm is above a limit: it is multiplied by the "
        "coefficient, limit over norm. It holds what explodes, and brings back nothing that "
        "vanished.",
    ),
    Term(
        ("global norm", "joint norm"),
        "The norm of all gradients as if they were one vector.",
    ),
    Term(
        ("buffer",),
        "An array in memory that vegrad reads or changes in place: NumPy's, or a CPU tensor of any "
        "library that speaks DLPack.",
    ),
    Term(
        ("subnormal", "underflow"),
        "A number below the dtype's normal range (1.2e-38 in float32), which has fewer digits; "
        "below 1.4e-45 there is only 0.",
    ),
    # Time
    Term(
        ("reach",),
        "The number of steps back to where a thousandth of the gradient of the last output is "
        "left. What lies further back is hardly learnt.",
    ),
    Term(
        ("carry", "carried"),
        "The part of a step's gain that does not go through the recurrent matrix: what the forget "
        "gate of an LSTM, or the update gate of a GRU, passes on as it is. The rest is the "
        "matrix's part.",
    ),
    Term(
        ("time scale",),
        "The number of steps in which a gate forgets all but 1/e of what it carries: -1/ln of the "
        "gate's mean value.",
    ),
    Term(
        ("gate",),
        "A factor between 0 and 1 by which a recurrent cell lets something pass: input, forget and "
        "output of an LSTM, reset and update of a GRU.",
    ),
    Term(
        ("truncation", "window"),
        "The end of a backward pass before the beginning of the sequence: gradients go back only "
        "so many steps, the window.",
    ),
    Term(
        ("chrono",),
        "An initialization of gate biases for time scales up to the length of the sequences "
        "(Tallec & Ollivier 2018, arXiv:1804.11188).",
    ),
)


def term_of(name: str) -> Term | None:
    """Return the term that has this name, in whatever case; None if there is none."""
    return next((term for term in TERMS if name.casefold() in map(str.casefold, term.names)), None)
