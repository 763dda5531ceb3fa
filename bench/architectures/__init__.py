"""Public model architectures and small ones written out, with tasks that they can learn."""
