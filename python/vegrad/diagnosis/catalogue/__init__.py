"""The table of causes: one row for each name that `Finding.cause` can have."""
