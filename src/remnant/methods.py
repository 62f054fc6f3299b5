"""From what a spec names to resolved methods, with the vocabulary that each kind of method may
read. No torch.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from remnant.catalog import (
    DEPLOYED,
    LOSSES,
    METHODS,
    METRIC_GROUPS,
    METRICS,
    QUANTIZER_NAMES,
    QUANTIZERS,
    TYPED_NAMES,
    quantizer_params,
)
from remnant.errors import UserError, unknown
from remnant.formats import fault_of
from remnant.parsing import parse
from remnant.records import MetricSpec, PerturbSpec, TermSpec, UnlearnSpec
from remnant.resolve import Method, resolve

SIDES = ("forget", "retain")
LOSS_READS = tuple(
    n for s in SIDES for n in (s, f"ref_{s}", f"ref_{s}_logp", f"{s}_hidden", f"ref_{s}_hidden")
)
QUANTIZER_READS = ("weight", "model", "tokenizer", "batches", "names")
METRIC_READS = (
    "view", "prompt", "truth", "text", "generated", "samples", "tokens", "lower", "prefixed",
    "reference", "told", "slope", "paraphrased",
    "wrong",
)  # fmt: skip


def term_specs(spec: UnlearnSpec) -> tuple[TermSpec, ...]:
    """The terms of a spec.

    Of a named method the first is the forget term, the second the retain term, weighted by alpha.

    Raises:
        UserError: unknown method.
    """
    if spec.method is None:
        return spec.terms
    if spec.method not in METHODS:
        raise unknown("method", spec.method, METHODS)
    if spec.beta is not None and not any(use.startswith("npo") for use in METHODS[spec.method]):
        raise UserError(
            f"'{spec.method}' has no beta.", "Only methods with NPO read it; leave it out."
        )
    own = {
        use: {"beta": spec.beta} if use.startswith("npo") and spec.beta is not None else {}
        for use in METHODS[spec.method]
    }
    return tuple(
        TermSpec(use=use, weight=(1.0, spec.alpha)[i], params=own[use])
        for i, use in enumerate(METHODS[spec.method])
    )


def loss(term: TermSpec) -> Method:
    """The loss of a term; raises UserError if unknown or wrongly tuned."""
    return resolve("loss", term.use, LOSSES, LOSS_READS, term.params)


def quantizer(spec: PerturbSpec) -> Method:
    """The quantizer of a spec.

    Raises UserError if unknown or wrongly tuned, by what its library offers too.
    """
    found = resolve("quantizer", spec.use, QUANTIZERS, QUANTIZER_READS, spec.params)
    if fault := fault_of(spec.use, found.params) if spec.use in QUANTIZERS else None:
        raise UserError(f"The quantizer '{spec.use}': {fault}")
    return found


def metric(use: str | MetricSpec) -> Method:
    """A built-in metric by name or a user's metric.

    Raises UserError if unknown or wrongly tuned.
    """
    spec = (
        MetricSpec(use=use, params=dict(METRICS[use].params) if use in METRICS else {})
        if isinstance(use, str)
        else use
    )
    return resolve("metric", spec.use, METRICS, METRIC_READS, spec.params)


def metric_names(names: Iterable[str]) -> tuple[str, ...]:
    """Metrics by name, the groups among them replaced by their members, each once."""
    return tuple(dict.fromkeys(m for name in names for m in METRIC_GROUPS.get(name, (name,))))


def quantizer_spec(
    use: str | PerturbSpec, defaults: Mapping[str, Any] | None = None
) -> PerturbSpec:
    """A quantizer by its short name ("int4-g64"), its table name, or a user's function, with all
    parameters filled in.

    Raises:
        UserError: unknown name or parameter.
    """
    if isinstance(use, str):
        named = quantizer_params(use)
        table, params = named if named else (use, {})
        if not named and ":" not in use and use not in QUANTIZERS:
            raise unknown(
                "quantizer", use, {*QUANTIZER_NAMES, *DEPLOYED, *TYPED_NAMES, *QUANTIZERS}
            )
        if named and (fault := fault_of(table, params)):
            raise UserError(f"The quantizer '{use}': {fault}")
        use = parse(PerturbSpec, {"use": table, "params": params, **(defaults or {})}, "perturb")
    return use.model_copy(update={"params": dict(quantizer(use).params)})
