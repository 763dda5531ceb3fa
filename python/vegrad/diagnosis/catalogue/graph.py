"""Causes in the graph: ways that no gradient takes."""

from vegrad.diagnosis.catalogue.cause import Cause

GRAPH = (
    Cause(
        name="detached",
        says="The graph is cut: no gradient comes back to trainable parameters below some place.",
        shows="Some parameters have no gradient at all while those above them have one. They stay "
        "as they were drawn, and the loss falls only as far as the layers above can bring it.",
        evidence="Trainable parameters upstream get no gradient, though their values are used, "
        "and the value that arrives from them carries no graph.",
        sites="The last module below the cut and the first above it.",
        advises="Look between the two for {words.cuts}, a conversion to NumPy or a new tensor "
        "made of the old one's values. If the part below is meant to stay frozen, say so: let its "
        "parameters require no gradient.",
        lies_in="operation",
        curable=False,
        sources=(
            "PyTorch, autograd mechanics: https://docs.pytorch.org/docs/stable/notes/autograd.html",
        ),
    ),
    Cause(
        name="no-derivative",
        says="A function whose derivative is 0 everywhere, or that has none, stands in the way.",
        shows="Parameters below it have no gradient, or one that is exactly 0: argmax, rounding, "
        "sign, a comparison, an index, a sample of a distribution.",
        evidence="Trainable parameters upstream without a gradient (or with exactly 0), and such "
        "an operation between them and the loss.",
        sites="The operation, and the last module below it.",
        advises="Put something that has a derivative in its place: softmax for argmax, a sigmoid "
        "for a comparison, a reparameterized sample. Or keep it and let the gradient straight "
        "through, past it.",
        lies_in="operation",
        curable=False,
        sources=("Bengio et al. 2013: https://arxiv.org/abs/1308.3432",),
    ),
    Cause(
        name="unregistered",
        says="Trainable tensors take part that the model does not list among its parameters.",
        shows="They get gradients but no optimizer ever steps them; they do not move to the "
        "device with the model and are missing from its checkpoints.",
        evidence="Leaves of the graph that require a gradient and are in nobody's parameters.",
        sites="The module that uses them, by shape if they have no name.",
        advises="Register them: as attributes that are modules or parameters, or in the "
        "framework's own lists and dictionaries instead of Python's. Make the optimizer "
        "afterwards.",
        lies_in="architecture",
        curable=False,
        sources=("PyTorch, modules: https://docs.pytorch.org/docs/stable/notes/modules.html",),
    ),
    Cause(
        name="norm-of-one",
        says="A normalization works over a single element, which is its own mean.",
        shows="Its output is 0 (or its bias) whatever comes in, and everything below it has a "
        "gradient of exactly 0.",
        evidence="The number of elements over which it takes its mean is 1, by its shape.",
        sites="The normalization.",
        advises="Leave it out there, or let it work over more: fewer groups, the features instead "
        "of a pooled 1×1 map, a batch of more than one row.",
        lies_in="architecture",
        curable=False,
        sources=("PyTorch issue 19250: https://github.com/pytorch/pytorch/issues/19250",),
    ),
    Cause(
        name="mixed-rows",
        says="The model mixes the rows of a batch, so that what it makes of one depends on the "
        "others.",
        shows="The loss stays at that of guessing, or falls on the training data alone; a row's "
        "output changes with the rows that are predicted beside it.",
        evidence="A softmax along the first axis, a view that takes the rows from it without "
        "changing the places of axes, or a recurrent module or attention that goes along it; and, "
        "in evaluation mode, outputs of rows that change as others stand beside them.",
        sites="The module in which the operation runs.",
        advises="A view keeps the numbers in their order: {words.exchanges}. A softmax goes along "
        "the axis whose weights are to sum to 1. For a recurrent module or attention whose first "
        "axis is time: {words.batch_first}.",
        lies_in="architecture",
        curable=False,
        sources=(
            "PyTorch, Tensor.view: "
            "https://pytorch.org/docs/stable/generated/torch.Tensor.view.html",
            "Karpathy 2019: https://karpathy.github.io/2019/04/25/recipe/",
        ),
    ),
)
