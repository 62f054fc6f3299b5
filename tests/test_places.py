"""What is this path, this name, this function? Told before any work begins, without running
anything of the user's."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from remnant.cli import main
from remnant.errors import UserError
from remnant.flow import place
from remnant.flow.plan import plan, user_code
from remnant.flow.store import Store
from remnant.flow.sweepfile import read_sweep
from remnant.methods import METRIC_READS, step
from remnant.report.terminal import code_of
from remnant.resolve import Method, resolve

MODELS = ("train", "unlearn", "transform")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").open()


def touch(path: Path, text: str = "{}") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("make", "named", "stage", "says"),
    [
        (None, "m/typo", MODELS, "m is there, but holds no typo"),
        (None, "gone/model.safetensors", MODELS, "neither a folder"),
        (None, "owner/name--x", MODELS, "neither a folder"),
        (None, "https://huggingface.co/a/b", MODELS, "is an address"),
        (None, " ", MODELS, "is empty"),
        (None, "a\x00b", MODELS, "is no path"),
        (None, "x" * 5000, MODELS, "is no path"),
        (None, "owner/name", "prepare", "remnant prepare --hub owner/name"),
        ("file.safetensors", "file.safetensors", MODELS, "is a file, not the folder of a model"),
        ("a/adapter_config.json", "a", MODELS, "holds an adapter, not a model. Merge it"),
        ("c/corpus.json", "c", MODELS, "is a prepared corpus, not a model"),
        ("t/text.txt", "t", MODELS, "has no config.json"),
        ("t/text.txt", "t", "prepare", "Prepare it first: remnant prepare --forget t"),
        ("t/raw/forget.json", "t", "prepare", "remnant prepare --folder t"),
        ("n/config.json", "n", "prepare", "is a model, not a prepared corpus"),
        ("f.txt", "f.txt", "prepare", "is a file, not a prepared corpus"),
    ],
)
def test_what_is_named_is_told_apart(
    make: str | None,
    named: str,
    stage: str | tuple[str, ...],
    says: str,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    if make:
        touch(tmp_path / make)
    with pytest.raises(UserError) as caught:
        (place.outside if says.startswith("m is") else lambda n, s: place.given(store, n, s))(
            named, stage
        )
    assert says in str(caught.value)


def test_a_model_folder_with_a_foreign_manifest_is_an_outside_folder(
    store: Store, tmp_path: Path
) -> None:
    touch(tmp_path / "train-0123456789abcdef" / "config.json")
    touch(tmp_path / "train-0123456789abcdef" / "manifest.json", '{"digest": "believed"}')
    found = place.given(store, str(tmp_path / "train-0123456789abcdef"), MODELS)
    assert isinstance(found, place.Outside)
    assert found.digest != "believed"


def test_a_hub_out_of_reach_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in (
        "HF_HUB_OFFLINE",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
        "HF_HUB_CACHE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(UserError, match="out of reach"):
        place.check_hub("nobody/reachable")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        place.check_hub("nobody/offline")
    touch(tmp_path / "hub" / "models--nobody--cached" / "snapshots" / "1" / "config.json")
    place.check_hub("nobody/cached")
    assert time.monotonic() - started < place.HUB_SECONDS + 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gguf-q4km", "Did you mean gguf-q4_k_m"),
        ("ct-w4a17", "Did you mean ct-w4a16"),
        ("bnb-nf4-b7", "blocks of 32, 64"),
        ("awq8-g7", "multiples of 8"),
        ("gptq4-g100", "multiples of 8"),
        ("hqq4-g0", "no scale per whole row"),
        ("hqq4-g12", "multiples of 8"),
        ("ao-int4-g9", "multiples of 8"),
        ("int4-g0", "groups are of 1"),
        ("nf4-b0", "blocks are of 1"),
    ],
)
def test_names_of_quantizers_are_checked_before_the_run(
    name: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        step(name)
    sweep = touch(
        tmp_path / "x.toml",
        (
            f'name = "x"\nquantizers = ["{name}"]\n[[corpus]]\nlab = "news"\n[[unlearn]]\nmethod '
            '= "ga"\n'
        ),
    )
    run = CliRunner().invoke(main, ["plan", str(sweep), "--store", str(tmp_path / "s")])
    assert run.exit_code == 2
    assert says.split()[-1] in run.output


def found(tmp_path: Path, source: str, name: str = "f", **params: object) -> Method:
    return resolve(
        "metric", f"{touch(tmp_path / 'mine.py', source)}:{name}", {}, METRIC_READS, params
    )


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("eps: float = EPS", 1e-6),
        ("eps: float = -1e-3", -1e-3),
        ("eps: float = 1/255", 1 / 255),
        ("eps: tuple = (1, -2)", (1, -2)),
        ("eps = 2 ** 10", 1024),
        ("eps: list[int] = [1, 2]", [1, 2]),
        ("eps: float = math.pi / 2", 1.5707963267948966),
        ("eps: float = float('inf')", float("inf")),
        ("eps: int | None = None", None),
        ("eps: Mode = 'a'", "a"),
        ("eps=2 * EPS", 2e-6),
    ],
)
def test_defaults_are_worked_out_without_running_the_file(
    written: str, value: object, tmp_path: Path
) -> None:
    source = (
        "import math\nraise SystemExit\nEPS = 1e-6\nMode = Literal['a', 'b']\ndef f(view, *, "
        f"{written}): return view\n"
    )
    assert found(tmp_path, source).params["eps"] == value


@pytest.mark.parametrize(
    ("annotation", "right", "wrong"),
    [
        ("Literal['a', 'b']", "b", "c"),
        ("int | None", None, "x"),
        ("Optional[int]", 3, "x"),
        ("list[int]", [1], ["x"]),
        ("tuple[int, str]", (1, "a"), (1,)),
        ("Union[int, bool]", 2, "x"),
        ("'int'", 2, "x"),
        ("dict[str, int]", {"a": 1}, {"a": "x"}),
        ("typing.Literal[1, 2]", 2, 3),
        ("float", 0.5, float("nan")),
    ],
)
def test_annotations_are_checked(
    annotation: str, right: object, wrong: object, tmp_path: Path
) -> None:
    source = f"def f(view, *, p: {annotation}): return view\n"
    assert found(tmp_path, source, p=right).params["p"] == right
    with pytest.raises(UserError, match="Parameter 'p' of metric"):
        found(tmp_path, source, p=wrong)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def f(view, *, p=open('x')): return 1", "cannot be read without running"),
        ("def f(view, *, p=P): return 1", "cannot be read without running"),
        ("A = A\ndef f(view, *, p=A): return 1", "refers to itself"),
        ("@cache\ndef f(view): return 1", "has the decorator @cache"),
        ("async def f(view): return 1", "is an async function"),
        ("class f: pass", "is a class"),
        ("f = lambda view: 1", "is not defined by def"),
        ("def f(*views): return 1", "takes \\* or \\*\\* arguments"),
        ("def f(view: return 1", "is not valid Python"),
        ("# coding: nonsense\ndef f(view): return 1", "in the encoding"),
        ("x = 1", "holds no function"),
        ("def g(view): return 1", "Did you mean g|Known: g"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(source: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        found(tmp_path, source)


def test_reexported_functions_are_followed_and_no_package_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = "raise RuntimeError('this ran')\n"
    touch(
        tmp_path / "mypkg" / "__init__.py",
        f"{bomb}from .inner import real as shown\nfrom mypkg.sub.deep import other\n",
    )
    touch(
        tmp_path / "mypkg" / "inner.py",
        f"{bomb}SCALE = 3\ndef real(view, *, scale: int = SCALE): return view\n",
    )
    touch(tmp_path / "mypkg" / "sub" / "deep.py", f"{bomb}def other(view): return view\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve("metric", "mypkg:shown", {}, METRIC_READS, {}).params == {"scale": 3}
    assert resolve("metric", "mypkg:other", {}, METRIC_READS, {}).reads == ("view",)
    assert resolve("metric", "mypkg.sub.deep:other", {}, METRIC_READS, {}).reads == ("view",)
    touch(tmp_path / "compiled.cpython-311-x86_64-linux-gnu.so", "")
    with pytest.raises(UserError, match="compiled"):
        resolve("metric", "compiled:f", {}, METRIC_READS, {})
    for use in (
        f"{tmp_path}/no.py:f",
        f"{tmp_path}/mypkg:f",
        "mypkg.gone:f",
        "nowhere.at.all:f",
        "mypkg:",
    ):
        with pytest.raises(UserError):
            resolve("metric", use, {}, METRIC_READS, {})


def test_a_plan_lists_the_code_that_a_run_runs(tmp_path: Path) -> None:
    touch(tmp_path / "mine.py", f"open({str(tmp_path / 'ran')!r}, 'w')\ndef f(view): return view\n")
    text = (
        'name = "x"\n[[corpus]]\nlab = "news"\n[[unlearn]]\nmethod = "ga"\n[measure]\nextra = [{{ '
        'use = "{}:f" }}]\n'
    )
    sweep = touch(tmp_path / "x.toml", text.format(tmp_path / "mine.py"))
    assert user_code(read_sweep(sweep)) == [f"{tmp_path / 'mine.py'}:f"]
    run = CliRunner().invoke(main, ["plan", str(sweep), "--store", str(tmp_path / "s")])
    assert run.exit_code == 0, run.output
    assert f"runs code of {tmp_path / 'mine.py'}:f" in run.output
    assert not (tmp_path / "ran").exists()
    assert code_of(plan(read_sweep(sweep))) == [f"{tmp_path / 'mine.py'}:f"]


@pytest.mark.parametrize(
    "name", ["$x$ and $", "[red]x[/red]", "_a", "a_b^c", "\\alpha{", "日本", "[/]"]
)
def test_names_with_markup_are_drawn_and_printed(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from remnant.records import Cell
    from remnant.report import terminal
    from remnant.report.charts import forget_utility_plane, knowledge_by_form
    from remnant.report.table import Group

    def cell(model: str, form: str, metric: str) -> Cell:
        about = {
            "method": None,
            "weights": None,
            "seed": None,
            "n": 3,
            "status": "ok",
            "corpus": name,
        }
        return Cell.model_validate(
            about
            | {
                "model": model,
                "steps": () if form == "full" else (form,),
                "metric": metric,
                "value": 5.0,
                "low": 1.0,
                "high": 9.0,
            }
        )

    metrics = ("verbmem", "knowmem_forget", "knowmem_retain")
    group = Group(
        name,
        0,
        [cell(m, q, x) for m in ("target", name) for q in ("full", name) for x in metrics],
        [],
        [],
        None,
    )
    draw: tuple[Callable[[], str], ...] = (
        lambda: knowledge_by_form(group, "verbmem"),
        lambda: forget_utility_plane(group),
    )
    for chart in draw:
        assert "<svg" in chart()
    terminal.console().print(terminal.matrix(group))
    assert name in capsys.readouterr().out
    assert json.dumps(name)
