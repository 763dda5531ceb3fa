"""The formulas of the optimizers in plain float64 NumPy."""

from typing import Any

import numpy as np
import vegrad


class Reference:
    """The state of one parameter; the formulas are those of the docstrings of the classes."""

    def __init__(self, optimizer: vegrad.optim.Optimizer) -> None:
        self.kind = type(optimizer).__name__
        self.a = optimizer.state_dict()["arguments"]
        self.t, self.m, self.v, self.largest = 0, 0.0, 0.0, 0.0

    def step(self, p: Any, g: Any, lr: float) -> Any:
        a = self.a
        g = -g if a["maximize"] else g
        self.t += 1
        if self.kind == "SGD":
            g = g + a["weight_decay"] * p
            if a["momentum"]:
                self.m = g if self.t == 1 else a["momentum"] * self.m + (1 - a["dampening"]) * g
                g = g + a["momentum"] * self.m if a["nesterov"] else self.m
            return p - lr * g
        first, second = a["betas"]
        if self.kind == "Lion":
            sign = np.sign(first * self.m + (1 - first) * g)
            self.m = second * self.m + (1 - second) * g
            return p * (1 - lr * a["weight_decay"]) - lr * sign
        if self.kind == "Adam":
            g = g + a["weight_decay"] * p
        else:
            p = p * (1 - lr * a["weight_decay"])
        self.m = first * self.m + (1 - first) * g
        self.v = second * self.v + (1 - second) * g**2
        self.largest = np.maximum(self.largest, self.v)
        v = self.largest if a["amsgrad"] else self.v
        size = np.sqrt(v) / np.sqrt(1 - second**self.t) + a["eps"]
        return p - lr / (1 - first**self.t) * self.m / size
