"""The battery of laws holds for every method that comes with Remnant, under every grid that a short
name can ask for."""

import pytest

from remnant.catalog import METRICS, QUANTIZER_NAMES, QUANTIZERS, quantizer_params
from remnant.errors import UserError
from remnant.methods import QUANTIZER_READS, metric
from remnant.resolve import resolve
from remnant.testing import check_metric, check_quantizer

GRIDS = [
    *(n for n in QUANTIZER_NAMES if n != "full"), "fp16", "int2-paper", "int2-half-step",
    "int3-asym", "int4-paper", "int4-half-step",
    "int8-g32-half-step", "int4-tensor-paper", "nf4-b128", "fp4-b32", "ao-int2-g32", "ao-int4",
    "ao-fp8", "ao-int8-dynamic", "hqq2-g16",
    "hqq8", "bnb-fp4-b256",
]  # fmt: skip


@pytest.mark.parametrize("name", GRIDS)
def test_every_built_in_quantizer_keeps_the_laws(name: str) -> None:
    use, params = quantizer_params(name) or (name, {})
    try:
        results = list(
            check_quantizer(resolve("quantizer", use, QUANTIZERS, QUANTIZER_READS, params))
        )
    except UserError as error:
        if "not installed" not in str(error):
            raise
        pytest.skip(str(error))
    assert [r for r in results if r.outcome == "failed"] == []
    assert results


@pytest.mark.parametrize("name", METRICS)
def test_every_built_in_metric_keeps_the_laws(name: str) -> None:
    results = list(check_metric(metric(name)))
    assert [r for r in results if r.outcome == "failed"] == []
    assert results
