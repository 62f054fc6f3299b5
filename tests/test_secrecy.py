"""What is used and never kept: no password or key in a manifest, a name, an error, a report or an
artefact's key."""

import json
import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from remnant import cli, secrecy
from remnant.errors import UserError
from remnant.flow import failures
from remnant.flow import run as running
from remnant.flow.place import Outside
from remnant.flow.plan import Node, measure_node
from remnant.flow.store import Store
from remnant.parsing import parse
from remnant.records import EndpointSpec, MeasureSpec, MetricSpec, Record, SweepSpec, TransformSpec

SECRET = "hunter2-hunter2"


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (secrecy.VAULT, *secrecy.VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(secrecy, "_given", {})


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        (f"http://me:{SECRET}@host:8000/v1", "http://host:8000/v1"),
        (f"https://me:{SECRET}@in@host/v1", "https://host/v1"),
        (f"https://host/v1?api_key={SECRET}", "https://host/v1"),
        (
            f"https://host/v1?code={SECRET}&api-version=2024-02-01",
            "https://host/v1?api-version=2024-02-01",
        ),
        (f"HTTPS://{SECRET}@[::1]:80/v1#x", "https://[::1]:80/v1"),
    ],
)
def test_an_address_is_kept_without_its_secret_and_asked_with_it(given: str, kept: str) -> None:
    spec = EndpointSpec(url=given)
    assert spec.url.lower() == kept.lower()
    address, query = secrecy.full_address(spec.url)
    assert (SECRET in given) == (SECRET in address + query)
    assert SECRET not in spec.model_dump_json() + json.dumps(spec.identity())
    assert parse(EndpointSpec, json.loads(spec.model_dump_json()), "again").url == spec.url


@pytest.mark.parametrize(
    "given",
    [
        "",
        "host",
        "ftp://host/v1",
        "http://",
        "http://ho st/",
        "http://host:99999/v1",
        "http://[::1/v1",
        "http://a\n",
    ],
)
def test_what_is_no_address_is_one_sentence_without_its_secret(given: str) -> None:
    if given.endswith("\n"):
        assert EndpointSpec(url=given).url == "http://a"
        return
    with pytest.raises(UserError, match="is not the address of a server") as error:
        parse(EndpointSpec, {"url": given}, "endpoint")
    assert "traceback" not in str(error.value).lower()


def test_the_key_of_a_measurement_does_not_depend_on_a_credential() -> None:
    def named(url: str, **params: str) -> str:
        spec = MeasureSpec(
            endpoint=EndpointSpec(url=url),
            extra=(MetricSpec(use="rouge_l", params=params),) if params else (),
        )
        return measure_node(spec.model_copy(update={"extra": ()}), None, Outside("/nowhere")).name

    assert (
        named("http://host/v1")
        == named(f"http://u:{SECRET}@host/v1")
        == named(f"http://host/v1?key={SECRET}")
    )
    identities = [
        TransformSpec(use="f", params={"api_key": k, "bits": 4}).identity() for k in ("one", "two")
    ]
    assert identities[0] == identities[1]
    assert (
        TransformSpec(use="f", params={"stop_token": "a"}).identity()
        != TransformSpec(use="f", params={"stop_token": "b"}).identity()
    )


@pytest.mark.parametrize(
    "argument",
    [
        f"http://u:{SECRET}@h/v1",
        f"http://h/v1?k={SECRET}",
        f"endpoint.url=http://u:{SECRET}@h",
        f"extra.0.params.api_key={SECRET}",
        f"--set=params.token={SECRET}",
        (f'params={{authorization="Bearer {SECRET}"}}'),
        f"params.password={SECRET} and more {SECRET}",
        (f'extra=[{{use="f", params={{hfToken = "{SECRET}"}}}}]'),
        "sk-" + "a1B2" * 8,
        f"Authorization: {SECRET}",
        f"secret='{SECRET}'",
    ],
)
def test_a_command_is_kept_without_its_secrets(argument: str) -> None:
    kept = secrecy.scrubbed_command(["remnant", "measure", "--set", argument])
    assert SECRET not in kept
    assert "a1B2a1B2" not in kept
    assert secrecy.HIDDEN in kept


def test_plain_settings_are_kept_as_they_are() -> None:
    for plain in (
        "max_tokens=2048",
        "tokenizer=gpt2",
        "train.kv_heads=4",
        "prompt_tokens=48",
        "http://127.0.0.1:8000/v1",
        "stop_forget=0.1",
    ):
        assert secrecy.scrubbed_command([plain]) == plain
    whole = SweepSpec.model_validate(
        {"name": "s", "corpus": [{"lab": "news"}], "unlearn": [{"method": "ga"}]}
    ).model_dump(mode="json")
    assert secrecy.redacted(whole) == json.loads(json.dumps(whole))
    assert secrecy.without_secrets(whole) == json.loads(json.dumps(whole)) | {
        "seeds": whole["seeds"]
    }


def found_in(folder: Path) -> list[str]:
    return [str(p) for p in folder.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]


class Said(Record):
    """What a stage that talks too much returns."""

    said: str


def test_nothing_that_a_run_leaves_behind_holds_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMNANT_API_KEY", SECRET)
    monkeypatch.setenv(
        running.COMMAND, secrecy.scrubbed_command(["remnant", "run", "--set", f"api_key={SECRET}"])
    )
    store = Store(tmp_path / "s").open()
    stage = type(
        "stage",
        (),
        {
            "LEAVES": (),
            "run": staticmethod(
                lambda spec, *rest, **more: Said(
                    said=f"asked http://u:{SECRET}@h with {spec.params['api_key']}"
                )
            ),
        },
    )
    monkeypatch.setitem(sys.modules, "remnant.stages.transform", stage)
    spec = TransformSpec(use="f", params={"api_key": SECRET, "bits": 4})
    node = Node("transform", spec)
    running.make(store, node, lambda *a: None)
    manifest = store.manifest(node.name)
    assert manifest.spec["params"] == {"api_key": secrecy.HIDDEN, "bits": 4}
    assert manifest.summary["said"] == f"asked http://{secrecy.HIDDEN}@h with {secrecy.HIDDEN}"
    failures.note_failure(store, Node("transform", spec), f"key {SECRET}", f"trace {SECRET}")
    assert found_in(tmp_path / "s") == []


def test_a_sweep_with_secret_settings_keeps_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text('def f(weight, *, api_key: str = ""):\n    return weight\n')
    (tmp_path / "s.toml").write_text(
        'name = "s"\n[[corpus]]\nlab = "news"\n[[unlearn]]\nmethod = "ga"\n'
    )
    monkeypatch.setattr("remnant.verbs.local_hands", lambda *a: None)
    monkeypatch.setattr("remnant.verbs._work", lambda *a: None)
    monkeypatch.chdir(tmp_path)
    settings = [
        'quantizers=["mine.py:f"]',
        f"transform.params.api_key={SECRET}",
        f"measure.endpoint.url=http://u:{SECRET}@h/v1",
    ]
    done = CliRunner().invoke(
        cli.main,
        ["run", "s.toml", "--store", "st", *(part for s in settings for part in ("--set", s))],
    )
    assert "Traceback" not in done.output
    assert SECRET not in done.output
    assert (tmp_path / "st/names/s.json").is_file(), done.output + repr(done.exception)
    assert found_in(tmp_path / "st") == []
    order = running._order(
        SweepSpec.model_validate(
            {"name": "s", "corpus": [{"lab": "news"}], "unlearn": [{"method": "ga"}]}
        )
    )
    assert os.fstat(order.fileno()).st_nlink == 0
    assert SweepSpec.model_validate_json(order.read()).name == "s"
