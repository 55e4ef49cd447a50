"""Sphinx configuration."""

import thalweg

project = "thalweg"
author = "the thalweg developers"
release = version = thalweg.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["dollarmath", "colon_fence"]
html_theme = "furo"
html_title = "thalweg"
exclude_patterns = ["_build"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
