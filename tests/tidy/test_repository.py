"""Rules of the repository that a reviewer should not have to remember."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(p for p in [ROOT / "shared" / "openmint", *(ROOT / "services").iterdir()] if p.is_dir())
LONGEST_FILE = 400

TORCH_FREE = ("openmint", "openmint_gateway", "openmint_scheduler", "openmint_keeper")


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return [ROOT / name for name in listing.decode().split("\0") if name and (ROOT / name).exists()]


def python_files() -> list[Path]:
    return [path for path in tracked_files() if path.suffix == ".py"]


def markdown_files() -> list[Path]:
    return [path for path in tracked_files() if path.suffix == ".md"]


def test_no_file_is_too_long_to_read() -> None:
    long = {p.relative_to(ROOT): n for p in python_files() if (n := len(p.read_text().splitlines())) > LONGEST_FILE}
    assert not long


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.name)
def test_package_is_typed_and_regular(package: Path) -> None:
    assert (package / "__init__.py").exists()
    assert (package / "py.typed").exists()


@pytest.mark.parametrize("service", [p for p in PACKAGES if p.name != "openmint"], ids=lambda p: p.name)
def test_service_has_the_same_first_files(service: Path) -> None:
    assert [name for name in ("app.py", "settings.py") if not (service / name).exists()] == []


def test_links_in_documents_lead_somewhere() -> None:
    dead = [
        f"{document.relative_to(ROOT)}: {target}"
        for document in markdown_files()
        for target in re.findall(r"\]\(([^)#\s]+)", document.read_text())
        if "://" not in target and not (document.parent / target).exists()
    ]
    assert not dead


def test_make_targets_named_in_the_documents_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    named = {t for d in markdown_files() for t in re.findall(r"`make ([a-z][a-z-]*)", d.read_text())}
    assert named <= targets


def test_no_path_of_a_machine_is_committed() -> None:
    pattern = re.compile(r"(?<![\w.])/(?:work|root|opt/wheels|opt/pypi)[/\b]")
    guilty = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked_files()
        if path.suffix in {".py", ".md", ".sh", ".toml", ".yaml", ".yml", ".json", ".in", ".lock", ""}
        and path != Path(__file__)
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not guilty


def public_definitions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node


def test_public_functions_and_classes_say_what_they_mean() -> None:
    silent = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in python_files()
        if path.is_relative_to(ROOT / "shared") or path.is_relative_to(ROOT / "services")
        for node in public_definitions(ast.parse(path.read_text()))
        if ast.get_docstring(node) is None
    ]
    assert not silent


def test_no_pickle_anywhere() -> None:
    pattern = re.compile(r"\b(?:import pickle|pickle\.loads?|torch\.load\(|torch\.save\()")
    guilty = [
        str(path.relative_to(ROOT))
        for path in python_files()
        if path.is_relative_to(ROOT / "shared") or path.is_relative_to(ROOT / "services")
        if pattern.search(path.read_text())
    ]
    assert not guilty


def test_import_borders_hold() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("package", TORCH_FREE)
def test_package_really_loads_without_torch(package: str) -> None:
    """Every module is imported in a fresh process, so that a lazy import can't hide."""
    program = (
        "import importlib, pkgutil, sys\n"
        f"root = importlib.import_module({package!r})\n"
        "for module in pkgutil.walk_packages(root.__path__, root.__name__ + '.'):\n"
        "    importlib.import_module(module.name)\n"
        "heavy = {'torch', 'transformers', 'peft', 'vllm'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
