"""An audit in the store -> a statement of in-toto over the very files that were audited. No torch.

Everything is read from sealed records of the store, whose files are compared with them; nothing
from a summary. Texts are named by their digests, never given. Source of the form: in-toto
attestation framework, Statement v1.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import JsonValue, ValidationError

from remnant import __version__
from remnant.catalog import STAGE_VERSIONS
from remnant.errors import UserError, some
from remnant.flow.copies import Copy
from remnant.flow.digests import digest_of_files
from remnant.flow.place import origin_of
from remnant.flow.run import whole
from remnant.flow.store import Store
from remnant.flow.unread import unread
from remnant.gate.decide import Audited, Case, cases
from remnant.gate.policy import Policy, other_corpora
from remnant.records import (
    AuditSpec,
    Cell,
    Evidence,
    Manifest,
    MeasureResult,
    Record,
    Variant,
    Verdict,
)
from remnant.remotecode import settings_of
from remnant.sign.files import NO_FILE, Files, differences, files_of
from remnant.sign.keys import Refused

STATEMENT, PREDICATE = "https://in-toto.io/Statement/v1", "urn:remnant:verdict:1"
DEPLOYED = "deployed"
Row = TypeVar("Row", bound=Record)


class Promise(NamedTuple):
    """A policy as it was read, the sha256 of its file, and until when a statement on it counts."""

    policy: Policy
    sha256: str
    expires: date | None = None


class Measured(NamedTuple):
    """One measurement of an audit, and whose it is."""

    about: Variant
    manifest: Manifest


def digest_of_policy(path: Path) -> str:
    """sha256 of a policy's file, byte by byte."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def audit_named(store: Store, reference: str) -> str:
    """The audit of the store that a summary names, or the start of an audit's name.

    Raises:
        UserError: there is none, or several.
    """
    path = Path(reference)
    file = path / "summary.json" if path.is_dir() else path
    if not file.is_file():
        names = store.matching(reference, "audit")
    else:
        try:
            names = list(map(str, json.loads(file.read_text(encoding="utf-8"))["audits"]))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(f"{file} names no audit.", "Audit again.") from error
    if len(names) != 1:
        raise UserError(
            f"'{reference}' stands for {len(names)} audits{': ' if names else ''}"
            f"{', '.join(names)}.",
            "Name one; see them with: remnant ls",
        )
    if not store.has(names[0]):
        raise UserError(f"{names[0]} is not in {store.root}.", "Name its store with --store.")
    return names[0]


def statement(
    store: Store, name: str, promise: Promise, model: str | None, deployed: Sequence[Path]
) -> tuple[dict[str, JsonValue], list[Case]]:
    """The statement on one audit, and what it says of every form.

    Args:
        store: where the audit and all that it rests on lie.
        name: of the audit.
        promise: the policy.
        model: which unlearned model, where the audit has several.
        deployed: folders that `deploy` wrote of audited forms.

    Raises:
        UserError: something of the audit is missing or damaged, or its rule is weaker.
        Refused: a model was changed after it was audited, or was never audited; or another version
            has audited it, or about another corpus than the policy's.
    """
    manifest = store.checked(name)
    spec = AuditSpec.model_validate(manifest.spec)
    measured = [
        Measured(about, store.checked(manifest.inputs[role]))
        for role, about in spec.members.items()
    ]
    _check_versions([manifest, *(m.manifest for m in measured)])
    found = _found(store.path(name), spec)
    decided = cases(found, promise.policy, model)
    own = [m for m in measured if m.about.model == decided[0].model]
    if other := other_corpora(promise.policy, {m.manifest.sources["corpus"] for m in own}):
        raise Refused(other)
    models = {m.about.form: _files(store, m) for m in own}
    for folder in deployed:
        form, files = _deployed(store, folder, own)
        models[f"{form} {DEPLOYED}"] = files
    subject: list[JsonValue] = []
    for place, files in models.items():
        subject += [{"name": f"{place}/{n}", "digest": {"sha256": d}} for n, d in files.items()]
    predicate: dict[str, JsonValue] = {
        "policy": {"sha256": promise.sha256, "content": promise.policy.model_dump(mode="json")},
        "expires": promise.expires.isoformat() if promise.expires else None,
        "outcomes": [
            {"form": c.form, "seed": c.seed, "outcome": c.outcome, "reason": c.reason}
            for c in decided
        ],
        "rule": spec.rule.told(),
        "checks": [check for m in measured for check in _checks(m)],
        "corpora": _corpora(store, own),
        "references": {
            m.about.model: m.manifest.sources["model"]
            for m in measured
            if m.about.is_reference and m.about.in_full and "model" in m.manifest.sources
        },
        "audit": {"digest": manifest.digest, "seal": manifest.seal, "made": manifest.created},
        "versions": {
            "remnant": __version__,
            "commit": manifest.commit,
            "stages": dict(STAGE_VERSIONS),
            "packages": dict(own[0].manifest.packages),
        },
    }
    whole: dict[str, JsonValue] = {
        "_type": STATEMENT,
        "subject": subject,
        "predicateType": PREDICATE,
        "predicate": predicate,
    }
    return whole, decided


def _check_versions(made: Sequence[Manifest]) -> None:
    """What another version found may be no finding of this one, whose versions would be signed."""
    old = {m.stage: m.stage_version for m in made if m.stage_version != STAGE_VERSIONS[m.stage]}
    if old:
        said = ", ".join(f"{s} {v}, now {STAGE_VERSIONS[s]}" for s, v in old.items())
        raise Refused(f"The audit was made by another version of Remnant ({said}). Audit again.")


def _found(folder: Path, spec: AuditSpec) -> Audited:
    return Audited(
        spec.rule,
        _rows(Verdict, folder / "verdicts.json"),
        _rows(Evidence, folder / "evidence.json"),
        _rows(Cell, folder / "cells.json"),
    )


def _rows(kind: type[Row], path: Path) -> list[Row]:
    return [kind.model_validate(row) for row in json.loads(path.read_text(encoding="utf-8"))]


def _files(store: Store, measured: Measured) -> Files:
    """The files of a measured model, which must still be what was measured."""
    about, manifest = measured
    source, digest = manifest.inputs.get("model"), manifest.sources.get("model")
    if source is None or digest is None:
        raise UserError(
            f"{about.words} was asked behind a server, whose files nobody sees.",
            "Audit the files themselves.",
        )
    if store.has(source) and (wrong := store.faults(source)):
        place = store.path(source)
        raise Refused(f"{place} was changed after it was audited ({some(wrong)}). Audit it again.")
    if store.has(source) or store.path(source).is_dir():
        made = whole(store, source, lambda done, total, note: None, Copy.KEPT)
        return {name: file.sha256 for name, file in made.files.items()}
    path = Path(origin_of(source))
    if not path.exists():
        raise UserError(
            f"The model {path}, which was audited, is not there.",
            "Bring it back; a model of the hub is downloaded and audited by its folder.",
        )
    files = files_of(path)
    if links := [name for name, own in files.items() if own == NO_FILE]:
        raise Refused(
            f"In {path} what others could exchange is {NO_FILE}: {some(links)}. Put the files "
            "themselves in its place, and audit it again."
        )
    # Of the very digests that are signed: nothing can be exchanged between the two.
    if digest_of_files(files if path.is_dir() else {".": files[path.name]}) != digest:
        raise Refused(f"The model {path} was changed after it was audited. Audit it again.")
    if other := unread(path, files):
        raise Refused(
            f"{path} holds weights that were not audited, and that another runtime may open: "
            f"{some(other)}. Take them out, and audit it again."
        )
    if settings_of(str(path)).get("auto_map") and "model" not in manifest.remote_code:
        raise Refused(
            f"{path} brings code of its own, which the audit did not run and another runtime may. "
            "Take auto_map out of config.json, and audit it again."
        )
    return files


def _deployed(store: Store, folder: Path, own: Sequence[Measured]) -> tuple[str, Files]:
    """Of which audited form a folder was deployed, and its files."""
    try:
        record = Manifest.model_validate_json((folder / "remnant.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(
            f"{folder} has no record of remnant deploy (remnant.json).",
            "Name a folder that it wrote.",
        ) from error
    if record.stage != "deploy":
        raise UserError(
            f"{folder} was made by remnant {record.stage}, and not by remnant deploy.",
            "Name a folder that deploy wrote.",
        )
    made = store.checked(f"deploy-{record.key}")
    files = {name: file.sha256 for name, file in made.files.items()}
    if wrong := differences(files_of(folder), files):
        raise Refused(f"{folder} is not as it was deployed: {'; '.join(wrong)}.")
    copies = (made.digest, made.sources.get("dense"))
    for about, manifest in own:
        if manifest.sources.get("model") in copies:
            return about.form, files
    raise Refused(f"{folder} was deployed of a model or in a form that was not audited.")


def _checks(measured: Measured) -> list[JsonValue]:
    """The checks of the instrument by name; their sentences stay, as they may name texts."""
    about = {"model": measured.about.model, "form": measured.about.form}
    made = measured.manifest.of(MeasureResult).checks
    return [{**about, "check": c.name, "ok": c.ok} for c in made]


def _corpora(store: Store, own: Sequence[Measured]) -> dict[str, JsonValue]:
    """The prepared corpus, and what it was made of, by digests."""
    manifest = own[0].manifest
    found: dict[str, JsonValue] = {"prepared": manifest.sources["corpus"]}
    name = manifest.inputs["corpus"]
    sources: Mapping[str, Any] = store.checked(name).sources if store.has(name) else {}
    return found | {f"source {role}": digest for role, digest in sources.items()}
