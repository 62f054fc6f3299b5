"""How a model may be asked without its answers being changed by it, tried out on a few tokens
before anything is measured.

Texts side by side, behind a shared beginning, or from a cache must give what each gives alone, read
whole. Where they do not (layers that are no attention, windows, places counted in another way), the
next slower way is taken; the last one is each text by itself.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import starmap
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from remnant.errors import UserError, first_line
from remnant.evaluate.prefix import (
    NO_PREFIX,
    Prefix,
    can_be_beside,
    copied,
    prefix_cache,
)
from remnant.evaluate.reading import states
from remnant.evaluate.steps import Cached, accepted, is_plain
from remnant.model.data import collate
from remnant.model.load import context_length
from remnant.model.sizes import chooses, reach

# Rounding of float32 parts two ways to compute by about 1e-6 of the largest logit; a fault of a
# cache by 1e-3 and more.
TOLERANCE = 3e-5
# Of numbers with few bits, so many roundings, or so many times what a batch without any padding
# parts.
ROUNDINGS, NOISE = 4, 4
# Tokens that texts to try have in common, and how many each adds before the model goes on; single
# ones are shorter than a convolution.
SHARED, TAILS, STEPS = 8, (1, 2, 5, 12), 4
REMEDY = "Give a causal language model that reads text alone."
# A window that is not wider is filled while trying; beyond, the texts to try would cost too much.
WIDEST = 256

Writing = Literal["left", "even", "alone", "whole"]


class Ways(NamedTuple):
    """What leaves the answers of one model as they are.

    Args:
        padded: texts of different length are read side by side, filled up on the right.
        behind: texts are read behind a shared beginning that is computed once.
        writing: "left": prompts of different length are continued side by side, filled up on the
            left; "even": those of one length; "alone": each by itself; "whole": the text is read
            again for each token.
        begun: prompts are continued behind a shared beginning that is computed once; it may be kept
            once for all where ``once``.
        once: see ``can_be_beside``.
        positions: the model is told the place of each token.
        leaves: rows that are done leave a batch.
    """

    padded: bool = True
    behind: bool = True
    writing: Writing = "left"
    begun: bool = True
    once: bool = False
    positions: bool = True
    leaves: bool = True


SLOWEST = Ways(padded=False, behind=False, writing="whole", begun=False, leaves=True)


@torch.no_grad()
def ways_of(model: PreTrainedModel) -> Ways:
    """The fastest ways in which the model answers as it does alone.

    Raises:
        UserError: it cannot read a text by itself, or what it says of a token depends on later
            ones.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise UserError(
            (
                f"{_name(model)} is an encoder with a decoder: it continues another text than it "
                "reads."
            ),
            REMEDY,
        )
    if "lsh" in (getattr(model.config, "attn_layers", None) or ()):
        raise UserError(
            f"{_name(model)} hashes by chance: a long text is never read twice in the same way.",
            REMEDY,
        )
    texts = _texts(model)
    alone = [_alone(model, t) for t in texts]
    if not all(bool(logits.isfinite().all()) for logits in alone):
        # nothing can be told from it; that the model is broken is said where its logits are read
        return SLOWEST
    trial = _Trial(model, texts, alone, _noise(model, texts, alone))
    if not trial.is_causal():
        raise UserError(
            (
                f"{_name(model)} does not read from left to right: what it says of a token "
                "depends on later ones."
            ),
            "Give a causal language model; this one has no probability of a text.",
        )
    padded = trial.holds(trial.padded)
    writing, positions, leaves = trial.writing()
    shares = padded and is_plain(model) and trial.common > 0
    begun = (
        shares
        and writing == "left"
        and trial.holds(partial(trial.written, texts, 0, trial.common, positions, leaves))
    )
    return Ways(
        padded=padded,
        behind=shares and trial.holds(partial(trial.behind, positions)),
        writing=writing,
        begun=begun,
        once=begun and can_be_beside(model),
        positions=positions,
        leaves=leaves,
    )


def within(ways: Ways, model: PreTrainedModel, length: int) -> Ways:
    """The ways for texts of so many tokens.

    Layers that choose which tokens to look at break ties as the shape of a batch falls out; caches
    of other things than keys and values are not trusted beyond a window that was too wide to try.
    """
    width = reach(model)
    if is_plain(model) or not 0 < width < length:
        return ways
    if chooses(model):
        return SLOWEST
    alone = ways._replace(
        padded=False,
        behind=False,
        begun=False,
        once=False,
        writing="whole" if ways.writing == "whole" else "alone",
    )
    return alone if width > WIDEST else ways


class _Trial:
    """Texts, what the model says of each alone ([T, V] logits), and how far another way may be off,
    as a share of the largest.
    """

    def __init__(
        self, model: PreTrainedModel, texts: list[list[int]], alone: list[Tensor], allowed: float
    ) -> None:
        self.model, self.texts, self.alone, self.allowed = model, texts, alone, allowed
        shortest = min(map(len, texts)) - STEPS - 1
        self.common = SHARED if shortest >= SHARED else 0
        self._coarse = _is_coarse(model)

    def holds(self, off: Callable[[], list[list[Tensor]]]) -> bool:
        """Whether a way works and parts no text from what it is alone.

        ``off`` gives pairs of logits by text.
        """
        try:
            return all(self._near(_parted(pairs)) for pairs in off())
        except (
            Exception
        ):  # whatever a model's own code raises, a full memory too: this way is not one of its ways
            return False

    def _near(self, apart: list[float]) -> bool:
        """In few bits a router may choose another expert by rounding alone: there most tokens of a
        text must be near.
        """
        worst = sorted(apart)[len(apart) // 2] if self._coarse else max(apart)
        return worst <= self.allowed

    def is_causal(self) -> bool:
        """Whether the beginning of a text says what it says before its end is known."""
        longest = max(range(len(self.texts)), key=lambda i: len(self.texts[i]))
        cut = len(self.texts[longest]) // 2
        found = _alone(self.model, self.texts[longest][:cut])
        return self._near([_apart(a, b) for a, b in zip(found, self.alone[longest], strict=False)])

    def padded(self) -> list[list[Tensor]]:
        """Texts side by side, filled up on the right by ids that differ."""
        found = []
        for pad in (0, self.texts[0][-1]):
            logits = states(self.model, False, collate(self.texts, pad, self.model.device))
            found += [_pairs(logits[i], self.alone[i], len(t)) for i, t in enumerate(self.texts)]
        return found

    def behind(self, positions: bool) -> list[list[Tensor]]:
        """Texts behind what they have in common."""
        n = self.common
        prefix = Prefix(n, prefix_cache(self.model, self.texts[0][:n]))
        batch = collate([t[n:] for t in self.texts], 0, self.model.device)
        logits = states(self.model, False, batch, prefix, positions)
        return [_pairs(logits[i], self.alone[i][n:], len(t) - n) for i, t in enumerate(self.texts)]

    def writing(self) -> tuple[Writing, bool, bool]:
        """How texts are continued, with or without being told places, and whether rows may
        leave.
        """
        pads = (0, self.texts[0][-1])
        for told in (True, False) if is_plain(self.model) else ():
            if all(
                self.holds(partial(self.written, self.texts, pad, 0, told, True)) for pad in pads
            ):
                return "left", told, True
        for told, leaves in ((True, True), (False, True), (True, False), (False, False)):
            if all(
                self.holds(partial(self._even, place, 3, told, leaves))
                for place in range(len(self.texts))
            ):
                return "even", told, leaves
        for told in (True, False):
            if all(
                self.holds(partial(self._even, place, 1, told, False))
                for place in range(len(self.texts))
            ):
                return "alone", told, False
        return "whole", True, True

    def _even(self, place: int, rows: int, positions: bool, leaves: bool) -> list[list[Tensor]]:
        """One text in so many rows: it is as it is to itself."""
        return self.written(
            [self.texts[place]] * rows, 0, 0, positions, leaves, [self.alone[place]] * rows
        )

    def written(
        self,
        texts: Sequence[list[int]],
        pad: int,
        shared: int,
        positions: bool,
        leaves: bool,
        alone: Sequence[Tensor] = (),
    ) -> list[list[Tensor]]:
        """Texts continued by their own last tokens; after two the first row leaves."""
        alone = alone or self.alone
        begun = NO_PREFIX
        if shared:
            cache = prefix_cache(self.model, texts[0][:shared])
            rows_of_it = copied(self.model, cache, len(texts), max(map(len, texts)))
            begun = Prefix(shared, rows_of_it)
        tails = [t[shared:-STEPS] for t in texts]
        steps = Cached(self.model, tails, STEPS, pad, begun, positions)
        rows, found = list(range(len(texts))), [[] for _ in texts]  # type: list[int], list[list[Tensor]]
        for step in range(STEPS):
            logits = steps.step()
            for place, row in enumerate(rows):
                found[row] += [logits[place], alone[row][len(texts[row]) - STEPS + step - 1]]
            if step == 1 and leaves:
                rows = rows[1:]
                steps.add(torch.tensor([t[step - STEPS] for t in texts], device=self.model.device))
                steps.keep(torch.arange(1, len(texts), device=self.model.device))
            else:
                steps.add(
                    torch.tensor(
                        [texts[row][step - STEPS] for row in rows], device=self.model.device
                    )
                )
        return found


def _pairs(found: Tensor, expected: Tensor, length: int) -> list[Tensor]:
    """Found and expected logits of the first tokens, in turns."""
    return [one for place in range(length) for one in (found[place], expected[place])]


def _apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two [V] logits as a share of the largest.

    Infinite where one is not finite.
    """
    apart = float(
        (found.float() - expected.float()).abs().max()
        / expected.float().abs().max().clamp(min=1e-30)
    )
    return apart if apart == apart else float("inf")


def _parted(pairs: list[Tensor]) -> list[float]:
    """How far the two of each pair are apart."""
    return list(starmap(_apart, zip(pairs[::2], pairs[1::2], strict=True)))


def _alone(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """[T, V] logits of one text, read whole, with nothing beside it and no cache."""
    given = {"input_ids": torch.tensor([ids], device=model.device), "use_cache": False}
    try:
        logits: Tensor = model(**accepted(model, given)).logits[0]
    except Exception as error:
        if is_full(error):
            raise UserError(
                f"{_name(model)} and a text of {len(ids)} tokens do not fit into the memory.",
                "Free memory.",
            ) from error
        raise UserError(
            f"{_name(model)} cannot read a text: {first_line(error)}.", REMEDY
        ) from error
    if logits.shape[0] != len(ids):
        raise UserError(
            f"{_name(model)} says something of {logits.shape[0]} of {len(ids)} tokens.", REMEDY
        )
    return logits


def _texts(model: PreTrainedModel) -> list[list[int]]:
    """Texts with a common beginning, the same ones for every model.

    Longer than its smallest window if that is not wide.
    """
    room = context_length(model)
    longest = SHARED + max(TAILS) + STEPS
    window = reach(model)
    if window <= WIDEST:
        longest = max(longest, window + 16 if window else 0)
    longest = min(longest, room)
    tails = [n for n in TAILS[:-1] if SHARED + n + STEPS < longest]
    lengths = [SHARED + n + STEPS for n in tails] + [longest]
    usable = _usable(model)
    picked = torch.randint(
        len(usable), (len(lengths), longest), generator=torch.Generator().manual_seed(0)
    ).tolist()
    begun = [picked[0][:SHARED] + row[SHARED:] for row in picked]
    texts = [list(map(usable.__getitem__, row))[:n] for row, n in zip(begun, lengths, strict=True)]
    pad = getattr(model.config.get_text_config(), "pad_token_id", None)
    if isinstance(pad, int) and 0 <= pad <= max(usable):
        # Of a text it may be a part, such as GPT-2's end token, and some models leave it out when
        # they count places.
        for text in texts:
            text[0] = text[SHARED + 2] = pad
    return texts


def _usable(model: PreTrainedModel) -> list[int]:
    """Ids without a meaning of their own, such as padding or the place of an image."""
    table: Any = model.get_input_embeddings()
    config: Any = model.config
    special = {
        value
        for one in (config, config.get_text_config())
        for name, value in one.to_dict().items()
        if name.endswith(("token_id", "token_index")) and isinstance(value, int)
    }
    size = min(int(config.get_text_config().vocab_size), int(table.weight.shape[0]))
    return [i for i in range(min(size, 1000)) if i not in special] or [0]


def _noise(model: PreTrainedModel, texts: list[list[int]], alone: list[Tensor]) -> float:
    """How far a way may be off: by rounding, where numbers have few bits by what texts of one
    length do to each other.
    """
    if not _is_coarse(model):
        return TOLERANCE
    short = min(map(len, texts))
    try:
        logits = states(model, False, collate([t[:short] for t in texts], 0, model.device))
        beside = max(
            _apart(logits[i, p], alone[i][p]) for i in range(len(texts)) for p in range(short)
        )
    except Exception:  # then nothing is computed side by side, as `padded` finds out
        beside = 0.0
    return max(TOLERANCE, ROUNDINGS * torch.finfo(alone[0].dtype).eps, NOISE * beside)


def _is_coarse(model: PreTrainedModel) -> bool:
    """Whether rounding may show: weights of fewer bits than float32, or packed ones."""
    return (
        model.dtype.itemsize < 4 or getattr(model.config, "quantization_config", None) is not None
    )


def is_full(error: BaseException) -> bool:
    """Whether an error says that the memory is full."""
    return isinstance(
        error, torch.OutOfMemoryError | MemoryError
    ) or "can't allocate memory" in str(error)


def _name(model: PreTrainedModel) -> str:
    return f"The model ({type(model).__name__})"
