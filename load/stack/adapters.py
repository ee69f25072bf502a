"""Adapters on disk for thousands of policies: few distinct weights, hard-linked, and for each policy its own alpha.

Alpha stands in the configuration and in the manifest, so every policy's revision has files, a digest and a signature
of its own, and its own weights in effect, while the bytes of the weights are written once.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from load.stack.policies import Policy, Shelved
from openmint.adapters.checks import check_adapter_folder
from openmint.adapters.facts import (
    CONFIG_FILE,
    MANIFEST_FILE,
    SIGNATURE_FILE,
    TENSOR_PREFIX,
    WEIGHTS_FILE,
    AdapterFacts,
    FileFact,
)
from openmint.adapters.keys import revision_prefix
from openmint.adapters.manifest import Manifest, digest_of
from openmint.adapters.signing import SigningKey, keys_folder
from openmint.bases import BaseFacts, read_base_folder

STRENGTH = 0.02
"""Standard deviation of lora_B: logprobs move by tenths of a nat, so no answer can be taken for the base's."""

ALPHA = 16.0
ALPHA_STEP = 1e-5
"""Between policies: another manifest, an effect that differs in the fifth digit."""

TINY_TARGETS = ("q_proj",)


@dataclass(frozen=True, slots=True)
class _Weights:
    """One file of weights that many policies link."""

    folder: Path
    facts: AdapterFacts


class AdapterShelf:
    """Makes adapters and lays them where either side looks for them. Policies get their number in the order made."""

    def __init__(self, state_dir: Path, base: BaseFacts, key: SigningKey, weights: Sequence[_Weights]) -> None:
        self._state_dir, self._base, self._key, self._weights = state_dir, base, key, tuple(weights)
        self._numbers: dict[Policy, int] = {}

    @classmethod
    def open(
        cls,
        state_dir: Path,
        base_folder: Path,
        *,
        rank: int = 8,
        distinct: int = 12,
        tiny: bool = False,
        seed: int = 0,
    ) -> "AdapterShelf":
        """Write the distinct weights below a stack's state folder and sign with that stack's key.

        `tiny` adapts q_proj alone, with rank 1: for catalogues so large that bytes would be all that counts.
        """
        base = read_base_folder(base_folder)
        targets = TINY_TARGETS if tiny else base.targets
        weights: list[_Weights] = []
        for number in range(distinct):
            folder = state_dir / "shelf" / f"weights-{number}"
            folder.mkdir(parents=True, exist_ok=True)
            write_weights(folder / WEIGHTS_FILE, base, targets, 1 if tiny else rank, seed * distinct + number)
            (folder / CONFIG_FILE).write_bytes(config_bytes(base.name, targets, 1 if tiny else rank, ALPHA))
            weights.append(_Weights(folder, check_adapter_folder(folder, base)))
        return cls(state_dir, base, SigningKey.load_or_create(keys_folder(state_dir)), weights)

    def put(self, policies: Sequence[Policy]) -> list[Shelved]:
        """Lay revisions into the local store of the stack, signed. A policy that was put before stays as it is."""
        store = self._state_dir / "store"
        shelved: list[Shelved] = []
        for policy in policies:
            weights, facts, config = self._facts_of(policy)
            raw = Manifest.of(facts, self._base.digest).canonical_bytes()
            digest = digest_of(raw)
            folder = store / revision_prefix(digest)
            if not folder.exists():
                folder.mkdir(parents=True)
                os.link(weights.folder / WEIGHTS_FILE, folder / WEIGHTS_FILE)
                (folder / CONFIG_FILE).write_bytes(config)
                (folder / SIGNATURE_FILE).write_bytes(self._key.sign(raw))
                (folder / MANIFEST_FILE).write_bytes(raw)
            shelved.append(Shelved(policy, digest, facts.adapter_bytes, facts.rank, facts.alpha))
        return shelved

    def put_stock(self, policies: Sequence[Policy], adapters_folder: Path) -> None:
        """Lay the same adapters as PEFT folders under their stock names."""
        for policy in policies:
            weights, _, config = self._facts_of(policy)
            folder = adapters_folder / policy.stock_name
            if not folder.exists():
                folder.mkdir(parents=True)
                os.link(weights.folder / WEIGHTS_FILE, folder / WEIGHTS_FILE)
                (folder / CONFIG_FILE).write_bytes(config)

    def _facts_of(self, policy: Policy) -> tuple[_Weights, AdapterFacts, bytes]:
        number = self._numbers.setdefault(policy, len(self._numbers))
        weights = self._weights[number % len(self._weights)]
        facts = weights.facts
        alpha = ALPHA + number * ALPHA_STEP
        config = config_bytes(self._base.name, facts.targets, facts.rank, alpha)
        files = {**facts.files, CONFIG_FILE: FileFact(len(config), hashlib.sha256(config).hexdigest())}
        return weights, replace(facts, alpha=alpha, files=files), config


def write_weights(path: Path, base: BaseFacts, targets: Sequence[str], rank: int, seed: int) -> None:
    """Random bfloat16 weights for every module that the targets name."""
    random = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for module, (out_size, in_size) in base.modules.items():
        if module.rpartition(".")[2] not in targets:
            continue
        a_RI = torch.randn(rank, in_size, generator=random) / in_size**0.5
        b_OR = torch.randn(out_size, rank, generator=random) * STRENGTH
        tensors[f"{TENSOR_PREFIX}{module}.lora_A.weight"] = a_RI.bfloat16()
        tensors[f"{TENSOR_PREFIX}{module}.lora_B.weight"] = b_OR.bfloat16()
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    shutil.move(partial, path)


def config_bytes(base: str, targets: Sequence[str], rank: int, alpha: float) -> bytes:
    """`adapter_config.json` of a plain LoRA."""
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(targets),
        "bias": "none",
        "inference_mode": True,
    }
    return json.dumps(config, sort_keys=True).encode()
