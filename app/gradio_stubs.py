"""Import Gradio without the stub files that it writes.

Importing Gradio parses the source of each of its 80 components and renders a `.pyi` next to it, for the editors of
those who develop components. That is more than half of the import's time (1.2 of 2.0 CPU seconds with Gradio 6.31),
and two processes that start at once write the same files. No setting turns it off.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

MODULE, FUNCTION = "gradio.component_meta", "create_or_modify_pyi"


class _WithoutStubs(MetaPathFinder):
    """Finds the one module, as Python does, and replaces the function that writes once the module is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """None for every other module."""
        spec = PathFinder.find_spec(fullname, path) if fullname == MODULE else None
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_without(module: ModuleType) -> None:
            """Load the module, then replace its function by one that does nothing."""
            load(module)
            setattr(module, FUNCTION, lambda *_: None)

        spec.loader.exec_module = load_without  # type: ignore[method-assign]
        return spec


def write_no_stubs() -> None:
    """Call this before Gradio is imported."""
    if not any(isinstance(finder, _WithoutStubs) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WithoutStubs())
