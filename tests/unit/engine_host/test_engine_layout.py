"""The engine layout file, written with numpy and read back against torch's arithmetic."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from openmint_engine_host.layout import (
    BadLayout,
    EngineModule,
    LayoutHeader,
    ModuleTable,
    Slice,
    TensorPlace,
    check_blob,
    check_fits,
    pack,
    read_header,
)

DIGEST = "sha256:" + "a" * 64
RANK, ALPHA = 2, 6.0


def table(dtype: str = "bfloat16") -> ModuleTable:
    qkv = EngineModule("l.qkv", True, (Slice("l.q", 8, 6), Slice("l.k", 8, 4), Slice("l.v", 8, 4)))
    down = EngineModule("l.down", False, (Slice("l.down", 6, 8),))
    return ModuleTable(dtype, 1, 16, (qkv, down))


def write_peft(path: Path, modules: dict[str, tuple[int, int]], dtype: torch.dtype = torch.bfloat16) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for name, (out_size, in_size) in modules.items():
        a = torch.randn(RANK, in_size, generator=generator).to(dtype)
        b = torch.randn(out_size, RANK, generator=generator).to(dtype)
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
    file = path / "adapter_model.safetensors"
    save_file(tensors, file)
    return file


def read(path: Path, header: LayoutHeader, place: TensorPlace | None) -> torch.Tensor:
    assert place is not None
    dtype = getattr(torch, header.dtype)
    blob = torch.frombuffer(bytearray(path.read_bytes()), dtype=dtype, offset=header.blob_offset)
    return blob[place.offset : place.offset + math.prod(place.shape)].view(place.shape)


def expert_table(experts: int = 3) -> ModuleTable:
    """Gate, down and up of each expert, in the engine's order."""
    slices: list[Slice] = []
    for expert in range(experts):
        slices += [Slice(f"l.experts.{expert}.gate", 8, 5), Slice(f"l.experts.{expert}.down", 5, 8)]
        slices.append(Slice(f"l.experts.{expert}.up", 8, 5))
    fused = EngineModule("l.experts", True, tuple(slices), experts)
    return ModuleTable("bfloat16", 1, 16, (EngineModule("l.o", False, (Slice("l.o", 8, 8),)), fused))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
def test_scale_is_folded_into_b_exactly_as_torch_rounds(tmp_path: Path, dtype: str):
    from safetensors.torch import load_file

    file = write_peft(tmp_path, table().sources())
    out = tmp_path / "adapter.openmint"
    header = pack(file, table(dtype), DIGEST, RANK, ALPHA, out)
    tensors = load_file(file)
    kind = getattr(torch, dtype)
    for module, engine_module in zip(header.modules, table().modules, strict=True):
        for s, a, b in zip(engine_module.slices, module.a, module.b, strict=True):
            wanted_a = tensors[f"base_model.model.{s.source}.lora_A.weight"].to(kind)
            wanted_b = tensors[f"base_model.model.{s.source}.lora_B.weight"].to(kind) * (ALPHA / RANK)
            assert torch.equal(read(out, header, a), wanted_a)
            assert torch.equal(read(out, header, b), wanted_b)


def test_a_slice_that_the_adapter_leaves_alone_stays_empty(tmp_path: Path):
    file = write_peft(tmp_path, {"l.q": (6, 8), "l.v": (4, 8)})
    header = pack(file, table(), DIGEST, RANK, ALPHA, tmp_path / "adapter.openmint")
    (qkv,) = header.modules
    assert [place is None for place in qkv.a] == [False, True, False]


def test_a_module_that_the_engine_does_not_serve_is_refused_by_name(tmp_path: Path):
    file = write_peft(tmp_path, {"l.q": (6, 8), "lm_head": (4, 8)})
    with pytest.raises(BadLayout, match="lm_head"):
        pack(file, table(), DIGEST, RANK, ALPHA, tmp_path / "adapter.openmint")


def test_a_shape_that_does_not_fit_is_refused(tmp_path: Path):
    file = write_peft(tmp_path, {"l.q": (6, 7)})
    with pytest.raises(BadLayout, match="shape"):
        pack(file, table(), DIGEST, RANK, ALPHA, tmp_path / "adapter.openmint")


def test_the_fingerprint_follows_dtype_and_shapes_but_not_the_greatest_rank():
    other_rank = ModuleTable("bfloat16", 1, 64, table().modules)
    assert other_rank.fingerprint() == table().fingerprint()
    assert table("float32").fingerprint() != table().fingerprint()
    fewer = ModuleTable("bfloat16", 1, 16, table().modules[:1])
    assert fewer.fingerprint() != table().fingerprint()


def test_engines_without_experts_keep_the_fingerprints_and_headers_they_had_before_there_were_any(tmp_path: Path):
    assert table().fingerprint() == "3bec929c78e0e6f3"
    header = pack(write_peft(tmp_path, table().sources()), table(), DIGEST, RANK, ALPHA, tmp_path / "adapter.openmint")
    raw = (tmp_path / "adapter.openmint").read_bytes()
    body = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert body["modules"][0]["a"][0] == {"offset": 0, "rows": RANK, "columns": 8}
    assert header.modules[0].a[0] == TensorPlace(0, RANK, 8)


@pytest.mark.parametrize("made", [table(), expert_table()])
def test_a_module_table_survives_its_way_as_json(made: ModuleTable):
    assert ModuleTable.from_json(json.loads(json.dumps(made.as_json()))) == made


def test_experts_become_one_tensor_per_projection(tmp_path: Path):
    from safetensors.torch import load_file

    file = write_peft(tmp_path, expert_table().sources())
    out = tmp_path / "adapter.openmint"
    header = pack(file, expert_table(), DIGEST, RANK, ALPHA, out)
    tensors = load_file(file)
    fused = header.modules[1]
    for projection, a, b in zip(("gate", "down", "up"), fused.a, fused.b, strict=True):
        names = [f"base_model.model.l.experts.{expert}.{projection}" for expert in range(3)]
        wanted_a = torch.stack([tensors[f"{name}.lora_A.weight"] for name in names])
        wanted_b = torch.stack([tensors[f"{name}.lora_B.weight"] for name in names]) * (ALPHA / RANK)
        assert torch.equal(read(out, header, a), wanted_a)
        assert torch.equal(read(out, header, b), wanted_b)
    check_blob(out, header)


def test_a_projection_that_the_adapter_leaves_alone_on_all_experts_is_zero(tmp_path: Path):
    sources = {name: shape for name, shape in expert_table().sources().items() if not name.endswith("up")}
    out = tmp_path / "adapter.openmint"
    header = pack(write_peft(tmp_path, sources), expert_table(), DIGEST, RANK, ALPHA, out)
    fused = header.modules[1]
    assert not read(out, header, fused.b[2]).any()
    assert read(out, header, fused.b[2]).shape == (3, 5, RANK)
    assert read(out, header, fused.b[1]).any()


def test_a_projection_on_some_experts_only_is_refused_by_name(tmp_path: Path):
    sources = {name: shape for name, shape in expert_table().sources().items() if name != "l.experts.1.down"}
    file = write_peft(tmp_path, sources)
    with pytest.raises(BadLayout, match=r"l\.experts\.1\.down"):
        pack(file, expert_table(), DIGEST, RANK, ALPHA, tmp_path / "adapter.openmint")


def test_an_adapter_that_leaves_experts_alone_has_nothing_for_them(tmp_path: Path):
    header = pack(write_peft(tmp_path, {"l.o": (8, 8)}), expert_table(), DIGEST, RANK, ALPHA, tmp_path / "a.openmint")
    assert [module.name for module in header.modules] == ["l.o"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("projections", [("gate_up", "down"), ("gate_up",), ("down",)])
def test_fused_expert_weights_become_what_the_experts_own_pairs_become(
    tmp_path: Path, dtype: str, projections: tuple[str, ...]
):
    experts, rank = 3, 2
    layer = "base_model.model.l.layers.0.mlp.experts"
    generator = torch.Generator().manual_seed(0)
    sizes = {"gate_up": (16, 5), "down": (5, 8)}
    apart: dict[str, torch.Tensor] = {}
    fused: dict[str, torch.Tensor] = {}
    for projection in projections:
        out_size, in_size = sizes[projection]
        a = torch.randn(experts, rank, in_size, generator=generator).to(getattr(torch, dtype))
        b = torch.randn(experts, out_size, rank, generator=generator).to(getattr(torch, dtype))
        wrapper = f"{layer}.base_layer" if projection == "gate_up" and len(projections) == 2 else layer
        fused[f"{wrapper}.lora_A.weight"] = a.reshape(experts * rank, in_size)
        fused[f"{wrapper}.lora_B.weight"] = b.permute(1, 2, 0).reshape(out_size, rank * experts)
        parts = {"down_proj": slice(None)} if projection == "down" else {"gate_proj": slice(8), "up_proj": slice(8, 16)}
        for expert in range(experts):
            for name, rows in parts.items():
                apart[f"{layer}.{expert}.{name}.lora_A.weight"] = a[expert].clone()
                apart[f"{layer}.{expert}.{name}.lora_B.weight"] = b[expert, rows].clone()
    slices = [
        Slice(f"l.layers.0.mlp.experts.{expert}.{name}", *size)
        for expert in range(experts)
        for name, size in (("gate_proj", (5, 8)), ("down_proj", (8, 5)), ("up_proj", (5, 8)))
    ]
    engine = ModuleTable(dtype, 1, 8, (EngineModule("l.layers.0.mlp.experts", True, tuple(slices), experts),))
    made: list[bytes] = []
    for name, tensors in (("fused", fused), ("apart", apart)):
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / name)
        pack(tmp_path / name, engine, "sha256:" + "0" * 64, rank, 3.0, tmp_path / f"{name}.layout")
        made.append((tmp_path / f"{name}.layout").read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize("damage", ["truncated", "longer", "flipped", "no header", "huge header", "empty"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str):
    file = write_peft(tmp_path, table().sources())
    out = tmp_path / "adapter.openmint"
    pack(file, table(), DIGEST, RANK, ALPHA, out)
    content = bytearray(out.read_bytes())
    if damage == "truncated":
        content = content[:-2]
    elif damage == "longer":
        content += b"\0"
    elif damage == "flipped":
        content[-1] ^= 1
    elif damage == "no header":
        content[8:40] = b"\0" * 32
    elif damage == "huge header":
        content[:8] = (1 << 62).to_bytes(8, "little")
    else:
        content = bytearray()
    out.write_bytes(content)
    with pytest.raises(BadLayout):
        check_blob(out, read_header(out))


def test_rounding_to_bfloat16_is_to_nearest_even():
    from openmint_engine_host.peft_tensors import encode

    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    wanted = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(encode(values, "bfloat16"), wanted)


def test_a_file_that_was_packed_for_the_engine_fits_it_and_any_other_is_told_by_its_module(tmp_path: Path):
    file = write_peft(tmp_path, {"l.q": (6, 8), "l.down": (8, 6)})
    header = pack(file, table(), DIGEST, RANK, ALPHA, tmp_path / "out")
    check_fits(header, table())
    qkv, down = table().modules
    others = {
        "l.down": ModuleTable("bfloat16", 1, 16, (qkv, EngineModule("l.down", False, (Slice("l.down", 6, 9),)))),
        "l.qkv": ModuleTable("bfloat16", 1, 16, (down,)),
        "rank 2": ModuleTable("bfloat16", 1, 1, (qkv, down)),
    }
    for named, other in others.items():
        with pytest.raises(BadLayout, match=named):
            check_fits(header, other)
