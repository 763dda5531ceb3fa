"""Settings of the site: `nox -s docs` builds it into build/site."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import vegrad

sys.path.insert(0, str(Path(__file__).parent))

project = "vegrad"
author = copyright = "the vegrad developers"  # Sphinx's names
release = version = vegrad.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
nitpicky = True
exclude_patterns = ["causes.md"]
default_role = "py:obj"  # `name` in a docstring is a link where it is a public name

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"  # neither prompts nor what is printed are copied

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_mock_imports = [] if find_spec("torch") else ["torch"]
napoleon_numpy_docstring = False

if "READTHEDOCS" in os.environ:  # elsewhere a build needs nothing from the network
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }

html_theme = "furo"
html_title = f"vegrad {release}"
