"""The rows of faulty.py: what is wrong with each, by the causes that are accepted as its name."""

from __future__ import annotations

from faulty import Net

DEEP = " ".join(["32"] * 12)
LOW, HIGH = "learning-rate-low", "learning-rate-high"

FAULTY = [
    # ------------------------------------------------- the output and the loss do not fit
    Net("so-31880720 softmax of one", "breast_cancer", "50 50", output="softmax", loss="bce",
        optimizer="RMSprop", rate=1e-3, causes="constant-output"),
    Net("so-33969059 softmax of one, raw", "diabetes", "3 2", "tanh", "softmax", change="rawy",
        optimizer="SGD", rate=0.1, causes="constant-output output-range"),
    Net("so-34311586 softmax of one, xor", "xor", "2 3", "sigmoid", "softmax", "mse",
        optimizer="SGD", rate=1e-3, causes="constant-output"),
    Net("so-45442843 softmax of one, mae", "circle", "1", "sigmoid", "softmax", "mae",
        optimizer="RMSprop", rate=1e-3, causes="constant-output"),
    Net("one unit under a cross-entropy", "breast_cancer", "32", loss="ce-one",
        causes="constant-output"),
    Net("softmax of one, regression", "diabetes", output="softmax", causes="constant-output"),
    Net("so-59278771 sigmoid before ce", "iris", "4", output="sigmoid", loss="ce",
        init="normal 0.05", rate=1e-3, causes="double-softmax"),
    Net("so-51930566 sigmoid before ce, raw", "iris", "4", output="sigmoid", loss="ce",
        change="raw", init="normal 0.05", rate=1e-3, steps=750, causes="double-softmax"),
    Net("softmax before ce", "digits", "64 64", output="softmax", optimizer="SGD", rate=0.1,
        causes="double-softmax"),
    Net("sigmoid before bce with logits", "circle", "16", output="sigmoid", loss="bcelogits",
        optimizer="SGD", rate=0.1, causes="double-softmax"),
    Net("sigmoid output, targets of hundreds", "diabetes", output="sigmoid", change="rawy",
        causes="output-range"),
    Net("tanh output, targets of hundreds", "diabetes", output="tanh", change="rawy",
        causes="output-range"),
    Net("sigmoid output, class numbers", "digits", output="sigmoid", loss="mse",
        causes="output-range"),
    Net("relu output, both signs", "diabetes", output="relu", causes="output-range"),
    Net("softplus output, both signs", "diabetes", output="softplus", causes="output-range"),
    Net("binary loss, ten classes", "digits", "64", output="sigmoid", loss="bcelogits",
        causes="target-range double-softmax"),
    Net("ten classes into logits of one", "digits", "64", loss="bcelogits", causes="target-range"),
    Net("targets broadcast", "diabetes", loss="mse-flat", causes="broadcast"),
    # ------------------------------------------------------------------------------ the data
    Net("so-39525358 raw columns", "breast_cancer", "12 3", output="sigmoid", loss="bce",
        change="raw", init="uniform -0.05 0.05", rate=1e-3, causes="input-scale"),
    Net("raw columns, tanh", "wine", "16", "tanh", change="raw", optimizer="SGD", rate=0.05,
        causes="input-scale"),
    Net("raw columns, sigmoid", "breast_cancer", "16 16", "sigmoid", change="raw",
        optimizer="SGD", rate=0.1, causes="input-scale"),
    Net("inputs of 1e-5", "digits", "64", change="x=1e-5", causes="input-scale"),
    Net("inputs of 1e5", "wine", "32 32", change="x=1e5", optimizer="SGD", rate=0.1,
        causes="input-scale"),
    Net("so-48251943 relu output, raw", "diabetes", "4", output="relu", change="rawy",
        optimizer="SGD", rate=0.01,
        causes=f"target-scale {HIGH} dead-units output-range"),
    Net("so-48934338 square, rate of 0.1", "square", "50 30", optimizer="SGD", rate=0.1,
        change="raw rawy", causes=f"target-scale {HIGH}"),
    Net("targets of 1e6", "diabetes", change="y=1e6", causes=f"target-scale {LOW}"),
    Net("a NaN in the inputs", "wine", change="nanx", causes="nonfinite-input"),
    Net("a NaN in the targets", "diabetes", change="nany", causes="nonfinite-target"),
    # --------------------------------------------------------------- weights and activations
    Net("at-circle vanishing sigmoid", "circle", DEEP, "sigmoid", "sigmoid", "bce",
        causes="activation-derivative"),
    Net("at-blob vanishing sigmoid", "blob", DEEP, "sigmoid", optimizer="SGD", rate=0.1,
        causes="activation-derivative"),
    Net("at-circle vanishing tanh", "circle", DEEP, "tanh", init="uniform -0.05 0.05",
        optimizer="SGD", rate=0.1, causes="weight-scale-all"),
    Net("at-circle dying relu", "circle", "16 16 16", init="uniform -1 0", causes="dead-units"),
    Net("at-blob exploding", "blob", DEEP, init="normal 1", optimizer="SGD", rate=0.01,
        causes="weight-scale-all logits-scale"),
    Net("deep relu, default init", "digits", " ".join(["32"] * 20), optimizer="SGD", rate=0.05,
        causes="weight-scale-all"),
    Net("deep sigmoid digits", "digits", "64 64 64 64 64 64", "sigmoid", optimizer="SGD", rate=0.1,
        causes="activation-derivative"),
    Net("softmax in hidden layers", "digits", "64 64 64 64", "softmax", optimizer="SGD", rate=0.1,
        causes="activation-derivative"),
    Net("weights all 0", "digits", "64 64", init="constant 0", causes="symmetry closed-gates"),
    Net("weights all 0.1", "digits", "64 64", init="constant 0.1", causes="symmetry"),
    Net("first layer saturates tanh", "digits", "12 12", "tanh", init="first 30", optimizer="SGD",
        rate=0.1, causes="saturated-units weight-scale"),
    Net("biases of -20 kill relu", "digits", "64 64", init="bias -20", causes="dead-units"),
    # ------------------------------------------------------------------------- the optimizer
    Net("so-48385830 rate of 3, N(0, 1)", "digits", "30", "none", loss="mse-onehot",
        init="normal 1", optimizer="SGD", rate=3.0, causes=f"{HIGH} weight-scale-all"),
    Net("at-blob rate of 30", "blob", optimizer="SGD", rate=30.0, causes=HIGH),
    Net("Adam at 3", "digits", "64 64", rate=3.0, causes=f"{HIGH} dead-units"),
    Net("momentum of 0.99 at 0.5", "digits", "64 64", optimizer="SGD", rate=0.5,
        settings={"momentum": 0.99}, causes=HIGH),
    Net("sum over the batch", "digits", "64 64 64", loss="ce-sum", optimizer="SGD", rate=0.1,
        causes=f"wrong-reduction {HIGH}"),
    Net("at-blob rate of 1e-6", "blob", optimizer="SGD", rate=1e-6, causes=LOW),
    Net("so-50306988 rate of 1e-6", "circle", "16", rate=1e-6, causes=LOW),
    Net("so-55328966 rate of 1e-4, raw", "digits", "50", output="sigmoid", loss="ce",
        change="raw", optimizer="SGD", rate=1e-4, causes=f"{LOW} double-softmax input-scale"),
    Net("Adadelta at 0.001", "digits", "64", optimizer="Adadelta", rate=1e-3, causes=LOW),
    Net("rate of 0", "wine", optimizer="SGD", rate=0.0, causes=LOW),
    Net("so-31556268 clip of 0", "xor", "4", "sigmoid", "sigmoid", "mae", optimizer="SGD",
        rate=0.05, settings={"momentum": 0.11}, clip=1e-12, causes="clip-too-small"),
    Net("weight decay of 1", "digits", "64 64", optimizer="AdamW", settings={"weight_decay": 300.0},
        causes="weight-decay"),
    Net("l2 of 0.5", "digits", "64 64", optimizer="SGD", rate=0.1, settings={"weight_decay": 0.5},
        causes="weight-decay"),
    Net("Adam's epsilon of 100", "digits", "64 64", settings={"eps": 100.0},
        causes=f"optimizer-eps {LOW}"),
]  # fmt: skip

HEALTHY = [
    Net(f"healthy {data} {activation} {optimizer}", data, hidden, activation,
        optimizer=optimizer, rate=rate, settings=settings, init=init, steps=900)
    for data, hidden, activation, init in (
        ("blob", "32 32", "relu", "default"),
        ("circle", "16 16", "tanh", "default"),
        ("iris", "16", "relu", "he"),
        ("wine", "32", "elu", "default"),
        ("breast_cancer", "32 32", "gelu", "default"),
        ("digits", "64 64", "relu", "he"),
        ("digits", "32 32 32", "silu", "default"),
        ("diabetes", "32", "tanh", "default"),
        ("xor", "8", "leaky", "default"),
    )
    for optimizer, rate, settings in (
        ("Adam", 3e-3, {}),
        ("SGD", 0.03, {"momentum": 0.9}),
        ("AdamW", 3e-3, {"weight_decay": 0.01}),
        ("RMSprop", 1e-3, {}),
    )
]  # fmt: skip
HEALTHY += [
    Net("healthy circle sigmoid and bce", "circle", "32", output="sigmoid", loss="bce"),
    Net("healthy digits onehot mse", "digits", "64 64", loss="mse-onehot", steps=900),
    Net("healthy square", "square", "32 32", "tanh"),
    Net("healthy wine raw, adam", "wine", "64 64", change="raw x=0.01", steps=2500),
]

NETS = FAULTY + HEALTHY
