"""From a reading to findings."""
