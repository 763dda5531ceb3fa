"""Checks of what users pass in, norms and measurements of buffers, and files of arrays."""
