"""A network of vegrad's own: fused passes in C++ that measure the gradient flow as they run.

It needs neither PyTorch nor a GPU; arrays are NumPy's. The flow says for each layer how much of the
gradient it passes on, and which part of that its weights and its activation have.

    pip install "vegrad[cli]" && python own_network.py
"""

import vegrad
from vegrad import datasets

digits = datasets.load("digits")
x, labels = digits.x, digits.target("cross_entropy")
held, rest = slice(0, 300), slice(300, None)

# Two inits of the same network: twenty layers, the first with weights that are too small.
sizes = [64, *[64] * 19, 10]
for init, options in (("normal", {"sigma_w": 0.6}), ("critical", {})):
    network = vegrad.MLP(
        sizes, activation="tanh", loss="cross_entropy", init=init, seed=0, **options
    )
    loss = network.backward(x[rest], labels[rest])
    flow = network.flow
    print(
        f"{init:<9} loss {loss:.2f}: the first layer gets 10^{flow.chain_log10:.1f} of the last "
        f"one's gradient; a layer passes on {2 ** flow.gain_log2.mean():.2f} of it"
    )

# The better one is trained; `history` has every step and epoch as arrays.
history = network.fit(
    x[rest],
    labels[rest],
    optimizer=vegrad.AdamW(1e-3, clip=vegrad.clipping.GlobalNorm(1.0)),
    epochs=5,
    batch_size=32,
    validation=(x[held], labels[held]),
    seed=0,
    checkpoint="training.safetensors",  # from which `fit(…, resume=…)` goes on, bit for bit
)
print(f"held-out rows: {100 * history.validation_accuracy[-1]:.1f} % right")
print(vegrad.diagnose(network, x[rest], labels[rest], history=history))

history.plot("training.png")
network.save("network.safetensors")
print(vegrad.MLP.load("network.safetensors"))
