"""What this machine's CPU can do."""

import torch

# Without such instructions PyTorch takes nine times as long for products of bfloat16 as for those of float32.
MULTIPLIES_BFLOAT16: bool = (
    torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
)
