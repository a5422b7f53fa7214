"""What the files of the package import of others, when they are loaded, as a process sees it.

What those load in turn is no affair of the package, and differs with the Python: so a test does not
list it. The source says nothing of it either (``import_graph.py``): what is there already costs
nothing.
"""

from __future__ import annotations

import subprocess
import sys

_CODE = """
import sys
{before}
found = set()


class Spy:
    @staticmethod
    def find_spec(name, path=None, target=None):
        frame = sys._getframe(1)
        while "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        importer = frame.f_globals.get("__name__", "")
        if importer.partition(".")[0] == "sse_asgi" != name.partition(".")[0]:
            found.add(name)


sys.meta_path.insert(0, Spy)
{code}
print(*sorted(found))
"""


def imported_by_the_package(code: str, *, before: str = "") -> set[str]:
    """The modules that its files import while ``code`` runs, and that ``before`` has not loaded."""
    run = subprocess.run(
        [sys.executable, "-c", _CODE.format(before=before, code=code)],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(run.stdout.split())
