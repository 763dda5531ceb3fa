"""How PyTorch names modules, parameters, activations and initializations."""

from __future__ import annotations

from vegrad.flow.site import Site
from vegrad.flow.wording import Vocabulary

MODULES = {
    "relu": "torch.nn.ReLU",
    "leaky_relu": "torch.nn.LeakyReLU",
    "tanh": "torch.nn.Tanh",
    "sigmoid": "torch.nn.Sigmoid",
}
SCHEMES = {
    "he_normal": 'kaiming_normal_(weight, nonlinearity="relu")',
    "lecun_normal": "weights of standard deviation 1/√fan_in",
}


class TorchVocabulary(Vocabulary):
    """Layers are modules, parameters have the names of `named_parameters()`."""

    normalization = "torch.nn.LayerNorm after each Linear"
    skips = "skip connections, x + f(x)"

    def site(self, site: Site) -> str:
        """Name a layer's parameters as the model does."""
        if site.kind == "weights":
            return f"{site.name}.weight"
        if site.kind == "biases":
            return f"{site.name}.bias"
        return super().site(site)

    def activation(self, name: str) -> str:
        """Write the module of an activation."""
        return MODULES.get(name, f"torch.nn.{name.title().replace('_', '')}")

    def scheme(self, name: str) -> str:
        """Write the call that draws weights like this."""
        return SCHEMES.get(name, f"{name} weights")
