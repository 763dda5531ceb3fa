"""The same work done by pure Python, NumPy, PyTorch, JAX and vegrad, and timed."""
