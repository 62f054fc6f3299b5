"""Whether a library is installed, told without importing it."""

import importlib.util


def is_there(module: str) -> bool:
    """Whether a module can be imported.

    >>> is_there("json"), is_there("no_such_module")
    (True, False)
    """
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # it was struck from the modules
        return False
