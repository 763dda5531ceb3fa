"""Causes in single operations: values at which a function or its derivative is not finite."""

from vegrad.diagnosis.catalogue.cause import Cause

OPERATIONS = (
    Cause(
        name="sqrt-at-zero",
        says="A square root is taken at 0, where its derivative is infinite.",
        shows="The loss is finite and the gradient is NaN or infinite, often only in some "
        "batches: a distance between two equal points, the standard deviation of a constant row, "
        "the root of a perfect prediction's error. Built-in norms often take the derivative there "
        "as 0; a root that is written out does not.",
        evidence="The operation's input is exactly 0, and its gradient is the first that is not "
        "finite.",
        sites="The operation, and the rows in which its input is 0.",
        advises="Add a small ε inside the root, √(x + ε), or compare squares and take no root. An "
        "ε added outside does not help.",
        lies_in="operation",
        curable=False,
        sources=("PyTorch pull request 2775: https://github.com/pytorch/pytorch/pull/2775",),
    ),
    Cause(
        name="where-branch",
        says="A selection hides a value that is not finite, but the gradient goes through the "
        "branch that was not taken all the same.",
        shows="The loss is finite and gradients are NaN, although a `where` or a mask guards the "
        "dangerous function.",
        evidence="The branch that was not taken has a derivative that is not finite there: its 0 "
        "times that derivative is NaN.",
        sites="The selection, and the operation in its branch.",
        advises="Guard the input as well: first put a harmless value where the branch is not "
        "taken, then call the function, then select.",
        lies_in="operation",
        curable=False,
        sources=("PyTorch issue 52248: https://github.com/pytorch/pytorch/issues/52248",),
    ),
    Cause(
        name="domain-edge",
        says="A function is called at or beyond the edge of its domain.",
        shows="NaN or infinity from acos or asin at ±1, atan2 at (0, 0), log at 0, a power with a "
        "negative or zero base; rounding is enough to get from 0.9999999 to beyond 1.",
        evidence="The operation's own input is finite and lies at the edge or outside, and its "
        "output or gradient is the first that is not finite.",
        sites="The operation, and the rows in which its input is so.",
        advises="Clamp the input to a little inside the domain, such as ±(1 − 1e-6), or use a "
        "form without that edge: atan2 of sine and cosine in place of acos, log1p for log(1 + x).",
        lies_in="operation",
        curable=False,
        sources=(
            "PyTorch issue 61810, of acos: https://github.com/pytorch/pytorch/issues/61810",
            "PyTorch issue 93998, of atan2: https://github.com/pytorch/pytorch/issues/93998",
        ),
    ),
    Cause(
        name="zero-division",
        says="Something is divided by 0.",
        shows="NaN (0/0) or infinity in the forward pass, or in the gradient alone: a mean over a "
        "mask without entries, a column without variance, a vector divided by its own length.",
        evidence="The divisor is exactly 0, and numerator and divisor are finite.",
        sites="The division, and the rows in which its divisor is 0.",
        advises="Keep the divisor away from 0: at least 1 where it is a count, at least a small ε "
        "where it is a size. Or leave those rows out.",
        lies_in="operation",
        curable=False,
        sources=("PyTorch issue 128796: https://github.com/pytorch/pytorch/issues/128796",),
    ),
    Cause(
        name="masked-row",
        says="A softmax works over a row of which every entry is masked with −inf.",
        shows="NaN in attention for queries that may look at nothing: empty sequences, rows that "
        "are all padding, the first row of a causal mask that excludes itself. Some "
        "implementations make 0 of such rows: a mask that hides everything then leaves queries, "
        "keys and values without a gradient.",
        evidence="A row of the softmax's input that is −inf throughout; where that gives 0, all "
        "rows are such.",
        sites="The softmax or attention, and the rows.",
        advises="Leave one key open in such rows (its result can be masked afterwards), drop the "
        "empty rows, or fill with the dtype's lowest finite number in place of −inf.",
        lies_in="operation",
        curable=False,
        sources=("PyTorch issue 41508: https://github.com/pytorch/pytorch/issues/41508",),
    ),
    Cause(
        name="overflow",
        says="A value has become larger than the dtype can hold.",
        shows="Infinity from exp or from products of large values, then NaN from inf − inf or 0 · "
        "inf. After a divergence: norms that grew for steps before.",
        evidence="The operation's inputs are finite, its output is not, and its true value lies "
        "beyond the dtype's largest number.",
        sites="The first operation or layer that overflowed.",
        advises="Make what comes in smaller: scale inputs and targets to a size of about 1, and "
        "check the initialization and the learning rate. Where an exp is at fault use a stable "
        "form (log-softmax, logsumexp, softplus, a loss that takes logits).",
        lies_in="weights",
        curable=True,
        sources=(
            "Goodfellow et al. 2016, Deep Learning, section 4.1: "
            "https://www.deeplearningbook.org/contents/numerical.html",
        ),
    ),
    Cause(
        name="dtype-range",
        says="Values are close to the largest number of the dtype, or gradients below its "
        "smallest.",
        shows="In float16: NaN now and then though float32 trains well, steps that a loss scaler "
        "skips, or gradients that are exactly 0.",
        evidence="Sizes of values or gradients beside the dtype's largest and smallest numbers, "
        "over the steps.",
        sites="The operation or parameter nearest the limit.",
        advises="Use bfloat16, which has float32's range; with float16 scale the loss, keep the "
        "parameters in float32, and run reductions, softmax and the loss in float32.",
        lies_in="operation",
        curable=False,
        sources=("Micikevicius et al. 2018: https://arxiv.org/abs/1710.03740",),
    ),
)
