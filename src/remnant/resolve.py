"""From a name to a method: "npo" | "mine.py:function" | "package.module:function".

The positional parameters of the function say what it reads, the keyword-only ones what can be
tuned. Both are read from its source text (`usercode.py`), so that a plan is checked without
importing torch or the user's code; the function itself is imported by ``load``.
"""

import hashlib
import importlib
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import ConfigDict, ValidationError, create_model

from remnant.errors import UserError, unknown
from remnant.usercode import (
    Found,
    Unreadable,
    annotation_of,
    find,
    functions_in,
    literal,
    path_of,
    tree_of,
)

# What names a function behind its colon; "prune-2:4" does not.
_FUNCTION = re.compile(r":[^\d\W]")


class Listed(Protocol):
    """A line of a table of built-ins: ``path`` is "module:function"."""

    @property
    def path(self) -> str:
        """Where the function lives."""

    @property
    def version(self) -> int:
        """Raised when results change."""


@dataclass(frozen=True)
class Method:
    """A function that has been found but not imported.

    ``identity`` is what distinguishes its results: the version of a built-in, the digest of a
    user's source.
    """

    use: str
    reads: tuple[str, ...]
    params: Mapping[str, Any]
    identity: str
    module: str
    function: str

    def load(self) -> Callable[..., Any]:
        """The function itself; a user's code runs here for the first time.

        What it takes and gives is as its kind has it, which no type tells.

        Raises:
            UserError: it cannot be imported, or is no function once it is.
        """
        try:
            found = getattr(_import(self.module), self.function, None)
        except Exception as error:  # whatever a user's file raises when it is imported
            if self.module.startswith("remnant."):
                raise
            raise UserError(
                f"'{self.use}' cannot be imported: {type(error).__name__}: {error}.",
                "Mend the file.",
            ) from error
        if not callable(found):
            raise UserError(f"'{self.use}' is not a function.")
        function: Callable[..., Any] = found
        return function


def resolve(
    kind: str,
    use: str,
    table: Mapping[str, Listed],
    readable: Collection[str],
    params: Mapping[str, Any],
) -> Method:
    """Find a method and check what it reads and how it is tuned.

    Raises:
        UserError: unknown name, file or function; a parameter it does not have or of a wrong type;
            a reading not on offer.
    """
    module, function, version = _locate(kind, use, table)
    found = find(use, module, function)
    tree = found.tree
    if tree.args.vararg or tree.args.kwarg:
        raise UserError(
            f"The {kind} '{use}' takes * or ** arguments.", "Name what it reads, one by one."
        )
    reads = tuple(arg.arg for arg in (*tree.args.posonlyargs, *tree.args.args))
    if unreadable := [name for name in reads if name not in readable]:
        raise UserError(
            f"The {kind} '{use}' reads '{unreadable[0]}', which is not on offer.",
            f"A {kind} may read: {', '.join(sorted(readable))}.",
        )
    identity = (
        version or f"{function}@{hashlib.sha256(''.join(found.sources).encode()).hexdigest()[:16]}"
    )
    return Method(use, reads, _tuned(kind, use, found, params), identity, module, function)


def keywords(kind: str, use: str, table: Mapping[str, Listed]) -> tuple[str, ...]:
    """What of a method can be tuned: the names of its keyword-only parameters.

    Raises:
        UserError: unknown name, file or function.
    """
    module, function, _ = _locate(kind, use, table)
    return tuple(arg.arg for arg in find(use, module, function).tree.args.kwonlyargs)


def is_user_code(use: str, table: Collection[str]) -> bool:
    """Whether a name stands for code that the user brings, which runs when the method does."""
    return use not in table and bool(_FUNCTION.search(use))


def functions_of(path: str) -> list[str]:
    """Names of the public functions of a user's file, in order.

    Raises:
        UserError: the file cannot be read or is no Python.
    """
    return functions_in(tree_of(path, path_of(path, path)))


def _locate(kind: str, use: str, table: Mapping[str, Listed]) -> tuple[str, str, str]:
    """Module or file, function, and the identity of a built-in ("" for a user's)."""
    if use in table:
        module, function = table[use].path.split(":")
        return module, function, f"{use}@{table[use].version}"
    if ":" not in use:
        raise unknown(kind, use, table)
    module, function = use.rsplit(":", 1)
    if not function.isidentifier():
        raise UserError(
            f"'{use}' names no function behind its colon.",
            "Write mine.py:function or package.module:function.",
        )
    return module, function, ""


def _tuned(kind: str, use: str, found: Found, params: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword-only parameters with the given values and the defaults, checked by their
    annotations.
    """
    fields: dict[str, Any] = {}
    for arg, default in zip(found.tree.args.kwonlyargs, found.tree.args.kw_defaults, strict=True):
        try:
            annotation = annotation_of(arg.annotation, found.names)
            fields[arg.arg] = (
                annotation,
                ... if default is None else literal(default, found.names),
            )
        except Unreadable as error:
            if arg.arg in params:
                fields[arg.arg] = (Any, ...)
                continue
            raise UserError(
                (
                    f"The default of '{arg.arg}' of {kind} '{use}' cannot be read without running "
                    f"the file ({error})."
                ),
                f"Write it as a plain value, or set it: {arg.arg}=...",
            ) from error
    if foreign := [name for name in params if name not in fields]:
        raise unknown(f"parameter of {kind} '{use}'", foreign[0], fields)
    # Names of pydantic's own and ones with an underscore in front are no names of its fields: they
    # go in under aliases.
    aliases = {f"p{i}": name for i, name in enumerate(fields)}
    held = {alias: fields[name] for alias, name in aliases.items()}
    given = {alias: params[name] for alias, name in aliases.items() if name in params}
    try:
        tuned = create_model(
            "Params", __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=True), **held
        )(**given)
    except ValidationError as error:
        fault = error.errors()[0]
        name = aliases.get(str(fault["loc"][0]), str(fault["loc"][0]))
        raise UserError(f"Parameter '{name}' of {kind} '{use}': {fault['msg'].lower()}.") from error
    values = {aliases[alias]: value for alias, value in tuned.model_dump().items()}
    if endless := [
        n
        for n, v in values.items()
        if isinstance(v, float) and not math.isfinite(v) and n in params
    ]:
        raise UserError(
            f"Parameter '{endless[0]}' of {kind} '{use}' is not a finite number.",
            "Give a finite one.",
        )
    return values


def _import(module: str) -> Any:
    if not module.endswith(".py"):
        return importlib.import_module(module)
    path = Path(module).resolve()
    name = f"remnant_user_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded
