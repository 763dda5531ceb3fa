"""Patches of cures, run as a user runs them: as a file."""

import runpy
import tempfile
from pathlib import Path
from typing import Any


def run_as_file(patch: str, **names: Any) -> dict[str, Any]:
    """Run a patch as a file of its own that is given the user's names; return all names after it.

    It must bring everything else itself, its imports too.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "patch.py"
        file.write_text(patch, encoding="utf-8")
        return runpy.run_path(str(file), init_globals=names)
