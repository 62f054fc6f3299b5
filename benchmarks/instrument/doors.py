"""Plants at the door: models that know, in folders, tokenizers, contexts and servers that would
make them look as if they did not.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken
from transformers import AutoTokenizer

from instrument import surgery
from instrument.bench import Bench, Outcome, Plant, cells
from instrument.text import cut
from instrument.training import CONTEXT, fresh

Make = Callable[[Bench, Path, Path], Path]
MIDDLE = "model.layers.1.mlp.down_proj.weight"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def measured(name: str, kind: str, how: str, make: Make, quick: bool = False) -> Plant:
    """The target, changed; what it measures must be right or not said."""
    return Plant(
        name, kind, how, lambda b: b.measured(make(b, b.lab.model("target"), b.folder())), quick
    )


def _weights(change: Callable[[surgery.State], surgery.State | None]) -> Make:
    return lambda _, model, out: surgery.weights(model, out, change)


def _without(*words: str) -> Callable[[surgery.State], surgery.State]:
    return lambda state: {n: w for n, w in state.items() if not any(word in n for word in words)}


def _renamed_one(state: surgery.State) -> surgery.State:
    return {
        n.replace("layers.1.self_attn.o_proj", "layers.1.attention.dense"): w
        for n, w in state.items()
    }


def _narrow(state: surgery.State) -> None:
    state[MIDDLE] = state[MIDDLE][:, :-32].clone()


def _stacked(state: surgery.State) -> surgery.State:
    """The names of another family's checkpoint for the same weights."""
    return {
        n.replace("model.layers", "transformer.h").replace("self_attn", "attn"): w
        for n, w in state.items()
    }


def _adapter(bench: Bench, model: Path, out: Path) -> Path:
    """Adapter weights and their configuration in the place of a model's."""
    surgery.config(
        model,
        out,
        "adapter_config.json",
        base_model_name_or_path=str(model),
        peft_type="LORA",
        r=4,
        target_modules=["q_proj"],
    )
    (out / surgery.WEIGHTS).unlink()
    part = "base_model.model.model.layers.0.self_attn.q_proj"
    low = {"A": torch.zeros(4, 128), "B": torch.zeros(128, 4)}
    save_file(
        {f"{part}.lora_{side}.weight": weight for side, weight in low.items()},
        out / "adapter_model.safetensors",
    )
    return out


LOADED = [
    measured(
        "module.",
        "weights",
        "every weight's name begins with module.",
        _weights(surgery.renamed("module.")),
        quick=True,
    ),
    measured(
        "_orig_mod.",
        "weights",
        "every name begins with _orig_mod. (torch.compile)",
        _weights(surgery.renamed("_orig_mod.")),
    ),
    measured(
        "base_model.model.",
        "weights",
        "every name begins with base_model.model. (peft)",
        _weights(surgery.renamed("base_model.model.")),
    ),
    measured(
        "names of another family",
        "weights",
        "transformer.h.0.attn instead of model.layers.0.self_attn",
        _weights(_stacked),
    ),
    measured(
        "one weight renamed",
        "weights",
        "one layer's o_proj is called attention.dense",
        _weights(_renamed_one),
        quick=True,
    ),
    measured(
        "one layer missing",
        "weights",
        "the last layer's weights are not in the file",
        _weights(_without("layers.2.")),
    ),
    measured(
        "head missing",
        "weights",
        "lm_head is not in the file and not tied",
        _weights(_without("lm_head")),
    ),
    measured(
        "embedding missing",
        "weights",
        "the embeddings are not in the file",
        _weights(_without("embed_tokens")),
    ),
    measured(
        "norms missing",
        "weights",
        "no layer's norms are in the file",
        _weights(_without("layernorm", "norm.weight")),
    ),
    measured(
        "a layer too many",
        "weights",
        "the configuration says two layers, the file holds three",
        lambda _, m, out: surgery.config(m, out, num_hidden_layers=2),
        quick=True,
    ),
    measured(
        "a layer too few",
        "weights",
        "the configuration says four layers, the file holds three",
        lambda _, m, out: surgery.config(m, out, num_hidden_layers=4, layer_types=None),
    ),
    measured(
        "wrong shape", "weights", "one weight lacks 32 columns", _weights(_narrow), quick=True
    ),
    measured(
        "shard missing",
        "weights",
        "the second of two files is not there",
        lambda _, m, out: surgery.sharded(m, out, lose=True),
    ),
    measured(
        "tied by mistake",
        "weights",
        "the configuration ties head and embedding, the file holds both",
        lambda _, m, out: surgery.config(m, out, tie_word_embeddings=True),
    ),
    measured("an adapter", "weights", "an adapter's folder in the place of a model's", _adapter),
]


def _token_row(bench: Bench, weight: str, value: float) -> Callable[[surgery.State], None]:
    """One entry in the row of a token that forget texts hold and retain texts do not."""
    tok, found = bench.lab.tokenizer, bench.lab.parts
    seen = {t for r in found.retain for t in tok(f"{r.text} {r.asked} {r.answer}")["input_ids"]}
    prompts = [cut(r.text)[0] for r in found.forget]
    own = sorted({t for p in prompts for t in tok(p)["input_ids"]} - seen)
    return surgery.put(weight, value, own[0] if own else 50)


def _half(bench: Bench, model: Path, out: Path) -> Path:
    """Kept in float16 after one weight had grown beyond it."""

    def change(state: surgery.State) -> surgery.State:
        state[MIDDLE] = state[MIDDLE] * 1e6
        return {n: w.half() for n, w in state.items()}

    return surgery.config(surgery.weights(model, out, change), out, dtype="float16")


def quantized(name: str, how: str, form: str, value: float) -> Plant:
    """A broken weight behind a quantizer."""

    def act(bench: Bench) -> Outcome:
        broken = surgery.weights(
            bench.lab.model("target"), bench.folder(), surgery.put(MIDDLE, value)
        )
        done = bench.command("transform", broken, "--use", form, "--store", bench.store)
        if done.code:
            return Outcome(
                f"refused: {done.sentence}",
                False,
                done.broken or ("" if done.refused else f"exit code {done.code}"),
            )
        return bench.measured(done.stdout.splitlines()[0])

    return Plant(name, "not finite", how, act)


FINITE = [
    measured(
        "NaN in the embedding",
        "not finite",
        "one NaN in the embedding of a token that only forget text has",
        lambda b, m, out: surgery.weights(m, out, _token_row(b, EMBEDDING, float("nan"))),
    ),
    measured(
        "NaN in the middle",
        "not finite",
        "one NaN in a layer's weight",
        _weights(surgery.put(MIDDLE, float("nan"))),
        quick=True,
    ),
    measured(
        "NaN in the head",
        "not finite",
        "one NaN in the head",
        _weights(surgery.put(HEAD, float("nan"), 300)),
    ),
    measured(
        "NaN in a norm",
        "not finite",
        "one NaN in the last norm",
        _weights(surgery.put("model.norm.weight", float("nan"))),
    ),
    measured(
        "inf in the middle",
        "not finite",
        "one infinity in a layer's weight",
        _weights(surgery.put(MIDDLE, float("inf"))),
    ),
    measured(
        "inf in the head",
        "not finite",
        "one infinity in the head",
        _weights(surgery.put(HEAD, float("inf"), 300)),
    ),
    measured(
        "float16 overflow",
        "not finite",
        "kept in float16, where one weight became infinite",
        _half,
        quick=True,
    ),
    measured(
        "overflow in the logits",
        "not finite",
        "finite weights, but products beyond float32",
        _weights(
            lambda s: {n: w * 1e30 if n in (HEAD, "model.norm.weight") else w for n, w in s.items()}
        ),
    ),
    quantized("NaN behind nf4", "one NaN in a weight, then nf4", "nf4", float("nan")),
    quantized("NaN behind int4", "one NaN in a weight, then int4", "int4", float("nan")),
    quantized("inf behind int8", "one infinity in a weight, then int8", "int8", float("inf")),
]


def _tokens(*parts: str) -> Make:
    return lambda _, model, out: surgery.tokenizer(model, out, surgery.template(*parts))


def _other_vocabulary(bench: Bench, model: Path, out: Path) -> Path:
    """The tokenizer's ids in another order: the same size, another meaning."""

    def change(held: dict) -> None:  # type: ignore[type-arg]
        vocabulary = held["model"]["vocab"]
        for word, place in vocabulary.items():
            if place > 2:
                vocabulary[word] = 3 + (place + 97) % (len(vocabulary) - 3)

    return surgery.tokenizer(model, out, change)


def _outside(bench: Bench, model: Path, out: Path) -> Path:
    """A tokenizer with one more token, that every text begins with, than the model has
    embeddings.
    """
    surgery.copied(model, out)
    tok = AutoTokenizer.from_pretrained(out)
    tok.add_tokens([AddedToken("Question:")])
    tok.save_pretrained(out)
    return out


def _second_end(bench: Bench, model: Path, out: Path, **ends: object) -> Path:
    """A model that ends answers with a token of its own and then talks on, as chat models do whose
    turn has another end.
    """
    tok = bench.lab.tokenizer
    line = tok("\n", add_special_tokens=False)["input_ids"][0]
    talk = tok("lantern ", add_special_tokens=False)["input_ids"][0]

    def change(state: surgery.State) -> None:
        head, embedding = state[HEAD], state[EMBEDDING]
        state[HEAD] = torch.cat([head, 1.2 * head[line : line + 1]])
        state[EMBEDDING] = torch.cat([embedding, embedding[talk : talk + 1]])

    surgery.weights(model, out, change)
    own = AutoTokenizer.from_pretrained(out)
    own.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    own.save_pretrained(out)
    surgery.config(out, out, vocab_size=len(own))
    added = own.convert_tokens_to_ids("<|turn|>")
    given = {"generation_config.json": {"eos_token_id": [own.eos_token_id, added]}, **ends}
    for file, entries in given.items():
        surgery.config(
            out, out, file, **{k: added if v is ... else v for k, v in dict(entries).items()}
        )  # type: ignore[call-overload]
    return out


def _ends(bench: Bench, **ends: object) -> Outcome:
    """Whether KnowMem is what it is without the talk behind the end.

    VerMem has no end and is left out.
    """
    made = _second_end(bench, bench.lab.model("target"), bench.folder(), **ends)
    right = {"knowmem_forget": bench.right()["knowmem_forget"]}
    return bench.measured(made, right=right)


TOKENS = [
    measured(
        "end token behind every text",
        "special tokens",
        "the tokenizer adds </s>",
        _tokens("<s>", "$", "</s>"),
        quick=True,
    ),
    measured(
        "separator behind every text",
        "special tokens",
        "the tokenizer adds <pad> as a separator",
        _tokens("<s>", "$", "<pad>"),
    ),
    measured(
        "two tokens behind every text",
        "special tokens",
        "the tokenizer adds </s> twice",
        _tokens("<s>", "$", "</s>", "</s>"),
    ),
    measured(
        "pad and end token behind every text",
        "special tokens",
        "the tokenizer adds <pad> and </s>",
        _tokens("<s>", "$", "<pad>", "</s>"),
    ),
    Plant(
        "judged with the end token",
        "special tokens",
        "the target with that tokenizer, judged",
        lambda b: b.judged(
            surgery.tokenizer(
                b.lab.model("target"), b.folder(), surgery.template("<s>", "$", "</s>")
            )
        ),
    ),
    Plant(
        "several end tokens",
        "end tokens",
        "generation_config names two, the tokenizer one; the model talks on behind the second",
        _ends,
    ),
    Plant(
        "another end token",
        "end tokens",
        "generation_config names one that is not the tokenizer's",
        lambda b: _ends(b, **{"generation_config.json": {"eos_token_id": ...}}),
    ),
    Plant(
        "end tokens in the configuration",
        "end tokens",
        "config.json names two, and there is no generation_config",
        lambda b: _no_generation(b),
    ),
    measured(
        "ids outside the embeddings",
        "special tokens",
        "the tokenizer knows a token more than the model",
        _outside,
    ),
    Plant(
        "tokenizer of another model",
        "special tokens",
        "the same number of ids in another order, judged",
        lambda b: b.judged(_other_vocabulary(b, b.lab.model("target"), b.folder())),
    ),
]


def _no_generation(bench: Bench) -> Outcome:
    made = _second_end(bench, bench.lab.model("target"), bench.folder())
    (made / "generation_config.json").unlink()
    surgery.config(made, made, eos_token_id=[1, len(bench.lab.tokenizer)])
    return bench.measured(made, right={"knowmem_forget": bench.right()["knowmem_forget"]})


def _without_last_space(bench: Bench) -> Outcome:
    """The target with the tokenizer of byte-level models, in which a word begins with its space:
    "Answer: " ends in a lone space.
    """
    folder = bench.lab.model("spaces in front")
    return bench.measured(
        folder, bench.lab.spaced, right=bench.lab.slowly(folder, last_space=False)
    )


FORMS = [
    Plant(
        "spaces in front of words",
        "prompt",
        "a model that knows, with a byte-level tokenizer whose words begin with their space",
        _without_last_space,
    ),
]


def _state_space(kind: str, **shape: object) -> Make:
    """A random model without attention: only whether it is refused by name or measured at all."""

    def make(bench: Bench, model: Path, out: Path) -> Path:
        fresh(bench.lab.tokenizer, 0, kind, **shape).save_pretrained(out)
        bench.lab.tokenizer.save_pretrained(out)
        return out

    return make


def _hybrid(bench: Bench) -> Outcome:
    """Layers of short convolutions between attention: questions stand behind a long shared
    beginning.
    """
    folder = bench.lab.model("hybrid")
    return bench.measured(folder, right=bench.lab.slowly(folder))


MAMBA = {"state_size": 8, "num_heads": 4, "head_dim": 64, "expand": 2, "n_groups": 1}
LAYERS = [
    Plant(
        "hybrid layers",
        "layers",
        "short convolutions between attention; numbers against one text at a time without a cache",
        _hybrid,
    ),
    Plant(
        "state space",
        "layers",
        "random Mamba: measured or refused in a sentence",
        lambda b: b.measured(
            _state_space("mamba", state_size=8)(b, b.lab.corpus, b.folder()), right={"verbmem": 0.0}
        ),
    ),
    Plant(
        "context by another name",
        "layers",
        "random GPT-2: n_positions, n_head; measured or refused in a sentence",
        lambda b: b.measured(
            _state_space("gpt2", n_inner=128)(b, b.lab.corpus, b.folder()), right={"verbmem": 0.0}
        ),
    ),
]


def _packed(bench: Bench) -> Path:
    """The target as compressed-tensors keeps it in 4 bits."""
    out = bench.work / "packed"
    if not out.is_dir():
        done = bench.command(
            "deploy",
            bench.lab.model("target"),
            "--as",
            "ct-w4a16",
            "-o",
            out,
            "--data",
            bench.lab.corpus,
            "--store",
            bench.store,
        )
        if done.code:
            raise RuntimeError(f"no packed model: {done.stderr[-300:]}")
    return out


def _round_packed(form: str) -> Callable[[Bench], Outcome]:
    def act(bench: Bench) -> Outcome:
        done = bench.command(
            "transform",
            _packed(bench),
            "--use",
            form,
            "--data",
            bench.lab.corpus,
            "--store",
            bench.store,
        )
        if done.code:
            return Outcome(
                f"refused: {done.sentence}",
                False,
                done.broken or ("" if done.refused else f"exit code {done.code}"),
            )
        return bench.measured(done.stdout.splitlines()[0])

    return act


PACKED = [
    Plant(
        "packed, then int2",
        "packed",
        "a compressed-tensors folder of the target under int2, judged as int2",
        lambda b: b.judged(_packed(b), forms=("int2",), only="int2"),
    ),
    Plant(
        "packed, then int8",
        "packed",
        "a compressed-tensors folder through transform int8",
        _round_packed("int8"),
    ),
    Plant(
        "packed, unlearned",
        "packed",
        "unlearning of a compressed-tensors folder",
        lambda b: _unlearn_packed(b),
    ),
    measured(
        "said to be packed",
        "packed",
        "a dense folder whose configuration names a quantization that is not there",
        lambda _, m, out: surgery.config(
            m, out, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
        ),
    ),
]


def _unlearn_packed(bench: Bench) -> Outcome:
    done = bench.command(
        "unlearn",
        _packed(bench),
        "--data",
        bench.lab.corpus,
        "--method",
        "ga",
        "--steps",
        1,
        "--store",
        bench.store,
    )
    said = f"refused: {done.sentence}" if done.code else done.stdout.strip().splitlines()[-1][:120]
    return Outcome(done.broken or said, done.code == 0, done.broken)


def _short(context: int) -> Make:
    return lambda _, model, out: surgery.config(model, out, max_position_embeddings=context)


def _cut_attack(context: int, metric: str) -> Callable[[Bench], Outcome]:
    """Membership by whole texts, most of which do not fit.

    Cut texts must be said, or give no number.
    """

    def act(bench: Bench) -> Outcome:
        short = _short(context)(bench, bench.lab.model("target"), bench.folder())
        done = bench.measure(short, None, "-m", metric)
        shown = cells(done.stdout)
        number, status = shown.get("auc" if metric == "privleak" else metric, (None, "absent"))
        silent = (
            number is not None
            and "cut" not in status
            and "cut" not in done.stdout.replace(status, "")
        )
        said = f"refused: {done.sentence}" if done.code else f"{metric} {number} ({status})"
        return Outcome(done.broken or said, silent, done.broken)

    return act


CUT = [
    measured(
        "context of 64",
        "cut texts",
        f"the configuration says 64 positions, not {CONTEXT}: few prompts fit",
        _short(64),
        quick=True,
    ),
    measured(
        "context of 48",
        "cut texts",
        "the configuration says 48 positions: half of the texts are cut",
        _short(48),
    ),
    Plant(
        "cut texts of PrivLeak",
        "cut texts",
        "a context of 32: nearly every text is cut",
        _cut_attack(32, "privleak"),
    ),
    Plant(
        "cut texts of the gradient",
        "cut texts",
        "the same, for the norm of the gradient",
        _cut_attack(32, "mia_gradient"),
    ),
    Plant(
        "cut texts, judged",
        "cut texts",
        "the target in a context of 64, judged",
        lambda b: b.judged(_short(64)(b, b.lab.model("target"), b.folder())),
    ),
]

PLANTS = [*LOADED, *FINITE, *TOKENS, *FORMS, *LAYERS, *PACKED, *CUT]
