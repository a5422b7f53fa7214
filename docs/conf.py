"""How Sphinx builds this documentation."""

import sys
from pathlib import Path

import sse_asgi

EXTENSIONS = Path(__file__).parent / "_ext"
sys.path.append(str(EXTENSIONS))

project = "sse_asgi"
author = "the sse_asgi developers"
copyright = f"2026, {author}"
release = sse_asgi.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "llms", "subjects"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "sse_asgi"
pygments_dark_style = "github-dark"
html_favicon = "_static/favicon.svg"
html_static_path = ["_static"]
html_search_scorer = str(EXTENSIONS / "scorer.js")
html_css_files = ["look.css"]
html_js_files = ["copy.js"]
html_theme_options = {
    "light_logo": "logo.svg",
    "dark_logo": "logo-dark.svg",
    "light_css_variables": {
        "color-brand-primary": "#0b6e5f",
        "color-brand-content": "#0b6e5f",
        "color-brand-visited": "#3d6a63",
        "color-api-name": "#0b6e5f",
        "color-api-pre-name": "#4a5b58",
        "sidebar-item-spacing-vertical": "0.28rem",
        "sidebar-caption-space-above": "0.9rem",
    },
    "dark_css_variables": {
        "color-brand-primary": "#5ccfb8",
        "color-brand-content": "#5ccfb8",
        "color-brand-visited": "#8fbfb5",
        "color-api-name": "#5ccfb8",
        "color-api-pre-name": "#a9bab6",
    },
}

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88

# Modules of others; looking them up would need the network.
nitpick_ignore_regex = [
    ("py:.*", r"(?!sse_asgi\.)\w+\..*"),
    # And names that only type checkers need.
    (
        "py:class",
        r"sse_asgi\.event\.DataT_co|sse_asgi\.decoder\.ModelT|ContentStream|BackgroundTask|Policy|_HasSet",
    ),
    ("py:class", "AbstractAsyncContextManager|SharesPlaces|Lifespan"),
]
