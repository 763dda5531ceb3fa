"""Watching: a run that is shown while it goes on, in the terminal and in a browser."""
