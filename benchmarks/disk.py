"""What lies on the disk while a model is quantized to ten formats and every copy is measured.

    python benchmarks/disk.py [FOLDER of a model] [--every SECONDS]

The work is what an audit or a sweep asks for, in one process, while another one adds up what lies
in the store. "before" is what lay there when every copy was kept: the same ten copies are made once
more, and each is counted and deleted. Without a folder the model is a random one of 23 million
weights.

The last line is one JSON object: peak_over_model (the most bytes of model and store together, over
those of the model's folder), before (the same of kept copies), peak_mb, model_mb, formats, and
same_rows (whether the rows of the first copy are, to the byte, those of the kept one; measured
again, from its files).
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FORMS = ("int8", "int4", "int4-g128", "int4-tensor", "nf4", "fp4", "fp8", "q8_0", "q4_0", "bf16")
ITEMS, TOKENS = 4, 16


def bytes_in(folder: Path) -> int:
    """Of all files below a folder, each once."""
    found = {}
    for path in folder.rglob("*"):
        try:
            own = path.lstat()
        except FileNotFoundError:
            continue  # it was deleted this moment
        if path.is_file():
            found[own.st_ino] = own.st_size
    return sum(found.values())


def save_random(folder: str) -> None:
    """A random Llama with the tokenizer of the laboratory."""
    from remnant.context import Context, ModelCache
    from remnant.model.load import open_tokenizer, save_model
    from remnant.records import PrepareSpec
    from remnant.stages import prepare
    from remnant.testing import tiny_model

    quiet = Context(lambda done, total, note: None, ModelCache())
    with tempfile.TemporaryDirectory() as scratch:
        prepare.run(PrepareSpec(lab="news"), {}, Path(scratch), quiet)
        tokenizer = open_tokenizer(f"{scratch}/tokenizer")
    model = tiny_model(
        vocab=len(tokenizer),
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=1024,
    )
    save_model(model, tokenizer, Path(folder))


def run_all(folder: str, place: str) -> None:
    """Quantize and measure, in this process."""
    from remnant import api
    from remnant.flow import plan
    from remnant.flow.node import Node
    from remnant.flow.place import Outside
    from remnant.flow.run import make
    from remnant.flow.store import Store
    from remnant.methods import chain
    from remnant.records import MeasureSpec, PrepareSpec

    store, model = Store(Path(place)).open(), Outside(folder)
    corpus = plan.prepare_node(
        PrepareSpec(lab="news", tokenizer=folder, max_items=ITEMS, answer_tokens=TOKENS)
    )
    asked = plan.asking(MeasureSpec(metrics=("verbmem",)))
    copies = {form: plan.transformed(chain(form), model, corpus) for form in ("full", *FORMS)}
    nodes = {form: plan.measure_node(asked, copy, corpus) for form, copy in copies.items()}
    api.done(store, plan.ordered(nodes.values()), progress=True)
    print(json.dumps({"light": True}), flush=True)
    kept, rows = [], store.path(nodes[FORMS[0]].name) / "rows.jsonl"
    light = rows.read_bytes()
    for form in FORMS:
        copy = copies[form]
        assert isinstance(copy, Node)
        made = make(store, copy, lambda done, total, note: None)
        assert made is not None
        kept.append(bytes_in(made))
        if form == FORMS[0]:
            shutil.rmtree(store.path(nodes[form].name))
            make(store, nodes[form], lambda done, total, note: None)
        for path in made.glob("*.safetensors"):
            path.unlink()
    same = rows.read_bytes() == light
    print(json.dumps({"kept": sum(kept), "same_rows": same}), flush=True)


def main() -> None:
    """Start the work, and look at the disk meanwhile."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--every", type=float, default=0.05)
    parser.add_argument("--at")
    args = parser.parse_args()
    if args.at:
        run_all(args.folder, args.at)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or f"{scratch}/model"
        if not args.folder:
            save_random(folder)
        place = Path(scratch) / "store"
        place.mkdir()
        log = Path(scratch) / "log"
        with log.open("w") as out:
            command = [sys.executable, __file__, folder, "--at", str(place)]
            child = subprocess.Popen(command, stdout=out)
            peak = 0
            while child.poll() is None:
                if '"light"' in log.read_text():
                    child.wait()
                    break
                peak = max(peak, bytes_in(place))
                time.sleep(args.every)
        if child.returncode:
            sys.exit(child.returncode)
        told = json.loads(log.read_text().splitlines()[-1])
        model = bytes_in(Path(folder))
    print(
        json.dumps(
            {
                "peak_over_model": round((model + peak) / model, 3),
                "before": round((model + told["kept"]) / model, 2),
                "peak_mb": round((model + peak) / 1e6, 1),
                "model_mb": round(model / 1e6, 1),
                "formats": len(FORMS),
                "same_rows": told["same_rows"],
            }
        )
    )


if __name__ == "__main__":
    main()
