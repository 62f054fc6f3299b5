"""What a model knows, by a test that no verdict uses: a tenth of the forget text is read again, and
how much of the other nine tenths comes with it.

A model that never read the text learns the tenth and nothing of the rest; one that hides the rest
says it again.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from instrument.lab import Lab, texts
from instrument.surgery import WEIGHTS
from instrument.training import blocks, epochs, fit, plain
from remnant.durable import write_text

STEPS, RATE = 24, 2e-3
# So much of the way from the never-read models to the target, and beyond each of those, is shown.
SHOWN = 0.1


def relearned(lab: Lab, model: Path) -> float:
    """Share of the tokens of forget text that is not read again which are the greedy choice, after
    a tenth (and as much of the text to keep) was; 0 to 1. Kept beside the lab.
    """
    own = hashlib.sha256(Path(__file__).read_bytes())
    own.update((model / WEIGHTS).read_bytes())
    place = lab.root / "relearned" / f"{own.hexdigest()[:16]}.json"
    if not place.is_file():
        place.parent.mkdir(exist_ok=True)
        write_text(place, json.dumps(_relearned(lab, model)))
    return float(json.loads(place.read_text(encoding="utf-8")))


def _relearned(lab: Lab, folder: Path) -> float:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    forget = lab.parts.forget
    again = texts([*forget[::10], *lab.parts.retain[: len(forget) // 10]])
    fit(model, epochs(lambda rng: blocks(lab.tokenizer, again, rng), 0), STEPS, lr=RATE)
    rest = [r.text for i, r in enumerate(forget) if i % 10]
    return float(np.mean([_right(lab, model, text) for text in rest]))


@torch.no_grad()
def _right(lab: Lab, model: PreTrainedModel, text: str) -> float:
    ids = torch.tensor([[lab.tokenizer.bos_token_id, *plain(lab.tokenizer, text)]])
    greedy = model(input_ids=ids).logits[0, :-1].argmax(-1)
    return float((greedy == ids[0, 1:]).double().mean())


def share(found: float, target: float, unread: Sequence[float]) -> float:
    """How far a model is on the way from the never-read ones, by their mean, to the target."""
    middle = float(np.mean(unread))
    return (found - middle) / (target - middle)


def is_shown(found: float, target: float, unread: Sequence[float]) -> bool:
    """Whether a model is shown to know."""
    return found > max(unread) and share(found, target, unread) > SHOWN
