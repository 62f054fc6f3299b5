"""What libraries do wrongly in silence, and that it does not happen here.

Each test fails without its guard.

Some traps are sprung by certain CPUs only; there the library alone is also shown to fall into them.
Other traps have their tests where the guard is: layers left alone and blocks that nobody opens
(test_deploy.py), AWQ without an accelerator, the order of calibration texts (test_oneshot.py),
kernels that round (test_packed.py).
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedTokenizerBase

from remnant.functional.quantizers import nf4
from remnant.model.load import open_model, save_model
from remnant.records import TransformSpec
from remnant.runtimes.order import Order, logits_of, repack
from remnant.stages import transform
from remnant.testing import tiny_model
from tests.conftest import silent

IDS = torch.arange(4, 36)[None]


def flags() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.is_file() else ""


@pytest.fixture
def folder(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    save_model(tiny_model(vocab=len(tokenizer), initializer_range=0.2), tokenizer, tmp_path / "m")
    return tmp_path / "m"


def reopened(out: Path) -> Tensor:
    return logits_of(
        AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, device_map="cpu").eval(), IDS
    )


def four_bit() -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_compute_dtype=torch.float32
    )


def test_four_bit_files_are_saved_before_a_pass_repacks_the_weights(
    folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    order = Order("bnb-4bit", {}, open_model(str(folder)), tokenizer, [], folder, IDS)
    (tmp_path / "ours").mkdir()
    assert torch.equal(repack(order, four_bit(), tmp_path / "ours"), reopened(tmp_path / "ours"))
    if "avx512_bf16" in flags():
        model = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=four_bit(), device_map="cpu", dtype=torch.float32
        ).eval()
        before = logits_of(model, IDS)
        model.save_pretrained(tmp_path / "theirs")
        assert not torch.allclose(before, reopened(tmp_path / "theirs"), rtol=0.05)


def test_rows_that_are_no_multiple_of_the_block_are_refused_where_bitsandbytes_garbles_them() -> (
    None
):
    functional = pytest.importorskip("bitsandbytes.functional")
    from remnant.runtimes.bnb import four_bit as door

    weight = 0.02 * torch.randn(96, 160, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="no multiple of the block"):
        door(weight)
    if "avx512f" in flags():
        decoded = functional.dequantize_4bit(
            *functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
        )
        assert (decoded - weight).norm() > 2 * (nf4(weight).weight - weight).norm()


def test_the_dtype_before_quantizing_is_part_of_what_a_copy_is(
    folder: Path, tmp_path: Path
) -> None:
    """Rounding to bfloat16 first changes codes, so it is recorded and in the key, and does not
    happen by itself."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        spec = TransformSpec(use="rtn", params={"bits": 8}, source_dtype=dtype)
        (tmp_path / dtype).mkdir()
        transform.run(spec, {"model": folder}, tmp_path / dtype, silent)
        found[dtype] = (
            open_model(str(tmp_path / dtype)).state_dict()["model.layers.0.mlp.up_proj.weight"],
            spec.identity(),
        )
    assert not torch.equal(found["float32"][0], found["bfloat16"][0])
    assert found["float32"][1] != found["bfloat16"][1]


def test_torchao_computes_its_scales_in_float32() -> None:
    """Given bfloat16 weights it would compute scales in bfloat16, and other codes."""
    pytest.importorskip("torchao")
    from remnant.runtimes.torchao import config, intx

    weight = (0.02 * torch.randn(64, 128, generator=torch.Generator().manual_seed(0))).bfloat16()
    ours = intx(weight, bits=4, group_size=128, asymmetric=True)
    assert torch.equal(
        ours.weight, intx(weight.float(), bits=4, group_size=128, asymmetric=True).weight
    )
    from torchao.quantization import quantize_

    layer = torch.nn.Sequential(torch.nn.Linear(128, 64, bias=False, dtype=torch.bfloat16))
    layer[0].weight = torch.nn.Parameter(weight.clone())
    quantize_(layer, config(4, 128, True))
    assert not torch.equal(layer[0].weight.dequantize().float(), ours.weight)
