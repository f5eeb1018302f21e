"""Settings of the documentation site. `make docs` builds it."""

import sys
from pathlib import Path

from vl2 import __version__

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

project = "vl2"
copyright = "The vl2 authors"
release = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton", "site_reference"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
nb_execution_mode = "off"  # the outputs are kept in the notebooks: tools/run_notebooks.py

myst_heading_anchors = 6  # the anchors that links on the pages use, as on GitHub
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
add_module_names = False
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

html_theme = "furo"
html_title = f"vl2 {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False


def setup(app):
    """Give the pages in docs/zh the language that a browser reads them in."""

    def name_language(_, page, template, context, doctree):
        if page.startswith("zh/"):
            context["language"] = "zh-CN"

    app.connect("html-page-context", name_language)
