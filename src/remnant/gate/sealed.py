"""Whether a summary says what its audits say, where their sealed records are at hand. No torch."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from remnant.errors import UserError
from remnant.flow.digests import digest_path
from remnant.flow.place import origin_of
from remnant.flow.store import Store
from remnant.records import AuditSpec, Manifest, Variant

# What a gate reads of a summary, row by row; the cells of other tools may stand beside.
ROWS = ("verdicts", "evidence", "cells")


def differing(summary: Mapping[str, Any], store: Store) -> list[str] | None:
    """In which parts a summary is not what its audits say; None where one of them is not there.

    Raises:
        UserError: an audit's record is damaged.
    """
    names = summary.get("audits")
    if not isinstance(names, list) or not names or not all(map(_is_audit, names)):
        return None
    if not all(store.path(name).is_dir() for name in names):
        return None
    found = []
    specs = [AuditSpec.model_validate(store.checked(name).spec) for name in names]
    if any(spec.rule.told() != summary.get("rule") for spec in specs):
        found.append("rule")
    sealed = {part: _sealed(store, names, part) for part in ROWS}
    judged = set(map(_place, sealed["verdicts"]))
    for part, rows in sealed.items():
        own = [_bare(row) for row in _listed(summary.get(part)) if isinstance(row, dict)]
        if _told(part, own, judged) != _told(part, rows, judged):
            found.append(part)
    return found


def outdated(summary: Mapping[str, Any], store: Store) -> list[str]:
    """Judged models, and what they were made of, that still lie where they were audited, and are
    not what was audited.

    Args:
        summary: of audits that lie in the store.
        store: which holds them; measurements that are gone from it tell nothing.

    Raises:
        UserError: a record is damaged.
    """
    found: dict[str, None] = {}
    for made in filter(None, _judged(summary, store)):
        for path, changed in _behind(made, store):
            if changed:
                found[str(path)] = None
    return list(found)


def _behind(made: Manifest, store: Store) -> Iterator[tuple[Path, bool]]:
    """Where the model of a piece lies, and the models that it was made of, as far as they are
    there; each with whether it was changed.
    """
    while store.has(source := made.inputs.get("model", "")):
        yield store.path(source), bool(store.faults(source))
        made = store.manifest(source)
    path = Path(origin_of(source) or os.devnull)
    if path.is_file() or path.is_dir():
        yield path, digest_path(path) != made.sources["model"]


def corpora(summary: Mapping[str, Any], store: Store) -> set[str]:
    """The digests of the corpora that a summary's judged models were asked about; "" among them
    where a measurement is gone from the store.
    """
    return {made.sources["corpus"] if made else "" for made in _judged(summary, store)}


def _judged(summary: Mapping[str, Any], store: Store) -> Iterator[Manifest | None]:
    """The measurements of the judged models of audits in the store; None of one that is gone."""
    for name in summary["audits"]:
        manifest = store.checked(name)
        for role, member in AuditSpec.model_validate(manifest.spec).members.items():
            if not member.is_reference:
                measured = manifest.inputs[role]
                yield store.manifest(measured) if store.has(measured) else None


def _told(part: str, rows: list[dict[str, Any]], judged: set[str]) -> list[str]:
    """Rows in an order of their own; of cells those of the models that are judged."""
    return sorted(_text(row) for row in rows if part != "cells" or _place(row) in judged)


def _is_audit(name: object) -> bool:
    return isinstance(name, str) and name.startswith("audit-") and name == Path(name).name


def _listed(rows: object) -> list[object]:
    return rows if isinstance(rows, list) else []


def _sealed(store: Store, names: list[str], part: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name in names:
        path = store.path(name) / f"{part}.json"
        try:
            rows += json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read.", "Audit again.") from error
    return rows


def _bare(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a summary without what its steps say already."""
    return {name: value for name, value in row.items() if name != "form"}


def _place(row: Mapping[str, Any]) -> str:
    return _text([row.get(name) for name in Variant.model_fields])


def _text(row: object) -> str:
    return json.dumps(row, sort_keys=True)
