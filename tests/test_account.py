"""The report's part for who reads no code, its tree of models, and the order in
which a sweep's models stand."""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest

from remnant.catalog import STAGE_VERSIONS
from remnant.durable import digest_of
from remnant.flow.store import Store
from remnant.metrics import Kind
from remnant.records import Check, Evidence, Manifest, Record, Rule, Stage, Variant
from remnant.report import account, page
from remnant.report.descent import descent
from remnant.report.front import WORST
from remnant.report.league import league
from remnant.report.table import Results
from remnant.stages.evidence import ANSWERS
from tests.test_report import FORMS, results

# Stands in every file that a run keeps of the text that was to be forgotten.
MARKER = "Zubrovka the lighthouse keeper"
COUNTS = {
    "raw/forget": 12, "raw/retain1": 20, "raw/retain2": 10, "raw/holdout": 7,
    "verbmem/forget": 12, "knowmem/forget_qa": 5, "privleak/forget": 12,
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").open()


def sealed(
    store: Store,
    stage: Stage,
    inputs: Mapping[str, str],
    files: Mapping[str, str],
    **more: Any,
) -> str:
    """An artefact of the store, made by hand; its name."""
    digest = digest_of([stage, dict(inputs), str(sorted(files)), str(more)])
    said: dict[str, Any] = {
        "spec": {}, "summary": {}, "sources": {}, "methods": {}, "files": {}, "seconds": 2.0,
        "created": time.strftime("%Y-%m-%d"), "command": "remnant audit", "packages": {},
        "commit": None, "dirty": None, "device": "", "peak_memory_mb": 0.0,
    }  # fmt: skip
    manifest = Manifest(
        key=digest[:16], digest=digest, stage=stage, stage_version=STAGE_VERSIONS[stage],
        inputs=dict(inputs), **(said | more),
    )  # fmt: skip
    name = f"{stage}-{manifest.key}"
    for place, text in files.items():
        path = store.scratch(name) / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    store.scratch(name).mkdir(parents=True, exist_ok=True)
    store.seal(name, manifest)
    return name


def listed(rows: list[Any]) -> str:
    return json.dumps([row.model_dump(mode="json") for row in rows if isinstance(row, Record)])


def audited(store: Store) -> Results:
    """The made-up results of a run, with artefacts behind them: one corpus, three models that were
    made here and one from outside, measured in full precision and one form."""
    base = results()
    corpus = sealed(
        store, "prepare", {"forget-0": "/mine/letters.txt (0123456789abcdef)"},
        {"raw/forget.json": json.dumps([MARKER])},
        sources={"forget-0": "ab" * 32, "retain-0": "cd" * 32}, summary={"counts": COUNTS},
    )  # fmt: skip
    weights = {"model.safetensors": "weights"}
    target = sealed(store, "train", {"corpus": corpus}, weights, spec={"seed": 1})
    unread = sealed(store, "train", {"corpus": corpus}, weights, spec={"seed": 2})
    given = {"target": target, "corpus": corpus}
    unlearned = sealed(store, "unlearn", given, weights, spec={"method": "npo"})
    models = {
        "target": target, "retrain": unread, "ga_gdr": unlearned,
        "npo_klr with a long name": "/mine/theirs (fedcba9876543210)",
    }  # fmt: skip
    manifests, labels = {}, {}
    for model, source in models.items():
        for form in ("full", "int4"):
            about = Variant(
                corpus="news", model=model, seed=0, steps=() if form == "full" else (form,)
            )
            copy = source
            if form != "full" and store.has(source):
                copy = sealed(store, "transform", {"model": source}, {}, spec={"use": "rtn"})
            check = Check(name="texts", ok=True, said="fine").model_dump(mode="json")
            written = {"metric": "verbmem", "id": "1", "prompt": MARKER, "truth": MARKER}
            name = sealed(
                store, "measure", {"model": copy, "corpus": corpus},
                {
                    "texts.jsonl": json.dumps(written | {"generated": MARKER}),
                    "rows.jsonl": json.dumps({"metric": "verbmem", "id": "1", "value": 0.9}),
                },
                spec={"of": f"{model}/{form}"}, summary={"checks": [check]},
            )  # fmt: skip
            manifests[name], labels[name] = store.manifest(name), about
    return dataclasses.replace(base, manifests=manifests, labels=labels)


def test_what_was_deleted_is_told_by_counts_and_digests(store: Store) -> None:
    (text,) = account.texts(audited(store), store)
    assert dict(text.counts) == {
        "texts to be forgotten": 12,
        "passages of them that are asked for": 12,
        "questions about them": 5,
        "texts to be kept": 30,
        "texts of the same kind that were never read": 7,
    }
    assert text.given == (("letters.txt", "ab" * 32),)
    made = next(m for m in store.manifests().values() if m.stage == "prepare")
    assert text.prepared == made.files["raw/forget.json"].sha256


def test_a_corpus_or_model_from_outside_is_known_by_its_digest(store: Store) -> None:
    found = audited(store)
    theirs = next(m for m in account.audited(found, store) if m.model.startswith("npo_klr"))
    assert theirs.files == (("theirs", "fedcba9876543210"),)
    elsewhere = Store(store.root / "empty")
    (text,) = account.texts(found, elsewhere)
    assert text.counts == ()
    assert text.prepared == ""


def test_every_model_is_named_with_the_files_of_its_weights(store: Store) -> None:
    told = account.audited(audited(store), store)
    assert [m.model.partition(":")[0] for m in told] == [
        "ga_gdr", "npo_klr with a long name", "target", "retrain",
    ]  # fmt: skip
    made = next(m for m in store.manifests().values() if m.stage == "unlearn")
    assert told[0].files == (("model.safetensors", made.files["model.safetensors"].sha256),)
    assert told[0].how.startswith("unlearn npo, finished ")


def test_every_word_and_kind_of_test_has_plain_words() -> None:
    assert set(account.WORDS) == set(WORST)
    assert {*get_args(Kind), ANSWERS} < set(account.KINDS)
    said = {word: count for word, _, count in account.words(results())}
    assert said["came back"] == 2
    assert said["gone"] == 10
    assert said["hidden"] == 0


def test_tests_are_counted_by_kind_and_those_that_were_not_made_do_not_count() -> None:
    (group,) = results().groups
    plain = {"model": "ga_gdr", "test": "leak", "left": None, "said": "", "kind": "samples"}
    every = ("tells", "tells", "silent", "not measured", "lost", "no power")
    evidence = [Evidence.model_validate(plain | {"says": says}) for says in every]
    found = account.kinds([dataclasses.replace(group, evidence=evidence)])
    assert [(k.name, k.made, k.found) for k in found] == [("plain asking", 0, 0), ("samples", 4, 2)]


def test_what_is_not_claimed_depends_on_what_was_seen_and_tried() -> None:
    base = results()
    usual = " ".join(account.not_claimed(base))
    assert "than its limit" in usual
    assert "%" not in usual.replace("95 %", "")  # the limits are said once, by the rule
    assert "that was not tried" in usual
    assert "only its words were seen" not in usual
    by_text = base.sweep.model_copy(update={"rule": Rule(access="text")})
    told = " ".join(account.not_claimed(dataclasses.replace(base, sweep=by_text)))
    assert "only its words were seen" in told
    (group,) = base.groups
    verdicts = [v.model_copy(update={"steps": ("relearn64-forget10",)}) for v in group.verdicts]
    tried = dataclasses.replace(base, groups=[dataclasses.replace(group, verdicts=verdicts)])
    assert "that was not tried" not in " ".join(account.not_claimed(tried))
    asked = {"model": "ga_gdr", "test": "curve", "kind": "relearning", "left": None, "said": ""}
    for says, untried in (("silent", False), ("not measured", True)):
        evidence = [Evidence.model_validate(asked | {"says": says})]
        also = dataclasses.replace(base, groups=[dataclasses.replace(group, evidence=evidence)])
        assert ("that was not tried" in " ".join(account.not_claimed(also))) is untried


def test_how_it_was_checked_says_whether_there_was_a_never_read_model(store: Store) -> None:
    told = " ".join(account.checked(audited(store)))
    assert "in full precision and as int8, int4, nf4, gptq4, awq4" in told
    assert "with one that never read the text" in told
    assert "checked 8 times: all passed" in told
    base = results()
    (group,) = base.groups
    alone = [c for c in group.cells if c.model != "retrain"]
    bare = dataclasses.replace(base, groups=[dataclasses.replace(group, cells=alone)])
    told = " ".join(account.checked(bare))
    assert "counted from nothing" in told
    assert "so nothing can pass" in told


def test_the_tree_follows_the_manifests_back_to_the_first_model(store: Store) -> None:
    found = descent(audited(store), store)
    by_name = {m.name.partition(" (")[0]: m for m in found}
    parents = {
        name: (m.parent or "").partition(" (")[0] for name, m in by_name.items()
    }  # fmt: skip
    assert parents == {
        "news target full": "",
        "news target int4": "news target full",
        "news retrain full": "",
        "news retrain int4": "news retrain full",
        "news ga_gdr full": "news target full",
        "news ga_gdr int4": "news ga_gdr full",
        "news npo_klr with a long name full": "",
    }
    assert by_name["news ga_gdr int4"].verdict == "came back"
    assert by_name["news ga_gdr int4"].knowing == "is one"
    assert by_name["news ga_gdr full"].knowing == "gone"
    assert by_name["news target full"].knowing == "is one"
    assert by_name["news retrain full"].knowing == "no"


def test_a_league_begins_with_the_best(store: Store) -> None:
    (group,) = results().groups
    (first, second) = league([group])
    assert {first.worst, second.worst} == {"came back"}
    assert first.most is not None
    assert second.most is not None
    assert first.most.left <= second.most.left
    own = [group.cell("ga_gdr", form, "knowmem_retain") for form in FORMS]
    target = [group.cell("target", form, "knowmem_retain") for form in FORMS]
    shares = [
        a.value / b.value
        for a, b in zip(own, target, strict=True)
        if a and b and a.value and b.value
    ]
    by_name = {one.model: one for one in (first, second)}
    assert by_name["ga_gdr"].utility == pytest.approx(min(shares))
    good = [
        v.model_copy(update={"outcome": "gone"}) if v.model == second.model else v
        for v in group.verdicts
    ]
    assert league([dataclasses.replace(group, verdicts=good)])[0].model == second.model
    assert league([dataclasses.replace(group, verdicts=[])]) == []


def test_no_forget_text_is_on_the_page_unless_it_is_asked_for(store: Store, tmp_path: Path) -> None:
    found = audited(store)
    plain = page.write(found, store, tmp_path / "plain").read_text()
    assert MARKER not in plain
    assert MARKER not in (tmp_path / "plain" / "summary.json").read_text()
    for told in ('id="account"', 'id="engineer"', "What is not claimed", "letters.txt", "ab" * 32):
        assert told in plain
    assert "/mine" not in plain.replace("npo_klr", "")
    asked = page.write(found, store, tmp_path / "asked", examples=True).read_text()
    assert MARKER in asked
