"""Saving a model so that nothing is lost by it: what can fail is tried before the first step, not
after the last.
"""

import tempfile
from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from remnant.durable import tell
from remnant.errors import UserError, first_line
from remnant.model.load import save_model

# What save_pretrained of models and tokenizers leaves; the vocabulary's files are those that
# transformers' tokenizers name.
LEFT_BY_TOKENIZERS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/*.jinja", "vocab.*", "merges.txt", "*.model", "dict.txt",
    "emoji.json", "entity_vocab.json",
    "byte_maps.json", "prophetnet.tokenizer", "*.tiktoken",
)  # fmt: skip
LEFT_BY_MODELS = (
    "config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "*.py",  # of a model that brings its own code
    *LEFT_BY_TOKENIZERS,
)  # fmt: skip
# The only entries of a generation_config that Remnant uses.
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_saving(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Try to save all but the weights, and mend what can be mended.

    A generation_config that transformers would refuse to write (sampling flags beside greedy
    decoding are the commonest fault) is left with its tokens only, which is said: nothing else of
    it is used.

    Raises:
        UserError: configuration or tokenizer cannot be written.
    """
    kept = model.generation_config
    if kept is not None:
        try:
            kept.validate(strict=True)
        except (ValueError, TypeError) as error:
            tokens = {name: getattr(kept, name, None) for name in TOKENS}
            model.generation_config = GenerationConfig(**tokens)
            tell(
                f"generation_config.json is invalid ({first_line(error)}); only its tokens "
                "are kept."
            )
    with tempfile.TemporaryDirectory() as folder:
        for what, part in (
            ("configuration", model.config),
            ("generation_config", model.generation_config),
            ("tokenizer", tokenizer),
        ):
            try:
                if part is not None:
                    part.save_pretrained(folder)
            except OSError:
                raise
            except Exception as error:  # libraries raise what they like; nothing was trained yet
                raise UserError(
                    f"The model's {what} cannot be saved ({first_line(error)}).",
                    "Mend it in the model's folder first.",
                ) from error


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """``save_model``, whose faults cost no steps: the file to resume from is kept until the
    artefact is sealed.

    Raises:
        OSError: as the disk says.
        UserError: anything else that keeps the model from being written.
    """
    try:
        save_model(model, tokenizer, out)
    except (OSError, UserError):
        raise
    except Exception as error:
        if "os error" in str(error):
            # a disk's fault by way of a library in Rust, told as such by whoever holds the store
            raise
        raise UserError(
            f"The model cannot be saved ({first_line(error)}).",
            "Its steps are kept; run the command again.",
        ) from error


def save_about(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write all that a model's folder has beside weights."""
    for part in (model.config, model.generation_config, tokenizer):
        if part is not None:
            part.save_pretrained(out)
