"""One pass of a torch model, written down."""
