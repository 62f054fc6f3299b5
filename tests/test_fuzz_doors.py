"""Hostile inputs at every door that reads what others wrote: each ends in one sentence, in time,
and writes and runs nothing.

A verb is called in this process with a time limit; a file beside the hostile one, and a canary that
user code would write, must stay away.
"""

import json
import os
import random
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from remnant.cli import main
from remnant.names import fault_of_name

SECONDS = 20
LAYER = "model.layers.0.mlp.up_proj.weight"
GOOD = {LAYER: {"dtype": "F32", "shape": [4, 32], "data_offsets": [0, 512]}}
BODY = bytes(512)


class Case(NamedTuple):
    """One input: prepared in a folder, then a command.

    ``fine`` where an end without a fault is right too.
    """

    name: str
    prepare: Callable[[Path], list[str]]
    fine: bool = False


class Late(BaseException):
    """A verb did not end."""


@contextmanager
def in_time() -> Iterator[None]:
    def late(signum: int, frame: object) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def model(folder: Path, raw: bytes | None = None, config: str = '{"model_type": "llama"}') -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(
        packed(json.dumps(GOOD).encode()) if raw is None else raw
    )
    (folder / "config.json").write_text(config)
    return folder


def packed(header: bytes, body: bytes = BODY, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def predict_on(raw: bytes, first: bool = False) -> Callable[[Path], list[str]]:
    def prepare(here: Path) -> list[str]:
        good, bad = model(here / "good"), model(here / "bad", raw)
        return [
            "predict",
            *map(str, (bad, good) if first else (good, bad)),
            "-q",
            "int4",
            "--out",
            str(here / "out"),
        ]

    return prepare


def entry(**changed: Any) -> dict[str, Any]:
    return {LAYER: GOOD[LAYER] | changed}


def header_cases() -> Iterator[Case]:
    values: list[Any] = [
        None,
        True,
        -1,
        1.5,
        "x",
        "512",
        [],
        {},
        [1],
        1 << 62,
        1 << 63,
        10**400,
        [[0]],
        "\x00",
    ]
    raw: dict[str, bytes] = {}
    for i, value in enumerate(values):
        for key in ("dtype", "shape", "data_offsets"):
            raw[f"{key} {i}"] = packed(json.dumps(entry(**{key: value})).encode())
        raw[f"entry {i}"] = packed(json.dumps({LAYER: value}).encode())
        raw[f"header {i}"] = packed(json.dumps(value).encode())
        raw[f"size {i}"] = packed(json.dumps(entry(shape=[4, value])).encode())
        raw[f"offset {i}"] = packed(json.dumps(entry(data_offsets=[0, value])).encode())
        raw[f"metadata {i}"] = packed(json.dumps({"__metadata__": [value], **GOOD}).encode())
    offsets = [
        [512, 0],
        [0, 511],
        [1, 513],
        [-8, 504],
        [0, 1 << 40],
        [8, 520],
        [0, 512, 0],
        [0],
        [0, 0],
        [512, 1024],
        [0.0, 512.0],
    ]
    raw |= {f"offsets {o}": packed(json.dumps(entry(data_offsets=o)).encode()) for o in offsets}
    shapes = [
        [4, 31],
        [4, 33],
        [-4, -32],
        [0, 0],
        [128],
        [1 << 32, 1 << 32],
        [2] * 7 + [1] * 80,
        [4, 32.0],
        [True, 128],
        [2, 2, 2, 4, 5],
    ]
    raw |= {
        f"shape {i}": packed(json.dumps(entry(shape=s)).encode())
        for i, s in enumerate(shapes)
        if s != [128]
    }
    raw |= {
        f"dtype {d}": packed(json.dumps(entry(dtype=d)).encode())
        for d in ("f32", "F3", "I8", "BF16", "F64", "", "F32 ", "U1024", "F4")
    }
    two = {"a.weight": GOOD[LAYER], **GOOD}
    raw["overlapping"] = packed(json.dumps(two).encode())
    raw["a hole"] = packed(
        json.dumps(
            GOOD | {"b": {"dtype": "F32", "shape": [1], "data_offsets": [516, 520]}}
        ).encode(),
        bytes(520),
    )
    raw["bytes left over"] = packed(json.dumps(GOOD).encode(), bytes(600))
    raw["cut short"] = packed(json.dumps(GOOD).encode(), bytes(300))
    raw["twice"] = packed(json.dumps(GOOD).encode()[:-1] + b"," + json.dumps(GOOD).encode()[1:])
    raw["deep"] = packed(b"[" * 200_000)
    raw["deep objects"] = packed(b'{"a":' * 100_000)
    raw["not a number"] = packed(
        b'{"'
        + LAYER.encode()
        + b'": {"dtype": "F32", "shape": [NaN, 1], "data_offsets": [0, Infinity]}}'
    )
    raw["half a letter"] = packed(
        b'{"\\ud800": {"dtype": "F32", "shape": [4, 32], "data_offsets": [0, 512]}}'
    )
    raw["not utf-8"] = packed(b'{"\xff": 1}')
    raw["no name"] = packed(json.dumps({"": GOOD[LAYER]}).encode())
    raw["nothing"] = b""
    raw["seven bytes"] = b"1234567"
    raw["only a length"] = struct.pack("<Q", 0)
    for length in (1, 1 << 20, 1 << 40, (1 << 64) - 1, 1 << 63):
        raw[f"length {length}"] = packed(json.dumps(GOOD).encode(), length=length)
    raw["a pickle"] = b"\x80\x04cos\nsystem\n(S'touch canary'\ntR."
    raw["a web page"] = b"<!DOCTYPE html><html><body>404</body></html>" * 4
    raw["a pointer"] = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    draw = random.Random(0)
    good = packed(json.dumps(GOOD).encode())
    for i in range(20):
        spoiled = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            spoiled[draw.randrange(len(good) - len(BODY))] = draw.randrange(256)
        raw[f"flipped {i}"] = bytes(spoiled)
    for i, (name, content) in enumerate(raw.items()):
        yield Case(
            f"header: {name}",
            predict_on(content, first=i % 2 == 1),
            fine=name.startswith(("flipped", "metadata")),
        )


def index_cases() -> Iterator[Case]:
    def case(name: str, index: Any, spoil: Callable[[Path], object] = lambda folder: None) -> Case:
        def prepare(here: Path) -> list[str]:
            good, bad = model(here / "good"), model(here / "bad")
            os.replace(bad / "model.safetensors", bad / "model-1.safetensors")
            (here / "outside.safetensors").write_bytes(packed(json.dumps(GOOD).encode()))
            text = index if isinstance(index, str) else json.dumps(index)
            (bad / "model.safetensors.index.json").write_text(text)
            spoil(bad)
            return ["predict", str(good), str(bad), "-q", "int4", "--out", str(here / "out")]

        return Case(f"index: {name}", prepare)

    names: list[Any] = [
        "../outside.safetensors", "/etc/passwd", "/a/x.safetensors", "a/../../outside.safetensors",
        "..", ".", "", "/", "~/x.safetensors",
        "gone.safetensors", "model-1.safetensors\x00", "x" * 5000 + ".safetensors",
        "\ud800.safetensors", "model-1.bin", "a\nb.safetensors",
        None, 1, [], {}, True, ["model-1.safetensors"],
    ]  # fmt: skip
    for i, name in enumerate(names):
        yield case(f"shard {i}", {"weight_map": {LAYER: name}})
    wholes: tuple[Any, ...] = (
        None,
        [],
        1,
        "x",
        {},
        {"weight_map": None},
        {"weight_map": []},
        {"weight_map": {}},
        {"weight_map": "x"},
    )
    for i, whole in enumerate(wholes):
        yield case(f"whole {i}", whole)
    for text in ("", "{", "[" * 100_000, "NaN", '{"weight_map": {"a": "b", "a": "c"}}', "not json"):
        yield case(f"text {text[:9]}", text)
    yield case(
        "a name that is nowhere",
        {"weight_map": {LAYER: "model-1.safetensors", "other": "model-1.safetensors"}},
    )
    yield case("a name too many in the shard", {"weight_map": {"other": "model-1.safetensors"}})

    def link(folder: Path) -> None:
        (folder / "model-2.safetensors").symlink_to(folder.parent / "outside.safetensors")

    def copy(folder: Path) -> None:
        (folder / "model-2.safetensors").write_bytes((folder / "model-1.safetensors").read_bytes())

    yield case("a link that leads out", {"weight_map": {LAYER: "model-2.safetensors"}}, link)
    yield case(
        "a name in two shards",
        {"weight_map": {LAYER: "model-1.safetensors", "x": "model-2.safetensors"}},
        copy,
    )
    yield case("a shard that is not named", {"weight_map": {LAYER: "model-1.safetensors"}}, copy)
    yield case(
        "a folder for a shard",
        {"weight_map": {LAYER: "d.safetensors"}},
        lambda folder: (folder / "d.safetensors").mkdir(),
    )
    yield case(
        "a pipe for a shard",
        {"weight_map": {LAYER: "p.safetensors"}},
        lambda folder: os.mkfifo(folder / "p.safetensors"),
    )


def config_cases() -> Iterator[Case]:
    texts = [
        "", "{", "[]", "null", "1", '"x"', "[" * 100_000, '{"a":' * 50_000, "NaN",
        '{"model_type": NaN}', "\x00", "not json",
        '{"a": 1, "a": 2}', '{"num_hidden_layers": 10000000}', '{"hidden_size": 1e99}',
        '{"vocab_size": 99999999999}',
        '{"num_hidden_layers": -1}', '{"num_hidden_layers": "many"}',
        '{"num_attention_heads": true}', '{"hidden_size": 0}',
    ]  # fmt: skip
    for i, text in enumerate(texts):

        def predicting(here: Path, text: str = text) -> list[str]:
            bad = model(here / "bad", config=text)
            return [
                "predict",
                str(model(here / "good")),
                str(bad),
                "-q",
                "int4",
                "--out",
                str(here / "out"),
            ]

        def measuring(here: Path, text: str = text) -> list[str]:
            return [
                "transform",
                str(model(here / "bad", config=text)),
                "--use",
                "int4",
                "--store",
                str(here / "store"),
            ]

        yield Case(f"configuration {i} in predict", predicting)
        yield Case(f"configuration {i} in transform", measuring)


BASE = 'name = "x"\nquantizers = ["int4"]\n[[corpus]]\nlab = "news"\n[[unlearn]]\nmethod = "ga"\n'


def toml_cases() -> Iterator[Case]:
    texts: dict[str, str] = {
        "empty": "", "deep": "a = " + "[" * 50_000, "deep tables": ".".join("a" * 20_000) + " = 1",
        "huge number": "a = " + "9" * 10_000,
        "not utf-8": "\x00", "half": "name = ", "twice": 'name = "a"\nname = "b"',
        "date": BASE.replace('"ga"', "1979-05-27"),
        "explosion": BASE + "grid = { " + ", ".join(f"a{i} = [1,2,3,4,5,6,7,8,9,0]"
                                                    for i in range(12)) + " }\n",
        "seeds": f"seeds = {list(range(3000))}\n" + BASE
                 + f"grid = {{ lr = {[i + 0.5 for i in range(60)]} }}\n",
        "grid below a value": BASE + 'grid = { "method.x" = [1] }\n',
        "grid of nothing": BASE + "grid = { lr = [] }\n",
        "grid is a word": BASE + 'grid = "x"\n',
        "unlearn is a word": 'name = "x"\nunlearn = "ga"\n', "corpus is a number": "corpus = 7\n",
        "two runs of one name": BASE + '[[unlearn]]\nmethod = "ga"\n',
        "seeds twice": "seeds = [1, 1]\n" + BASE,
        "a run named target": BASE + 'name = "target"\n',
        "two corpora of one name": '[[corpus]]\nlab = "news"\n' + BASE.replace("[[c", "\n[[c"),
        "missing target": 'target = "nowhere/folder.bin"\n' + BASE,
        "target is an address": 'target = "https://x.y/z"\n' + BASE,
        "target is empty": 'target = " "\n' + BASE,
        "retrain is no path": 'retrain = "a\\u0000b"\ntarget = "."\n' + BASE,
    }  # fmt: skip
    for value in (
        "nan",
        "inf",
        "-inf",
        "-1",
        "1e999",
        '"x"',
        "[]",
        "{}",
        "true",
        "10000000000000000000000",
    ):
        texts[f"lr {value}"] = BASE + f"lr = {value}\n"
        texts[f"floor {value}"] = BASE + f"[rule]\nutility_floor = {value}\n"
        if value != "true":
            texts[f"layers {value}"] = BASE + f"[train]\nlayers = {value}\n"
    for use in (
        "gguf-q4km",
        "ct-w4a17",
        "bnb-nf4-b7",
        "awq8-g7",
        "hqq4-g7",
        "hqq4-g0",
        "ao-int4-g9",
        "int4-g0",
        "nf4-b0",
        "int9",
        "",
        "+",
        "x y",
    ):
        texts[f"quantizer {use}"] = BASE.replace("int4", use)
    for use in (
        "gone.py:f",
        "mine.py:nothing",
        "mine.py:",
        ":f",
        "pkg.sub:gone",
        "nowhere.pkg:f",
        ".:f",
        "mine.py:Klass",
        "mine.py:later",
    ):
        texts[f"code {use}"] = BASE + f'[measure]\nextra = [{{ use = "{use}", on = "verbmem" }}]\n'
    for name, text in texts.items():

        def prepare(here: Path, text: str = text) -> list[str]:
            canary = f"open({str(here / 'canary')!r}, 'w').close()\n"
            (here / "mine.py").write_text(
                f"{canary}class Klass: pass\nasync def later(view): pass\n"
            )
            (here / "pkg").mkdir()
            (here / "pkg" / "__init__.py").write_text(canary)
            (here / "pkg" / "sub.py").write_text(canary)
            (here / "x.toml").write_text(text)
            return ["plan", str(here / "x.toml"), "--store", str(here / "store")]

        yield Case(
            f"toml: {name}",
            prepare,
            fine=name.endswith(" true") or name == "lr 10000000000000000000000",
        )


def name_cases() -> Iterator[Case]:
    names = [
        "", " ", ".", "..", "...", "/", "\\\\", "../../x", "a/b", "/etc/x", "a\\\\b", "\\u0000",
        "a\\nb", "a\\u001bb", "\\u2028", "-x",
        "--help", " x",
        "x ", "x" * 300, "\\u00e9" * 150,
    ]  # fmt: skip
    for i, name in enumerate(names):
        for kind in ("sweep", "run"):

            def prepare(here: Path, name: str = name, kind: str = kind) -> list[str]:
                text = (
                    BASE.replace('"x"', f'"{name}"', 1)
                    if kind == "sweep"
                    else BASE + f'name = "{name}"\n'
                )
                (here / "x.toml").write_text(text)
                return ["plan", str(here / "x.toml"), "--store", str(here / "store")]

            yield Case(f"name {i} of a {kind}", prepare, fine=kind == "run" and name == "")


CASES = [*header_cases(), *index_cases(), *config_cases(), *toml_cases(), *name_cases()]


def beyond(case: Case, here: Path) -> list[str]:
    """What is wrong with how a command ended."""
    here.mkdir()
    work = here / "work"
    work.mkdir()
    args = case.prepare(work)
    outside = set(here.iterdir())
    before = Path.cwd()
    os.chdir(work)
    try:
        with in_time():
            result = CliRunner().invoke(main, args)
    except Late:
        return [f"{case.name}: no end within {SECONDS} s"]
    finally:
        os.chdir(before)
    faults = []
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        faults.append(
            f"{case.name}: {type(result.exception).__name__}: {str(result.exception)[:150]}"
        )
    elif result.exit_code != 2 and not (case.fine and result.exit_code == 0):
        faults.append(f"{case.name}: exit code {result.exit_code}: {result.output[:150]}")
    elif result.exit_code == 2 and not 10 < len(result.output) < 3000:
        faults.append(f"{case.name}: says {len(result.output)} letters")
    if (
        set(here.iterdir()) != outside
        or (work / "canary").exists()
        or (result.exit_code == 2 and (work / "out").exists())
    ):
        faults.append(f"{case.name}: something was written or run")
    return faults


def check(cases: list[Case], folder: Path) -> None:
    faults = [fault for i, case in enumerate(cases) for fault in beyond(case, folder / str(i))]
    print(f"{len(cases)} hostile inputs, {len(faults)} faults", *faults, sep="\n")
    assert not faults, "\n".join(faults)


def test_a_sample_of_hostile_inputs_ends_in_one_sentence(tmp_path: Path) -> None:
    check(CASES[::6], tmp_path)


@pytest.mark.slow
def test_every_hostile_input_ends_in_one_sentence(tmp_path: Path) -> None:
    assert len(CASES) > 300
    check(CASES, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "ga [red]x[red]",
        "$x$ a_b",
        "_under",
        "r\u00e9sum\u00e9 \u65e5\u672c",
        "npo+klr 1.5",
        "[bold",
        "a:b*?",
        ".hidden",
    ],
)
def test_printable_names_are_names(name: str) -> None:
    assert fault_of_name(name) is None
