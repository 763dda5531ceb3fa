"""nn.Sequential run by the core's fused passes."""
