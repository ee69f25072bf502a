"""`adapter_config.json`, read strictly: PEFT's fields at their plain values, and nothing else.

A field that PEFT may add later is refused until it is known here to change nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from openmint.adapters.escaping import shown
from openmint.adapters.expert_layout import parameter_name
from openmint.adapters.facts import CONFIG_FILE, AdapterLimits
from openmint.adapters.strict_json import NotStrict, read_strict_json
from openmint.bases import BaseFacts
from openmint.errors import BadAdapter

# Fields that say something about the adapter's function, with the only values under which a plain LoRA is meant.
_PLAIN_VALUES: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    "lora_bias": (False,),
    "fan_in_fan_out": (False,),
    "use_rslora": (False,),
    "use_dora": (False,),
    "use_qalora": (False,),
    "use_bdlora": (False, None),
    "modules_to_save": (None, []),
    "exclude_modules": (None, []),
    "layers_to_transform": (None,),
    "layers_pattern": (None, []),
    "layer_replication": (None,),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "auto_mapping": (None,),
    "trainable_token_indices": (None,),
    "alora_invocation_tokens": (None,),
    "megatron_config": (None,),
    "loftq_config": ({}, None),
    "eva_config": (None,),
    "corda_config": (None,),
    "lora_ga_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "ensure_weight_tying": (False,),
    # Others start from changed base weights, which the file does not carry.
    "init_lora_weights": (True, False, None, "gaussian"),
    "revision": (None,),
}

_REQUIRED = frozenset({"peft_type", "r", "lora_alpha", "target_modules", "base_model_name_or_path"})
_WITHOUT_EFFECT = frozenset({"inference_mode", "lora_dropout", "peft_version", "megatron_core", "qalora_group_size"})
_KNOWN = frozenset(_PLAIN_VALUES) | _REQUIRED | _WITHOUT_EFFECT | {"target_parameters"}

MAX_TEXT = 200


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What of the configuration the weights are held against."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    parameters: tuple[str, ...] = ()


def parse_adapter_config(raw: bytes, base: BaseFacts, limits: AdapterLimits) -> AdapterConfig:
    """Read and check a configuration. Raises: BadAdapter naming the field."""
    try:
        body = read_strict_json(raw)
    except NotStrict as error:
        raise _refusal(f"it is {error}") from error
    if not isinstance(body, dict):
        raise _refusal("it is not an object")
    config = cast(dict[str, Any], body)
    for name in sorted(config):
        if name not in _KNOWN:
            raise _refusal(f"unknown field {shown(name)}")
        plain = _PLAIN_VALUES.get(name)
        if plain is not None and not any(_is_same(config[name], value) for value in plain):
            raise _refusal(f"{name} = {_value(config[name])} is not supported: only a plain LoRA is", name)
        if name in _WITHOUT_EFFECT and not isinstance(config[name], (str, int, float, bool, type(None))):
            raise _refusal(f"{name} is not a plain value", name)
    for name in sorted(_REQUIRED - set(config)):
        raise _refusal(f"{name} is missing", name)
    parameters = _parameters(config, base)
    targets = _targets(config, base, limits, may_be_empty=bool(parameters))
    return AdapterConfig(_rank(config, limits), _alpha(config, limits), targets, parameters)


def _rank(config: Mapping[str, Any], limits: AdapterLimits) -> int:
    rank = config["r"]
    if type(rank) is not int or not 1 <= rank <= limits.max_rank:
        raise _refusal(f"r = {_value(rank)} is not a whole number from 1 to {limits.max_rank}", "r")
    return rank


def _alpha(config: Mapping[str, Any], limits: AdapterLimits) -> float:
    alpha = config["lora_alpha"]
    if type(alpha) not in (int, float) or not 0 < alpha <= limits.max_alpha:  # NaN is neither
        raise _refusal(
            f"lora_alpha = {_value(alpha)} is not a number above 0 and up to {limits.max_alpha:g}", "lora_alpha"
        )
    return float(alpha)


def _parameters(config: Mapping[str, Any], base: BaseFacts) -> tuple[str, ...]:
    given = config.get("target_parameters")
    if given is None:
        return ()
    known = sorted({parameter_name(path) for path in base.experts})
    if not isinstance(given, list):
        raise _refusal("target_parameters is not a list of names", "target_parameters")
    for name in cast(list[Any], given):
        if not isinstance(name, str) or name not in known:
            raise _refusal(
                f"target_parameters: {_value(name)} is none of {', '.join(known) or 'this base'}", "target_parameters"
            )
    if len(set(given)) != len(given):
        raise _refusal("target_parameters names a parameter twice", "target_parameters")
    return tuple(sorted(given))


def _targets(
    config: Mapping[str, Any], base: BaseFacts, limits: AdapterLimits, *, may_be_empty: bool = False
) -> tuple[str, ...]:
    name = config["base_model_name_or_path"]
    if not isinstance(name, str) or name not in (base.name, *limits.accepted_base_names):
        raise _refusal(
            f"base_model_name_or_path = {_value(name)} is not the base model {base.name!r}", "base_model_name_or_path"
        )
    targets = config["target_modules"]
    if isinstance(targets, str):
        raise _refusal(f"target_modules = {_value(targets)} is a pattern; write a list of names", "target_modules")
    if not isinstance(targets, list) or not (targets or may_be_empty):
        raise _refusal("target_modules is not a list with at least one name", "target_modules")
    for target in cast(list[Any], targets):
        if not isinstance(target, str) or target not in base.targets:
            raise _refusal(f"target_modules: {_value(target)} is none of {', '.join(base.targets)}", "target_modules")
    if len(set(targets)) != len(targets):
        raise _refusal("target_modules names a module twice", "target_modules")
    return tuple(sorted(targets))


def _is_same(found: Any, plain: Any) -> bool:
    # Not by == alone: 0 == False, and a field that is 0 where False is meant is not what we know.
    return type(found) is type(plain) and found == plain


def _value(value: Any) -> str:
    return shown(value) if isinstance(value, str) else shown(repr(value)[:MAX_TEXT], 60)[1:-1]


def _refusal(reason: str, field: str | None = None) -> BadAdapter:
    return BadAdapter(f"{CONFIG_FILE}: {reason}", field=field or CONFIG_FILE)
