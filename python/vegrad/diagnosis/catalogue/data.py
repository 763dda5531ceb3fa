"""Causes in the data, the targets and the loss."""

from vegrad.diagnosis.catalogue.cause import Cause

TAXONOMY = "Humbatova et al. 2020, a taxonomy of faults: https://arxiv.org/abs/1910.11015"
RECIPE = "Karpathy 2019: https://karpathy.github.io/2019/04/25/recipe/"

DATA = (
    Cause(
        name="nonfinite-input",
        says="The inputs have a NaN or an infinity.",
        shows="The loss is NaN in batches that have such a row, and after one step on it so is "
        "every weight.",
        evidence="The value, with its row and column.",
        sites="The data, with the row and column of the first such value.",
        advises="Find out where it comes from (missing values, a division by a standard deviation "
        "of 0, the log of 0), then drop the row or fill the value in before training.",
        lies_in="data",
        curable=False,
        sources=(TAXONOMY,),
    ),
    Cause(
        name="nonfinite-target",
        says="The targets have a NaN or an infinity that reaches the loss.",
        shows="The loss is NaN although the inputs and the outputs are finite.",
        evidence="The value and its place, and a loss that is not finite because of it. Where the "
        "loss masks it, it is no finding.",
        sites="The target, with the row and column of the first such value.",
        advises="Drop those rows, or mask them in the loss: select the valid entries first, then "
        "compute the loss of these. Multiplying by 0 afterwards leaves NaN as it is.",
        lies_in="data",
        curable=False,
        sources=(TAXONOMY,),
    ),
    Cause(
        name="nonfinite-weights",
        says="Parameters or buffers of the network are NaN or infinite before anything has run.",
        shows="The output is NaN for any input, often after an earlier step that diverged, or "
        "with a checkpoint that was saved after one.",
        evidence="The values themselves, by parameter.",
        sites="The parameters or buffers.",
        advises="Go back to a checkpoint from before, or draw these again, and then find the step "
        "that broke them: a NaN in a weight is where a training ended, not where it went wrong.",
        lies_in="weights",
        curable=True,
        sources=(TAXONOMY,),
    ),
    Cause(
        name="input-scale",
        says="Columns of the inputs are far from a size of 1, or from each other's.",
        shows="Raw pixels, prices, time stamps: the first layer saturates, or one large column "
        "decides everything. Inputs of 1e-5 leave the network with nearly nothing to see.",
        evidence="Mean and standard deviation of the columns, the first layer's pre-activations, "
        "and gradients that change by decades when the inputs are scaled.",
        sites="The data, and the first layer.",
        advises="Scale every column to mean 0 and standard deviation 1, with the numbers of the "
        "training set for all sets.",
        lies_in="data",
        curable=True,
        sources=(
            "LeCun et al. 1998, Efficient BackProp: https://doi.org/10.1007/3-540-49430-8_2",
            TAXONOMY,
        ),
    ),
    Cause(
        name="target-scale",
        says="The targets of a regression are far from a size of 1.",
        shows="The loss begins at thousands or millions, gradients are as large, and the training "
        "diverges, or crawls for thousands of steps towards the mean.",
        evidence="Mean and standard deviation of the targets beside those of the outputs, and the "
        "loss beside that of the best constant.",
        sites="The target.",
        advises="Train on (target − mean) / standard deviation, with the training set's numbers, "
        "and undo it when predicting.",
        lies_in="data",
        curable=True,
        sources=(
            "LeCun et al. 1998, Efficient BackProp: https://doi.org/10.1007/3-540-49430-8_2",
            RECIPE,
        ),
    ),
    Cause(
        name="target-range",
        says="The loss is not made for these targets.",
        shows="A cross-entropy that is negative and falls without end, as the targets are not "
        "from 0 to 1; targets of −1 and 1 or of 0 to 255 for a binary cross-entropy; a Poisson "
        "loss of negative counts.",
        evidence="The loss's type and the targets' range; or a cross-entropy below 0.",
        sites="The target and the loss.",
        advises="Bring the targets to the range that {words.loss} asks for (classes from 0 on, "
        "probabilities from 0 to 1), or take a loss for targets of this kind.",
        lies_in="loss",
        curable=False,
        sources=(TAXONOMY,),
    ),
    Cause(
        name="constant-output",
        says="No weight can change the output: it is the same constant whatever comes in.",
        shows="The loss does not move at all from the first step on and accuracy stays where it "
        "was: a softmax over one unit is always 1, a cross-entropy of one class always 0.",
        evidence="Every gradient is exactly 0, though activations vary from row to row.",
        sites="The last operation, or the loss.",
        advises="Give the output one unit a class, at least two, with a cross-entropy; or keep "
        "the one unit, with a sigmoid in the softmax's place and a binary cross-entropy.",
        lies_in="loss",
        curable=False,
        sources=(TAXONOMY,),
    ),
    Cause(
        name="output-range",
        says="The activation of the output cannot reach the targets.",
        shows="Outputs pile up at the bound of a sigmoid, tanh, softmax or ReLU, and the loss "
        "stops far above what a constant would reach: house prices from a sigmoid, negative "
        "targets from a ReLU, logits that a ReLU holds at 0.",
        evidence="The range of the activation beside that of the targets; outputs at their "
        "bound while the loss is above the best constant's; or logits of the rows' own classes at "
        "their bound.",
        sites="The activation of the output, and the target.",
        advises="Leave the output of a regression, and logits, without an activation; or scale the "
        "targets to what it can reach.",
        lies_in="architecture",
        curable=False,
        sources=(TAXONOMY,),
    ),
    Cause(
        name="wrong-reduction",
        says="The loss is put together the wrong way: a sum in place of a mean, a mean over the "
        "wrong axis, a flipped sign.",
        shows="Gradients grow with the batch and the rate that works depends on it; or the loss "
        "is far from what its kind allows; or it climbs steadily from the first step.",
        evidence="The loss beside that of the best constant output, its growth with the number of "
        "rows, or a loss that climbs although the steps follow its gradient.",
        sites="The loss.",
        advises="Let {words.loss} return the mean over rows, with the class axis where it expects "
        "it, and minimize: a score or likelihood that should grow gets a minus sign.",
        lies_in="loss",
        curable=False,
        sources=("Goyal et al. 2017, section 3: https://arxiv.org/abs/1706.02677", TAXONOMY),
    ),
    Cause(
        name="broadcast",
        says="Output and target have different shapes and are broadcast against each other.",
        shows="A regression learns the mean of the targets and nothing else: (B, 1) against (B,) "
        "compares every row with every other.",
        evidence="The shapes at the loss: what it compares has more elements than either.",
        sites="The loss.",
        advises="Give both the same shape: drop the output's last axis, or add one to the target.",
        lies_in="loss",
        curable=False,
        sources=("PyTorch pull request 18349: https://github.com/pytorch/pytorch/pull/18349",),
    ),
    Cause(
        name="double-softmax",
        says="Probabilities go into a loss that expects logits, and softmax (or sigmoid) is "
        "applied twice.",
        shows="Training is slow and stops early: with k classes the loss cannot fall below log(1 "
        "+ (k − 1)/e), and gradients are small from the start.",
        evidence="A softmax or sigmoid is the last operation before a loss that applies its own.",
        sites="The last activation, and the loss.",
        advises="Leave the last activation out and hand the logits over. For predictions apply it "
        "outside of the training.",
        lies_in="loss",
        curable=False,
        sources=(
            "Abbura, on softmax and cross-entropy: "
            "https://imaddabbura.github.io/posts/dl/why-not-softmax.html",
        ),
    ),
    Cause(
        name="empty-loss",
        says="The loss is a mean over nothing.",
        shows="NaN in batches whose targets are all masked, ignored or filtered out, while every "
        "input and output is finite.",
        evidence="The number of entries that count is 0.",
        sites="The loss.",
        advises="Leave such batches out, or sum the loss and divide by max(1, number of entries). "
        "Check that the labels are not cut off by mistake.",
        lies_in="loss",
        curable=False,
        sources=("PyTorch issue 70348: https://github.com/pytorch/pytorch/issues/70348",),
    ),
    Cause(
        name="loss-normalizer",
        says="The loss is divided by something that is almost 0.",
        shows="Now and then one batch has a loss and gradients thousands of times larger than the "
        "others, and throws the weights off.",
        evidence="The divisor beside its size in other batches, and the loss that grows as it "
        "shrinks.",
        sites="The loss.",
        advises="Keep the divisor from becoming small: at least 1 for a count of positives, an ε "
        "of the size of usual values for a sum of weights. Or divide by a running mean of it.",
        lies_in="loss",
        curable=False,
        sources=("Lin et al. 2017, RetinaNet, section 4: https://arxiv.org/abs/1708.02002",),
    ),
    Cause(
        name="infeasible-alignment",
        says="A sequence loss (CTC) has a label that is longer than its frames allow.",
        shows="The loss is infinite in some batches, and its gradient NaN.",
        evidence="The lengths: that of the label, plus one for each symbol that repeats the one "
        "before it, is more than that of the frames.",
        sites="The loss, and the rows.",
        advises="Drop such rows, or give them more frames (less striding before the loss). If "
        "there are few, let the loss count them as 0 and say so in the logs.",
        lies_in="data",
        curable=False,
        sources=("Graves et al. 2006: https://doi.org/10.1145/1143844.1143891",),
    ),
    Cause(
        name="loss-domain",
        says="The loss takes a log, root, power or quotient outside or at the edge of its domain.",
        shows="The loss is NaN or infinite as soon as an output is exactly 0 or 1, or negative "
        "where a probability or a variance belongs.",
        evidence="The outputs are finite, and the operation in the loss that makes the first "
        "value that is not has its input at the edge or outside.",
        sites="The loss, and the rows.",
        advises="Use the form of {words.loss} that takes logits or log-probabilities; for a "
        "variance let the network give its logarithm, or a softplus with a floor. Else clamp.",
        lies_in="loss",
        curable=False,
        sources=(
            "Goodfellow et al. 2016, Deep Learning, section 4.1: "
            "https://www.deeplearningbook.org/contents/numerical.html",
        ),
    ),
)
