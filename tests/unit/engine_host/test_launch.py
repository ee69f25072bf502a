import json
import stat
from pathlib import Path

import pytest

from openmint.errors import BadName
from openmint_engine_host.launch import Launch, engine_targets, plan_launch
from openmint_engine_host.plugin.front_settings import FrontSettings
from openmint_engine_host.settings import EngineHostSettings

FRONT = FrontSettings("boot", "tiny", inference_key="inference", host_key="host", max_running=4)


def settings(tmp_path: Path, **more: object) -> EngineHostSettings:
    return EngineHostSettings(base_folder=tmp_path / "tiny", state_dir=tmp_path, **more)  # type: ignore[arg-type]


def launch(tmp_path: Path, **more: object) -> Launch:
    return plan_launch(settings(tmp_path, **more), ["q_proj"], FRONT, tmp_path / "front.json")


def argument(plan: Launch, name: str) -> str:
    return plan.arguments[plan.arguments.index(name) + 1]


def test_vllm_gets_no_secret_and_no_resolver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENMINT_POSTGRES_DSN", "postgresql://tiger-7731")
    monkeypatch.setenv("OPENMINT_ENGINE_KEY", "tiger-7731")
    plan = launch(tmp_path, engine_key="tiger-7731", engine_control_key="tiger-7731")
    assert "tiger-7731" not in " ".join([*plan.arguments, *plan.environment.values()])
    assert plan.environment["VLLM_PLUGINS"] == "openmint"
    assert plan.environment["HF_HUB_OFFLINE"] == "1"
    assert plan.environment["VLLM_NO_USAGE_STATS"] == "1"
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in plan.environment


def test_the_keys_are_in_a_file_that_only_its_owner_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan = launch(tmp_path)
    file = tmp_path / "front.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text())["host_key"] == "host"
    monkeypatch.setenv("OPENMINT_ENGINE_FILE", plan.environment["OPENMINT_ENGINE_FILE"])
    assert FrontSettings.read() == FRONT


def test_the_engine_is_bound_to_its_core_and_its_sizes(tmp_path: Path):
    plan = launch(tmp_path, core="1", max_loras=3, max_cpu_loras=9, max_lora_rank=16, kv_cache_gib=2)
    assert plan.environment["VLLM_CPU_OMP_THREADS_BIND"] == "1"
    assert plan.environment["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert [argument(plan, name) for name in ("--max-loras", "--max-cpu-loras", "--max-lora-rank")] == ["3", "9", "16"]
    assert argument(plan, "--served-model-name") == "tiny"


def test_more_arguments_are_split_as_on_a_command_line(tmp_path: Path):
    plan = launch(tmp_path, vllm_arguments="--gpu-memory-utilization 0.8 --override '{\"a\": 1}'")
    assert plan.arguments[-4:] == ("--gpu-memory-utilization", "0.8", "--override", '{"a": 1}')


def test_each_start_without_a_fixed_port_gets_a_free_one(tmp_path: Path):
    assert launch(tmp_path).port != 0
    assert launch(tmp_path, port=4711).port == 4711


def test_names_are_checked(tmp_path: Path):
    with pytest.raises(BadName, match="pool"):
        _ = settings(tmp_path, pools="serve,Gate FP32").pool_names
    assert settings(tmp_path, pools="serve, gate-fp32").pool_names == ("serve", "gate-fp32")
    with pytest.raises(BadName, match="engine"):
        _ = settings(tmp_path, engine_name="../x").run_dir


def test_more_slots_than_capacity_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="max_cpu_loras"):
        settings(tmp_path, max_loras=8, max_cpu_loras=4)


def test_an_engine_host_needs_no_catalogue_and_alone_no_bus(tmp_path: Path):
    alone = settings(tmp_path, announce=False)
    assert alone.resolve(alone.parts_needed).store_url.startswith("file://")
    with_bus = settings(tmp_path, nats_url="nats://somewhere:4222")
    assert with_bus.resolve(with_bus.parts_needed).postgres_dsn == ""


def test_an_engine_without_a_key_gets_one_that_nobody_knows(tmp_path: Path):
    first, second = settings(tmp_path), settings(tmp_path)
    assert len(first.inference_key) > 30
    assert first.inference_key == first.inference_key
    assert first.inference_key != second.inference_key


def test_an_engine_wraps_the_experts_of_a_base_that_has_some():
    dense = {"model.layers.0.mlp.down_proj": (4, 8), "model.layers.0.self_attn.q_proj": (4, 4)}
    experts = {f"model.layers.0.mlp.experts.{expert}.down_proj": (4, 8) for expert in range(2)}
    assert engine_targets(dense) == ["down_proj", "q_proj"]
    assert engine_targets(experts) == ["down_proj", "experts"]
