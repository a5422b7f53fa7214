"""How Sphinx builds this documentation."""

import sse_asgi

project = "sse_asgi"
author = "the sse_asgi developers"
copyright = f"2026, {author}"
release = sse_asgi.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"sse_asgi {release}"

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
    ("py:class", "AbstractAsyncContextManager|SharesPlaces"),
]
