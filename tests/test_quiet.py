"""Libraries are kept quiet in what nobody can act on, and in nothing else."""

import logging
from importlib.util import find_spec
from pathlib import Path

import pytest

from remnant.quiet import NOISE, unchanged

(KERNELS,) = NOISE


def test_one_sentence_of_a_library_is_silenced_and_no_other(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger(KERNELS)
    monkeypatch.setattr(logger, "filters", [])  # whoever hushed libraries before, for good
    with unchanged():
        logger.warning("%s from kernels-community: %s. Please install it", NOISE[KERNELS], "none")
        logger.warning("4 bits on this processor give other numbers")
        with unchanged():
            logger.warning("%s again", NOISE[KERNELS])
        logger.warning("%s a third time", NOISE[KERNELS])
    assert logger.filters == []
    assert caplog.messages == ["4 bits on this processor give other numbers"]
    logger.warning("%s for the caller", NOISE[KERNELS])
    assert len(caplog.messages) == 2


def test_the_sentence_is_the_one_that_bitsandbytes_says() -> None:
    if (found := find_spec("bitsandbytes")) is None or found.origin is None:
        pytest.skip("bitsandbytes is not installed")
    source = Path(found.origin).parent.joinpath(*KERNELS.split(".")[1:]).with_suffix(".py")
    text = source.read_text(encoding="utf-8")
    assert NOISE[KERNELS] in text
    assert "logger = logging.getLogger(__name__)" in text
