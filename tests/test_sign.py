"""A signed verdict holds for the files that were audited, by its policy, until it ends, and for
nothing else."""

import base64
import importlib
import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner, Result
from transformers import PreTrainedTokenizerBase

import remnant
from remnant.catalog import STAGE_VERSIONS
from remnant.cli import main
from remnant.errors import UserError
from remnant.flow.digests import digest_path
from remnant.flow.store import Store
from remnant.gate.decide import Audited
from remnant.model.load import save_model
from remnant.records import AuditSpec, Evidence, Outcome, Stage, Verdict
from remnant.sign import keys, statement
from remnant.sign.files import NO_FILE, differences, files_of, nearest
from remnant.testing import tiny_model

pytest.importorskip("securesystemslib")
pytest.importorskip("cryptography")
pytest.importorskip("bitsandbytes")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519

PEM = serialization.Encoding.PEM
FORM = "bnb-nf4"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def write_key(path: Path, key: Any, password: bytes = b"") -> Path:
    """A private key as PATH and its public one as PATH.pub."""
    how: Any = serialization.NoEncryption()
    if password:
        how = serialization.BestAvailableEncryption(password)
    path.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, how))
    public = key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)
    return path


def write_certificate(path: Path, key: Any, begins: int, ends: int) -> Path:
    """Of a key by itself; it begins and ends so many days from now."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "auditor")])
    today = datetime.now(UTC)
    made = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(),
        today + timedelta(begins), today + timedelta(ends),
    ).sign(key, hashes.SHA256())  # fmt: skip
    path.write_bytes(made.public_bytes(PEM))
    return path


class Ground(NamedTuple):
    """An audit in a store, and the folders of its models."""

    store: Path
    summary: Path
    target: Path
    unlearned: Path
    deployed: Path


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, corpus: Path, tokenizer: PreTrainedTokenizerBase
) -> Ground:
    root = tmp_path_factory.mktemp("made")
    folders = {}
    for seed, name in enumerate(("target", "unlearned")):
        model = tiny_model("llama", vocab=len(tokenizer), max_position_embeddings=1024, seed=seed)
        folders[name] = root / name
        save_model(model, tokenizer, root / name)
    store = root / "runs"
    found = remnant.audit(
        folders["target"], folders["unlearned"], corpus, forms=(FORM,), store=store
    )
    found.report(root / "audit")
    done = call("deploy", folders["unlearned"], "--as", FORM, "-o", root / "out", "--store", store)
    assert done.exit_code == 0, done.output
    return Ground(store, root / "audit", folders["target"], folders["unlearned"], root / "out")


@pytest.fixture
def place(tmp_path: Path, made: Ground) -> Path:
    """A folder with a policy, a key, and copies of the models that may be spoilt."""
    (tmp_path / "policy.toml").write_text(f'forms = ["full", "{FORM}"]\n')
    write_key(tmp_path / "key.pem", ed25519.Ed25519PrivateKey.generate())
    shutil.copytree(made.unlearned, tmp_path / "model")
    shutil.copytree(made.deployed, tmp_path / "deployed")
    return tmp_path


def all_gone(outcome: Outcome = "gone") -> Callable[[Path, AuditSpec], Audited]:
    """What an audit finds of a model in which the text is gone: the models of these tests are too
    small to be one."""

    def found(folder: Path, spec: AuditSpec) -> Audited:
        own = [dict(v) for v in spec.members.values() if not v.is_reference]
        kinds = ("given beginning", "samples", "probability per token", "membership", "answers")
        evidence = [
            Evidence(**about, kind=kind, test=kind, says="silent", left=None, said="silent")
            for about in own
            for kind in kinds
        ]
        verdicts = [Verdict(**about, outcome=outcome, reason="planted") for about in own]
        return Audited(spec.rule, verdicts, evidence, [])

    return found


def sign(made: Ground, place: Path, *more: object) -> Result:
    return call(
        "sign", made.summary, "--policy", place / "policy.toml", "--key", place / "key.pem",
        "--deployed", made.deployed, "-o", place / "verdict.json", "--store", made.store, *more,
    )  # fmt: skip


@pytest.fixture
def signed(made: Ground, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder with a signed verdict that the text is gone."""
    monkeypatch.setattr(statement, "_found", all_gone())
    done = sign(made, place, "--expires", "2999-12-31")
    assert done.exit_code == 0, done.output
    return place


def verify(place: Path, *models: object, by: tuple[object, ...] = ()) -> Result:
    trusted = by or ("--key", place / "key.pub")
    named = models or (place / "model", place / "deployed")
    policy = place / "policy.toml"
    return call("verify", place / "verdict.json", *named, "--policy", policy, *trusted)


def payload_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.b64decode(json.loads(path.read_text())["payload"]))
    return found


def envelope(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "verdict.json").read_text())
    return found


def refused(result: Result, *parts: str) -> None:
    assert result.exit_code == 3, result.output
    assert "Refused: " in result.output
    for part in parts:
        assert part in result.output, result.output


def test_a_signed_verdict_holds_for_every_file_that_was_audited(signed: Path, made: Ground) -> None:
    done = verify(signed)
    assert done.exit_code == 0, done.output
    assert "as it was signed of 'full'" in done.output
    assert f"as it was signed of '{FORM} deployed'" in done.output
    assert f"not compared here: {FORM}" in done.output
    said = payload_of(signed / "verdict.json")
    named = {entry["name"]: entry["digest"]["sha256"] for entry in said["subject"]}
    for path in sorted(made.unlearned.iterdir()):
        assert named[f"full/{path.name}"] == files_of(path)[path.name]
    for path in sorted(made.deployed.iterdir()):
        if path.name != "remnant.json":
            assert named[f"{FORM} deployed/{path.name}"] == files_of(path)[path.name]


def test_the_signature_is_one_over_the_encoding_that_dsse_defines(signed: Path) -> None:
    """By hand, from the protocol's own words: lengths in decimal, one space between the parts."""
    whole = envelope(signed)
    kind, payload = whole["payloadType"].encode(), base64.b64decode(whole["payload"])
    encoded = b" ".join(
        [b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload]
    )
    public = serialization.load_pem_public_key((signed / "key.pub").read_bytes())
    assert isinstance(public, ed25519.Ed25519PublicKey)
    public.verify(base64.b64decode(whole["signatures"][0]["sig"]), encoded)


def test_the_dense_copy_that_was_audited_is_signed_too(signed: Path, made: Ground) -> None:
    measured = [m for m in Store(made.store).manifests().values() if m.stage == "measure"]
    copies = {m.inputs["model"] for m in measured if m.inputs["model"].startswith("transform-")}
    assert len(copies) == 2
    codes = [verify(signed, made.store / "objects" / copy).exit_code for copy in sorted(copies)]
    assert sorted(codes) == [0, 3]  # the unlearned one's, and the target's


def test_what_is_signed_says_how_it_was_found_and_holds_no_text(signed: Path, corpus: Path) -> None:
    said = payload_of(signed / "verdict.json")
    assert said["_type"] == "https://in-toto.io/Statement/v1"
    predicate = said["predicate"]
    assert [row["outcome"] for row in predicate["outcomes"]] == ["gone", "gone"]
    assert predicate["rule"]["max_told"] == 0.2
    assert predicate["policy"]["content"]["forms"] == ["full", FORM]
    assert {c["check"] for c in predicate["checks"]} >= {"logits", "texts"}
    assert len(predicate["corpora"]["prepared"]) == 64
    assert set(predicate["references"]) == {"target"}
    assert predicate["versions"]["packages"]["torch"]
    words = json.dumps(said)
    for path in (corpus / "raw").glob("*.json"):
        for text in json.loads(path.read_text()):
            shown = text if isinstance(text, str) else json.dumps(text)
            assert shown[:40] not in words
    assert str(corpus) not in words


@pytest.mark.parametrize(("outcome", "code"), [("known", 3), ("unclear", 4)])
def test_a_verdict_that_is_no_pass_is_signed_and_never_passes(
    made: Ground, place: Path, monkeypatch: pytest.MonkeyPatch, outcome: Outcome, code: int
) -> None:
    monkeypatch.setattr(statement, "_found", all_gone(outcome))
    assert sign(made, place).exit_code == code
    assert verify(place).exit_code == code
    assert outcome in verify(place).output


def test_the_verdict_of_the_audit_itself_is_signed(made: Ground, place: Path) -> None:
    done = sign(made, place)
    told = {
        row["form"]: row["outcome"]
        for row in payload_of(place / "verdict.json")["predicate"]["outcomes"]
    }
    summary = json.loads((made.summary / "summary.json").read_text())
    assert told == {v["form"]: v["outcome"] for v in summary["verdicts"]}
    assert verify(place).exit_code == done.exit_code != 0


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_changed_byte_in_any_file_is_refused(signed: Path) -> None:
    for name in ("model", "deployed"):
        for path in sorted((signed / name).iterdir()):
            if path.name != "remnant.json":
                flip(path)
                refused(verify(signed, signed / name), f"{path.name} was changed")
                flip(path)
    assert verify(signed).exit_code == 0


def test_a_missing_and_an_added_file_are_refused_and_all_is_said_at_once(signed: Path) -> None:
    (signed / "model" / "config.json").unlink()
    (signed / "model" / "modeling.py").write_text("import os")
    (signed / "model" / "link").symlink_to(signed)
    (signed / "model" / "README.md").write_text("A card may be put beside a model.")
    (signed / "policy.toml").write_text('forms = ["full"]')
    wrong = verify(signed)
    refused(wrong, "config.json is missing", "modeling.py was added", "link was added")
    refused(wrong, f"forms is ['full'] and was ['full', '{FORM}']")
    assert "README" not in wrong.output


def test_a_form_that_is_not_promised_is_refused_though_it_was_audited(
    signed: Path, made: Ground
) -> None:
    (signed / "policy.toml").write_text(f'forms = ["{FORM}"]\n')
    assert sign(made, signed).exit_code == 0
    assert verify(signed, signed / "deployed").exit_code == 0
    refused(verify(signed, signed / "model"), "nearest to 'full', of which nothing is promised")


def test_another_model_is_refused(signed: Path, made: Ground) -> None:
    refused(verify(signed, made.target), "no model that was signed", "model.safetensors")


def test_a_changed_statement_is_refused(signed: Path) -> None:
    whole = envelope(signed)
    said = payload_of(signed / "verdict.json")
    said["predicate"]["expires"] = None
    forged = base64.b64encode(json.dumps(said).encode()).decode()
    signature = bytearray(base64.b64decode(whole["signatures"][0]["sig"]))
    signature[0] ^= 1
    other = [{**whole["signatures"][0], "sig": base64.b64encode(signature).decode()}]
    for change in (
        {"payload": forged},
        {"payload": whole["payload"][:-8]},
        {"payloadType": "text/plain"},
        {"signatures": other},
    ):
        (signed / "verdict.json").write_text(json.dumps(whole | change))
        refused(verify(signed), "changed after it was signed")
    for text in ("", "{", "[]", "{}", json.dumps(whole | {"signatures": [3]})):
        (signed / "verdict.json").write_text(text)
        refused(verify(signed), "damaged")
    (signed / "verdict.json").write_text(json.dumps(whole | {"signatures": []}))
    refused(verify(signed), "another key")


def test_every_byte_of_the_statement_counts(signed: Path) -> None:
    """A sample of the bytes: whatever is changed either is refused, or changes nothing that is
    read (space between the parts of the envelope)."""
    path = signed / "verdict.json"
    whole, said = path.read_bytes(), payload_of(path)
    for at in range(0, len(whole), max(1, len(whole) // 40)):
        flip(path, at)
        done = verify(signed)
        assert done.exit_code == 3 or payload_of(path) == said
        path.write_bytes(whole)


def test_another_policy_is_refused_in_words(signed: Path) -> None:
    policy = signed / "policy.toml"
    text = policy.read_text()
    policy.write_text(f"{text}# a note\n")
    refused(verify(signed), "its text was changed")
    policy.write_text(f"{text}[rule]\nmax_told = 0.5\n")
    refused(verify(signed), "rule.max_told is 0.5 and was 0.2")
    policy.write_text("forms = 3")
    refused(verify(signed), "not the policy that was signed")
    policy.unlink()
    assert verify(signed).exit_code == 2


def test_another_key_is_refused(signed: Path) -> None:
    other = write_key(signed / "other.pem", ed25519.Ed25519PrivateKey.generate())
    refused(verify(signed, by=("--key", other.with_suffix(".pub"))), "another key")


def test_a_statement_that_another_key_signed_under_the_name_of_the_first_is_refused(
    signed: Path,
) -> None:
    whole = envelope(signed)
    other = write_key(signed / "other.pem", ed25519.Ed25519PrivateKey.generate())
    forged = json.loads(keys.signed(payload_of(signed / "verdict.json"), keys.private_key(other)))
    forged["signatures"][0]["keyid"] = whole["signatures"][0]["keyid"]
    (signed / "verdict.json").write_text(json.dumps(forged))
    refused(verify(signed), "changed after it was signed")


def test_a_statement_counts_until_its_last_day(signed: Path, made: Ground) -> None:
    today = datetime.now(UTC).date()
    assert sign(made, signed, "--expires", today).exit_code == 0
    assert verify(signed).exit_code == 0
    yesterday = today - timedelta(1)
    assert sign(made, signed, "--expires", yesterday).exit_code == 0
    refused(verify(signed), f"counted until {yesterday}")
    assert sign(made, signed, "--expires", "soon").exit_code == 2


def test_a_certificate_counts_while_it_holds(
    made: Ground, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statement, "_found", all_gone())
    key = ec.generate_private_key(ec.SECP256R1())
    write_key(place / "key.pem", key)
    good = write_certificate(place / "good.crt", key, -1, 1)
    old = write_certificate(place / "old.crt", key, -2, -1)
    early = write_certificate(place / "early.crt", key, 1, 2)
    other = ec.generate_private_key(ec.SECP256R1())
    foreign = write_certificate(place / "foreign.crt", other, -1, 1)
    for wrong, words in (
        (old, "ended on"),
        (early, "begins only"),
        (foreign, "not the certificate"),
    ):
        refused(sign(made, place, "--certificate", wrong), words)
        assert not (place / "verdict.json").exists()
    assert sign(made, place, "--certificate", good).exit_code == 0
    assert verify(place, by=("--certificate", good)).exit_code == 0
    refused(verify(place, by=("--certificate", old)), "ended on")
    refused(verify(place, by=("--certificate", early)), "begins only")
    refused(verify(place, by=("--certificate", foreign)), "another key")


# None of them is a day as ISO 8601 writes it; as texts some come behind any day.
ENDS = (False, "", "never", "2020-9-1", "20991231", ["2099-01-01"], 20990101)


def test_every_form_that_is_promised_must_have_been_signed(signed: Path) -> None:
    said = payload_of(signed / "verdict.json")
    said["predicate"]["outcomes"] = said["predicate"]["outcomes"][:1]
    text = keys.signed(said, keys.private_key(signed / "key.pem"))
    (signed / "verdict.json").write_text(text)
    refused(verify(signed, signed / "model"), f"Nothing was signed of what is promised: {FORM}")


def test_what_was_signed_must_be_a_verdict(signed: Path) -> None:
    said = payload_of(signed / "verdict.json")
    signer = keys.private_key(signed / "key.pem")
    changes: tuple[dict[str, Any], ...] = (
        {"_type": "https://in-toto.io/Statement/v0.1"},
        {"predicateType": "https://slsa.dev/provenance/v1"},
        {"subject": []},
        {"predicate": {}},
        {"predicate": said["predicate"] | {"outcomes": []}},
        *({"predicate": said["predicate"] | {"expires": end}} for end in ENDS),
        {"subject": [said["subject"][0] | {"digest": {"sha256": "0"}}, *said["subject"]]},
    )
    for change in changes:
        (signed / "verdict.json").write_text(keys.signed(said | change, signer))
        refused(verify(signed), "no verdict of Remnant")


def test_a_model_that_was_changed_after_its_audit_is_not_signed(made: Ground, place: Path) -> None:
    for path, words in (
        (made.unlearned / "model.safetensors", "changed after it was audited"),
        (made.deployed / "model.safetensors", "model.safetensors was changed"),
    ):
        flip(path)
        try:
            refused(sign(made, place), words)
        finally:
            flip(path)
        assert not (place / "verdict.json").exists()


def test_a_link_to_a_folder_is_neither_signed_nor_believed(
    made: Ground, place: Path, tmp_path: Path
) -> None:
    """What is behind it has no digest, so that it could be exchanged at any time."""
    link = made.unlearned / "more"
    link.symlink_to(made.target, target_is_directory=True)
    try:
        refused(sign(made, place), "no file: more")
    finally:
        link.unlink()
    files = {"more": NO_FILE}
    assert differences(files, files) == ["more is no file"]


def test_what_cannot_be_listed_is_not_verified(
    signed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files in it would be there for a runtime with other rights."""
    (signed / "model" / "closed").mkdir()
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    done = verify(signed)
    assert (done.exit_code, "closed cannot be read" in done.output) == (2, True)


@pytest.mark.parametrize("name", ["model.gguf", "other.safetensors", "old/model.safetensors"])
def test_weights_that_no_audit_opened_are_not_signed(
    made: Ground, place: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were there when it was audited, and were not opened; another runtime may open them."""
    digest = digest_path(made.unlearned)
    monkeypatch.setattr(statement, "digest_of_files", lambda files: digest)
    other = made.unlearned / name
    other.parent.mkdir(exist_ok=True)
    other.write_bytes(b"GGUF")
    try:
        refused(sign(made, place), f"weights that were not audited, and that another runtime may "
                f"open: {name}")  # fmt: skip
    finally:
        other.unlink()
        if other.parent != made.unlearned:
            other.parent.rmdir()


def test_code_that_no_audit_ran_is_not_signed(
    made: Ground, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers has a class of its own for the model; who trusts its code runs that instead."""
    digest, config = digest_path(made.unlearned), made.unlearned / "config.json"
    monkeypatch.setattr(statement, "digest_of_files", lambda files: digest)
    before = config.read_text()
    own = {"auto_map": {"AutoModelForCausalLM": "modeling.Own"}}
    config.write_text(json.dumps(json.loads(before) | own))
    try:
        refused(sign(made, place), "code of its own, which the audit did not run")
    finally:
        config.write_text(before)


@pytest.mark.parametrize("stage", ["audit", "measure"])
def test_what_another_version_found_is_not_signed_as_this_ones(
    made: Ground, place: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {**STAGE_VERSIONS, stage: STAGE_VERSIONS[stage] + 1}
    monkeypatch.setattr(statement, "STAGE_VERSIONS", versions)
    refused(sign(made, place), f"another version of Remnant ({stage} {STAGE_VERSIONS[stage]}, now")


def test_an_audit_about_another_corpus_is_not_signed(
    made: Ground, place: Path, corpus: Path
) -> None:
    digest, text = digest_path(corpus), (place / "policy.toml").read_text()
    (place / "policy.toml").write_text(f'corpus = "prepare-{"0" * 16}"\n{text}')
    refused(sign(made, place), f"asked about {digest[:16]}")
    (place / "policy.toml").write_text(f'corpus = "{digest}"\n{text}')
    assert sign(made, place).exit_code == 4
    assert payload_of(place / "verdict.json")["predicate"]["corpora"]["prepared"] == digest


def test_a_name_cannot_write_lines_of_its_own(signed: Path) -> None:
    (signed / "model" / "a\ngone         full: all").write_text("")
    done = verify(signed)
    refused(done, "was added")
    assert not any(line.startswith("gone") for line in done.output.splitlines())


def test_a_gate_that_finds_the_audit_finds_a_model_that_was_changed_since(
    made: Ground, place: Path
) -> None:
    def gate() -> Result:
        options = ("--policy", place / "policy.toml", "--store", made.store)
        return call("gate", made.summary, *options)

    assert gate().exit_code == 4
    path = made.unlearned / "model.safetensors"
    flip(path)
    try:
        refused(gate(), f"{made.unlearned} was changed after it was audited")
    finally:
        flip(path)
    assert gate().exit_code == 4


def test_a_gate_finds_an_artefact_that_was_changed_since(
    made: Ground, place: Path, corpus: Path
) -> None:
    model = remnant.transform(made.unlearned, "noise0.02", store=made.store)
    found = remnant.audit(made.target, model, corpus, forms=(), store=made.store)
    found.report(place / "audit")
    (place / "full.toml").write_text('forms = ["full"]\n')

    def gate() -> Result:
        options = ("--policy", place / "full.toml", "--store", made.store)
        return call("gate", place / "audit" / "summary.json", *options)

    before = gate().exit_code
    flip(model.path / "model.safetensors")
    refused(gate(), f"{model.path} was changed after it was audited")
    signing = ("--policy", place / "full.toml", "--key", place / "key.pem", "--store", made.store)
    done = call("sign", place / "audit" / "summary.json", *signing, "-o", place / "s.json")
    refused(done, f"{model.path} was changed after it was audited")
    flip(model.path / "model.safetensors")
    assert gate().exit_code == before != 2


def test_a_deployed_folder_of_another_model_is_not_signed(made: Ground, place: Path) -> None:
    out = place / "of-target"
    done = call("deploy", made.target, "--as", FORM, "-o", out, "--store", made.store)
    assert done.exit_code == 0, done.output
    refused(sign(made, place, "--deployed", out), "not audited")
    assert sign(made, place, "--deployed", place).exit_code == 2


@pytest.mark.parametrize(
    "make",
    [
        ed25519.Ed25519PrivateKey.generate,
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: rsa.generate_private_key(65537, 2048),
    ],
)
def test_keys_of_every_kind_sign_and_may_have_a_password(
    make: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_key(tmp_path / "key.pem", make(), b"open sesame")
    with pytest.raises(UserError, match=keys.PASSWORD):
        keys.private_key(path)
    monkeypatch.setenv(keys.PASSWORD, "open sesame")
    text = keys.signed({"a": 1}, keys.private_key(path)).encode()
    public = keys.public_key(path.with_suffix(".pub"))
    assert keys.believed(text, public) == {"a": 1}


def test_wrong_keys_are_said_in_one_sentence(made: Ground, place: Path) -> None:
    key, policy = place / "key.pem", place / "policy.toml"
    write_key(place / "x.pem", x25519.X25519PrivateKey.generate())
    write_key(place / "short.pem", rsa.generate_private_key(65537, 1024))
    with pytest.raises(UserError, match="1024 bits"):
        keys.public_key(place / "short.pub")
    wrongs = ("none.pem", "policy.toml", "key.pub", "x.pem", "short.pem")
    for wrong in map(place.joinpath, wrongs):
        done = sign(made, place, "--key", wrong)
        assert done.exit_code == 2, done.output
        assert str(wrong) in done.output
    for by in ((), ("--key", key, "--certificate", key), ("--key", key), ("--certificate", key)):
        done = call("verify", policy, place, "--policy", policy, *by)
        assert done.exit_code == 2, done.output


def test_an_audit_is_named_by_its_summary_or_by_its_name(made: Ground, tmp_path: Path) -> None:
    store = Store(made.store)
    name = statement.audit_named(store, str(made.summary))
    assert statement.audit_named(store, name[:12]) == name
    assert statement.audit_named(store, str(made.summary / "summary.json")) == name
    with pytest.raises(UserError, match="stands for 0 audits"):
        statement.audit_named(store, "audit-0000")
    for text, words in (
        ('{"audits": ["a", "b"]}', "2 audits: a, b"),
        ('{"audits": ["audit-0"]}', "--store"),
        ("{}", "names no audit"),
    ):
        (tmp_path / "summary.json").write_text(text)
        with pytest.raises(UserError, match=words):
            statement.audit_named(store, str(tmp_path))


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def lacking(name: str, package: str | None = None) -> Any:
        if name.partition(".")[0] in ("securesystemslib", "cryptography"):
            raise ImportError(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", lacking)


def test_without_the_library_one_sentence_says_how_to_install_it(
    made: Ground, place: Path, without_library: None
) -> None:
    done = sign(made, place)
    assert done.exit_code == 2
    assert "pip install -e '.[sign]'" in done.output


def test_a_mistyped_store_is_refused_and_not_made(made: Ground, place: Path) -> None:
    mistyped = place / "rnus"
    options = ["--policy", place / "policy.toml", "--key", place / "key.pem", "--store", mistyped]
    found = call("sign", "audit", *options, "-o", place / "out.json")
    assert found.exit_code == 2
    assert "There is no store" in found.output
    assert not mistyped.exists()


def test_differences_and_the_nearest_model_by_hand(tmp_path: Path) -> None:
    assert differences({"a": "1"}, {"a": "1"}) == []
    assert differences({"a": "1"}, {"README.md": "2", "a": "1"}) == ["README.md is missing"]
    models = {"full": {"w": "1", "c": "1"}, "int4": {"w": "2", "c": "1"}}
    assert nearest({"w": "2", "c": "0"}, models) == "int4"
    assert nearest({"w": "1", "c": "1"}, models) == "full"
    with pytest.raises(UserError, match="holds no file"):
        files_of(tmp_path)
