"""PyTorch's names of modules, parameters, activations and initializations."""

from __future__ import annotations

from vegrad.activations import ACTIVATIONS
from vegrad.flow.site import Site
from vegrad.flow.wording import Vocabulary

SCHEMES = {
    "default": "each layer's own reset_parameters()",
    "he_normal": 'kaiming_normal_(weight, nonlinearity="relu")',
    "lecun_normal": "weights of standard deviation 1/√fan_in",
}


class TorchVocabulary(Vocabulary):
    """The words for PyTorch models: layers are modules, with the names of `named_modules()`."""

    normalization = "torch.nn.LayerNorm after each Linear"
    skips = "skip connections, x + f(x)"
    exchanges = "use transpose or permute, not view or reshape, where axes are to change places"
    batch_first = "give it batch_first=True, or transpose(0, 1) before and after it"
    trains = "call model.train() before the first step, and again after each evaluation"
    cuts = "a detach(), .data, item() or no_grad()"
    off = "no_grad()"
    freezing = "set requires_grad=False"
    keeping = (
        "keep layers in an nn.ModuleList or nn.ModuleDict and tensors as nn.Parameter attributes, "
        "not in plain lists, and make them in __init__"
    )
    loss = "loss_fn"
    empties = "call optimizer.zero_grad() once for every step, before the backward pass"
    steps = "call optimizer.step() after the backward pass"
    keeps = "look in the loop for what sets the weights back, such as load_state_dict()"
    unscales = "call scaler.unscale_(optimizer) before the gradients are clipped"
    holds = (
        "give them to the optimizer (add_param_group); if they are to stay as they are, say so by "
        "requires_grad_(False)"
    )
    registers = "keep modules in a ModuleList or ModuleDict, and parameters in a ParameterList"

    def site(self, site: Site) -> str:
        """Name a layer's parameters as the model does."""
        if site.kind == "weights":
            return f"{site.name}.weight"
        if site.kind == "biases":
            return f"{site.name}.bias"
        return super().site(site)

    def activation(self, name: str) -> str:
        """Write the module of an activation, or its function if PyTorch has no module of it."""
        torch = ACTIVATIONS[name].torch
        if torch is None:  # the identity
            return "torch.nn.Identity"
        return f"torch.{torch.function}" if torch.module is None else f"torch.nn.{torch.module}"

    def scheme(self, name: str) -> str:
        """Write the call that draws weights like this."""
        return SCHEMES.get(name, f"{name} weights")
