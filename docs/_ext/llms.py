"""Write ``llms.txt`` beside the built pages: what there is to read, for programs (llmstxt.org).

Each group of the sidebar is a section. Each page is a link to its text, with its first sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write(app: Sphinx, failed: Exception | None) -> None:
    if failed is None and app.builder.format == "html":
        (Path(app.outdir) / "llms.txt").write_text("\n".join(lines(app)) + "\n", "utf-8")


def lines(app: Sphinx) -> Iterator[str]:
    index = app.env.get_doctree(app.config.root_doc)
    yield f"# {app.config.project}"
    yield ""
    yield f"> {first_sentence(index)}"
    for toctree in index.findall(addnodes.toctree):
        yield ""
        yield f"## {toctree['caption']}"
        yield ""
        for _, page in toctree["entries"]:
            title = app.env.titles[page].astext()
            source = f"_sources/{app.env.doc2path(page, base=False)}.txt"
            yield f"- [{title}]({source}): {first_sentence(app.env.get_doctree(page))}"


def first_sentence(document: nodes.document) -> str:
    """Return the first sentence of the first paragraph of a page."""
    paragraph = next(document.findall(nodes.paragraph), None)
    text = " ".join(paragraph.astext().split()) if paragraph is not None else ""
    return re.split(r"(?<=[.!?]) ", text, maxsplit=1)[0].rstrip(":")
