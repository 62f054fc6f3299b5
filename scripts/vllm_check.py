"""Are models in vLLM what was judged? The files of deployed formats in vLLM against their dense
copies in transformers, same items.

    make vllm-check

Two steps, since vLLM and the libraries that write the files want different versions: `make FOLDER`
trains a small model and deploys it, `compare FOLDER` measures every form with both and prints a
table; its last line is one JSON object. vLLM must give the same numbers for the plain model; for a
packed form its kernels may round otherwise, which is shown.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

FORMATS = ("ct-w4a16", "ct-w8a16", "gptq4-g128", "ct-fp8")
METRICS = ("verbmem", "knowmem_forget", "privleak", "exact_memorization")


def silent(done: int, total: int, note: str) -> None:
    """Nobody reads the progress of so small a thing."""


def make(folder: Path) -> None:
    """Corpus, model and its deployed forms, and where each stands."""
    from remnant.flow import plan as planning
    from remnant.flow.run import make as build
    from remnant.flow.store import Store
    from remnant.methods import step
    from remnant.records import PrepareSpec, TrainSpec

    store = Store(folder / "runs").open()
    corpus = planning.prepare_node(
        PrepareSpec(lab="news", prompt_tokens=128, answer_tokens=32, text_tokens=256, max_items=24)
    )
    model = planning.train_node(TrainSpec(hidden=256, intermediate=768, lr=5e-3, steps=120), corpus)
    forms: dict[str, list[str]] = {}
    for name in FORMATS:
        node = planning.deploy_node(step(name), model, corpus)
        for piece in planning.ordered([node]):
            build(store, piece, silent)
        dense = node.inputs["dense"]
        assert isinstance(dense, planning.Node)
        forms[name] = [str(store.path(node.name)), str(store.path(dense.name))]
    forms = {"plain": [str(store.path(model.name))] * 2, **forms}
    (folder / "forms.json").write_text(
        json.dumps({"corpus": str(store.path(corpus.name)), "forms": forms}), encoding="utf-8"
    )


def compare(folder: Path) -> None:
    """One line per form and metric: both means, and the largest difference of an item."""
    found = json.loads((folder / "forms.json").read_text(encoding="utf-8"))
    corpus = Path(found["corpus"])
    result: dict[str, dict[str, float] | str] = {}
    for name, (packed, dense) in found["forms"].items():
        try:
            rows, seconds = measured(packed, corpus, "vllm")
        except (
            Exception
        ) as error:  # what this build of vLLM has no kernel for is part of the answer
            result[name] = f"not run by this vLLM: {str(error).splitlines()[0]}"
            print(f"{name:12} {result[name]}")
            continue
        plain, _ = measured(dense, corpus, None)
        apart = {
            metric: max(abs(rows[k] - plain[k]) for k in rows if k[0] == metric)
            for metric in METRICS
        }
        for metric in METRICS:
            means = [
                sum(v for k, v in values.items() if k[0] == metric)
                / sum(k[0] == metric for k in values)
                for values in (rows, plain)
            ]
            print(
                f"{name:12} {metric:20} vLLM {means[0]:9.4f}  dense copy {means[1]:9.4f}  "
                f"largest difference {apart[metric]:.2g}"
            )
        result[name] = {
            **{k: float(f"{v:.3g}") for k, v in apart.items()},
            "seconds": round(seconds, 1),
        }
    print(json.dumps(result))


def measured(
    model: str, corpus: Path, engine: str | None
) -> tuple[dict[tuple[str, str, str], float], float]:
    """Value by metric, split and item, and the seconds it took."""
    from remnant.context import Context, ModelCache
    from remnant.flow.run import here
    from remnant.records import MeasureSpec
    from remnant.stages import measure

    with tempfile.TemporaryDirectory() as out:
        begin = time.perf_counter()
        spec = MeasureSpec.model_validate({"metrics": METRICS, "engine": engine})
        work = Context(silent, ModelCache(), here())
        measure.run(spec, {"model": Path(model), "corpus": corpus}, Path(out), work)
        rows = [
            json.loads(line)
            for line in (Path(out) / "rows.jsonl").read_text(encoding="utf-8").splitlines()
        ]
    return {
        (r["metric"], r["split"], r["id"]): r["value"] for r in rows
    }, time.perf_counter() - begin


if __name__ == "__main__":
    steps: dict[str, Callable[[Path], None]] = {"make": make, "compare": compare}
    steps[sys.argv[1]](Path(sys.argv[2]))
