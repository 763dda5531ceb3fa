"""Faulty networks drawn at random, of the kinds that the published sets of training faults hold.

Each is a healthy shape for its data with one fault: gradients that vanish or explode, units that
are dead, a rate far too high or too low, columns as they come, a layer out of scale, weights all
equal, an activation that does not pass gradients. Those that train all the same are not kept.
"""

from __future__ import annotations

import numpy as np
from faulty import GOALS, Net, error, train

LOW, HIGH = "learning-rate-low", "learning-rate-high"
DATA = ("blob", "circle", "iris", "wine", "breast_cancer", "digits", "diabetes")
RATES = {"Adam": 3e-3, "SGD": 0.05, "RMSprop": 1e-3, "AdamW": 3e-3}
KINDS = ("vanishing", "exploding", "dying", "fast", "slow", "raw", "layer", "equal", "softmax")


def draw(seed: int, number: int) -> Net:
    """Draw a network with a fault; the kinds take turns."""
    random = np.random.default_rng([seed, number])
    kind = KINDS[number % len(KINDS)]
    data, width = str(random.choice(DATA)), str(random.choice([12, 24, 48]))
    optimizer = str(random.choice(list(RATES)))
    net = Net(f"{number} {kind} {data} {optimizer}", data, optimizer=optimizer,
              rate=RATES[optimizer], activation=str(random.choice(["relu", "tanh", "elu"])),
              hidden=" ".join([width] * random.integers(1, 4)))  # fmt: skip
    if data in ("circle", "breast_cancer") and random.random() < 0.5:
        net.output, net.loss = "sigmoid", "bce"
    deep = " ".join([width] * random.integers(7, 15))
    power = random.uniform(0, 1)
    if kind == "vanishing":
        net.hidden, net.causes = deep, "activation-derivative weight-scale-all"
        if random.random() < 0.5:
            net.activation = "sigmoid"
        else:
            net.init = f"normal {0.02 * 4**power:.3g}"
    elif kind == "exploding":
        net.hidden, net.init = deep, f"normal {0.5 * 4**power:.3g}"
        net.causes = "weight-scale-all logits-scale"
    elif kind == "dying":
        net.activation, net.causes = "relu", "dead-units"
        net.init = f"uniform {-0.3 * 4**power:.3g} 0" if power < 0.5 else f"bias {-40 * power:.3g}"
    elif kind == "fast":
        net.rate, net.causes = net.rate * 30 * 30**power, HIGH
        net.settings = {"momentum": 0.9} if optimizer == "SGD" and random.random() < 0.5 else {}
    elif kind == "slow":
        net.rate, net.causes = net.rate / (300 * 30**power), LOW
    elif kind == "raw":
        net.change, net.causes = f"raw rawy x={10 ** random.uniform(-3, 3):.3g}", "input-scale"
    elif kind == "layer":
        net.init, net.causes = f"first {10 * 6**power:.3g}", "weight-scale saturated-units"
    elif kind == "equal":
        net.init, net.causes = f"constant {random.choice([0, 0.01, 0.1])}", "symmetry"
    else:
        net.activation, net.causes = "softmax", "activation-derivative"
        net.hidden = " ".join([width] * random.integers(3, 6))
    return net


def drawn(seed: int, count: int) -> list[Net]:
    """Draw so many that a plain training does not bring to the goal of their data."""
    found, number = list[Net](), 0
    while len(found) < count:
        net = draw(seed, number)
        number += 1
        left = error(net, train(net, lambda model: None, net.steps)[1])
        if not left <= GOALS[net.data]:
            found.append(net)
    return found
