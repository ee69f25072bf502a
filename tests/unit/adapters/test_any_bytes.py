"""Whatever bytes stand in an adapter's files: it passes, or one refusal says why; nothing else is ever raised."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openmint.adapters.checks import check_adapter_folder
from openmint.adapters.manifest import Manifest
from openmint.errors import BadAdapter

FILES = ("adapter_config.json", "adapter_model.safetensors", "manifest.json")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@pytest.fixture
def good(base, draft, tmp_path):
    folder = draft.write(tmp_path / "good")
    manifest = Manifest.of(check_adapter_folder(folder, base), base.digest)
    (folder / "manifest.json").write_bytes(manifest.canonical_bytes())
    return {name: (folder / name).read_bytes() for name in FILES}


def passes_or_is_refused(files: dict[str, bytes], base) -> bool:
    folder = Path(tempfile.mkdtemp())
    try:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        check_adapter_folder(folder, base, needs_manifest=True)
        return True
    except BadAdapter as error:
        assert error.detail.isprintable() and (error.field is None or error.field.isprintable())
        return False
    finally:
        shutil.rmtree(folder)


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_byte_of_any_file_is_refused(data, good, base):
    name = data.draw(st.sampled_from(FILES))
    content = bytearray(good[name])
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    assert not passes_or_is_refused(good | {name: bytes(content)}, base)


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_cut_out_or_put_in_are_refused(data, good, base):
    name = data.draw(st.sampled_from(FILES))
    content = good[name]
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 50)))
    put_in = data.draw(st.binary(max_size=50))
    spoilt = content[:start] + put_in + content[end:]
    assert passes_or_is_refused(good | {name: spoilt}, base) is (spoilt == content)


@given(field=st.text(max_size=20), value=json_values, data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_in_any_field_of_the_config_is_answered(field, value, data, good, base):
    config = json.loads(good["adapter_config.json"])
    name = data.draw(st.sampled_from([*config, field, "use_dora", "rank_pattern", "init_lora_weights", "lora_dropout"]))
    passes_or_is_refused(good | {"adapter_config.json": json.dumps(config | {name: value}).encode()}, base)


@given(value=json_values, data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_in_any_field_of_the_manifest_is_answered(value, data, good, base):
    manifest = json.loads(good["manifest.json"])
    name = data.draw(st.sampled_from(list(manifest)))
    changed = manifest | {name: value}
    raw = json.dumps(changed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    passes_or_is_refused(good | {"manifest.json": raw.encode("utf-8", "surrogatepass")}, base)


@given(value=json_values, data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_in_any_field_of_the_header_is_answered(value, data, good, base, raw_file):
    content = good["adapter_model.safetensors"]
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    tensor = data.draw(st.sampled_from(list(header)))
    field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", ""]))
    changed = header | {tensor: (header[tensor] | {field: value}) if field else value}
    raw = raw_file(json.dumps(changed).encode(), content[8 + length :])
    passes_or_is_refused(good | {"adapter_model.safetensors": raw}, base)
