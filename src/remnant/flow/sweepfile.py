"""From a TOML file to a sweep, with settings laid over it and grids expanded. No torch."""

import itertools
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from remnant.errors import UserError
from remnant.parsing import parse
from remnant.records import SweepSpec


def read_sweep(path: Path, settings: Iterable[str] = ()) -> SweepSpec:
    """A sweep file with ``a.b=c`` settings laid over it; all faults in one message.

    Raises:
        UserError: no file, not TOML, unknown keys, wrong values, unknown methods, quantizers or metrics.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"The sweep {path} does not exist.", "See sweeps/ for examples.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}.") from error
    for setting in settings:
        override(data, setting)
    if isinstance(data.get("unlearn"), list):
        data["unlearn"] = [run for table in data["unlearn"] for run in expanded(table)]
    return parse(SweepSpec, data, str(path))


def expanded(table: Any) -> list[Any]:
    """One unlearning table as several: every combination of the lists under its ``grid``, ``{key}`` in its name filled in.

    A key of the grid may reach inside ("sure.percentile"); a name without that key gets "key value" behind it.
    """
    if not isinstance(table, dict) or not isinstance(table.get("grid"), dict):
        return [table]
    fixed = {k: v for k, v in table.items() if k != "grid"}
    lists = {k: v if isinstance(v, list) else [v] for k, v in table["grid"].items()}
    runs = []
    for values in itertools.product(*lists.values()):
        run = json.loads(json.dumps(fixed))
        name = str(fixed.get("name", ""))
        for key, value in zip(lists, values, strict=True):
            *path, last = key.split(".")
            inner = run
            for part in path:
                inner = inner.setdefault(part, {})
            inner[last] = value
            place = "{" + key + "}"
            name = name.replace(place, str(value)) if place in name else f"{name} {value if key == 'method' else f'{last} {value}'}"
        runs.append(run | {"name": name.strip()})
    return runs


def override(data: dict[str, Any], setting: str) -> None:
    """Lay one ``a.b=c`` over the data; numbers index lists, the value is TOML or a plain word."""
    place, equals, text = setting.partition("=")
    if not equals:
        raise UserError(f"'{setting}' is not a setting.", "Write --set key.inner=value.")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text
    *path, last = place.split(".")
    current: Any = data
    for part in path:
        current = _into(current, part, setting)
    if isinstance(current, list):
        _into(current, last, setting)
        current[int(last)] = value
    else:
        current[last] = value


def _into(current: Any, part: str, setting: str) -> Any:
    if isinstance(current, list):
        if not part.isdigit() or int(part) >= len(current):
            raise UserError(f"'{setting}': the list has no entry {part}.", f"It has {len(current)}, counted from 0.")
        return current[int(part)]
    if not isinstance(current, dict):
        raise UserError(f"'{setting}': {part} stands below a plain value.")
    return current.setdefault(part, {})
