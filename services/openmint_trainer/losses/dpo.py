"""Direct preference optimisation over pairs of rows."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from openmint.errors import BadRequest
from openmint_trainer.losses.inputs import LossInputs, LossOutputs
from openmint_trainer.losses.loss import Loss, Setting


def dpo(inputs: LossInputs, config: Mapping[str, float]) -> LossOutputs:
    """Make the chosen answer of each pair likelier than the rejected one, measured from the base.

    loss = -sum over pairs of w * log sigmoid(beta * (h_chosen - h_rejected)), with h = sum over the row's sequence mask
    (None: its trained positions) of logprobs - reference_logprobs. Rows come in pairs, the chosen one first. The weight
    w of a pair is that of its positions, which is one number; 1 / pairs makes the loss a mean.

    Shapes: logprobs, reference_logprobs (nats), weights and sequence_mask are [N]; loss is a scalar.
    Settings: beta (0.1), per nat.
    Metrics: pairs, preferred_pairs (h_chosen > h_rejected), margin_sum (beta * (h_chosen - h_rejected)),
        chosen_reward_sum and rejected_reward_sum (beta * h).
    Raises: BadRequest when rows are without a partner, or weights differ within a pair.
    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7.
    """
    rows = len(inputs.rows)
    if rows == 0 or rows % 2:
        raise BadRequest(f"loss dpo takes pairs of rows, and there are {rows}", field="loss.name")
    mask = inputs.in_sequence
    gains = inputs.sum_by_row(torch.where(mask, inputs.logprobs - inputs.of("reference_logprobs"), 0.0))
    rewards = config["beta"] * gains.view(-1, 2)
    margins = rewards[:, 0] - rewards[:, 1]
    detached = rewards.detach()
    return LossOutputs(
        loss=-(_pair_weights(inputs) * F.logsigmoid(margins)).sum(),
        metrics={
            "pairs": float(len(margins)),
            "preferred_pairs": float((margins > 0).sum()),
            "margin_sum": float(margins.detach().sum()),
            "chosen_reward_sum": float(detached[:, 0].sum()),
            "rejected_reward_sum": float(detached[:, 1].sum()),
        },
    )


def _pair_weights(inputs: LossInputs) -> torch.Tensor:
    by_row = inputs.by_row(inputs.weights)
    weights: list[torch.Tensor] = []
    for chosen, rejected in zip(by_row[::2], by_row[1::2], strict=True):
        pair = torch.cat([chosen, rejected])
        pair = pair[pair != 0]
        if len(pair) and not bool((pair == pair[0]).all()):
            raise BadRequest("loss dpo: a pair has one weight, and the positions of one have several", field="dataset")
        weights.append(pair[0] if len(pair) else inputs.weights.new_zeros(()))
    return torch.stack(weights)


DPO = Loss("dpo", dpo, {"beta": Setting(0.1, at_least=0.0)}, needs=("reference_logprobs",), rows_per_unit=2)
