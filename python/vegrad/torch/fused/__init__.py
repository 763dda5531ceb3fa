"""nn.Sequential by the core's passes."""
