"""Remnant: make a language model forget, and prove that it stays forgotten after quantization."""

__version__ = "0.1.0"

import logging

# transformers imports torchao wherever it is installed, and that warns of kernels that only other
# machines have.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
