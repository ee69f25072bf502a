"""Facts of a base model's folder."""

import json
import struct
from dataclasses import asdict

import pytest

from openmint.bases import DIGEST_CACHE_FILE, BaseFacts, read_base_folder
from openmint.errors import BadName, BadRequest

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "max_position_embeddings": 64,
    "vocab_size": 32,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "dtype": "bfloat16",
}
SHAPES = {
    "model.embed_tokens.weight": [32, 8],
    "lm_head.weight": [32, 8],
    "model.norm.weight": [8],
    "model.layers.0.input_layernorm.weight": [8],
    "model.layers.0.self_attn.q_proj.weight": [8, 8],
    "model.layers.0.self_attn.q_proj.bias": [8],
    "model.layers.0.self_attn.k_proj.weight": [4, 8],
    "model.layers.0.mlp.gate.weight": [2, 8],
    "model.layers.0.mlp.down_proj.weight": [8, 24],
}


def write_weights(path, shapes, fill=0):
    header, position = {}, 0
    for name, shape in shapes.items():
        size = 2
        for part in shape:
            size *= part
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, position + size]}
        position += size
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes([fill]) * position)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "tiny-base"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "tokenizer.json").write_text("{}")
    write_weights(path / "model.safetensors", SHAPES)
    return path


def test_the_facts_are_read_from_config_and_headers(folder):
    facts = read_base_folder(folder)
    assert facts.name == "tiny-base" and facts.model_type == "llama" and facts.architecture == "LlamaForCausalLM"
    assert facts.modules == {
        "model.layers.0.mlp.down_proj": (8, 24),
        "model.layers.0.self_attn.k_proj": (4, 8),
        "model.layers.0.self_attn.q_proj": (8, 8),
    }
    assert facts.targets == ("down_proj", "k_proj", "q_proj")
    assert (facts.max_positions, facts.vocab_size, facts.hidden_size, facts.layers) == (64, 32, 8, 1)
    assert facts.dtype == "bfloat16" and not facts.has_chat_template
    assert sorted(facts.files) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_facts_survive_the_catalogue(folder):
    facts = read_base_folder(folder)
    body = json.loads(json.dumps(asdict(facts)))
    assert BaseFacts.from_json(body) == facts
    assert BaseFacts.registered(facts.name, facts.digest, facts.modules, body) == facts
    assert BaseFacts.registered("x", facts.digest, facts.modules, {}).targets == facts.targets


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_change_of_any_part_changes_the_digest(name, folder):
    before = read_base_folder(folder).digest
    if name == "model.safetensors":
        write_weights(folder / name, SHAPES, fill=1)
    else:
        (folder / name).write_text(json.dumps(CONFIG | {"x": 1}))
    assert read_base_folder(folder).digest != before


def test_a_chat_template_is_part_of_the_digest_and_other_files_are_not(folder):
    before = read_base_folder(folder)
    (folder / "README.md").write_text("words")
    assert read_base_folder(folder) == before
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    after = read_base_folder(folder)
    assert after.digest != before.digest and after.has_chat_template


def test_files_are_hashed_once_and_a_copy_has_the_same_digest(folder, tmp_path):
    facts = read_base_folder(folder)
    cache = folder / DIGEST_CACHE_FILE
    body = json.loads(cache.read_text())
    body["model.safetensors"]["sha256"] = "0" * 64
    cache.write_text(json.dumps(body))
    assert read_base_folder(folder).digest != facts.digest  # the cache is believed while size and time agree
    cache.write_text("nonsense")
    assert read_base_folder(folder).digest == facts.digest
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert read_base_folder(copy).digest == facts.digest


def test_weights_in_several_files_are_one_base(folder):
    (folder / "model.safetensors").unlink()
    names = list(SHAPES)
    for part, chosen in enumerate((names[:4], names[4:])):
        write_weights(folder / f"model-0000{part}.safetensors", {name: SHAPES[name] for name in chosen})
    (folder / "model.safetensors.index.json").write_text("{}")
    facts = read_base_folder(folder)
    assert len(facts.modules) == 3 and "model.safetensors.index.json" in facts.files


def test_another_name_may_be_given_but_must_be_one(folder):
    assert read_base_folder(folder, "other").name == "other"
    with pytest.raises(BadName):
        read_base_folder(folder, "Other Name")


BAD = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "config.json"),
    "code of its own": (
        lambda f: (f / "config.json").write_text(json.dumps(CONFIG | {"auto_map": {"AutoModel": "x.Y"}})),
        "auto_map",
    ),
    "no positions": (
        lambda f: (f / "config.json").write_text(json.dumps({**CONFIG, "max_position_embeddings": None})),
        "max_position_embeddings",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "safetensors"),
    "broken weights": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 20), "model.safetensors"),
    "no layers": (lambda f: write_weights(f / "model.safetensors", {"lm_head.weight": [4, 4]}), "decoder layers"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer"),
}


@pytest.mark.parametrize(("spoil", "words"), BAD.values(), ids=BAD)
def test_a_folder_that_is_no_base_is_refused_by_what_is_wrong(spoil, words, folder):
    spoil(folder)
    with pytest.raises(BadRequest, match=words):
        read_base_folder(folder)


def test_every_expert_of_a_mixture_is_a_module_of_its_own_and_the_router_is_none(folder):
    experts = {f"model.layers.0.mlp.experts.{expert}.up_proj.weight": [24, 8] for expert in range(3)}
    write_weights(folder / "model.safetensors", {"model.layers.0.mlp.gate.weight": [3, 8], **experts})
    facts = read_base_folder(folder)
    assert facts.modules == {f"model.layers.0.mlp.experts.{expert}.up_proj": (24, 8) for expert in range(3)}
    assert facts.targets == ("up_proj",)
