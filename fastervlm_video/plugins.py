"""Pruning methods and architectures from other packages, found by their entry points.

::

    [project.entry-points."fastervlm_video.plugins"]
    longest = "fastervlm_longest"      # a module that registers methods, or defines ADAPTER, or both
"""

import logging
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType

__all__ = ["GROUP", "plugins"]

logger = logging.getLogger(__name__)

GROUP = "fastervlm_video.plugins"


@cache
def plugins() -> tuple[ModuleType, ...]:
    """The modules of all installed plug-ins, by name; imported when they are first asked for.

    One that cannot be imported is left out, and the reason is logged: a package that nobody uses stops nothing.
    """
    modules = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            modules.append(entry.load())
        except Exception:
            logger.exception("the plug-in %s cannot be imported from %s", entry.name, entry.value)
    return tuple(modules)
