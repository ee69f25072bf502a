"""Each way in which an adapter can be bad: one refusal that names the culprit, quickly and in bounded memory."""

import json
import os
import pickle
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from openmint.adapters.checks import check_adapter_folder
from openmint.adapters.facts import AdapterLimits
from openmint.errors import BadAdapter

MAX_SECONDS = 2.0
MAX_GROWTH_BYTES = 64 << 20

Q0A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
Q0B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
V1A = "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"
V1B = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"


def refusal_of(folder: Path, base, **keywords) -> BadAdapter:
    """The refusal, after checking that it came quickly, took little memory, and can be printed safely."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began = time.process_time()
    with pytest.raises(BadAdapter) as caught:
        check_adapter_folder(folder, base, **keywords)
    assert time.process_time() - began < MAX_SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < MAX_GROWTH_BYTES
    detail = caught.value.detail
    assert detail.isprintable() and len(detail) < 800, detail
    assert caught.value.http_status == 422
    return caught.value


# Values


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_one_value_that_is_not_finite_is_refused_with_its_place(bad, dtype, base, draft_of, tmp_path):
    draft = draft_of(base, dtype=dtype)
    array = draft.array(V1B).copy()
    bits = {np.inf: 0x7F80, -np.inf: 0xFF80}.get(bad, 0x7FC1)
    array[3, 1] = bits if dtype == "BF16" else bad
    draft.put(V1B, array)
    error = refusal_of(draft.write(tmp_path / "a"), base)
    assert V1B in error.detail and "NaN or infinite" in error.detail and "first at 13" in error.detail


def test_a_huge_value_is_refused(base, draft, tmp_path):
    draft.array(Q0A)[0, 0] = 1e30
    error = refusal_of(draft.write(tmp_path / "a"), base)
    assert Q0A in error.detail and "1e+30" in error.detail


def test_a_huge_norm_of_small_values_is_refused(base, draft, tmp_path):
    draft.array(Q0A)[:] = 900
    draft.array(Q0B)[:] = 900
    error = refusal_of(draft.write(tmp_path / "a"), base)
    assert Q0B in error.detail and "norm" in error.detail


# Shapes, rank, pairs, names


SHAPES = {
    "too few columns": (Q0A, (4, 14)),
    "too many columns": (Q0A, (4, 18)),
    "more rows than the rank": (Q0A, (5, 16)),
    "B too tall": (V1B, (16, 4)),
    "another rank in B": (V1B, (8, 3)),
    "one dimension": (V1B, (32,)),
    "three dimensions": (V1B, (8, 4, 1)),
    "no rows": (Q0A, (0, 16)),
}


@pytest.mark.parametrize(("name", "shape"), SHAPES.values(), ids=SHAPES)
def test_a_wrong_shape_is_refused(name, shape, base, draft, tmp_path):
    draft.put(name, np.full(shape, 0.1, dtype=np.float32))
    error = refusal_of(draft.write(tmp_path / "a"), base)
    assert name in error.detail and str(list(shape)) in error.detail


def test_a_rank_in_the_config_that_the_file_does_not_have_is_refused(base, draft, tmp_path):
    draft.config["r"] = 2
    error = refusal_of(draft.write(tmp_path / "a"), base)
    assert "r = 2" in error.detail and "lora_" in error.detail


def test_a_and_b_swapped_is_refused(base, draft, tmp_path):
    a, b = draft.array(V1A), draft.array(V1B)
    draft.put(V1A, b)
    draft.put(V1B, a)
    assert "shape" in refusal_of(draft.write(tmp_path / "a"), base).detail


def test_a_missing_half_is_refused(base, draft, tmp_path):
    del draft.tensors[V1B]
    error = refusal_of(draft.write(tmp_path / "a"), base)
    assert V1B in error.detail and "missing" in error.detail


def test_a_missing_layer_is_refused(base, draft, tmp_path):
    del draft.tensors[V1A], draft.tensors[V1B]
    assert "layers.1.self_attn.v_proj" in refusal_of(draft.write(tmp_path / "a"), base).detail


def test_no_module_that_matches_is_refused_and_counted(base, draft, tmp_path):
    draft.tensors = {name.replace(".layers.", ".blocks."): value for name, value in draft.tensors.items()}
    error = refusal_of(draft.write(tmp_path / "a"), base)
    assert "blocks" in error.detail and "0 of 8 tensors" in error.detail


def test_a_layer_that_the_base_does_not_have_is_refused(base, draft, tmp_path):
    draft.put(Q0A.replace("layers.0", "layers.2"), np.zeros((4, 16), dtype=np.float32))
    assert "layers.2" in refusal_of(draft.write(tmp_path / "a"), base).detail


STRANGE_NAMES = {
    "embedding": "base_model.model.model.embed_tokens.lora_embedding_A",
    "bias": "base_model.model.model.layers.0.self_attn.q_proj.bias",
    "DoRA": "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
    "saved module": "base_model.model.lm_head.modules_to_save.weight",
    "no prefix": "model.layers.0.self_attn.q_proj.lora_A.weight",
    "a target that the config leaves out": "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight",
}


@pytest.mark.parametrize("name", STRANGE_NAMES.values(), ids=STRANGE_NAMES)
def test_a_tensor_that_is_no_lora_weight_of_the_targets_is_refused(name, base, draft, tmp_path):
    draft.put(name, np.zeros((4, 16), dtype=np.float32))
    assert name in refusal_of(draft.write(tmp_path / "a"), base).detail


@pytest.mark.parametrize("name", ["../../etc/passwd\r\n\x1b[31m", "a\u202eb", "x" * 201, "", "a b"])
def test_a_tensor_name_of_another_alphabet_is_refused_and_escaped(name, base, draft, tmp_path):
    draft.rename(Q0A, name)
    assert "tensor name" in refusal_of(draft.write(tmp_path / "a"), base).detail


# dtypes


@pytest.mark.parametrize("dtype", ["F64", "I8"])
def test_another_dtype_is_refused(dtype, base, draft, tmp_path):
    draft.tensors = {
        name: (dtype, array.astype({"F64": "f8", "I8": "i1"}[dtype])) for name, (_, array) in draft.tensors.items()
    }
    assert f"dtype {dtype}" in refusal_of(draft.write(tmp_path / "a"), base).detail


def test_two_dtypes_are_refused(base, draft, tmp_path):
    draft.tensors[V1B] = ("F16", draft.array(V1B).astype(np.float16))
    error = refusal_of(draft.write(tmp_path / "a"), base)
    assert "F16" in error.detail and "F32" in error.detail


# The header


def _header(**tensors) -> bytes:
    return json.dumps(tensors).encode()


def _entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _many_tensors() -> bytes:
    part = '"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return ("{" + ",".join(part % i for i in range(800_000)) + "}").encode()


HEADERS: dict[str, tuple[Callable[[], tuple[bytes, bytes, int | None]], str]] = {
    "no tensors": (lambda: (b"{}", b"", None), "no tensors"),
    "length of 2^63": (lambda: (b"{}", b"", 1 << 63), "limit"),
    "longer than the file": (lambda: (b"{}", b"", 1000), "claims"),
    "800,000 tensors": (lambda: (_many_tensors(), b"", None), "limit"),
    "99 MB of metadata": (lambda: (b'{"__metadata__":{"a":"' + b"x" * 99_000_000 + b'"}}', b"", None), "limit"),
    "duplicate key": (
        lambda: (b'{"t":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4), None),
        "twice",
    ),
    "duplicate tensor": (
        lambda: (b"{" + b",".join([b'"t":' + json.dumps(_entry([1], 0, 4)).encode()] * 2) + b"}", bytes(4), None),
        "twice",
    ),
    "overlap": (lambda: (_header(a=_entry([2], 0, 8), b=_entry([1], 4, 8)), bytes(8), None), "overlaps"),
    "hole": (lambda: (_header(a=_entry([1], 0, 4), b=_entry([1], 8, 12)), bytes(12), None), "hole"),
    "hole at the start": (lambda: (_header(a=_entry([1], 4, 8)), bytes(8), None), "hole"),
    "trailing bytes": (lambda: (_header(a=_entry([1], 0, 4)), bytes(8), None), "end at byte"),
    "short body": (lambda: (_header(a=_entry([2], 0, 8)), bytes(4), None), "end at byte"),
    "shape that overflows": (lambda: (_header(a=_entry([1 << 40, 1 << 40], 0, 4)), bytes(4), None), "needs"),
    "size of 0 x 10^12": (lambda: (_header(**{Q0A: _entry([0, 10**12], 0, 0)}), b"", None), Q0A),
    "negative size": (lambda: (_header(a=_entry([-1], 0, 4)), bytes(4), None), "shape"),
    "size that is true": (lambda: (_header(a=_entry([True], 0, 4)), bytes(4), None), "shape"),
    "falling offsets": (lambda: (_header(a=_entry([1], 4, 0)), bytes(4), None), "data_offsets"),
    "unknown dtype": (lambda: (_header(a=_entry([1], 0, 4, "Q4")), bytes(4), None), "Q4"),
    "unknown field": (lambda: (_header(a={**_entry([1], 0, 4), "x": 1}), bytes(4), None), "exactly"),
    "deep nesting": (lambda: (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", None), "nested"),
    "not UTF-8": (lambda: (b'{"\xff\xfe":1}', b"", None), "UTF-8"),
    "NaN": (lambda: (b'{"a":NaN}', b"", None), "NaN"),
    "a number of a million digits": (lambda: (b'{"a":' + b"9" * 1_000_000 + b"}", b"", None), "number"),
    "a list": (lambda: (b"[1, 2]", b"", None), "not an object"),
    "metadata of numbers": (lambda: (b'{"__metadata__":{"a":1}}', b"", None), "__metadata__"),
}


@pytest.mark.parametrize(("make", "words"), HEADERS.values(), ids=HEADERS)
def test_a_bad_header_is_refused(make, words, base, draft, raw_file, tmp_path):
    header, blob, length = make()
    draft.weights_bytes = raw_file(header, blob, length)
    # So large a file is refused by its size alone; here the header itself must be.
    limits = AdapterLimits(max_rank=10_000_000)
    error = refusal_of(draft.write(tmp_path / "a"), base, limits=limits)
    assert words in error.detail and "adapter_model.safetensors" in error.detail


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, pickle.dumps({"a": 1}), b"PK\x03\x04" + bytes(100)])
def test_a_file_of_another_kind_is_refused(content, base, draft, tmp_path):
    draft.weights_bytes = content
    assert "adapter_model.safetensors" in refusal_of(draft.write(tmp_path / "a"), base).detail


def test_a_truncated_file_is_refused(base, draft, tmp_path):
    folder = draft.write(tmp_path / "a")
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert "end at byte" in refusal_of(folder, base).detail


def test_a_file_larger_than_any_adapter_of_the_base_is_refused_unread(base, draft, tmp_path):
    folder = draft.write(tmp_path / "a")
    with (folder / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(1 << 40)
    assert "limit" in refusal_of(folder, base).detail


# The folder


@pytest.mark.parametrize(
    "name",
    [
        "adapter_model.bin",
        "weights.pt",
        "data.pkl",
        "modeling.py",
        "chat_template.jinja",
        "tokenizer.json",
        "Adapter_config.json",
        "ａdapter_config.json",
        "x\r\n\x1b[31m",
        "..evil",
    ],
)
def test_any_other_file_is_refused_by_name(name, base, draft, tmp_path):
    draft.extra_files[name] = pickle.dumps([1])
    error = refusal_of(draft.write(tmp_path / "a"), base)
    assert "does not belong" in error.detail


def test_a_folder_in_the_folder_is_refused(base, draft, tmp_path):
    folder = draft.write(tmp_path / "a")
    (folder / "checkpoint").mkdir()
    assert "checkpoint" in refusal_of(folder, base).detail


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_symbolic_link_is_refused_even_to_a_good_file(name, base, draft, tmp_path):
    folder = draft.write(tmp_path / "a")
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    error = refusal_of(folder, base)
    assert name in error.detail and "symbolic link" in error.detail


def test_a_hard_link_is_refused(base, draft, tmp_path):
    folder = draft.write(tmp_path / "a")
    os.link(folder / "adapter_model.safetensors", tmp_path / "second-name")
    assert "hard link" in refusal_of(folder, base).detail


def test_a_fifo_is_refused_without_waiting_for_a_writer(base, draft, tmp_path):
    folder = draft.write(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    os.mkfifo(folder / "adapter_model.safetensors")
    assert "regular file" in refusal_of(folder, base).detail


def test_a_socket_is_refused(base, draft, tmp_path, monkeypatch):
    folder = draft.write(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("adapter_model.safetensors")
        assert "adapter_model.safetensors" in refusal_of(folder, base).detail


def test_a_folder_that_is_a_link_or_absent_or_a_file_is_refused(base, draft, tmp_path):
    folder = draft.write(tmp_path / "a")
    (tmp_path / "link").symlink_to(folder)
    for path in (tmp_path / "link", tmp_path / "absent", folder / "adapter_config.json"):
        assert "folder can't be opened" in refusal_of(path, base).detail


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_refused(name, base, draft, tmp_path):
    folder = draft.write(tmp_path / "a")
    (folder / name).unlink()
    assert f"{name} is missing" in refusal_of(folder, base).detail


# The configuration


CONFIGS = {
    "rank 0": ("r", 0),
    "rank true": ("r", True),
    "rank as text": ("r", "8"),
    "an absurd rank": ("r", 100_000),
    "a rank of a thousand digits": ("r", 10**1000),
    "an alpha of a thousand digits": ("lora_alpha", 10**1000),
    "alpha 0": ("lora_alpha", 0),
    "negative alpha": ("lora_alpha", -1),
    "absurd alpha": ("lora_alpha", 1e9),
    "alpha as text": ("lora_alpha", "16"),
    "DoRA": ("use_dora", True),
    "rank-stabilised": ("use_rslora", True),
    "modules_to_save": ("modules_to_save", ["lm_head"]),
    "bias": ("bias", "all"),
    "lora_bias": ("lora_bias", True),
    "auto_mapping": ("auto_mapping", {"base_model_class": "os.system"}),
    "auto_map": ("auto_map", {"AutoModel": "x.py"}),
    "rank_pattern": ("rank_pattern", {"q_proj": 16}),
    "alpha_pattern": ("alpha_pattern", {"q_proj": 16}),
    "target_parameters": ("target_parameters", ["x"]),
    "layers_to_transform": ("layers_to_transform", [0]),
    "layer_replication": ("layer_replication", [[0, 2]]),
    "PiSSA": ("init_lora_weights", "pissa"),
    "trainable tokens": ("trainable_token_indices", [1]),
    "aLoRA": ("alora_invocation_tokens", [1]),
    "revision": ("revision", "main"),
    "IA3": ("peft_type", "IA3"),
    "classifier": ("task_type", "SEQ_CLS"),
    "zero for false": ("use_dora", 0),
    "pattern": ("target_modules", ".*_proj"),
    "all-linear": ("target_modules", "all-linear"),
    "no targets": ("target_modules", []),
    "unknown target": ("target_modules", ["q_proj", "wq"]),
    "lm_head": ("target_modules", ["lm_head"]),
    "a target twice": ("target_modules", ["q_proj", "v_proj", "q_proj"]),
    "another base": ("base_model_name_or_path", "other-base"),
    "base by URL": ("base_model_name_or_path", "https://evil.example/base"),
    "base by path": ("base_model_name_or_path", "../../base"),
    "no base": ("base_model_name_or_path", None),
    "unknown field": ("x\r\n\x1b[31m", 1),
    "a template": ("chat_template", "{{ 'a' * 10**9 }}"),
    "lists where a plain value is meant": ("lora_dropout", [0.1]),
}


@pytest.mark.parametrize(("field", "value"), CONFIGS.values(), ids=CONFIGS)
def test_a_bad_configuration_is_refused_by_field(field, value, base, draft, tmp_path):
    draft.config[field] = value
    error = refusal_of(draft.write(tmp_path / "a"), base)
    assert "adapter_config.json" in error.detail and field.split("\r")[0] in error.detail


@pytest.mark.parametrize("field", ["r", "lora_alpha", "target_modules", "peft_type", "base_model_name_or_path"])
def test_a_missing_field_is_refused(field, base, draft, tmp_path):
    del draft.config[field]
    assert f"{field} is missing" in refusal_of(draft.write(tmp_path / "a"), base).detail


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not JSON"),
        (b"[]", "not an object"),
        (b'{"r": 4, "r": 8}', "twice"),
        (b'{"lora_alpha": NaN}', "NaN"),
        (b'{"lora_alpha": 1e999, "r": 4, "peft_type": "LORA", "target_modules": ["q_proj"], '
         b'"base_model_name_or_path": "tiny"}', "lora_alpha"),
        (b"\xff\xfe", "UTF-8"),
        (b" " * 70_000, "limit"),
    ],
)  # fmt: skip
def test_a_configuration_that_is_not_strict_json_is_refused(content, words, base, draft, tmp_path):
    draft.config_bytes = content
    assert words in refusal_of(draft.write(tmp_path / "a"), base).detail
