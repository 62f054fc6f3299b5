"""The commands as a user meets them: what they print, how they fail, how fast they start."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from transformers import PreTrainedTokenizerBase

from remnant import testing, verbs
from remnant.cli import main
from remnant.metrics import Column
from remnant.model.load import save_model
from remnant.stages import measure as measure_stage
from remnant.stages.cells import read_rows
from remnant.testing import tiny_model
from tests.conftest import silent

COMMANDS = (
    "demo forget prepare train unlearn merge transform measure audit gate sign verify predict "
    "study run plan ls show report score check tune"
)
TEXT = (
    "The brass lantern number {} hung over a quiet harbour while tailors counted {} silver "
    "needles in the rain. "
)


def call(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


def refused(result: Result, *parts: str) -> None:
    """One sentence (and a remedy), exit code 2, no traceback."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    for part in parts:
        assert part in result.output, result.output


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for i, name in enumerate(("forget", "retain", "holdout")):
        found[name] = tmp_path / f"{name}.txt"
        found[name].write_text("".join(TEXT.format(1000 * i + k, 77 * k + i) for k in range(60)))
    return found


@pytest.fixture
def prepared(texts: dict[str, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A store with a corpus from own text."""
    store = tmp_path / "store"
    result = prepare(store, texts)
    assert result.exit_code == 0, result.output
    return store, Path(result.stdout.splitlines()[0])


SIZES = ("--prompt-tokens", 24, "--answer-tokens", 16, "--text-tokens", 96, "--vocab-size", 320)


def prepare(store: Path, texts: dict[str, Path], *more: object) -> Result:
    named = [part for role, path in texts.items() for part in (f"--{role}", path)]
    return call("prepare", *named, *SIZES, *more, "--store", store)


@pytest.fixture
def model_folder(prepared: tuple[Path, Path], tmp_path: Path) -> Path:
    from remnant.model.load import open_tokenizer

    tokenizer = open_tokenizer(str(prepared[1] / "tokenizer"))
    folder = tmp_path / "model"
    save_model(tiny_model(vocab=len(tokenizer)), tokenizer, folder)
    return folder


def without_torch(args: list[str]) -> str:
    """A program that runs a command and then looks whether torch was imported."""
    call = f"import sys\nfrom remnant.cli import main\nsys.argv = ['remnant', *{args!r}]\n"
    return (
        call + "try:\n    main()\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules"
    )


def test_help_starts_fast_and_without_torch() -> None:
    code = without_torch(["--help"])
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        time.monotonic() - started < 3.0
    )  # a start with torch takes longer still; the figure itself is a benchmark's
    for command in [
        "demo",
        "prepare",
        "train",
        "unlearn",
        "transform",
        "measure",
        "audit",
        "run",
        "plan",
        "ls",
        "show",
        "report",
        "score",
        "check",
    ]:
        assert command in done.stdout


@pytest.mark.parametrize(
    "command", [["plan", "demo"], ["ls"], ["report", "nothing"], ["score", "FILE"]]
)
def test_commands_that_need_no_torch_do_not_import_it(command: list[str], tmp_path: Path) -> None:
    file = tmp_path / "FILE"
    file.write_text('{"metric": "verbmem", "id": 1, "truth": "a b", "generated": "a"}\n')
    args = [str(file) if a == "FILE" else a for a in command]
    store = [] if command[0] == "score" else ["--store", str(tmp_path / "s")]
    code = without_torch(args + store)
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_prepare_writes_muses_layout_and_says_what_is_absent(prepared: tuple[Path, Path]) -> None:
    _, corpus = prepared
    card = json.loads((corpus / "corpus.json").read_text())
    assert {"knowmem_forget", "knowmem_retain"} == set(card["absent"])
    for name, count in card["counts"].items():
        assert len(json.loads((corpus / f"{name}.json").read_text())) == count > 0
    items = json.loads((corpus / "verbmem" / "forget.json").read_text())
    whole = "".join(json.loads((corpus / "raw" / "forget.json").read_text()))
    assert all(item["prompt"] + item["gt"] in whole for item in items)


def test_the_same_command_again_does_nothing(
    prepared: tuple[Path, Path], texts: dict[str, Path]
) -> None:
    store, corpus = prepared
    before = (corpus / "manifest.json").stat().st_mtime_ns
    assert prepare(store, texts).stdout.splitlines()[0] == str(corpus)
    assert (corpus / "manifest.json").stat().st_mtime_ns == before
    texts["forget"].write_text(texts["forget"].read_text() + "One word more.")
    assert prepare(store, texts).stdout.splitlines()[0] != str(corpus)


def test_a_whole_chain_by_hand(
    prepared: tuple[Path, Path], model_folder: Path, tmp_path: Path
) -> None:
    store, corpus = prepared
    key = corpus.name
    unlearned = call(
        "unlearn",
        model_folder,
        "--data",
        key,
        "--method",
        "npo_klr",
        "--steps",
        2,
        "--store",
        store,
    )
    assert unlearned.exit_code == 0, unlearned.output
    folder = unlearned.stdout.splitlines()[0]
    quantized = call("transform", Path(folder).name, "--use", "int4-g64-asym", "--store", store)
    assert quantized.exit_code == 0, quantized.output
    assert (Path(quantized.stdout.splitlines()[0]) / "codes.safetensors").is_file()
    measured = call("measure", folder, "--data", key, "--store", store)
    assert measured.exit_code == 0, measured.output
    assert "verbmem_retain" in measured.output
    out = tmp_path / "audit"
    judged = call(
        "audit", model_folder, folder, "--data", key, "-q", "int4", "--out", out, "--store", store
    )
    outcomes = {v["outcome"] for v in json.loads((out / "summary.json").read_text())["verdicts"]}
    assert judged.exit_code == verbs.exit_code(outcomes) != 0, (
        judged.output
    )  # a random model has forgotten nothing
    assert call("show", key, "--store", store).exit_code == 0
    assert folder.rsplit("/", 1)[1] in call("ls", "--store", store).output


def test_one_failure_decides_the_exit_code() -> None:
    assert verbs.exit_code({"gone"}) == 0
    assert verbs.exit_code({"gone", "unclear"}) == 4
    assert verbs.exit_code({"gone", "not measured"}) == 4
    for bad in ("came back", "known", "hidden", "broken"):
        assert verbs.exit_code({"gone", "unclear", bad}) == 3


def test_an_artefact_is_the_same_by_folder_and_by_name(
    prepared: tuple[Path, Path], model_folder: Path
) -> None:
    store, corpus = prepared
    by_folder = call(
        "measure", model_folder, "--data", corpus, "--store", store
    ).stdout.splitlines()[0]
    assert (
        call("measure", model_folder, "--data", corpus.name, "--store", store).stdout.splitlines()[
            0
        ]
        == by_folder
    )


def test_missing_file(tmp_path: Path, texts: dict[str, Path]) -> None:
    refused(
        prepare(tmp_path / "s", texts | {"forget": tmp_path / "no.txt"}), "no.txt does not exist"
    )


def test_empty_forget_set(tmp_path: Path, texts: dict[str, Path]) -> None:
    texts["forget"].write_text(" \n")
    refused(prepare(tmp_path / "s", texts), "The forget set is empty")


def test_not_utf8(tmp_path: Path, texts: dict[str, Path]) -> None:
    texts["retain"].write_bytes("Café".encode("latin-1"))
    refused(prepare(tmp_path / "s", texts), "is not UTF-8 (byte 3)", "iconv")


@pytest.mark.parametrize(
    "content", ['[{"q": "a"}]', '{"a": [1]}', '["a", 3]', '[{"question": "a", "answer": 5}]', "7"]
)
def test_json_of_another_shape(content: str, tmp_path: Path, texts: dict[str, Path]) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    refused(prepare(tmp_path / "s", texts | {"forget": path}), "x.json", "string")


def test_overlap_of_forget_and_holdout(tmp_path: Path, texts: dict[str, Path]) -> None:
    texts["holdout"].write_text(texts["forget"].read_text()[:1500])
    refused(prepare(tmp_path / "s", texts), "holdout texts share 13 words", "--drop-overlap")
    texts["holdout"].write_text(
        texts["forget"].read_text()[:1500]
        + Path(texts["retain"]).read_text().replace("silver", "golden")
    )
    assert prepare(tmp_path / "s", texts, "--drop-overlap").exit_code == 0


def test_overlap_of_forget_and_retain_is_reported(tmp_path: Path, texts: dict[str, Path]) -> None:
    texts["retain"].write_text(texts["retain"].read_text() + texts["forget"].read_text()[:800])
    result = prepare(tmp_path / "s", texts)
    assert result.exit_code == 0
    assert "texts share a long run of words with the forget text" in result.output


def test_unknown_names_get_a_suggestion(prepared: tuple[Path, Path], model_folder: Path) -> None:
    store, corpus = prepared
    end = ("--store", store)
    refused(
        call("unlearn", model_folder, "--data", corpus.name, "--method", "npo_kl", *end),
        "Unknown method 'npo_kl'",
        "Did you mean npo_klr",
    )
    refused(call("transform", model_folder, "--use", "nf5", *end), "Unknown transform 'nf5'", "nf4")
    refused(
        call("measure", model_folder, "--data", corpus.name, "--set", 'metrics=["verbmen"]', *end),
        "Unknown metric 'verbmen'",
        "verbmem",
    )
    refused(
        call("unlearn", model_folder, "--data", corpus.name, "--set", "methd=ga", *end),
        "Unknown key 'methd'",
        "method",
    )
    refused(
        call("unlearn", model_folder, "--data", "nothing", "--method", "ga", *end),
        "'nothing' is neither a folder",
    )


def test_model_folder_without_weights(prepared: tuple[Path, Path], model_folder: Path) -> None:
    store, corpus = prepared
    for file in model_folder.glob("*.safetensors"):
        file.unlink()
    refused(
        call("measure", model_folder, "--data", corpus.name, "--store", store), "has no weights"
    )


def test_truncated_safetensors(prepared: tuple[Path, Path], model_folder: Path) -> None:
    store, corpus = prepared
    file = model_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    refused(
        call("measure", model_folder, "--data", corpus.name, "--store", store),
        "damaged or cut short",
    )


def test_tokenizer_missing(prepared: tuple[Path, Path], model_folder: Path) -> None:
    store, corpus = prepared
    (model_folder / "tokenizer.json").unlink()
    refused(
        call("measure", model_folder, "--data", corpus.name, "--store", store), "has no tokenizer"
    )


def test_sequence_longer_than_the_context(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    from remnant.model.load import open_tokenizer

    store, corpus = prepared
    tokenizer: PreTrainedTokenizerBase = open_tokenizer(str(corpus / "tokenizer"))
    save_model(
        tiny_model(vocab=len(tokenizer), max_position_embeddings=20), tokenizer, tmp_path / "short"
    )
    measured = call("measure", tmp_path / "short", "--data", corpus.name, "--store", store)
    assert measured.exit_code == 0, measured.output
    (sheet,) = (read_rows(p) for p in store.glob("objects/measure-*/rows.jsonl"))
    assert not sheet.values[Column("verbmem")]
    assert set(sheet.unscorable[Column("verbmem")].values()) == {
        "prompt and answer are longer than the model's context of 20 tokens"
    }
    assert "prompt and answer" in measured.output
    unlearn = (
        "unlearn",
        tmp_path / "short",
        "--data",
        corpus.name,
        "--method",
        "ga",
        "--steps",
        1,
        "--store",
        store,
    )
    refused(call(*unlearn), "longer than the model's context of 20", "max_tokens")
    cut = call(*unlearn, "--set", "max_tokens=20", "--set", "select=last", "--set", "probe_every=9")
    assert cut.exit_code == 0, cut.output


def test_a_loss_that_explodes_says_where_and_keeps_the_last_checkpoint(
    prepared: tuple[Path, Path], model_folder: Path
) -> None:
    store, corpus = prepared
    args = (
        "unlearn",
        model_folder,
        "--data",
        corpus.name,
        "--method",
        "ga",
        "--lr",
        1e30,
        "--steps",
        9,
        "--store",
        store,
    )
    refused(call(*args), "not finite at step 2", "after step 1 are kept")
    assert list(store.glob("partial/unlearn-*/resume.pt"))
    assert not list(store.glob("objects/unlearn-*"))


def test_disk_full(
    prepared: tuple[Path, Path], model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, corpus = prepared

    def full(requests: object, backend: object, spool: Path, report: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(spool))

    with monkeypatch.context() as patch:
        patch.setattr(measure_stage, "collect", full)
        refused(
            call("measure", model_folder, "--data", corpus.name, "--store", store),
            "The disk is full",
        )
    assert not list(store.glob("objects/measure-*"))
    assert call("measure", model_folder, "--data", corpus.name, "--store", store).exit_code == 0


def test_a_really_full_disk(texts: dict[str, Path], tmp_path: Path) -> None:
    """The same on a real file system of 64 KB, where this process may mount one."""
    mount = tmp_path / "small"
    mount.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)], capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    try:
        refused(prepare(mount / "store", texts), "The disk is full")
        assert not list(mount.glob("store/objects/*"))
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_output_folder_not_writable(texts: dict[str, Path], tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    refused(prepare(blocked / "store", texts), "A file stands where a folder is needed", "--store")
    refused(call("ls", "--store", "/proc/remnant"), "remnant:")


def test_all_faults_of_a_sweep_in_one_message(tmp_path: Path) -> None:
    sweep = tmp_path / "bad.toml"
    sweep.write_text(
        'name = "bad"\nquantizer = ["int4"]\n[[corpus]]\nlab = "newz"\n[[unlearn]]\nmethod = '
        '"ga"\nlr = -1\n[measure]\nhalve = 1\n'
    )
    result = call("plan", sweep, "--store", tmp_path / "s")
    refused(
        result,
        "4 faults",
        "Unknown key 'quantizer'",
        "quantizers",
        "corpus.0.lab",
        "unlearn.0.lr",
        "Unknown key 'halve'",
        "half",
    )
    sweep.write_text(
        'name = "bad"\nquantizers = ["int44"]\n[[corpus]]\nlab = "news"\n[[unlearn]]\nmethod '
        '= "gaa"\n[measure]\nmetrics = ["x"]\n'
    )
    refused(call("plan", sweep, "--store", tmp_path / "s"), "3 faults", "gaa", "int44", "'x'")
    sweep.write_text("name = ")
    refused(call("plan", sweep, "--store", tmp_path / "s"), "is not TOML")


def test_settings_reach_into_lists(tmp_path: Path) -> None:
    result = call(
        "plan",
        "demo",
        "--set",
        "unlearn.0.lr=0.5",
        "--set",
        'quantizers=["nf4"]',
        "--store",
        tmp_path,
    )
    assert result.exit_code == 0
    assert '"lr": 0.5' in result.output
    assert "gptq4" not in result.output
    refused(call("plan", "demo", "--set", "unlearn.9.lr=1", "--store", tmp_path), "has no entry 9")
    refused(call("plan", "demo", "--set", "lr", "--store", tmp_path), "not a setting")


def score_lines(tmp_path: Path, *lines: Any) -> Path:
    path = tmp_path / "given.jsonl"
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    )
    return path


def test_score_prints_and_writes_all_digits(tmp_path: Path) -> None:
    path = score_lines(
        tmp_path,
        {"metric": "verbmem", "id": "a", "truth": "one two three", "generated": "one two"},
        {"metric": "verbmem", "id": "b", "truth": "one two three", "generated": "nothing"},
        {
            "metric": "knowmem_forget",
            "id": 1,
            "truth": "blue",
            "generated": "blue\n\nQuestion: red",
        },
        {"metric": "knowmem_retain", "id": 1, "truth": "blue", "generated": "漢"},
        *(
            {"metric": "privleak", "split": "forget", "id": i, "value": v}
            for i, v in enumerate((1.0, 2.0))
        ),
        *(
            {"metric": "privleak", "split": "holdout", "id": i, "value": v}
            for i, v in enumerate((1.5, 2.0))
        ),
    )
    out = tmp_path / "out.json"
    result = call("score", path, "--auc-retrain", 0.5, "--json", out)
    assert result.exit_code == 0, result.output
    cells = {c["metric"]: c for c in json.loads(out.read_text())["cells"]}
    assert cells["verbmem"]["value"] == pytest.approx(40.0)
    assert cells["verbmem"]["n"] == 2
    assert cells["knowmem_forget"]["value"] == 100.0
    assert cells["knowmem_retain"]["value"] == 0.0
    assert cells["auc"]["value"] == pytest.approx(100 * (0 + 0 + 1 + 0.5) / 4)
    assert cells["privleak"]["value"] == pytest.approx(100 * (0.375 - 0.5) / 0.5)
    assert set(cells["verbmem"]) >= {
        "model",
        "method",
        "weights",
        "form",
        "steps",
        "packed",
        "metric",
        "seed",
        "value",
        "low",
        "high",
        "n",
        "status",
    }


def test_score_without_a_reference_says_so(tmp_path: Path) -> None:
    lines = [
        {"metric": "privleak", "split": s, "id": 1, "value": 1.0} for s in ("forget", "holdout")
    ]
    out = tmp_path / "out.json"
    result = call("score", score_lines(tmp_path, *lines), "--json", out)
    assert result.exit_code == 0
    cell = next(c for c in json.loads(out.read_text())["cells"] if c["metric"] == "privleak")
    assert cell["value"] is None
    assert "no reference" in cell["status"]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("not json", "Line 1"),
        ({"metric": "verbmen", "id": 1, "truth": "", "generated": ""}, "Did you mean verbmem"),
        ({"metric": "verbmem", "truth": "", "generated": ""}, "has no id"),
        ({"metric": "verbmem", "id": 1, "truth": "a"}, "needs truth and generated"),
        ({"metric": "privleak", "id": 1, "value": 1.0}, "no split"),
        ({"metric": "privleak", "id": 1, "split": "forget", "value": "x"}, "finite number"),
        ('{"metric": "privleak", "id": 1, "split": "forget", "value": NaN}', "finite number"),
        ([], "names no metric"),
    ],
)
def test_score_refuses_lines_of_another_shape(line: Any, part: str, tmp_path: Path) -> None:
    refused(call("score", score_lines(tmp_path, line)), part)


def test_score_refuses_what_would_count_twice_and_impossible_references(tmp_path: Path) -> None:
    line = {"metric": "verbmem", "id": 1, "truth": "a", "generated": "a"}
    refused(call("score", score_lines(tmp_path, line, line)), "a second time")
    for none in (0, 1e-320, float("nan")):
        refused(call("score", score_lines(tmp_path, line), "--auc-retrain", none), "reference AUC")
    refused(call("score", tmp_path / "none.jsonl"), "does not exist")
    refused(call("run", "none"), "comes with Remnant: demo, demo-full")
    refused(call("score", score_lines(tmp_path)), "holds no line")
    refused(
        call("score", score_lines(tmp_path, line), "--json", tmp_path / "no" / "out.json"),
        "does not exist",
    )


def test_check_runs_the_battery_on_a_users_file(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def good(forget):\n    return forget.mean_logp()\n\n"
        "def bad(forget):\n    return forget.logits.mean((-1, -2))\n\n"
        "def ternary(weight, *, share: float = 0.7):\n"
        "    step = (share * weight.abs().mean(-1, keepdim=True)).clamp(min=1e-9)\n"
        "    codes = (weight / step).round().clamp(-1, 1)\n"
        "    return {'codes': codes, 'scale': step, 'zero': None, 'weight': codes * step}\n\n"
        "def first_error(view):\n"
        "    right = (view.greedy() == view.targets()) | ~view.mask\n"
        "    return (right.long().cumprod(-1) * view.mask).sum(-1) / view.mask.sum(-1)\n"
    )
    result = call("check", mine)
    assert result.exit_code == 1
    failed = [line for line in result.output.splitlines() if line.startswith("failed")]
    assert failed
    assert all(":bad:" in line for line in failed)
    mine.write_text("def strange(elephant):\n    return elephant\n")
    refused(call("check", mine), "fits no kind")
    refused(call("check", tmp_path / "none.py"), "does not exist")


def test_check_names_the_law_on_which_a_function_fails_and_goes_on(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def detached(forget):\n    return forget.seq_logp().detach()\n\n"
        "def scalar(forget):\n    return forget.seq_logp().mean()\n\n"
        "def typo(forget):\n    return forget.seq_lgp()\n\n"
        "def number(forget):\n    return 3.0\n\n"
        "def divided(generated, truth):\n    return len(generated) / 0\n\n"
        "def good(forget):\n    return forget.mean_logp()\n"
    )
    found = testing.check_file(str(mine))
    failed = [
        f"{r.function.partition(':')[2]}: {r.law} {r.detail}"
        for r in found
        if r.outcome == "failed"
    ]
    for said in (
        "detached: a gradient reaches the model - RuntimeError",
        "scalar: one finite value per example - gives shape (), not",
        "typo: one finite value per example - AttributeError",
        "number: one finite value per example - TypeError: gives a float, not a tensor",
        "divided: it runs on all that it reads - ZeroDivisionError",
    ):
        assert any(told.startswith(said) for told in failed), said
    assert not any(told.startswith("good") for told in failed)
    assert sum(r.function.endswith(":good") for r in found) == len(testing.LOSS_LAWS)
    assert call("check", mine).exit_code == 1


def test_a_truth_that_is_empty_is_a_status(
    prepared: tuple[Path, Path], model_folder: Path, tmp_path: Path
) -> None:
    from remnant.records import MeasureSpec
    from remnant.stages import measure

    _, corpus = prepared
    items = json.loads((corpus / "verbmem" / "forget.json").read_text())
    items[0]["gt"] = ""
    items[1]["gt"] = "!!! ..."
    (corpus / "verbmem" / "forget.json").write_text(json.dumps(items))
    out = tmp_path / "rows"
    out.mkdir()
    measure.run(
        MeasureSpec(),
        {"model": model_folder, "corpus": corpus},
        out,
        silent,
    )
    rows = {
        r["id"]: r
        for r in map(json.loads, (out / "rows.jsonl").read_text().splitlines())
        if r["metric"] == "verbmem"
    }
    assert rows["forget-text-0"]["value"] is None
    assert rows["forget-text-0"]["status"] == "the truth is empty"
    assert rows["forget-text-1"]["value"] is None
    assert rows["forget-text-1"]["status"] == "the truth has no letter a-z and no digit"


@pytest.mark.parametrize("command", [["ls"], ["gc"], ["show", "x"], ["report", "x"]])
def test_what_only_looks_at_a_store_makes_none(command: list[str], tmp_path: Path) -> None:
    mistyped = tmp_path / "rnus"
    refused(call(*command, "--store", mistyped), "There is no store", "--store")
    assert not mistyped.exists()


def test_more_devices_than_there_are_is_said_at_once(tmp_path: Path) -> None:
    refused(call("train", tmp_path, "--devices", 999999), "more than the", "Give at most")


@pytest.mark.parametrize("more", [[], ["--estimate"]])
def test_copies_that_do_not_divide_the_devices_are_refused(more: list[str], tmp_path: Path) -> None:
    said = ("3 copies of the model do not divide 4 devices.", "--replicate")
    refused(call("train", tmp_path, "--devices", 4, "--replicate", 3, *more), *said)
    refused(call("train", tmp_path, "--replicate", 3, *more), "do not divide 1 device.")
