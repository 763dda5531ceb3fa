"""Causes in weights and activations."""

from vegrad.diagnosis.catalogue.cause import Cause

WEIGHTS = (
    Cause(
        name="weight-scale",
        says="The weights of one layer are far too large or too small.",
        shows="Below that layer gradients are decades larger or smaller than above it, while the "
        "other layers pass them on as they should.",
        evidence="The layer's gain departs from that of its like, and from what its weights give "
        "when they are drawn anew; or gradients change by decades when its weights are put right.",
        sites="The layer's weight, or the rows of it that are off.",
        advises="Multiply that weight by the factor that the finding gives, or draw it again. "
        "Then look for the code that sets it: an initialization with the wrong fan, a checkpoint "
        "of another model, a weight that was scaled twice.",
        lies_in="weights",
        curable=True,
        sources=(
            "Glorot and Bengio 2010: https://proceedings.mlr.press/v9/glorot10a.html",
            "He et al. 2015: https://arxiv.org/abs/1502.01852",
        ),
    ),
    Cause(
        name="weight-scale-all",
        says="The initialization of the whole network does not suit its activation and depth.",
        shows="Gradients and activations shrink or grow by the same factor in every layer. The "
        "first layers do not learn, or the loss is huge or NaN after a step or two.",
        evidence="Every gain departs from 1, alike, and the weights' part of it is to blame, not "
        "the derivative's; what reaches the first layers by all ways together is decades from "
        "what reaches the last.",
        sites="The weights of all layers.",
        advises="Use an initialization that suits the activation: He for ReLU and its like, "
        "Glorot for tanh, LeCun for SELU. Or use {words.normalization}.",
        lies_in="weights",
        curable=True,
        sources=(
            "Glorot and Bengio 2010: https://proceedings.mlr.press/v9/glorot10a.html",
            "He et al. 2015: https://arxiv.org/abs/1502.01852",
            "Schoenholz et al. 2017: https://arxiv.org/abs/1611.01232",
        ),
    ),
    Cause(
        name="activation-derivative",
        says="The activation's derivative is well below 1 and shrinks the gradient in every layer.",
        shows="Gradients vanish from the last layer to the first by the same factor a layer, and "
        "a better initialization helps little. A sigmoid, whose derivative is at most 0.25, is "
        "the usual case; a softmax or another gate as hidden activation does the same.",
        evidence="The derivative's part of the gain is below 1 in every layer and explains what "
        "is lost.",
        sites="The activations of the hidden layers.",
        advises="Use an activation whose derivative reaches 1, such as ReLU, GELU or tanh, with "
        "the initialization that suits it, or add {words.skips}.",
        lies_in="architecture",
        curable=True,
        sources=(
            "Hochreiter 1998: https://doi.org/10.1142/S0218488598000094",
            "Glorot and Bengio 2010: https://proceedings.mlr.press/v9/glorot10a.html",
        ),
    ),
    Cause(
        name="saturated-units",
        says="Units sit on the flat ends of their activation for the whole batch.",
        shows="Outputs of a tanh are all near −1 or 1, of a sigmoid near 0 or 1; almost no "
        "gradient passes, and training stands still or is very slow.",
        evidence="The derivative is next to 0 for most units and rows, and the pre-activations "
        "are far outside the range in which the activation bends.",
        sites="The activation, and the bias or weight that pushes its input so far out.",
        advises="Do what the finding says of the bias or the weight that it names. If the inputs "
        "are what is large, scale them; or use {words.normalization}.",
        lies_in="weights",
        curable=True,
        sources=("Glorot and Bengio 2010: https://proceedings.mlr.press/v9/glorot10a.html",),
    ),
    Cause(
        name="dead-units",
        says="Units give 0 for every row of the batch, and so does their derivative.",
        shows="A ReLU layer with many outputs that are always 0. Their weights get no gradient "
        "and never change again, and in the worst case the network gives the same output for "
        "every input.",
        evidence="The activation is 0 on the whole batch for most units, and the pre-activations "
        "are negative throughout, because of a bias or a weight that the finding names.",
        sites="The activation, and the bias or weight that makes its input negative.",
        advises="Set the bias to 0 and draw the weight again. If units died during the training, "
        "lower the learning rate, or use an activation with a slope on both sides (leaky ReLU, "
        "GELU).",
        lies_in="weights",
        curable=True,
        sources=("Lu et al. 2019, Dying ReLU: https://arxiv.org/abs/1903.06733",),
    ),
    Cause(
        name="recurrent-weights",
        says="The recurrent matrix multiplies the gradient by too much or too little at each step "
        "back through time.",
        shows="Outputs do not depend on what came many steps before, or the gradient is huge for "
        "long sequences and fine for short ones.",
        evidence="The gradient's size step by step back through time, beside that of the same "
        "cell with weights drawn anew, and a step's gain taken apart into carry and matrix beside "
        "what theory expects. What weights drawn anew forget too is a fault only where the task "
        "needs it: the user says so, or much of the targets can be told from early steps, and "
        "nothing from any to which more than a hundred millionth of the gradient comes.",
        sites="The recurrent matrix, or the rows of it that belong to a gate.",
        advises="Multiply the matrix by the factor that the finding gives, or draw it as an "
        "orthogonal matrix. For long sequences use a cell with a carry (LSTM, GRU), and clip the "
        "gradient's norm.",
        lies_in="weights",
        curable=True,
        sources=(
            "Bengio et al. 1994: https://doi.org/10.1109/72.279181",
            "Pascanu et al. 2013: https://arxiv.org/abs/1211.5063",
        ),
    ),
    Cause(
        name="gate-bias",
        says="The bias of a gate shuts off the carry through time, or keeps the gate at its bound.",
        shows="An LSTM or GRU forgets within a few steps however long its sequences are, or its "
        "gates do not react to the input.",
        evidence="The gate's value over all steps, and what the gradient's reach becomes when its "
        "bias is put right. What weights drawn anew forget too is a fault only where the task "
        "needs it: the user says so, or much of the targets can be told from early steps, and "
        "nothing from any to which more than a hundred millionth of the gradient comes.",
        sites="The rows of the bias that belong to the gate.",
        advises="Set those rows as the finding says. An LSTM's forget bias is often begun at 1, "
        "or higher where the memory must be long.",
        lies_in="weights",
        curable=True,
        sources=(
            "Gers et al. 2000: https://doi.org/10.1162/089976600300015015",
            "Jozefowicz et al. 2015: https://proceedings.mlr.press/v37/jozefowicz15.html",
        ),
    ),
    Cause(
        name="normalization-weight",
        says="A normalization's weight is far from that of its like, so it scales where it should "
        "keep the scale.",
        shows="Activations leave one normalization decades larger or smaller than they leave the "
        "others, and gradients below it jump by the same factor.",
        evidence="The weight's size beside that of the other normalizations, and gradients that "
        "change by decades when it is put right.",
        sites="The normalization's weight.",
        advises="Multiply it by the factor that the finding gives, or set it to 1, where it "
        "begins. A weight that is exactly 0 in a residual branch is meant, and is no finding.",
        lies_in="weights",
        curable=True,
        sources=("Ioffe and Szegedy 2015: https://arxiv.org/abs/1502.03167",),
    ),
    Cause(
        name="running-statistics",
        says="The running mean and variance of a batch normalization are far from those of the "
        "batch that it sees in evaluation mode.",
        shows="The loss is good in training mode and absurd in evaluation mode, or gradients of a "
        "fine-tuned model that stays in evaluation mode are decades off.",
        evidence="In evaluation mode: the running statistics beside those of the batch, and "
        "gradients that change by decades when they are replaced by them. Statistics that "
        "have seen no batch are named where all sizes are off: a training in evaluation mode.",
        sites="The running variance (or mean) of the normalization.",
        advises="Train in training mode: model.train() before the first step, and after each "
        "evaluation. Else run batches of the training data through the model in training mode "
        "until the statistics have settled, or reset them; check that the inputs are scaled as "
        "they were in the training. With very small batches use a normalization that needs no such "
        "statistics (layer or group).",
        lies_in="weights",
        curable=True,
        sources=(
            "Ioffe and Szegedy 2015: https://arxiv.org/abs/1502.03167",
            "PyTorch issue 4741: https://github.com/pytorch/pytorch/issues/4741",
        ),
    ),
    Cause(
        name="branch-scale",
        says="A branch of a residual stream drowns the stream, or is closed.",
        shows="What one branch adds is decades larger than all the rest, so that the others are "
        "rounded away and get next to no gradient; or a branch adds nothing and its weights get "
        "no gradient.",
        evidence="Sizes of the stream before and after every branch, and what the branch adds "
        "when its weights are drawn anew.",
        sites="The parameters of the branch, the last matrix first.",
        advises="Multiply the branch's last matrix by the factor that the finding gives. Deep "
        "streams want branches of about 1/√depth, or branches that begin at 0.",
        lies_in="weights",
        curable=True,
        sources=(
            "De and Smith 2020: https://arxiv.org/abs/2002.10444",
            "Zhang et al. 2019, Fixup: https://arxiv.org/abs/1901.09321",
        ),
    ),
    Cause(
        name="embedding-scale",
        says="An embedding is so large that it drowns every branch above it, or so small that "
        "nothing is left of it.",
        shows="A transformer's blocks add next to nothing to what its embeddings put into the "
        "stream, so their gradients are tiny; or position embeddings drown those of the tokens.",
        evidence="Sizes of the embeddings beside each other and beside what the branches add, and "
        "what fresh ones give.",
        sites="The embedding's weight.",
        advises="Multiply the embedding's weight by the factor that the finding gives. Usual is a "
        "standard deviation of about 0.02 where a normalization follows, or 1/√width with a "
        "factor √width in the forward pass.",
        lies_in="weights",
        curable=True,
        sources=("Takase et al. 2023, Spike No More: https://arxiv.org/abs/2312.16903",),
    ),
    Cause(
        name="zero-vectors",
        says="Rows that are exactly 0 enter a normalization, which has nothing to divide by but "
        "its ε.",
        shows="A few rows (a token that begins at 0, padding, empty nodes, silent frames) have "
        "gradients thousands of times larger than all others, and swamp the step.",
        evidence="Rows that are exactly 0, the ε that they are divided by, and the size of their "
        "gradients beside those of others.",
        sites="The parameter that is 0, or the normalization and the rows.",
        advises="If the row is a parameter, draw it from a normal distribution of standard "
        "deviation 0.02. If it comes from the data, leave it out of the normalization or of the "
        "loss with a mask, or raise ε to what counts as small in the data (its square, where ε is "
        "added to a variance).",
        lies_in="weights",
        curable=True,
        sources=("PyTorch issue 184575: https://github.com/pytorch/pytorch/issues/184575",),
    ),
    Cause(
        name="closed-gates",
        says="Two factors of a product are both 0, and the gradient of each is the other.",
        shows="A branch or adapter never begins to learn: its output is exactly 0 and the "
        "gradients of all its parameters are exactly 0.",
        evidence="Both factors are exactly 0, and there is no other way for a gradient to either.",
        sites="Both parameters.",
        advises="Let only one of the two begin at 0, and draw the other at random: the branch is "
        "still closed at the start, but now it opens.",
        lies_in="weights",
        curable=True,
        sources=("Hu et al. 2021, LoRA, section 4.1: https://arxiv.org/abs/2106.09685",),
    ),
    Cause(
        name="symmetry",
        says="Units of a layer are copies of each other, and stay so.",
        shows="The network learns as if the layer had a single unit: it trains, but only to a "
        "poor loss that more width does not improve.",
        evidence="Equal rows of a weight (and of its bias and of its gradient), as a constant "
        "initialization gives.",
        sites="The weight whose rows are equal.",
        advises="Draw the weight at random. Biases may all begin at 0, matrices may not all be "
        "constant.",
        lies_in="weights",
        curable=True,
        sources=(
            "Goodfellow et al. 2016, Deep Learning, section 8.4: "
            "https://www.deeplearningbook.org/contents/optimization.html",
        ),
    ),
    Cause(
        name="collapse",
        says="Rows (samples, tokens, nodes) have become alike, so that nothing can tell them "
        "apart.",
        shows="The outputs hardly differ from row to row. In deep attention or graph networks it "
        "is so from the start; in a contrastive or self-supervised training it comes with the "
        "steps.",
        evidence="The variation between rows, beside their size, over depth or over the training; "
        "the inputs themselves do differ.",
        sites="The module from which on the rows are alike.",
        advises="Give the rows a way past the averaging layers ({words.skips}), use fewer of "
        "them, or put a normalization over rows. In a self-supervised loss bring in what keeps "
        "rows apart: negatives, a variance term, a stopped gradient on one side.",
        lies_in="architecture",
        curable=True,
        sources=(
            "Dong et al. 2021, on attention: https://arxiv.org/abs/2103.03404",
            "Oono and Suzuki 2020, on graphs: https://arxiv.org/abs/1905.10947",
        ),
    ),
    Cause(
        name="saturated-attention",
        says="Attention puts all weight on one key in nearly every row, where softmax is flat.",
        shows="Queries and keys get next to no gradient. The loss stands still, or jumps up in "
        "the middle of a training.",
        evidence="The entropy of the attention's rows is next to 0, and the logits are far larger "
        "than softmax can resolve.",
        sites="The attention, and the query's and key's weights.",
        advises="Scale the queries' or keys' weights down as the finding says; check that logits "
        "are divided by √(width of a head). A normalization of queries and keys keeps them small "
        "for good.",
        lies_in="weights",
        curable=True,
        sources=(
            "Zhai et al. 2023: https://arxiv.org/abs/2303.06296",
            "Wortsman et al. 2023: https://arxiv.org/abs/2309.14322",
        ),
    ),
    Cause(
        name="logits-scale",
        says="The outputs are far too large for the loss before the first step.",
        shows="The loss begins far above that of a constant guess (for k classes, log k), and the "
        "first steps only serve to bring it down.",
        evidence="The loss beside that of the best constant output, and the outputs' size.",
        sites="The last layer's weight; in a residual stream, the last weights of its branches.",
        advises="Multiply these weights by the factor that the finding gives. Outputs should begin "
        "so small that all classes are about equally likely.",
        lies_in="weights",
        curable=True,
        sources=(
            "Karpathy 2019, “verify loss @ init”: https://karpathy.github.io/2019/04/25/recipe/",
        ),
    ),
)
