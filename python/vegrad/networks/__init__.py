"""Front end: vegrad's own networks, and their training."""
