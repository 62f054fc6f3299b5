"""The part of the checks that needs a GPU: the same numbers as on the CPU, step times of a larger
lab, and the failure in it.

One command, under 25 minutes on one GPU; prints one JSON object as its last line. Where there is no
GPU it says so and ends well. With `--device cpu` and settings that make the larger lab small
(`--set train.hidden=64 ...`) all three parts can be tried without one.
"""

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from remnant.context import Context, ModelCache
from remnant.flow.plan import plan
from remnant.flow.progress import describe
from remnant.flow.run import make
from remnant.flow.store import Store
from remnant.flow.sweepfile import read_sweep
from remnant.functional import quantizers
from remnant.records import OptimSpec, Recovery, SureSpec
from remnant.testing import tiny_model
from remnant.trainable.layers import everything
from remnant.trainable.sure import salient
from remnant.training.loop import fit
from remnant.training.stepper import in_regime

SWEEP = Path(__file__).parent / "gpu_check.toml"
STEPS = 10
SILENT = Context(lambda *_: None, ModelCache())


def agreement(device: str) -> dict[str, float]:
    """Largest difference of weights after ten float32 steps, and share of equal 4-bit codes, CPU
    against the device.
    """
    ends = [_trained(tiny_model(vocab=256), place) for place in ("cpu", device)]
    pairs = list(zip(ends[0].parameters(), ends[1].parameters(), strict=True))
    codes = [
        (quantizers.rtn(a.data).codes, quantizers.rtn(a.data.to(device)).codes.cpu())
        for a, _ in pairs
        if a.ndim > 1
    ]
    return {
        "max_weight_difference": max(
            float((a.detach() - b.detach().cpu()).abs().max()) for a, b in pairs
        ),
        "equal_codes": sum(int((a == b).sum()) for a, b in codes)
        / sum(a.numel() for a, _ in codes),
    }


def _loss(model: PreTrainedModel, ids: torch.Tensor) -> Any:
    def loss_at(micro: int) -> tuple[torch.Tensor, dict[str, float]]:
        loss = model(input_ids=ids, labels=ids).loss
        return loss, {"loss": loss.item()}

    return loss_at


def _trained(model: PreTrainedModel, place: str) -> PreTrainedModel:
    ids = torch.randint(0, 256, (4, 64), generator=torch.Generator().manual_seed(0)).to(place)
    model = model.to(place)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        moving, spec = everything(model), OptimSpec(steps=10, lr=1e-3)
        fit(moving, spec, _loss(model, ids), Path(folder), SILENT)
    return model


def step_seconds(device: str, hidden: int, layers: int) -> dict[str, float]:
    """Seconds of a plain bfloat16 step and of SURE's, on a larger model."""
    shape = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": 3 * hidden,
        "head_dim": 64,
    }
    shape |= {"num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64}
    model = tiny_model(vocab=1024, **shape)
    spec = OptimSpec(steps=STEPS, lr=1e-5, weights="bf16")
    ids = torch.randint(0, 1024, (8, 256), generator=torch.Generator().manual_seed(0)).to(device)
    found: dict[str, float] = {"parameters": sum(p.numel() for p in model.parameters())}
    for name in ("plain", "sure"):
        own = in_regime(copy.deepcopy(model).to(device), spec)  # type: ignore[arg-type]
        loss_at = _loss(own, ids)
        moving = (
            salient(own, SureSpec(percentile=90), lambda loss_at=loss_at: [loss_at(0)[0]])
            if name == "sure"
            else everything(own)
        )
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            fit(moving, spec, loss_at, Path(folder), SILENT)
        found[f"{name}_step_seconds"] = (time.perf_counter() - begin) / STEPS
    return found


def larger_lab(store: Store, settings: Sequence[str] = ()) -> dict[str, Any]:
    """The failure's sweep at 100 million parameters: recovery of VerMem and KnowMem per run and
    grid.
    """
    nodes = plan(read_sweep(SWEEP, settings))
    for node in nodes:
        print(f"larger lab: {describe(node)}", flush=True)
        make(store, node, lambda done, total, note: None)
    found: dict[str, Any] = {}
    for node in nodes:
        if node.stage == "audit":
            kept = (store.path(node.name) / "recovery.json").read_text(encoding="utf-8")
            for r in map(Recovery.model_validate, json.loads(kept)):
                found[f"{r.model} {r.form} {r.metric}"] = {
                    "retained": r.retained,
                    "recovery": r.recovery,
                }
    return found


def main() -> None:
    """Run the three parts and print one JSON object."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--store", type=Path, default=Path("runs"))
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        help="change a setting of gpu_check.toml",
    )
    given = arguments.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("There is no GPU here, so the GPU check is skipped.")
        print(json.dumps({"skipped": "no GPU"}))
        return
    begin = time.perf_counter()
    name = torch.cuda.get_device_name() if given.device == "cuda" else given.device
    result: dict[str, Any] = {"device": name, "agreement": agreement(given.device)}
    result["steps"] = step_seconds(given.device, hidden=1024, layers=8)
    result["larger_lab"] = larger_lab(Store(given.store).open(), given.settings)
    result["minutes"] = round((time.perf_counter() - begin) / 60, 1)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
