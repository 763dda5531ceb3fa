"""The records between front ends and rules: plain data."""
