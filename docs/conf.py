"""Settings of the site: `nox -s docs` builds it into build/site."""

import os
import sys
from pathlib import Path

import vegrad

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "vegrad"
author = copyright = "the vegrad developers"  # Sphinx's names
release = version = vegrad.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "commands",
    "docstrings",
    "generated",
    "mathml",
]
nitpicky = True
default_role = "py:obj"  # `name` in a docstring is a link where it is a public name

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"  # neither prompts nor what is printed are copied

autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
autodoc_preserve_defaults = True
# These go by their names, and are explained at the head of the API's pages.
autodoc_type_aliases = {name: name for name in ("Array", "Buffers", "FloatArray", "Quantity")}
nitpick_ignore_regex = [
    ("py:obj", ".*"),  # of the default role, which is code where it is no name
    ("py:class", r"(np|numpy|sklearn|torch|collections|os|typing|types)\..*"),
    ("py:class", r"[A-Z]\w*|vegrad\.\w+\..*"),  # types in signatures that are not public
]

if "READTHEDOCS" in os.environ:  # elsewhere a build needs nothing from the network
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }

suppress_warnings = ["misc.highlighting_failure"]  # what a command prints is no language

html_theme = "furo"
html_math_renderer = "mathml"
html_title = f"vegrad {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
