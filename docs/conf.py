"""How the documents become a site: `tests/run docs`, or `sphinx-build -c docs . FOLDER`.

The sources are the repository's, so that a link which works there works here. The pages' order in
the navigation is that of the links in `docs/index.md`.
"""

import re

from dpop_agent import __version__

project = "dpop-agent"
release = version = __version__
html_title = f"dpop-agent {version}"

extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = [
    "*.md",
    "docs/**.md",
    "dpop_agent/PROTOCOL.md",
    "softhsm/README.md",
    "clients/node/README.md",
    "tests/exchanges/README.md",
    "tests/kit/README.md",
]
myst_heading_anchors = 4
myst_links_external_new_tab = False
smartquotes_action = "q"  # two dashes are an option's
html_theme = "furo"
html_copy_source = False
html_use_index = False
html_show_sphinx = False
html_show_copyright = False
html_extra_path = ["site"]
html_static_path = ["static"]
html_css_files = ["tables.css"]
pygments_style = "friendly"
pygments_dark_style = "github-dark"


def _navigation(text):
    """The links of the landing page, each heading's as one part of the navigation."""
    parts = re.split(r"^## (.+)$", text, flags=re.M)
    for heading, below in zip(parts[1::2], parts[2::2], strict=True):
        pages = re.findall(r"^- \[([^\]]+)\]\(([^)#]+)\.md\)", below, re.M)
        if pages:
            yield f"```{{toctree}}\n:hidden:\n:caption: {heading}\n"
            yield from (f"{title} <{page}>" for title, page in pages)
            yield "```\n"


def _with_navigation(_app, page, source):
    if page == root_doc:
        source[0] += "\n\n" + "\n".join(_navigation(source[0]))


def setup(app):
    app.connect("source-read", _with_navigation)
