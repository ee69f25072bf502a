import subprocess
import sys

import pytest

from openmint_engine_host.plugin.versions import UnknownVllm, module_for


def test_a_known_minor_version_has_its_module():
    assert module_for("0.32.0", allow_unknown=False) == "v0_32"
    assert module_for("0.32.7+cpu", allow_unknown=False) == "v0_32"


@pytest.mark.parametrize("version", ["0.33.0", "0.3.2", "1.0", "dev"])
def test_an_unknown_version_is_refused_and_the_error_says_what_allows_it(version: str):
    with pytest.raises(UnknownVllm, match="OPENMINT_ALLOW_UNKNOWN_VLLM=1"):
        module_for(version, allow_unknown=False)
    assert module_for(version, allow_unknown=True) == "v0_32"


def test_the_plugin_does_nothing_in_a_vllm_that_no_engine_host_started():
    """In a process of its own: importing and registering must not even import torch or vLLM."""
    program = (
        "import sys; from openmint_engine_host.plugin import register; register(); "
        "print([name for name in ('torch', 'vllm') if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], env={"PATH": "/usr/bin"}, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
