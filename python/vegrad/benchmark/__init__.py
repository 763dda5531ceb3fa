"""The same work by pure Python, NumPy, PyTorch, JAX and vegrad."""
