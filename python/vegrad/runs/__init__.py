"""Runs: the records of trainings, made here or elsewhere, step by step."""
