"""Write the page of the documentation from what is recorded."""

from __future__ import annotations

from .page import PATH, page

if __name__ == "__main__":
    PATH.write_text(page(), encoding="utf-8")
    print(f"wrote {PATH}")
