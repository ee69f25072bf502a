import json
from pathlib import Path

import numpy as np
import pytest
import torch

from load.handoff.adapter_way import PARTS, HandedOff
from load.handoff.answers import Answer, largest_difference, mean_difference, read_answer
from load.handoff.merged_weights import merge, prepare_folder, read_base_weights, save
from load.handoff.revision import ALPHA, RANK, write_checkpoint
from load.report import LoadReport, ReportBuilder
from load.scenarios.handoff import Merged, Rounds, tell
from openmint.adapters.peft_folder import opened
from openmint.bases import BaseFacts
from openmint_exporter.checkpoint_file import read_checkpoint_header, verify_checkpoint

MODULE = "model.layers.0.self_attn.q_proj"


def base_facts() -> BaseFacts:
    return BaseFacts(
        name="tiny",
        digest="sha256:" + "b" * 64,
        model_type="llama",
        architecture="LlamaForCausalLM",
        modules={MODULE: (6, 4), "model.layers.0.mlp.router": (3, 4)},
        targets=("q_proj",),
        max_positions=64,
        vocab_size=32,
        hidden_size=4,
        layers=1,
        dtype="bfloat16",
        has_chat_template=False,
        files={},
    )


def test_checkpoint_is_one_that_the_exporter_reads(tmp_path: Path) -> None:
    made = write_checkpoint(tmp_path / "checkpoint", base_facts(), seed=3)
    verify_checkpoint(made.path, made.sha256)
    with opened(made.path) as descriptor:
        meta, entries = read_checkpoint_header(descriptor)
    assert (meta.rank, meta.alpha, meta.base) == (RANK, ALPHA, "tiny")
    assert {name: entry.shape for name, entry in entries.items()} == {
        (MODULE, "lora_A"): (RANK, 4),
        (MODULE, "lora_B"): (6, RANK),
    }


def test_other_seeds_make_other_revisions(tmp_path: Path) -> None:
    digests = {write_checkpoint(tmp_path / f"c{seed}", base_facts(), seed).sha256 for seed in (1, 1, 2)}
    assert len(digests) == 2


@pytest.mark.parametrize(("dtype", "within"), [(None, 0.02), (torch.float32, 1e-6)])
def test_merge_adds_the_scaled_product_and_leaves_the_rest(dtype: torch.dtype | None, within: float) -> None:
    random = torch.Generator().manual_seed(1)
    weight, norm = torch.randn(6, 4, generator=random).bfloat16(), torch.ones(4)
    a, b = torch.randn(RANK, 4, generator=random), torch.randn(6, RANK, generator=random)
    adapter = {f"base_model.model.{MODULE}.lora_{half}.weight": values for half, values in (("A", a), ("B", b))}
    merged = merge({f"{MODULE}.weight": weight, "model.norm.weight": norm}, adapter, dtype)
    wanted = weight.float().numpy() + ALPHA / RANK * (b.numpy() @ a.numpy())
    assert merged[f"{MODULE}.weight"].dtype == (dtype or torch.bfloat16)
    assert np.allclose(merged[f"{MODULE}.weight"].float().numpy(), wanted, rtol=within, atol=within)
    assert merged["model.norm.weight"] is norm


def test_saved_folder_has_the_base_s_files_and_its_own_weights(tmp_path: Path) -> None:
    base, target = tmp_path / "base", tmp_path / "merged"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"")
    (base / ".cache").write_text("not copied")
    prepare_folder(base, target)
    assert [file.name for file in target.iterdir()] == ["config.json"]
    written = save({"w": torch.ones(3)}, target)
    assert written == (target / "model.safetensors").stat().st_size
    assert torch.equal(read_base_weights(target)["w"], torch.ones(3))


def test_answer_is_read_from_a_completion() -> None:
    body = json.loads(
        '{"choices": [{"text": " yes", "logprobs": {"token_logprobs": [-0.5]},'
        ' "prompt_logprobs": [null, {"7": {"logprob": -1.5}}, {"9": {"logprob": -2}}]}]}'
    )
    assert read_answer(body) == Answer(" yes", -0.5, (-1.5, -2.0))
    del body["choices"][0]["prompt_logprobs"]
    assert read_answer(body) == Answer(" yes", -0.5)


def test_differences_are_in_nats_and_need_rows_of_one_length() -> None:
    assert largest_difference((-1.0, -2.0), (-1.5, -2.0)) == 0.5
    assert mean_difference((-1.0, -2.0), (-1.5, -2.0)) == 0.25
    with pytest.raises(ValueError, match="zip"):
        largest_difference((-1.0,), (-1.0, -2.0))


def told(*, restart_ms: float = 60_000.0, wrong_nats: float = 0.0) -> LoadReport:
    base, ours = Answer("a", -1.0, (-1.0, -2.0)), Answer("b", -0.5, (-1.5, -2.5))
    other = Answer("b", -0.5, (-1.5, -2.5 + wrong_nats))
    adapter = HandedOff(Path("x"), 5_000, dict.fromkeys(PARTS, 100.0), ours, ours)
    rounds = Rounds(base)
    for with_restart in (True, False, True):
        restarted = (restart_ms, ours, ours) if with_restart else (None, None, None)
        rounds.pairs.append((adapter, Merged(200.0, 500.0, 250_000, 900.0, 200.0, ours, ours, *restarted, other)))
    report = ReportBuilder("handoff", is_quick=True, seed=0)
    tell(rounds, report)
    return report.build()


def test_ratios_are_of_the_same_revision() -> None:
    report = told()
    ratios = {ratio.name: (ratio.median, ratio.pairs) for ratio in report.ratios}
    assert report.holds
    assert ratios == {
        "merged bytes / adapter bytes": (50.0, 3),
        "merge + save + restart / handoff": (60_700 / 600, 2),
        "merge + save + reload in place / handoff": (3.0, 3),
    }


def test_fast_restart_does_not_hold() -> None:
    failed = [check.name for check in told(restart_ms=10_000.0).checks if not check.holds]
    assert failed == ["merge + save + restart / handoff"]


def test_answer_of_another_revision_does_not_hold() -> None:
    failed = [check.name for check in told(wrong_nats=0.01).checks if not check.holds]
    assert failed == ["adapter against a float32 merge, reloaded"]
