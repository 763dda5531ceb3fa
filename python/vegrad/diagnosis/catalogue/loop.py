"""Causes in the optimizer and the training loop."""

from vegrad.diagnosis.catalogue.cause import Cause

ZEROING = (
    "PyTorch, zeroing out gradients: "
    "https://docs.pytorch.org/tutorials/recipes/recipes/zeroing_out_gradients.html"
)
PASCANU = "Pascanu et al. 2013: https://arxiv.org/abs/1211.5063"
MIXED = "PyTorch, mixed precision: https://docs.pytorch.org/docs/stable/notes/amp_examples.html"

LOOP = (
    Cause(
        name="learning-rate-high",
        says="Steps go far beyond the minimum along their direction.",
        shows="The loss climbs or leaps from step to step, then goes to NaN, or units die; with "
        "Adam the updates grow before the loss does.",
        evidence="Steps that land beyond where the loss is as high as where they began, along a "
        "direction that goes downhill, in most looks; or updates that grow from step to step.",
        sites="The optimizer.",
        advises="Lower the learning rate (to the value that the finding gives, where it gives "
        "one), or warm it up over the first hundreds of steps.",
        lies_in="loop",
        curable=True,
        sources=(
            "LeCun et al. 1998, Efficient BackProp: https://doi.org/10.1007/3-540-49430-8_2",
            "Cohen et al. 2021: https://arxiv.org/abs/2103.00065",
        ),
    ),
    Cause(
        name="learning-rate-low",
        says="Steps are so short that the training gets nowhere.",
        shows="The loss hardly falls though the gradient is healthy; in float16 or bfloat16 "
        "weights may not change at all, as the step is below their last digit.",
        evidence="Steps that go a small part of the way to the minimum along their direction, and "
        "updates that are tiny beside the weights.",
        sites="The optimizer.",
        advises="Raise the learning rate (to the value that the finding gives, where it gives "
        "one), and keep a float32 copy of the weights where steps are below their last digit.",
        lies_in="loop",
        curable=True,
        sources=("Smith 2017, the range test: https://arxiv.org/abs/1506.01186",),
    ),
    Cause(
        name="no-zero-grad",
        says="Gradients of earlier steps are still there and add up.",
        shows="The gradient's norm grows from step to step though the loss does not; the training "
        "is fine at first, then oscillates and diverges.",
        evidence="Gradients are not empty as a backward pass begins, and the optimizer steps "
        "after every one of them; passes between two steps (accumulation) are no finding.",
        sites="The optimizer.",
        advises="Empty the gradients once for every step, before the backward pass. Where several "
        "passes are to make one step, step only after the last of them.",
        lies_in="loop",
        curable=False,
        sources=(ZEROING,),
    ),
    Cause(
        name="zero-grad-before-step",
        says="Gradients are emptied between a backward pass and the step that was to take them.",
        shows="The loss stays where it is from the first step on, though gradients flow; where "
        "several passes are to make one step, it is as slow as with a part of the batch.",
        evidence="A backward pass has made gradients that are gone when the optimizer steps, in "
        "nearly all steps; or those of all passes but the last are, each of other data at the "
        "same weights.",
        sites="The optimizer.",
        advises="Empty the gradients before the backward pass or after the step, never between.",
        lies_in="loop",
        curable=False,
        sources=(ZEROING,),
    ),
    Cause(
        name="no-step",
        says="Backward passes make gradients, and the optimizer never steps.",
        shows="The loss stays where it began, and not one parameter changes.",
        evidence="Many backward passes whose gradients were replaced by the next one's, an "
        "optimizer that holds the parameters and has not stepped once, and parameters that are "
        "what they were; passes that add up (accumulation) are no finding.",
        sites="The optimizer.",
        advises="Let the optimizer step after the backward pass, and look for a condition around "
        "the step that is never true.",
        lies_in="loop",
        curable=False,
        sources=("PyTorch, torch.optim: https://docs.pytorch.org/docs/stable/optim.html",),
    ),
    Cause(
        name="steps-undone",
        says="The weights are set back after each step.",
        shows="Gradients flow and each step changes the weights, but the loss stays where it "
        "began.",
        evidence="All sampled steps, over many, begin with the very same weights, though each "
        "changes them.",
        sites="The optimizer.",
        advises="Look in the loop for what loads a state, copies weights into the model or seeds "
        "and draws them anew, and do it once, before the loop.",
        lies_in="loop",
        curable=False,
        sources=(
            "PyTorch, saving and loading models: "
            "https://docs.pytorch.org/tutorials/beginner/saving_loading_models.html",
        ),
    ),
    Cause(
        name="not-in-optimizer",
        says="A parameter gets gradients and no optimizer ever steps it.",
        shows="It keeps its first value: a head added later, a second network, parameters made "
        "anew after the optimizer was.",
        evidence="It requires and gets a gradient, and is in no group of an optimizer that steps; "
        "or a copy of the model is run and stepped many times, and the model itself never.",
        sites="The parameter.",
        advises="Add it to the optimizer as a further group, or make the optimizer after the "
        "model is complete. If it is meant to stay as it is, let it require no gradient.",
        lies_in="loop",
        curable=False,
        sources=("PyTorch, torch.optim: https://docs.pytorch.org/docs/stable/optim.html",),
    ),
    Cause(
        name="clip-before-backward",
        says="Gradients are clipped before the backward pass has made them.",
        shows="The clip is called at every step, and norms at the step are far above its limit.",
        evidence="The order of calls: the clip sees empty (or old) gradients, the optimizer "
        "larger ones.",
        sites="The clip.",
        advises="Clip between the backward pass and the optimizer's step.",
        lies_in="loop",
        curable=False,
        sources=(PASCANU, MIXED),
    ),
    Cause(
        name="clip-before-unscale",
        says="Gradients are clipped while they are still multiplied by the loss scale.",
        shows="With a scale of 65536 and a limit of 1 every gradient is cut to next to nothing, "
        "and the training stands still, more so as the scale grows.",
        evidence="The order of calls: the clip comes between the scaled backward pass and the "
        "unscaling; sizes before and after.",
        sites="The clip.",
        advises="Unscale the optimizer's gradients first, then clip, then step.",
        lies_in="loop",
        curable=False,
        sources=(MIXED,),
    ),
    Cause(
        name="clip-too-small",
        says="The clip cuts all but nothing of nearly every gradient.",
        shows="Every step is clipped, to a small part of its size, so that the limit, not the "
        "loss, sets the length of the step; plain SGD stands still.",
        evidence="Norms before and after the clip in nearly all steps.",
        sites="The clip.",
        advises="Set the limit near the upper end of the norms in a healthy stretch, so that it "
        "acts on few steps.",
        lies_in="loop",
        curable=False,
        sources=(PASCANU,),
    ),
    Cause(
        name="weight-decay",
        says="Weight decay outweighs the gradient.",
        shows="Weights shrink towards 0 from step to step while the loss stands still or grows.",
        evidence="For each parameter the decay's part of the step beside the gradient's, and "
        "norms that fall.",
        sites="The parameters, and the optimizer.",
        advises="Lower the weight decay. With Adam use its decoupled form (AdamW), and give "
        "biases, normalizations and embeddings none.",
        lies_in="loop",
        curable=False,
        sources=("Loshchilov and Hutter 2019: https://arxiv.org/abs/1711.05101",),
    ),
    Cause(
        name="optimizer-eps",
        says="The optimizer's ε is 0 in the dtype, or outweighs the gradients' own size.",
        shows="In float16: NaN in a weight right after a step whose gradient is 0 or tiny, since "
        "1e-8 is 0 there. With tiny gradients in float32: steps far shorter than the rate.",
        evidence="The step made the first NaN, from finite gradients; or the second moment's root "
        "is below ε for most elements.",
        sites="The optimizer, and the parameter.",
        advises="Keep the parameters and the optimizer's state in float32. Else raise ε to a "
        "number that the dtype has (1e-4 in float16), or lower it where gradients are small.",
        lies_in="loop",
        curable=False,
        sources=(
            "Kingma and Ba 2015: https://arxiv.org/abs/1412.6980",
            "PyTorch forum: https://discuss.pytorch.org/t/adam-half-precision-nans/1765",
        ),
    ),
    Cause(
        name="moving-target",
        says="The target is made by the parameters that are trained, and runs away from them.",
        shows="In Q-learning or self-training: loss and outputs grow together without end, though "
        "every single step goes downhill.",
        evidence="The graph of the target leads to trained parameters, or the target changes with "
        "them; the loss grows with the outputs.",
        sites="The loss, and the target.",
        advises="Make the target with a copy of the network that is held still for many steps (or "
        "follows slowly), and let no gradient through it.",
        lies_in="loop",
        curable=False,
        sources=("Mnih et al. 2015: https://doi.org/10.1038/nature14236",),
    ),
    Cause(
        name="oscillating",
        says="The loss goes up and down from epoch to epoch and gains nothing.",
        shows="A saw-tooth in the curve of the loss that does not flatten.",
        evidence="The history: changes of sign from epoch to epoch that are large beside what the "
        "loss gains.",
        sites="The optimizer.",
        advises="Lower the learning rate, let it fall over the training, or take larger batches.",
        lies_in="loop",
        curable=True,
        sources=("Cohen et al. 2021: https://arxiv.org/abs/2103.00065",),
    ),
)
