"""The battery of laws holds for every method that comes with Remnant, under every grid that a short
name can ask for."""

import pytest

from remnant.corpus import METRICS
from remnant.errors import UserError
from remnant.formats.table import FORMATS, NAMES, by_name
from remnant.methods import TRANSFORM_READS, metric, step
from remnant.resolve import resolve
from remnant.testing import check_metric, check_quantizer

GRIDS = [
    *NAMES, "int2-paper", "int2-half-step",
    "int3-asym", "int4-paper", "int4-half-step",
    "int8-g32-half-step", "int4-tensor-paper", "nf4-b128", "fp4-b32", "ao-int2-g32", "ao-int4",
    "ao-fp8", "ao-int8-dynamic", "hqq2-g16",
    "hqq8", "bnb-fp4-b256",
]  # fmt: skip


@pytest.mark.parametrize("name", GRIDS)
def test_every_built_in_quantizer_keeps_the_laws(name: str) -> None:
    try:
        results = list(check_quantizer(step(name).method))
    except UserError as error:
        if "not installed" not in str(error):
            raise
        pytest.skip(str(error))
    assert [r for r in results if r.outcome == "failed"] == []
    assert results


def test_no_format_that_rounds_single_weights_is_left_out() -> None:
    reads = {key: resolve("transform", key, FORMATS, TRANSFORM_READS, {}).reads for key in FORMATS}
    known = {by_name(name) for name in GRIDS}
    tried = {named.format.key for named in known if named}
    assert {key for key, read in reads.items() if read == ("weight",)} <= tried


@pytest.mark.parametrize("name", METRICS)
def test_every_built_in_metric_keeps_the_laws(name: str) -> None:
    results = list(check_metric(metric(name)))
    assert [r for r in results if r.outcome == "failed"] == []
    assert results
