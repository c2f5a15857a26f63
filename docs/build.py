"""API reference from the docstrings, into docs/api. A public name without a docstring is an error."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from pathlib import Path

ROOMS = (
    "capabilities",
    "landscape",
    "models",
    "records",
    "runs",
    "options",
    "statistics",
    "training",
    "methods",
    "measuring",
    "pages",
    *(
        f"commands.{command}.{part}"
        for command in ("compare", "scan", "tune")
        for part in ("settings", "run", "plan", "record")
    ),
)


def undocumented() -> list[str]:
    """Public functions and classes of the rooms that have no docstring."""
    missing = []
    for room in ROOMS:
        module = importlib.import_module(f"catchment.{room}")
        for name in getattr(module, "__all__", []):
            thing = getattr(module, name)
            if (inspect.isclass(thing) or inspect.isfunction(thing)) and not inspect.getdoc(thing):
                missing.append(f"catchment.{room}.{name}")
    return missing


def main() -> None:
    missing = undocumented()
    if missing:
        sys.exit(f"public names without a docstring: {', '.join(missing)}")
    os.environ.setdefault("PDOC_ALLOW_EXEC", "0")
    import pdoc

    package = importlib.import_module("catchment")
    for name in package.__all__:  # imported on first use: pdoc looks only at what is there
        setattr(package, name, getattr(package, name))
    pdoc.render.configure(docformat="google", math=True, search=True)
    out = Path(__file__).parent / "api"
    pdoc.pdoc("catchment", *[f"catchment.{room}" for room in ROOMS], output_directory=out)
    print(f"API reference: {out / 'index.html'}")


if __name__ == "__main__":
    main()
