"""How the weights of one adapter come into a slot of the device: each number is written once."""

import torch


def fill_slot(slot_ERI: torch.Tensor, given_ERI: torch.Tensor) -> None:
    """Copy a tensor into a slot that may be larger, and zero what it does not cover.

    Stock vLLM zeroes the whole slot first, which for experts is as much memory traffic again as the copy itself.
    """
    rows, columns = given_ERI.shape[-2:]
    slot_ERI[..., :rows, :columns].copy_(given_ERI)
    slot_ERI[..., rows:, :].zero_()
    slot_ERI[..., :rows, columns:].zero_()
