"""LoRA (arXiv 2106.09685): frozen matrices with trained low-rank updates."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MATRICES = ("to_qkv", "to_out", "gate_up", "down")  # of every layer of a tower
ALPHA = 2.0  # scale of the update, independent of the rank


class LoRA(nn.Linear):
    """Linear layer W x + ALPHA B A x. A is random and B is 0, so initially it equals W bit for bit."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        """Takes over the parameters of `linear` under their names."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        drawn = torch.randn(rank, self.in_features) * self.in_features**-0.5
        self.lora_a = nn.Parameter(drawn.to(linear.weight))
        self.lora_b = nn.Parameter(linear.weight.new_zeros(self.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]"""
        return super().forward(x) + ALPHA * F.linear(F.linear(x, self.lora_a), self.lora_b)


def add_lora(tower: nn.Module, rank: int) -> None:
    """Replace every matrix of a tower's layers by a LoRA layer."""
    for module in list(tower.modules()):
        for name in MATRICES:
            linear = getattr(module, name, None)
            if isinstance(linear, nn.Linear):
                setattr(module, name, LoRA(linear, rank))


def freeze_all_but_lora(tower: nn.Module) -> None:
    """Freeze all parameters except those of LoRA."""
    for name, parameter in tower.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def merged(linear: nn.Linear) -> Tensor:
    """Weight of a linear layer with LoRA merged: [out, in]"""
    if isinstance(linear, LoRA):
        return linear.weight + ALPHA * linear.lora_b @ linear.lora_a
    return linear.weight


def merged_state(tower: nn.Module) -> dict[str, Tensor]:
    """State dict of a tower with LoRA merged, under the names of a plain tower."""
    state = {name: tensor for name, tensor in tower.state_dict().items() if ".lora_" not in name}
    for name, module in tower.named_modules():
        if isinstance(module, LoRA):
            state[f"{name}.weight"] = merged(module).detach()
    return state
