"""From a TOML file to a sweep, with settings laid over it and grids expanded. No torch."""

import copy
import itertools
import math
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from remnant.errors import UserError
from remnant.parsing import parse
from remnant.records import SweepSpec

# A sweep file is a page or two; more runs than this take weeks of the smallest lab.
MOST_BYTES, MOST_RUNS = 10_000_000, 10_000
# Reading a dotted key takes time by the square of its parts.
MOST_PARTS = 1000


def read_sweep(path: Path, settings: Iterable[str] = ()) -> SweepSpec:
    """A sweep file with ``a.b=c`` settings laid over it; all faults in one message.

    Raises:
        UserError: no file, not TOML, unknown keys, wrong values, unknown methods, quantizers or
            metrics.
    """
    data = read_toml(path)
    for setting in settings:
        override(data, setting)
    if isinstance(data.get("unlearn"), list):
        count = sum(_combinations(table) for table in data["unlearn"])
        if count > MOST_RUNS:
            raise UserError(
                f"{path} asks for {count} unlearning runs, more than {MOST_RUNS}.",
                "Shorten the lists under grid.",
            )
        data["unlearn"] = [run for table in data["unlearn"] for run in expanded(table)]
    return parse(SweepSpec, data, str(path))


def read_toml(
    path: Path, what: str = "sweep", remedy: str = "See sweeps/ for examples."
) -> dict[str, Any]:
    """The tables of a TOML file that a user wrote, not looked at yet.

    Args:
        path: of the file.
        what: it is, for messages.
        remedy: where there is none.

    Raises:
        UserError: no file, not TOML, or too much of it.
    """
    try:
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            raise UserError(
                f"{path} is longer than {MOST_BYTES} bytes.",
                f"A {what} is short; is this one?",
            )
        text = path.read_text(encoding="utf-8")
        if any(line.partition("=")[0].count(".") > MOST_PARTS for line in text.splitlines()):
            raise UserError(
                f"{path} has a key of more than {MOST_PARTS} parts.", "No setting lies so deep."
            )
        return tomllib.loads(text)
    except FileNotFoundError as error:
        raise UserError(f"The {what} {path} does not exist.", remedy) from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply.") from error
    except ValueError as error:
        raise UserError(f"{str(path)!a} is not TOML: {error}.") from error
    except OSError as error:
        raise UserError(
            f"The {what} {path} cannot be read ({error.strerror or error}).", "Name a TOML file."
        ) from error


def _combinations(table: Any) -> int:
    """How many runs one unlearning table stands for."""
    grid = table.get("grid") if isinstance(table, dict) else None
    return (
        math.prod(len(v) if isinstance(v, list) else 1 for v in grid.values())
        if isinstance(grid, dict)
        else 1
    )


def expanded(table: Any) -> list[Any]:
    """One unlearning table as several: every combination of the lists under its ``grid``, ``{key}``
    in its name filled in.

    A key of the grid may reach inside ("sure.percentile"); a name without that key gets "key value"
    behind it. Nothing has been looked at yet: ``read_sweep`` makes a spec of it.
    """
    if not isinstance(table, dict) or not isinstance(table.get("grid"), dict):
        return [table]
    fixed = {k: v for k, v in table.items() if k != "grid"}
    lists = {k: v if isinstance(v, list) else [v] for k, v in table["grid"].items()}
    if empty := next((k for k, v in lists.items() if not v), None):
        raise UserError(
            f"The list of '{empty}' under grid is empty, so there is no run.", "Put values into it."
        )
    runs = []
    for values in itertools.product(*lists.values()):
        run = copy.deepcopy(fixed)
        name = str(fixed.get("name", ""))
        for key, value in zip(lists, values, strict=True):
            *path, last = key.split(".")
            inner = run
            for part in path:
                inner = inner.setdefault(part, {}) if isinstance(inner, dict) else None
            if not isinstance(inner, dict):
                raise UserError(
                    f"The grid's '{key}' stands below a plain value.", "Name a key of a table."
                )
            inner[last] = value
            place = "{" + key + "}"
            name = (
                name.replace(place, str(value))
                if place in name
                else f"{name} {value if key == 'method' else f'{last} {value}'}"
            )
        runs.append(run | {"name": name.strip()})
    return runs


def override(data: dict[str, Any], setting: str) -> None:
    """Lay one ``a.b=c`` over the data; numbers index lists, the value is TOML or a plain word."""
    place, equals, text = setting.partition("=")
    if not equals:
        raise UserError(f"'{setting}' is not a setting.", "Write --set key.inner=value.")
    if not setting.isprintable():
        raise UserError(
            f"{setting[:80]!a} is not a setting.", "It holds control characters or broken letters."
        )
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except RecursionError as error:
        raise UserError(f"'{place}' is nested too deeply.") from error
    except ValueError:
        value = text
    *path, last = place.split(".")
    current: Any = data
    for part in path:
        current = _into(current, part, setting)
    if isinstance(current, list):
        _into(current, last, setting)
        current[int(last)] = value
    elif isinstance(current, dict):
        current[last] = value
    else:
        raise UserError(f"'{setting}': {last} stands below a plain value.")


def _into(current: Any, part: str, setting: str) -> Any:
    if isinstance(current, list):
        if not (part.isascii() and part.isdigit() and len(part) < 10) or int(part) >= len(current):
            raise UserError(
                f"'{setting}': the list has no entry {part}.",
                f"It has {len(current)}, counted from 0.",
            )
        return current[int(part)]
    if not isinstance(current, dict):
        raise UserError(f"'{setting}': {part} stands below a plain value.")
    return current.setdefault(part, {})
