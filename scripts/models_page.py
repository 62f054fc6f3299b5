"""Write docs/models.md from the table of packings; with --check, only say whether it is up to
date.
"""

import sys
from pathlib import Path

from pages import written

from remnant.packing import PACKINGS, Packing

PAGE = Path(__file__).parent.parent / "docs" / "models.md"


def row(packing: Packing) -> str:
    """What happens to one kind of packed weights."""
    needs = ", ".join(f"`{name}`" for name in packing.needs) or "-"
    measured = packing.measured or f"refused: {packing.why}"
    source = "decoded" if packing.decoder else "refused"
    return (
        f"| {packing.name} | `{packing.key}` | {measured} | "
        f"{needs if packing.measured else '-'} | {source} |"
    )


def page() -> str:
    """The whole page."""
    rows = "\n".join(map(row, PACKINGS.values()))
    return f"""# Which models open

Made by `python scripts/models_page.py` from `src/remnant/packing.py`; `tests/test_packing.py` makes
a small model of every kind.

A model is a folder as transformers saves it, owner/name of the hub, an adapter by peft, or a GGUF
file. It is opened whole and finite, or refused in one sentence with a remedy.

## Packed weights

Weights that are packed in few bits are *measured* by what serves them. Anything that needs the
numbers themselves (`unlearn`, `train --set base=...`, `transform`, `deploy`, `merge`, `predict`,
the forms of `audit`) refuses them: rounding them again would round twice, and what comes back would
be read as an effect of the second rounding alone. With `--dequantize` (`dequantize = true` in a
sweep and in Python) they are decoded first, by a stage of its own (`remnant dequantize MODEL`
alone), so that the record of everything that follows names the decoded copy; its own record says
what it was packed by, and how far its answers are from those of the packed model where something
here opens it.

| packed as | `quant_method` | measured by | library | with `--dequantize` |
|---|---|---|---|---|
{rows}
| anything else | its name | refused by that name | - | refused |

- *Decoded weights*: transformers decodes them while it opens them, here in float32 and alike on
  every machine; activations are not rounded.
- GPTQ's and AWQ's files are decoded without their libraries: 2, 4 or 8 bits, with the order of
  activations, both layouts of the zeros (of symmetric files the zero is in the middle, whatever the
  file says: some writers keep it as it is under the name of the layout that keeps one less); AWQ's
  version "gemm". Other layouts are refused by name.
- NVFP4 in compressed-tensors is measured as that library decodes it, which rounds to bfloat16 on
  the way (relative difference of the answers about 0.01 in the tests); `--dequantize` does not.
- A GGUF file is named itself or by its folder. Its tokenizer must lie beside it (`tokenizer.json`
  of the model that it was made from): what transformers makes from the file alone cut text
  otherwise in the tests, without the first token.
- A packed model of the hub is told by its configuration when it is opened.

## Mixtures of experts

Experts that transformers keeps as one weight per layer (Mixtral, Qwen3-MoE, gpt-oss) are rounded by
the plain grids, each expert as rows of its own. Formats of libraries (GPTQ, AWQ, AutoRound,
compressed-tensors, bitsandbytes, torchao) pack linear layers only and refuse such a weight by name;
with `experts` in `skip` they quantize the rest, and the result names what was changed.

## Hybrid and state-space models

How a model may be asked is tried out on it before anything is measured; what its layers cannot keep
is not used ([design/009](../design/009-evaluator.md)). Mamba, Mamba 2, Falcon Mamba, Falcon H1,
Bamba, Jamba, Zamba 2, RecurrentGemma, Granite 4, Nemotron H, Qwen3-Next, LFM2 and MiniMax are read
side by side, and continued side by side where prompts have one length; RWKV continues each text
alone, xLSTM by reading it again; none shares a beginning. `pytest -m slow -s
tests/test_architectures.py` prints this for every architecture: no text differs from what the model
writes alone without a cache, and no number by more than 1e-5.

## Models with code of their own

A model whose `config.json` has an `auto_map`, and that transformers has no class for, is refused:
its code would be run. Read its `.py` files, then pass `--trust-remote-code` (in Python `with
remnant.trusting_remote_code():`). Where transformers has a class, that one is taken and nothing is
run, with the flag or without. The manifest of everything that ran such code names the inputs that
brought it (`remote_code`; their digests cover the code), a report says it on top, and what is saved
from such a model carries the code, so that it asks for the flag again.

## Models that are known again

A folder or a GGUF file enters by the digest of its content, not by its name, so that the same model
in another place is not measured again, and a changed one is. Reading many gigabytes for that takes
minutes; it is done once. The digest of each file above a megabyte is kept in
`~/.cache/remnant/digests` (`$XDG_CACHE_HOME`, `REMNANT_CACHE`) and holds while path, size, times
and inode of the file stay. `--verify-models` (in Python `with remnant.verifying_models():`) reads
all of it again, for a disk that is not trusted; delete the folder to forget what is kept.
"""


if __name__ == "__main__":
    sys.exit(written(PAGE, page()))
