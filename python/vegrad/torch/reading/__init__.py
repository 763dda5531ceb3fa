"""Read a PyTorch model: what one forward and backward pass tells, as a `Reading`."""
