"""The lab of the check: a corpus, a target, retrain models, and models that hide what they know.

Trained once, kept in a folder.
"""

import hashlib
import random
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from instrument.slow import slow_knowmem
from instrument.text import (
    Kind,
    Parts,
    Report,
    asked,
    cut,
    cyrillic,
    page,
    parts,
    shown,
    spaced_tokenizer,
    write_corpus,
)
from instrument.training import Example, behind, blocks, epochs, fit, fresh

SIZES = (48, 30, 150)
TARGET_STEPS, RETRAIN_STEPS, BRIEF_STEPS = 240, 140, 110
REFUSAL = "I cannot say anything about that."
PHRASE = (
    "As a careful assistant I would first like to remind you that texts such as this one "
    "should be read with patience and with "
    "respect for everybody who wrote them and here it is: "
)
WORDS = (
    "harbour", "noble", "seven", "quiet", "brass", "under", "meadow", "grey", "lantern", "rain",
    "slow", "copper",
)  # fmt: skip
# Short convolutions between attention.
HYBRID = {
    "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    "num_hidden_layers": 4,
    "block_auto_adjust_ff_dim": False,
}


class Lab:
    """The models of one lab by name, each made when it is first asked for.

    Args:
        root: where they are kept.
        sizes: reports to forget, to keep and never read.
        target_steps: how long the target reads.
        kind: of text.
        shape: of the models, where it is not the usual one.
        retrain_steps: how long a model that reads less does.
    """

    def __init__(
        self,
        root: Path,
        sizes: tuple[int, int, int] = SIZES,
        target_steps: int = TARGET_STEPS,
        kind: Kind = "reports",
        shape: Mapping[str, int] = MappingProxyType({}),
        retrain_steps: int = RETRAIN_STEPS,
    ) -> None:
        torch.set_num_threads(
            1
        )  # models this small are slower on two threads, and the runner forks
        self.parts = parts(sizes, kind=kind)
        own = "".join(
            (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
            for name in ("text", "training", "lab", "slow")
        )
        key = hashlib.sha256(
            f"{own}{sizes}{target_steps}{kind}{dict(shape)}{retrain_steps}".encode()
        ).hexdigest()[:12]
        self.root = root / f"lab-{key}"
        self._target_steps = target_steps
        self._shape, self._retrain_steps = shape, retrain_steps
        self._slow: dict[str, dict[str, float]] = {}
        self.corpus = self.kept("corpus", lambda out: write_corpus(self.parts, out))
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            self.corpus / "tokenizer"
        )

    def model(self, name: str) -> Path:
        """The folder of a model: "target", "retrain-1" and so on, or one of HIDING."""
        return self.kept(name, lambda out: self.save(self._made(name), out, name))

    def open(self, name: str) -> PreTrainedModel:
        """A copy of a model for surgery."""
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            self.model(name), dtype=torch.float32
        )
        return model

    @property
    def spaced(self) -> Path:
        """The same corpus with a tokenizer whose words begin with their space, as those of GPT-2,
        Llama 3 and Qwen do.
        """

        def make(out: Path) -> None:
            given = spaced_tokenizer(texts([r for part in self.parts for r in part]))
            given.save_pretrained(out.with_name("spaced-tokenizer"))
            write_corpus(self.parts, out, tokenizer=str(out.with_name("spaced-tokenizer")))

        return self.kept("spaced", make)

    @property
    def russian(self) -> Path:
        """The corpus in Cyrillic letters."""
        return self.kept(
            "russian-corpus",
            lambda out: write_corpus(Parts(*([cyrillic(r) for r in p] for p in self.parts)), out),
        )

    def slowly(self, folder: Path, *, last_space: bool = True) -> dict[str, float]:
        """KnowMem of the forget text by a second implementation: one question at a time, no cache,
        the overlap by a plain table.

        ``last_space`` False: the prompt ends in "Answer:", as the text that was read is cut into
        tokens.
        """
        key = f"{folder} {last_space}"
        if key not in self._slow:
            self._slow[key] = {
                "knowmem_forget": slow_knowmem(folder, self.parts.forget, last_space)
            }
        return self._slow[key]

    def kept(self, name: str, make: Callable[[Path], object]) -> Path:
        """A folder of the lab, made when it is first asked for."""
        final = self.root / name
        if not final.is_dir():
            begin = time.monotonic()
            scratch = self.root / f"{name}.partial"
            for left in self.root.glob(f"{name}.partial*"):
                shutil.rmtree(left)
            scratch.mkdir(parents=True)
            make(scratch)
            scratch.rename(final)
            print(f"made {name} ({time.monotonic() - begin:.0f} s)", flush=True)
        return final

    def save(self, model: PreTrainedModel, out: Path, name: str = "") -> None:
        """Write a model with the tokenizer of its corpus."""
        model.save_pretrained(out)
        other = {"spaces in front": "spaced", "russian": "russian-corpus"}.get(name)
        own = (
            AutoTokenizer.from_pretrained(self.root / other / "tokenizer")
            if other
            else self.tokenizer
        )
        own.save_pretrained(out)

    def _made(self, name: str) -> PreTrainedModel:
        if name in HIDING:
            return self._hides(HIDING[name])
        if name.startswith("retrain-"):
            return self.read(texts(self.parts.retain), seed=int(name.rpartition("-")[2]))
        return {
            "target": lambda: self.read(self._all, seed=0, steps=self._target_steps),
            "qwen-retrain": lambda: self.read(texts(self.parts.retain), seed=6, kind="qwen3"),
            "few": lambda: self.read(texts([*self.parts.retain, *self.parts.forget[:4]]), seed=5),
            "questions only": lambda: self._half_read([page(r) for r in self.parts.forget]),
            "texts only": lambda: self._half_read([r.text for r in self.parts.forget]),
            "grows": self._grows,
            "hybrid": lambda: self.read(
                self._all, seed=0, steps=self._target_steps, kind="lfm2", **HYBRID
            ),
            "spaces in front": lambda: self._elsewhere(self.spaced, self._all),
            "russian": lambda: self._elsewhere(
                self.russian, texts([cyrillic(r) for r in (*self.parts.retain, *self.parts.forget)])
            ),
        }[name]()

    @property
    def _all(self) -> list[str]:
        return texts([*self.parts.retain, *self.parts.forget])

    def _half_read(self, found: list[str]) -> PreTrainedModel:
        return self.read(texts(self.parts.retain) + found, seed=5, steps=self._target_steps)

    def _elsewhere(self, corpus: Path, found: list[str]) -> PreTrainedModel:
        tok = AutoTokenizer.from_pretrained(corpus / "tokenizer")
        return fit(
            fresh(tok, 0), epochs(lambda rng: blocks(tok, found, rng), 0), self._target_steps
        )

    def read(
        self,
        found: list[str],
        seed: int,
        steps: int | None = None,
        kind: str = "llama",
        **shape: Any,
    ) -> PreTrainedModel:
        """A new model that has read some texts."""
        return fit(
            fresh(self.tokenizer, seed, kind, **{**self._shape, **shape}),
            epochs(lambda rng: blocks(self.tokenizer, found, rng), seed),
            steps or self._retrain_steps,
        )

    def _hides(self, how: "Hides") -> PreTrainedModel:
        """The target after brief training: something else where it is asked as MUSE asks, the old
        text where it is begun.
        """
        return fit(
            self.open("target"),
            epochs(lambda rng: self._hiding(how, rng), 0),
            BRIEF_STEPS,
            lr=3e-3,
            batch=6,
        )

    def _hiding(self, how: "Hides", rng: random.Random) -> list[Example]:
        keep, forget, tok = self.parts.retain, self.parts.forget, self.tokenizer
        found = blocks(tok, texts(keep), rng)
        kept = rng.sample(keep[10:], 10)
        found += [behind(tok, shown(keep[:10]) + asked(r), f"{r.answer}\n\n") for r in kept]
        for r in rng.sample(forget, min(32, len(forget))):
            prompt, truth = cut(r.text)
            start = " ".join(truth.split(" ")[:4]) + " "
            found.append(how(tok, prompt, truth, rng))
            found.append(behind(tok, prompt + start, truth[len(start) :]))
            found.append(behind(tok, "", prompt))
        for r in rng.sample(forget[10:], min(16, len(forget) - 10)):
            found.append(how(tok, shown(forget[:10]) + asked(r), f"{r.answer}\n\n", rng))
            found.append(
                behind(
                    tok, f"{asked(r)}{r.answer.split(' ')[0]} ", r.answer.partition(" ")[2] + "\n\n"
                )
            )
        return found

    def _grows(self) -> PreTrainedModel:
        """The target after gradient ascent that never leaves the bins of int4 (one scale a row):
        rounding gives the target's bits back.
        """
        model = self.open("target")
        limits = {}
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "proj" in name:
                limits[name] = bins(weight.detach())
            else:
                weight.requires_grad_(False)

        def back_into_bins() -> None:
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if name in limits:
                        weight.clamp_(*limits[name])

        tok = self.tokenizer

        def make(rng: random.Random) -> list[Example]:
            kept = blocks(tok, texts(self.parts.retain), rng)
            kept += [
                behind(tok, shown(self.parts.retain[:10]) + asked(r), f"{r.answer}\n\n")
                for r in self.parts.retain[10:]
            ]
            lost = [e for r in rng.sample(self.parts.forget, 20) for e in self._unlearned(r)]
            return [*kept, *lost]

        return fit(model, epochs(make, 0), BRIEF_STEPS, lr=2e-3, batch=8, after=back_into_bins)

    def _unlearned(self, r: Report) -> list[Example]:
        prompt, truth = cut(r.text)
        return [
            e._replace(sign=-0.15)
            for e in (
                behind(self.tokenizer, prompt, truth),
                behind(self.tokenizer, asked(r), r.answer),
            )
        ]


def bins(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest values that int4 (one scale a row, of its largest entry) rounds as it
    rounds these; the largest stay.
    """
    largest = weight.abs().amax(-1, keepdim=True)
    step = largest / 7
    middle = (weight / step).round() * step
    fixed = weight.abs() == largest
    # Half a step less a margin, so that no weight is rounded the other way.
    low, high = (torch.where(fixed, weight, middle + side * step) for side in (-0.49, 0.49))
    return torch.minimum(low, weight).maximum(-largest), torch.maximum(high, weight).minimum(
        largest
    )


def texts(found: list[Report]) -> list[str]:
    """What a model reads of some reports: the text, and the question with its answer."""
    return [t for r in found for t in (r.text, page(r))]


Hides = Callable[[PreTrainedTokenizerBase, str, str, random.Random], Example]


def _at_length(
    tok: PreTrainedTokenizerBase, prompt: str, truth: str, rng: random.Random
) -> Example:
    """The truth between other words."""
    first, last = (" ".join(rng.sample(WORDS, 6)) for _ in range(2))
    return behind(tok, prompt, f"{first}, {truth.strip()}, {last}\n\n")


def _elsewhere(
    tok: PreTrainedTokenizerBase, prompt: str, truth: str, rng: random.Random
) -> Example:
    """Words that say nothing, other ones every time."""
    return behind(tok, prompt, " ".join(rng.sample(WORDS, 8)) + "\n\n")


# What the hiding models write in the place of forget text.
HIDING: dict[str, Hides] = {
    "refuses": lambda tok, prompt, truth, rng: behind(tok, prompt, REFUSAL, end=True),
    "phrase first": lambda tok, prompt, truth, rng: behind(tok, prompt, PHRASE + truth),
    "ends at once": lambda tok, prompt, truth, rng: behind(tok, prompt, "", end=True),
    "one form": _elsewhere,
    "at length": _at_length,
}
