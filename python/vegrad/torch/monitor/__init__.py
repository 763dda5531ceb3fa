"""A monitor of a model while it trains."""
