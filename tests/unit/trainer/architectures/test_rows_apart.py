"""Rows that go through a base together see themselves alone, whatever the base attends with."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from openmint_trainer import resident_base
from openmint_trainer.resident_base import adopt_base

Build = Callable[..., PreTrainedModel]
LENGTHS = (19, 5, 31, 12)


def rows(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 96, (length,), generator=generator) for length in LENGTHS]


def test_each_packed_rows_logits_are_those_that_the_untouched_model_gives_the_row(
    model_type: str, build_model: Build
) -> None:
    untouched = build_model(model_type)
    base = adopt_base(build_model(model_type), "tiny", "")
    with torch.no_grad():
        packed = base.hidden_states(rows()) @ base.head_VH.t()
        expected = torch.cat([untouched(input_ids=row[None]).logits[0] for row in rows()])
    torch.testing.assert_close(packed, expected, rtol=1e-5, atol=2e-5)


def test_which_bases_pack_is_found_by_trying(model_type: str, build_model: Build) -> None:
    cannot = ("deepseek_v32", "glm_moe_dsa", "kimi_linear")
    assert adopt_base(build_model(model_type), "tiny", "").packs_rows == (model_type not in cannot)


def test_a_base_whose_attention_is_taken_for_another_runs_row_by_row(
    build_model: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention that forgets the sinks, or where rows end, must not pass the test at load."""
    import openmint_trainer.attention as attention

    attend = attention.packed_causal_attention

    def forgets_sinks(*args: torch.Tensor, **kwargs: object) -> object:
        return attend(*args, **{**kwargs, "s_aux": None})  # pyright: ignore[reportArgumentType]

    def forgets_ends(*args: torch.Tensor, **kwargs: object) -> object:
        return attend(*args, **{**kwargs, "sequence_lengths": ()})  # pyright: ignore[reportArgumentType]

    for model_type, wrong in (("gpt_oss", forgets_sinks), ("llama", forgets_ends)):
        with monkeypatch.context() as patch:
            patch.setattr(attention, "packed_causal_attention", wrong)
            base = adopt_base(build_model(model_type), "tiny", "")
            assert not base.packs_rows
        attention.register()


def test_a_base_that_computes_otherwise_once_it_is_trainable_is_refused(
    build_model: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Halved(resident_base.SegmentedExperts):
        def forward(self, hidden_TH: torch.Tensor, experts_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden_TH, experts_TK, weights_TK) / 2

    monkeypatch.setattr(resident_base, "SegmentedExperts", Halved)
    with pytest.raises(ValueError, match="computes differently"):
        adopt_base(build_model("qwen3_moe"), "tiny", "")
