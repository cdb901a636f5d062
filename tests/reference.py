"""Networks and learning rules in double-precision NumPy, from the equations: the oracle of many tests.

Rows are examples; `a_l = h_{l-1} W_l + b_l`, `h_l = phi(a_l)`, and the readout is linear.
"""

from typing import Any

import numpy as np

ACTIVATIONS = {
    "tanh": (np.tanh, lambda a: 1 - np.tanh(a) ** 2),
    "relu": (lambda a: np.maximum(a, 0.0), lambda a: (a > 0).astype(float)),
    "linear": (lambda a: a, np.ones_like),
}


def layers(params: dict[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernel and bias of the hidden layers of a `dfa_jax.models.MLP`, then of its readout."""
    depth = len(params) - 1
    found = [params[f"layer_{i}"]["Dense_0"] for i in range(depth)] + [params["readout"]]
    return [(np.asarray(p["kernel"], float), np.asarray(p["bias"], float)) for p in found]


def forward(params: dict[str, Any], x: np.ndarray, activation: str) -> tuple[list, list]:
    """All pre-activations `a_1 .. a_L, y` and activities `h_0 .. h_L`."""
    phi, _ = ACTIVATIONS[activation]
    h, a = [np.asarray(x, float)], []
    for kernel, bias in layers(params):
        a.append(h[-1] @ kernel + bias)
        h.append(phi(a[-1]))
    return a, h[:-1]


def softmax(y: np.ndarray) -> np.ndarray:
    exp = np.exp(y - y.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def output_error(y: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """dL/dy of the mean softmax cross-entropy: `(softmax(y) - onehot) / N`."""
    return (softmax(y) - np.eye(y.shape[-1])[labels]) / len(y)


def loss(y: np.ndarray, labels: np.ndarray) -> float:
    return -np.log(softmax(y)[np.arange(len(y)), labels]).mean()


def local_gradients(h: list, deltas: list) -> dict[str, Any]:
    """`dW_l = h_{l-1}^T delta_l`, `db_l = sum delta_l`, in the tree of an `MLP`."""
    grads = [{"kernel": x.T @ d, "bias": d.sum(0)} for x, d in zip(h, deltas, strict=True)]
    hidden = {f"layer_{i}": {"Dense_0": g} for i, g in enumerate(grads[:-1])}
    return hidden | {"readout": grads[-1]}


def direct(params: dict[str, Any], feedback: list, x, error, activation: str) -> dict[str, Any]:
    """Gradients when hidden layer `l` gets `(error B_l) * phi'(a_l)` and the readout the true one.

    `error(y)` is a pair: what is sent to the hidden layers, and dL/dy.
    """
    _, slope = ACTIVATIONS[activation]
    a, h = forward(params, x, activation)
    sent, true = error(a[-1])
    deltas = [(sent @ B) * slope(a_l) for B, a_l in zip(feedback, a[:-1], strict=True)]
    return local_gradients(h, [*deltas, true])


def chain(params: dict[str, Any], feedback: list, x, labels, activation: str) -> dict[str, Any]:
    """Gradients when `delta_{l-1} = (delta_l B_l^T) * phi'(a_{l-1})`; `B_l = W_l` is backpropagation."""
    _, slope = ACTIVATIONS[activation]
    a, h = forward(params, x, activation)
    deltas = [output_error(a[-1], labels)]
    for B, a_l in zip(feedback[:0:-1], a[-2::-1], strict=True):
        deltas.insert(0, (deltas[0] @ B.T) * slope(a_l))
    return local_gradients(h, deltas)
