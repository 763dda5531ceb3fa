"""What rules need to know of each activation (a table of all is on its way)."""

BOUNDED = {"sigmoid": 0.25, "tanh": 1.0, "hard_tanh": 1.0, "erf": 1.12838}  # and the largest φ′
UNSTABLE = {"gelu", "silu", "softplus"}  # at every usual size of z: V′ > 1 at the critical point
