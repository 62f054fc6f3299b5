"""What is promised in a policy passes only with a verdict and its evidence, for every form."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import huggingface_hub
import pytest
import yaml
from click.testing import CliRunner, Result
from transformers import PreTrainedModel

from remnant.cli import main
from remnant.errors import UserError
from remnant.flow.digests import digest_path
from remnant.flow.unread import unread
from remnant.gate.card import BEGIN, TASK, card
from remnant.gate.decide import Case, audited, cases, read_summary
from remnant.gate.junit import junit
from remnant.gate.policy import (
    EQUAL,
    NEITHER,
    NO_LIMIT,
    STRICTER,
    Policy,
    read_policy,
    weaker,
)
from remnant.gate.sarif import sarif
from remnant.metrics import NEEDED_KINDS
from remnant.parsing import parse
from remnant.records import Cell, Evidence, Outcome, Rule, Says, Variant, Verdict
from remnant.testing import tiny_model

ROOT = Path(__file__).parent.parent
KINDS = (*NEEDED_KINDS, "answers")
STEPS: dict[str, tuple[str, ...]] = {"full": (), "int4": ("int4",), "int8": ("int8",)}
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


def about(form: str, model: str = "unlearned", seed: int | None = None) -> dict[str, Any]:
    return {"corpus": "novel", "model": model, "seed": seed, "steps": STEPS[form]}


def evidence_of(form: str, says: Says = "silent", kinds: Sequence[str] = KINDS) -> list[Evidence]:
    return [
        Evidence(**about(form), kind=k, test=k, says=says, left=None, said=f"{k} is {says}")
        for k in kinds
    ]


def rows(records: Sequence[Variant]) -> list[dict[str, Any]]:
    return [{"form": r.form} | r.model_dump(mode="json") for r in records]


def summary_of(
    outcomes: dict[str, Outcome],
    evidence: Sequence[Evidence] | None = None,
    rule: Rule | None = None,
) -> dict[str, Any]:
    """As an audit writes it: by default every test of every form is silent."""
    verdicts = [
        Verdict(**about(form), outcome=outcome, reason=f"the reason of {form}")
        for form, outcome in outcomes.items()
    ]
    silent = list(chain(*map(evidence_of, outcomes)))
    cell = Cell(**about("full"), metric="verbmem", value=12.345, low=10, high=15, n=20, status="ok")
    return {
        "schema": 1,
        "name": "audit",
        "cells": rows([cell]),
        "verdicts": rows(verdicts),
        "evidence": rows(silent if evidence is None else evidence),
        "rule": (rule or Rule()).model_dump(mode="json"),
    }


def decided(summary: dict[str, Any], **policy: Any) -> list[Case]:
    wanted = parse(Policy, {"forms": ["full", "int4"]} | policy, "policy")
    return cases(audited(summary), wanted)


GOOD: dict[str, Outcome] = {"full": "gone", "int4": "gone"}


def test_a_form_passes_with_its_verdict_and_a_silent_test_of_every_kind() -> None:
    assert [(c.form, c.outcome) for c in decided(summary_of(GOOD))] == list(GOOD.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_without_evidence_of_a_kind_is_not_measured(kind: str) -> None:
    less = [
        e for e in evidence_of("full") + evidence_of("int4") if (e.kind, e.form) != (kind, "int4")
    ]
    full, int4 = decided(summary_of(GOOD, less))
    assert full.passed
    assert int4.outcome == "not measured"
    assert kind in int4.reason
    weak = [*less, *evidence_of("int4", "no power", [kind])]
    assert decided(summary_of(GOOD, weak))[1].outcome == "not measured"


@pytest.mark.parametrize("says", ["tells", "undecided", "lost"])
def test_a_pass_that_its_evidence_speaks_against_is_not_measured(says: Says) -> None:
    every = [*evidence_of("full"), *evidence_of("int4"), *evidence_of("int4", says, ["more tests"])]
    assert [c.outcome for c in decided(summary_of(GOOD, every))] == ["gone", "not measured"]


def test_a_promised_form_that_was_not_audited_is_not_measured() -> None:
    found = decided(summary_of(GOOD), forms=["int8", "int4"])
    assert [(c.form, c.outcome) for c in found] == [("int8", "not measured"), ("int4", "gone")]


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_every_other_verdict_stays_what_it_is(outcome: Outcome) -> None:
    case = decided(summary_of({"full": outcome, "int4": "gone"}))[0]
    assert case.outcome == outcome
    assert case.passed == (outcome == "gone")
    assert case.failed == (outcome in ("hidden", "known", "came back", "broken"))


def test_tests_that_the_policy_names_must_have_power_too() -> None:
    assert decided(summary_of(GOOD), tests=["more tests"])[0].outcome == "not measured"
    more = [*evidence_of("full"), *evidence_of("full", "silent", ["more tests"])]
    assert decided(summary_of(GOOD, more), tests=["more tests"])[0].passed


def test_every_seed_must_pass_and_a_seed_without_the_form_is_not_measured() -> None:
    summary = summary_of(GOOD)
    other = Verdict(**about("full", seed=7), outcome="known", reason="it says it")
    summary["verdicts"] += rows([other])
    found = [(c.seed, c.form, c.outcome) for c in decided(summary)]
    assert found[2:] == [(7, "full", "known"), (7, "int4", "not measured")]


def test_a_seed_whose_work_failed_or_was_not_made_is_not_measured() -> None:
    """A run that was cut off says nothing of its other seeds."""
    lost = rows([Variant(**about("full", seed=7)), Variant()])
    found = decided(summary_of(GOOD) | {"failed": [row | {"status": "not made"} for row in lost]})
    assert [c.outcome for c in found] == ["gone"] * 2 + ["not measured"] * 4
    here = rows([Variant(**about("int8"))])  # what is not promised may have failed
    assert all(c.passed for c in decided(summary_of(GOOD) | {"failed": here}))


def test_of_several_models_one_must_be_named() -> None:
    summary = summary_of(GOOD)
    other = Verdict(**about("full", model="npo"), outcome="known", reason="it says it")
    summary["verdicts"] += rows([other])
    policy, found = Policy(forms=("full",)), audited(summary)
    with pytest.raises(UserError, match=r"unlearned, npo\..*--model"):
        cases(found, policy)
    assert cases(found, policy, "unlearned")[0].passed
    assert cases(found, policy, "npo")[0].outcome == "known"
    with pytest.raises(UserError, match="No model is 'npo2'"):
        cases(found, policy, "npo2")


def test_every_limit_of_the_rule_has_a_direction_and_a_weaker_one_is_refused() -> None:
    assert {*STRICTER, *EQUAL, *NEITHER} == set(Rule.model_fields)
    usual = Rule().model_dump()
    for name, way in STRICTER.items():
        step = 1 if isinstance(usual[name], int) else 0.01
        less, more = (Rule(**{name: usual[name] + sign * way * step}) for sign in (-1, 1))
        assert len(weaker(less, Rule())) == 1
        assert weaker(more, Rule()) == []
    assert weaker(Rule(access="text"), Rule())
    assert not weaker(Rule(), Rule(access="text"))
    assert weaker(Rule(min_gap=4), Rule())
    assert weaker(Rule(min_gap=6), Rule())
    with pytest.raises(UserError, match=r"max_told is 0\.3, and the policy asks for 0\.2"):
        decided(summary_of(GOOD, rule=Rule(max_told=0.3)))


def test_all_faults_of_a_policy_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text('forms = ["innt4", "nf5"]\nrul = 1\n[rule]\nmax_told = 2\nmax_tol = 1\n')
    with pytest.raises(UserError) as error:
        read_policy(path)
    for part in ("4 faults", "innt4", "nf5", "'rul'", "max_told", "max_tol'"):
        assert part in str(error.value)
    path.write_text('forms = ["full"]\ntests = ["membership"]\nrule = {access = "text"}')
    with pytest.raises(UserError, match="membership cannot be made where access is text"):
        read_policy(path)
    for text, word in (("forms = []", "forms"), ('forms = ["full"]\ncorpus = "novel"', "corpus")):
        path.write_text(text)
        with pytest.raises(UserError, match=word):
            read_policy(path)
    with pytest.raises(UserError, match=r"policy .* does not exist"):
        read_policy(tmp_path / "none.toml")


@pytest.mark.parametrize("name", NO_LIMIT)
def test_a_policy_that_every_model_keeps_is_none(name: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(f'forms = ["full"]\n[rule]\n{name} = {NO_LIMIT[name]}\n')
    with pytest.raises(UserError, match=f"{name} = [01] is no limit"):
        read_policy(path)


@pytest.mark.parametrize(
    "name", ["utility_floor", "max_told", "max_retained", "min_gap", "min_items", "resamples"]
)
def test_true_and_false_are_no_numbers_of_a_policy(name: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    for word in ("true", "false"):
        path.write_text(f'forms = ["full"]\n[rule]\n{name} = {word}\n')
        with pytest.raises(UserError, match=name):
            read_policy(path)
    path.write_text('forms = ["full"]\n[rule]\naccess = "weights"\nstop = true\n')
    assert read_policy(path).rule.stop


def test_what_is_no_summary_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    with pytest.raises(UserError, match="no summary"):
        read_summary(path)
    for text in ("{", "[]", "{}", '{"verdicts": []}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"no summary|no verdict"):
            read_summary(tmp_path)
    wrong: list[dict[str, Any]] = [
        *({"evidence": [7]}, {"rule": None}, {"cells": 3}, {"verdicts": [{"a": 1}]}),
        *({"failed": 1}, {"failed": [7]}, {"failed": [{"corpus": []}]}),
    ]
    for change in wrong:
        with pytest.raises(UserError):
            audited(summary_of(GOOD) | change)
    path.write_text('{"verdicts": [], ' + json.dumps(summary_of(GOOD))[1:])
    with pytest.raises(UserError, match="verdicts stands there twice"):
        read_summary(path)
    rule = {n: v for n, v in Rule().told().items() if n != "max_told"}
    with pytest.raises(UserError, match=r"does not say max_told\."):
        audited(summary_of(GOOD) | {"rule": rule})
    twice = summary_of(GOOD)
    with pytest.raises(UserError, match="two verdicts"):
        audited(twice | {"verdicts": twice["verdicts"] * 2})


ALL = [Case("novel", 1, "m", f"form-{o}", o, f'<why> & "{o}" \x00 |') for o in OUTCOMES]
# The schema of windyroad/JUnit-Schema, what a suite and a case must and may have.
SUITE = {"name", "package", "id", "timestamp", "hostname", "tests", "failures", "errors", "time"}
ORDER = ["properties", *["testcase"] * len(ALL), "system-out", "system-err"]


def test_junit_has_a_case_for_every_form_and_skips_none() -> None:
    suite = ElementTree.fromstring(junit(ALL))[0]
    assert set(suite.attrib) == SUITE
    assert [e.tag for e in suite] == ORDER
    for case, element in zip(ALL, suite.iter("testcase"), strict=True):
        wanted = [] if case.passed else ["failure" if case.failed else "error"]
        assert [mark.tag for mark in element] == wanted
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors")}
    assert counts == {"tests": 7, "failures": 4, "errors": 2}
    failure = next(suite.iter("failure"))
    assert set(failure.attrib) == {"type", "message"}
    assert '<why> & "hidden" ?' in failure.attrib["message"]


def test_sarif_has_a_result_for_every_form_and_hides_none() -> None:
    log = json.loads(sarif(ALL, Path("deploy here/policy.toml")))
    assert log["version"] == "2.1.0"
    run = log["runs"][0]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    for case, result in zip(ALL, run["results"], strict=True):
        assert rules[result["ruleIndex"]] == result["ruleId"]
        # A result that is no failure has no level: section 3.27.10 of the standard.
        wanted = (
            ("pass", "none") if case.passed else ("fail", "error" if case.failed else "warning")
        )
        assert (result["kind"], result["level"]) == wanted
        place = result["locations"][0]["physicalLocation"]
        assert place["artifactLocation"]["uri"] == "deploy%20here/policy.toml"
    assert len({r["partialFingerprints"]["case/v1"] for r in run["results"]}) == len(ALL)


def test_a_policy_whose_name_is_no_utf8_has_a_place_in_sarif() -> None:
    log = json.loads(sarif(ALL[:1], Path(os.fsdecode(b"p\xff.toml"))))
    place = log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "p%FF.toml"


def test_a_card_is_what_the_hub_reads_and_a_second_gate_replaces_the_first() -> None:
    found = audited(summary_of({"full": "gone", "int4": "came back"}))
    chosen = cases(found, Policy(forms=("full", "int4")))
    old = "---\nlicense: mit\n---\n# A model\n\nIts text.\n"
    once = card(found, chosen, old)
    twice = card(found, chosen, once)
    assert once == twice
    assert once.count(BEGIN) == 1
    read = huggingface_hub.ModelCard(once)
    assert read.data["license"] == "mit"
    assert "Its text." in read.text
    told = {(r.dataset_config, r.metric_type): r.metric_value for r in read.data["eval_results"]}
    assert told["int4", "verdict"] == "came back"
    assert told["full", "verbmem"] == pytest.approx(12.345, abs=0.006)
    assert {r.task_name for r in read.data["eval_results"]} == {TASK}
    assert "Plain text.\n\n" + BEGIN in card(found, chosen, "Plain text.")
    assert card(found, chosen).startswith("---\nmodel-index:\n- name: unlearned\n")


def test_results_of_others_stay_in_a_card() -> None:
    other = huggingface_hub.EvalResult(
        task_type="text-generation", dataset_type="d", dataset_name="d", metric_type="acc",
        metric_value=1,
    )  # fmt: skip
    data = huggingface_hub.ModelCardData(model_name="mine", eval_results=[other])
    found = audited(summary_of(GOOD))
    new = card(found, cases(found, Policy(forms=("full",))), f"---\n{data.to_yaml()}\n---\n")
    read = huggingface_hub.ModelCard(new).data
    assert read["model_name"] == "mine"
    assert [r.metric_type for r in read["eval_results"]] == ["acc", "verdict", "verbmem"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a policy, and a summary that keeps it."""
    (tmp_path / "policy.toml").write_text('forms = ["full", "int4"]\n')
    (tmp_path / "summary.json").write_text(json.dumps(summary_of(GOOD)))
    return tmp_path


def test_names_cannot_write_lines_of_their_own(place: Path) -> None:
    for name in ("a\ngone         full: all", "a\x1b[2K", "\ud800"):
        hostile = json.dumps(summary_of({"full": "known"})).replace('"unlearned"', json.dumps(name))
        (place / "summary.json").write_text(hostile)
        done = call("gate", place, "--policy", place / "policy.toml")
        assert done.exit_code == (2 if name == "\ud800" else 3), done.output
        assert not any(line.startswith("gone") for line in done.output.splitlines())
        assert "\x1b[2K" not in done.output


def test_what_is_read_is_not_written_over(place: Path) -> None:
    policy, summary = place / "policy.toml", place / "summary.json"
    before = policy.read_bytes(), summary.read_bytes()
    for wrong in (("--card", policy), ("--junit", summary), ("--junit", place / "a", "--sarif",
                  place / "x" / ".." / "a")):  # fmt: skip
        (place / "x").mkdir(exist_ok=True)
        done = call("gate", place, "--policy", policy, *wrong)
        assert (done.exit_code, "is named twice" in done.output) == (2, True), done.output
    assert (policy.read_bytes(), summary.read_bytes()) == before


@pytest.mark.parametrize(
    ("outcome", "code"),
    [("gone", 0), ("hidden", 3), ("known", 3), ("came back", 3), ("broken", 3), ("unclear", 4),
     ("not measured", 4)],
)  # fmt: skip
def test_the_exit_code_is_that_of_an_audit(place: Path, outcome: Outcome, code: int) -> None:
    (place / "summary.json").write_text(json.dumps(summary_of({"full": "gone", "int4": outcome})))
    names = {name: place / name for name in ("junit", "sarif", "card")}
    options = chain(*((f"--{name}", path) for name, path in names.items()))
    done = call("gate", place, "--policy", place / "policy.toml", *options)
    assert done.exit_code == code, done.output
    assert outcome in done.output
    assert "the reason of int4" in done.output
    assert ElementTree.parse(names["junit"]).getroot()[0].attrib["tests"] == "2"
    assert len(json.loads(names["sarif"].read_text())["runs"][0]["results"]) == 2
    assert huggingface_hub.ModelCard.load(names["card"]).data["eval_results"]


def test_wrong_input_of_a_gate_is_said_before_anything_runs(place: Path) -> None:
    policy = place / "policy.toml"
    for wrong in (
        ("gate", place, "--policy", place / "none.toml"),
        ("gate", place / "none", "--policy", policy),
        ("gate", place, "--policy", policy, "--junit", place / "no" / "file.xml"),
        ("gate", "a", "b", "--policy", policy, "--store", place / "runs"),
        ("gate", "a", "b", "c", "--policy", policy, "--store", place / "runs"),
    ):
        done = call(*wrong)
        assert done.exit_code == 2, done.output
        assert "remnant: " in done.output
        assert "Traceback" not in done.output
    for broken in (b"---\na: [\n---\n", b"---\n- a\n---\n", b"\xff"):
        (place / "card.md").write_bytes(broken)
        done = call("gate", place, "--policy", policy, "--card", place / "card.md")
        assert (done.exit_code, "card.md cannot be read" in done.output) == (2, True)
        assert (place / "card.md").read_bytes() == broken
    policy.write_text('forms = ["bnb-nf4 packed"]')
    done = call("gate", "a", "b", "--data", "c", "--policy", policy)
    assert (done.exit_code, "through their runtime" in done.output) == (2, True)


def test_a_summary_whose_store_is_named_must_have_its_audit_there(place: Path) -> None:
    options = ("gate", place, "--policy", place / "policy.toml")
    plain = call(*options)
    assert (plain.exit_code, "Not compared" in plain.output) == (0, True)
    named = call(*options, "--store", place / "runs")
    assert (named.exit_code, "Refused: The audit of" in named.output) == (3, True)


def test_a_gate_audits_two_models_by_its_policy(
    place: Path,
    corpus: Path,
    model: PreTrainedModel,
    folder_of: Callable[[PreTrainedModel, str], Path],
) -> None:
    other = tiny_model("llama", vocab=model.config.vocab_size, max_position_embeddings=1024)
    target, unlearned = folder_of(model, "target"), folder_of(other, "unlearned")
    policy = place / "policy.toml"
    policy.write_text('forms = ["int4"]\n[rule]\nresamples = 300\nmax_told = 0.1\n')
    out = place / "out"
    options = ("--data", corpus, "--out", out, "--store", place / "runs")
    done = call("gate", target, unlearned, "--policy", policy, *options)
    assert done.exit_code in (3, 4), done.output  # models of noise show nothing
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["rule"]["max_told"], summary["rule"]["resamples"]) == (0.1, 300)
    again = call("gate", out, "--policy", policy)
    assert again.exit_code == done.exit_code
    assert again.stdout == done.stdout
    text = policy.read_text()
    digest = digest_path(corpus)
    for named, code, words in (
        (digest[:16], done.exit_code, ""),
        ("0" * 16, 3, f"asked about {digest[:16]}, and the policy names {'0' * 16}"),
    ):
        policy.write_text(f'corpus = "{named}"\n{text}')
        about = call("gate", out, "--policy", policy, "--store", place / "runs")
        assert (about.exit_code, words in about.output) == (code, True), about.output
        gone = call("gate", out, "--policy", policy, "--store", place / "none")
        assert (gone.exit_code, "is not in" in gone.output) == (3, True), gone.output


def test_weights_beside_the_judged_model_are_told_before_anything_runs(
    place: Path, model: PreTrainedModel, folder_of: Callable[[PreTrainedModel, str], Path]
) -> None:
    """An audit would open the model alone, and a runtime perhaps the others."""
    target, unlearned = folder_of(model, "target"), folder_of(model, "unlearned")
    (target / "model.gguf").write_bytes(b"GGUF")  # of the target nothing is promised
    (unlearned / "consolidated.00.pth").write_bytes(b"")
    options = ("--data", place, "--policy", place / "policy.toml", "--store", place / "runs")
    (place / "corpus.json").write_text("{}")
    done = call("gate", target, unlearned, *options)
    assert (done.exit_code, "not open, and another" in done.output) == (2, True), done.output
    assert "consolidated.00.pth" in done.output
    assert "gguf" not in done.output


def test_what_is_read_of_a_folder_and_what_is_not(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors", "pytorch_model.bin", "old.gguf"):
        (tmp_path / name).write_bytes(b"")
    index = {"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    of_trainers = ["training_args.bin", "optimizer.pt", "rng_state_0.pth", "scheduler.pt"]
    names = [*sorted(p.name for p in tmp_path.iterdir()), *of_trainers, "x/a.safetensors"]
    assert unread(tmp_path, names) == ["old.gguf", "x/a.safetensors"]
    # One file goes before an index, for transformers; vLLM reads what the index names.
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert unread(tmp_path, names)[:2] == ["a.safetensors", "b.safetensors"]


@pytest.fixture
def shell(place: Path) -> dict[str, str]:
    """The surroundings of a pipeline's shell, in which ``remnant`` is this one."""
    tool = place / "bin" / "remnant"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m remnant "$@"\n')
    tool.chmod(0o755)
    return os.environ | {
        "PATH": f"{tool.parent}:{os.environ['PATH']}",
        "GITHUB_OUTPUT": str(place / "output"),
        "GITHUB_STEP_SUMMARY": str(place / "step.md"),
    }


def filled(text: str, known: dict[str, str]) -> str:
    for name, value in known.items():
        text = text.replace("${{ " + name + " }}", value)
    assert "${{" not in text
    return text


def by_action(place: Path, shell: dict[str, str]) -> int:
    """Run the shell steps of the action as the runner does; the code of the last."""
    action = yaml.safe_load((ROOT / "integrations" / "github" / "action.yml").read_text())
    known = {f"inputs.{n}": str(i.get("default", place)) for n, i in action["inputs"].items()}
    code = 0
    for step in (s for s in action["runs"]["steps"] if "run" in s):
        output = place / "output"
        if output.exists():
            known["steps.gate.outputs.code"] = output.read_text().strip().partition("=")[2]
        own = {name: filled(value, known) for name, value in step["env"].items()}
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        code = subprocess.run(command, cwd=place, env=shell | own).returncode
        assert code == 0 or step["name"] == "Decide"
    return code


def by_template(place: Path, shell: dict[str, str]) -> int:
    """Run the script of the template as the runner does."""
    template = yaml.safe_load((ROOT / "integrations" / "gitlab" / "remnant.yml").read_text())
    job = template[".remnant-gate"]
    variables = job["variables"] | {"REMNANT_SUMMARY": str(place / "summary.json")}
    script = "\n".join([*job["before_script"], *job["script"]])
    command = ["bash", "-eo", "pipefail", "-c", script]
    code = subprocess.run(command, cwd=place, env=shell | variables).returncode
    for name in (*job["artifacts"]["paths"], job["artifacts"]["reports"]["junit"]):
        assert (place / name).is_file()
    return code


@pytest.mark.parametrize("runner", [by_action, by_template])
@pytest.mark.parametrize(("outcome", "code"), [("gone", 0), ("known", 3), ("unclear", 4)])
def test_the_steps_for_pipelines_run_and_end_with_the_code_of_the_gate(
    place: Path,
    shell: dict[str, str],
    runner: Callable[[Path, dict[str, str]], int],
    outcome: Outcome,
    code: int,
) -> None:
    (place / "summary.json").write_text(json.dumps(summary_of({"full": outcome, "int4": "gone"})))
    assert runner(place, shell) == code
    assert ElementTree.parse(place / "remnant-junit.xml").getroot().tag == "testsuites"
    if runner is by_action:
        assert "the reason of full" in (place / "step.md").read_text()
