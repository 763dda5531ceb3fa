"""What may be passed in as buffers; norms and measurements; files."""
