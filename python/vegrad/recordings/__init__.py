"""Front end: diagnoses from what was recorded, gradients, a history or a whole run."""

from vegrad.recordings.gradients import diagnose_gradients, diagnose_history, reading_of
from vegrad.recordings.run import diagnose_run

__all__ = ["diagnose_gradients", "diagnose_history", "diagnose_run", "reading_of"]
