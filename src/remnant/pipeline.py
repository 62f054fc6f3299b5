"""The bodies of the commands that stand in a pipeline: what is promised, and who vouches for it."""

import importlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from rich.markup import escape

from remnant import api
from remnant.durable import write_text
from remnant.errors import UserError, on_one_line, some
from remnant.flow.place import given
from remnant.flow.store import Store, disk_errors
from remnant.gate.card import card, read_card
from remnant.gate.decide import Case, audited, cases, read_summary
from remnant.gate.junit import junit
from remnant.gate.policy import ASKED_PACKED, Policy, other_corpora, read_policy
from remnant.gate.sarif import sarif
from remnant.gate.sealed import corpora, differing, outdated
from remnant.guard import known_store
from remnant.records import FULL
from remnant.report import table, terminal
from remnant.sign import keys
from remnant.sign.keys import Refused
from remnant.sign.statement import Promise, audit_named, digest_of_policy, statement
from remnant.sign.verify import verified
from remnant.verbs import NOT_GONE, exit_code

ELSEWHERE = "Name a file in a folder that is there."


def gate(
    models: tuple[str, ...],
    policy_file: Path,
    model: str | None,
    files: Mapping[str, Path | None],
    **audit: Any,
) -> int:
    """Say of every promised form whether it keeps the policy; the exit code of the gravest.

    Args:
        models: a summary, or target and unlearned model.
        policy_file: what is promised.
        model: which unlearned model of the summary.
        files: what else is written (junit, sarif, card), each where a file is named.
        audit: options of the audit that is made first, if models are given.
    """
    policy = read_policy(policy_file)
    for name, path in files.items():
        _check_place(name, path)
    read = [p / "summary.json" if p.is_dir() else p for p in map(Path, models)]
    _check_apart([policy_file, *read, *filter(None, files.values())])
    before = read_card(place) if (place := files.get("card")) else ""
    summary = read_summary(Path(models[0])) if len(models) == 1 else _made(models, policy, audit)
    store = Store(Path(audit["store_path"]))
    changed = differing(summary, store)
    named = audit["store_named"] or bool(policy.corpus)
    reason = _unlike(changed, summary, store, named=named)
    if reason := reason or other_corpora(policy, corpora(summary, store) if policy.corpus else ()):
        return _refuse(Refused(reason))
    found = audited(summary)
    decided = cases(found, policy, model)
    _tell(decided)
    if changed is None and len(models) == 1:
        print(f"Not compared with its audit, which is not in {store.root}.", file=sys.stderr)
    texts = {
        "junit": lambda: junit(decided),
        "sarif": lambda: sarif(decided, policy_file),
        "card": lambda: card(found, decided, before),
    }
    for name, path in files.items():
        if path is not None:
            with disk_errors(path, ELSEWHERE):
                write_text(path, texts[name]())
    return exit_code({case.outcome for case in decided})


def _unlike(
    changed: list[str] | None, summary: Mapping[str, Any], store: Store, *, named: bool
) -> str:
    """Why a summary does not stand for what was audited; empty where nothing shows that.

    ``named``: the store in which its audit is to be was named, or the policy names a corpus, so
    that it has to be there.
    """
    if changed is None:
        return f"The audit of the summary is not in {store.root}." if named else ""
    if changed:
        return f"The {' and '.join(changed)} of the summary are not its audit's."
    other = outdated(summary, store)
    return f"{some(other)} was changed after it was audited. Audit it again." if other else ""


def _tell(decided: Sequence[Case]) -> None:
    for case in decided:
        colour = "green" if case.passed else "red" if case.failed else "yellow"
        about = escape(on_one_line(f"{case.name}: {case.reason}"))
        told = f"[{colour}]{case.outcome:12}[/] {about}"
        terminal.console().print(told, highlight=False, soft_wrap=True)


def _check_place(name: str, path: Path | None) -> None:
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise UserError(f"--{name} cannot be written to {path}.", ELSEWHERE)


def _check_apart(paths: Sequence[Path]) -> None:
    """What is read and what is written must be files of their own."""
    places = [path.resolve() for path in paths]
    if twice := next((p for p, n in Counter(places).items() if n > 1), None):
        raise UserError(f"{twice} is named twice.", "Write to files of their own.")


def _made(models: tuple[str, ...], policy: Policy, options: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of an audit that is made now, by the policy's rule and in its forms."""
    if len(models) != 2 or not options["data"]:
        raise UserError(
            "A gate wants the summary of an audit, or two models and their corpus.",
            "Give SUMMARY, or TARGET UNLEARNED --data CORPUS.",
        )
    if packed := [form for form in policy.forms if form.endswith(ASKED_PACKED)]:
        raise UserError(
            f"Only a run asks packed files through their runtime ({', '.join(packed)}).",
            "Give the summary of one.",
        )
    store = Store(Path(options["store_path"])).open()
    corpus = given(store, options["data"], "prepare")
    named = {"target": models[0], "retrain": options["retrain"], "unlearned": models[1]}
    forms = [form for form in policy.forms if form != FULL]
    limits = policy.rule.model_dump(exclude_unset=True)
    asked = api.auditable(store, named, forms, limits, options["dequantize"])
    about = (corpus, options["data"])
    made = api.audited(store, asked[0], about, asked[1], asked[2], progress=True)
    page = importlib.import_module("remnant.report.page")  # brings the plotting library
    page.write(made.results, store, options["out"])
    return table.summary(made.results)


def sign(
    audit: str,
    policy_file: Path,
    key: Path,
    out: Path,
    deployed: tuple[Path, ...],
    **options: Any,
) -> int:
    """Sign the verdicts of an audit; the exit code is that of the gate on them.

    Args:
        audit: its summary, or its name in the store.
        policy_file: what is promised.
        key: the private key.
        out: the file of the statement.
        deployed: folders that `deploy` wrote of audited forms.
        options: store_path; model, certificate and expires, each where it was given.
    """
    policy = read_policy(policy_file)
    _check_place("out", out)
    signer, certificate = keys.private_key(key), options["certificate"]
    promise = Promise(policy, digest_of_policy(policy_file), _day(options["expires"]))
    store = known_store(options["store_path"])
    try:
        if certificate and keys.certified_key(certificate, keys.now()) != signer.public_key:
            raise Refused(f"{certificate} is not the certificate of {key}.")
        name = audit_named(store, audit)
        said, decided = statement(store, name, promise, options["model"], deployed)
    except Refused as refused:
        return _refuse(refused)
    with disk_errors(out, ELSEWHERE):
        write_text(out, keys.signed(said, signer))
    _tell(decided)
    print(f"Signed: {out}")
    return exit_code({case.outcome for case in decided})


def _day(text: str | None) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError as error:
        raise UserError(f"'{text}' is no day.", "Write --expires 2030-12-31.") from error


def _refuse(refused: Refused) -> int:
    for reason in refused.reasons:
        print(on_one_line(f"Refused: {reason}"), file=sys.stderr)
    return NOT_GONE


def verify(
    file: Path,
    models: tuple[Path, ...],
    policy_file: Path,
    key: Path | None,
    certificate: Path | None,
) -> int:
    """Whether a signed statement holds for models and a policy; the code of its verdicts if so.

    Args:
        file: the statement.
        models: folders, or files, that must be models that were signed.
        policy_file: what was promised.
        key: the public key; or
        certificate: of the key, which must hold now.
    """
    if (key is None) == (certificate is None):
        raise UserError(
            "A statement is verified by a key or by a certificate.", "Give one of both."
        )
    now = keys.now()
    try:
        trusted = (
            keys.certified_key(certificate, now) if certificate else keys.public_key(key or file)
        )
        text = file.read_bytes()
        found = verified(keys.believed(text, trusted), models, policy_file, now)
    except Refused as refused:
        return _refuse(refused)
    except OSError as error:
        raise UserError(f"{error.filename or file} cannot be read ({error.strerror}).") from error
    for row in found.outcomes:
        print(on_one_line(f"{row.outcome:12} {row.form}: {row.reason}"))
    for folder, form in found.folders.items():
        print(f"{on_one_line(str(folder))}: every file is as it was signed of '{form}'.")
    if found.absent:
        print(f"Signed, and not compared here: {', '.join(found.absent)}.")
    return exit_code({row.outcome for row in found.outcomes})
