"""The site of documents: `make docs` builds it into build/docs. Nothing is fetched, neither to build nor to read it."""

from rankhoist import __version__

project = "rankhoist"
author = copyright = "The rankhoist authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3  # headings can be linked to: page.md#a-heading

default_role = "code"  # docstrings quote code as Markdown does
autodoc_typehints = "none"  # signatures stay short; docstrings give shapes and units
autodoc_member_order = "bysource"
napoleon_use_ivar = True

html_theme = "furo"
html_title = "rankhoist"
html_static_path, html_css_files = ["_static"], ["site.css"]
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
