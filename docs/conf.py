"""How the documentation is built: Sphinx with furo and myst-nb; `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

from nnsight_dream import __version__  # noqa: E402

project = "nnsight-dream"
author = "the nnsight-dream authors"
copyright = "2026, the nnsight-dream authors"
release = version = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton", "commands", "docstrings", "mathml"]
exclude_patterns = ["_*", "pictures", "**.ipynb_checkpoints", "**/*.py"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}

html_theme = "furo"
html_title = f"nnsight-dream {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
html_copy_source = False
html_show_sourcelink = False

smartquotes = False
nitpicky = True  # a reference that leads nowhere is a warning, and a warning an error
suppress_warnings = ["misc.highlighting_failure", "mystnb.unknown_mime_type"]
nb_execution_mode = "off"  # notebooks are kept with their outputs: `make tutorials` runs them
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "text/html", 0), ("html", "image/png", 10)]
myst_enable_extensions = ["deflist", "dollarmath", "colon_fence"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 70
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
linkcheck_anchors = False
linkcheck_timeout = 20
