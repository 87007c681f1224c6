"""The precision of a published checkpoint, from the quantisation table of its config.json.

Pure. The result is the name of a precision whose size in :mod:`appliance.planner.precision` is right within a few
percent. A method, an algorithm, a width or a field that is not listed here may hold weights of any size and is
rejected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.catalog import checkpoint_modules
from appliance.catalog.checkpoint_modules import EXPERT, PREFIX, LayerMatrix
from appliance.catalog.shape import Mamba2, PartBytes, Shape
from appliance.errors import ConfigError

QUANTISED_BYTES: dict[str, float] = {
    # 4 bits, and per group of 128 a 16-bit scale and a 4-bit zero.
    "awq-int4": 0.52,
    # 4 bits, and an 8-bit scale per 16 weights.
    "nvfp4": 0.5625,
    # The same weights, unpacked to 16 bits by Marlin.
    "nvfp4-w4a16": 0.5625,
    # 4 bits, and an 8-bit scale per 32 weights.
    "mxfp4": 0.53125,
    "fp8": 1.0,
    "int8": 1.0,
}
"""Bytes per quantised weight, scales included."""

DTYPES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "auto": "bf16",
}
"""Unquantised weights. vLLM reads ``auto`` from the checkpoint."""

BITS = {4: "awq-int4", 8: "int8"}
"""Integer weights by their width in bits."""

BY_BITS = frozenset(
    {"auto-round", "auto_awq", "auto_gptq", "awq", "awq_marlin", "gptq", "gptq_marlin", "inc", "intel/auto-round"}
)
"""Methods whose table states a number of bits."""

BY_ALGORITHM = frozenset({"modelopt", "modelopt_fp4", "modelopt_mxfp8"})

PLAIN = {
    "fbgemm_fp8": "fp8",
    "fp8": "fp8",
    "gpt_oss_mxfp4": "mxfp4",
    "modelopt_mxfp8": "fp8",
    "mxfp4": "mxfp4",
    "nvfp4": "nvfp4",
}
"""Methods with one kind of weights."""

ALGORITHMS = {
    "fp8": "fp8",
    "fp8_block_scales": "fp8",
    "fp8_pb_wo": "fp8",
    "fp8_per_channel_per_token": "fp8",
    "int4_awq": "awq-int4",
    "mxfp8": "fp8",
    "nvfp4": "nvfp4",
    "nvfp4_awq": "nvfp4",
    "w4a16_awq": "awq-int4",
    "w4a16_nvfp4": "nvfp4",
    "w4a8_awq": "awq-int4",
    "w8a8_sq_per_channel": "int8",
}
"""ModelOpt's algorithms."""

FORMATS = {
    "float-quantized": "fp8",
    "int-quantized": "int8",
    "mxfp8-quantized": "fp8",
    "nvfp4-pack-quantized": "nvfp4",
}
"""Formats of compressed-tensors whose weights have one width; ``pack-quantized`` has the width of its groups."""

GROUPS = frozenset({-1, 0, 32, 64, 128, 256, 512, 1024})
"""Group sizes whose scales the precision's bytes cover. ``-1`` is one group per channel."""

SIXTEEN_BIT = re.compile(
    r"lm_head|head$|embed|norm|router|gate(?:\.wg)?\$?$|shared_expert_gate|vis(?:ion|ual)|audio|merger|projector"
    r"|patch_merge|mtp|eh_proj|conv1d|in_proj_(?:a|b|ba)\b|indexer|e_score|rotary|layers\.\d+\.self_attn\.rotary"
)
"""Modules that every precision here leaves at 16 bits, or that are too small to matter."""

EVERY = ("Linear",)
"""Targets of a group of compressed-tensors with every linear layer."""

MIXED = "mixed_precision"
"""ModelOpt's algorithm whose table ``quantized_layers`` states the algorithm of each module."""

LISTS = ("ignore", "ignored_layers", "exclude_modules", "llm_int8_skip_modules", "modules_to_not_convert")
"""Lists of modules that stay at 16 bits."""

OFF: Mapping[str, tuple[object, ...]] = {
    "dynamic": (None, {}),
    "extra_config": (None, {}),
    "lm_head": (False, None),
    "quant_lm_head": (False, None),
    "sparsity_config": (None, {}),
    "transform_config": (None, {}),
    "true_sequential": (True, False),
}
"""Fields that are understood in these values only: other values give some layers another width."""

HARMLESS = frozenset(
    {
        "_load_in_4bit",
        "_load_in_8bit",
        "act_group_aware",
        "act_bits",
        "act_data_type",
        "act_dynamic",
        "act_group_size",
        "act_sym",
        "activation_scale_ub",
        "activation_scheme",
        "amp",
        "autoround_version",
        "backend",
        "batch_size",
        "block_name_to_quantize",
        "bnb_4bit_compute_dtype",
        "bnb_4bit_quant_storage",
        "bnb_4bit_quant_type",
        "bnb_4bit_use_double_quant",
        "cache_block_outputs",
        "checkpoint_format",
        "clip",
        "damp_percent",
        "dataset",
        "desc_act",
        "do_fuse",
        "enable_minmax_tuning",
        "enable_norm_bias_tuning",
        "enable_quanted_input",
        "exllama_config",
        "fmt",
        "fuse_max_seq_len",
        "global_compression_ratio",
        "gradient_accumulate_steps",
        "iters",
        "kv_cache_quant_algo",
        "kv_cache_scheme",
        "llm_int8_enable_fp32_cpu_offload",
        "llm_int8_has_fp16_weight",
        "llm_int8_threshold",
        "low_gpu_mem_usage",
        "lr",
        "max_input_length",
        "meta",
        "minmax_lr",
        "model_seqlen",
        "module_name_preceding_first_block",
        "modules_to_fuse",
        "nsamples",
        "pad_token_id",
        "pre_quantization",
        "producer",
        "quant_type",
        "quantization_status",
        "quantizer",
        "sampler",
        "scale_dtype",
        "scale_fmt",
        "seqlen",
        "static_groups",
        "super_bits",
        "super_group_size",
        "sym",
        "tokenizer",
        "use_cuda_fp16",
        "use_exllama",
        "version",
        "zero_point",
    }
)
"""Fields about the quantisation or multiplication of weights that do not change their width."""

READ = frozenset(
    {
        "bits",
        "config_groups",
        "data_type",
        "format",
        "group_size",
        "load_in_4bit",
        "load_in_8bit",
        "packing_format",
        "quant_algo",
        "quant_method",
        "w_bit",
        "q_group_size",
        "quantized_layers",
        "weight_block_size",
        *LISTS,
        *OFF,
    }
)


@dataclass(frozen=True, slots=True)
class Native:
    """The precision of a checkpoint, by the names of :mod:`appliance.planner.precision`."""

    precision: str
    fp8_block: int = 0
    """Width of its FP8 blocks, 0 without blocks."""
    entries: tuple[str, ...] = ()
    """Modules that stay at 16 bits."""
    mixed: Mapping[str, str] = field(default_factory=dict)
    """Precision of each module, if the checkpoint has several."""
    groups: tuple[tuple[tuple[str, ...], str], ...] = ()
    """Names of modules and their precision, if a group does not have every linear layer."""


def native(name: str, tables: tuple[Mapping[str, Any], ...]) -> Native:
    """Return the precision of the checkpoint.

    ``tables`` are the config.json and its nested text model, outermost first. Raises :class:`ConfigError` with the
    field that is not understood.
    """
    keys = ("quantization_config", "compression_config")
    quant = next((table[key] for key in keys for table in tables if table.get(key)), None)
    if quant is None:
        return Native(_unquantised(name, tables))
    if not isinstance(quant, Mapping):
        raise ConfigError(f"{name}: quantization_config is not a table; take the model's own config.json")
    mixed = _mixed(name, quant)
    groups = _compressed(name, quant) if _method(quant) == "compressed-tensors" else ()
    several = [*mixed.values(), *(precision for _, precision in groups)]
    precision = min(several, key=QUANTISED_BYTES.__getitem__) if several else _precision(name, quant)
    entries = _fields(name, quant)
    if all(targets == EVERY for targets, _ in groups):
        groups = ()
    block = quant.get("weight_block_size")
    if block is None:
        return Native(precision, 0, entries, mixed, groups)
    if not isinstance(block, list) or not block or isinstance(block[0], bool) or not isinstance(block[0], int):
        raise ConfigError(f"{name}: weight_block_size = {block!r:.40} is not possible; nearest: [128, 128]")
    return Native(precision, block[0], entries, mixed, groups)


def part_bytes(
    name: str, found: Native, shape: Shape, kinds: Sequence[str], sparse: Sequence[bool]
) -> PartBytes | None:
    """Return the bytes per weight of each part of ``shape``, None if they follow from the precision.

    ``kinds`` has the kind of each layer, ``sparse`` for each layer with an MLP whether it has experts. Raises
    :class:`ConfigError` for a module of the checkpoint's lists that is not known.
    """
    if not found.entries and not found.mixed and not found.groups:
        return None
    modules = checkpoint_modules.modules(shape, kinds, sparse)
    for text in (*found.entries, *(target for targets, _ in found.groups for target in targets)):
        _check_expression(name, text)
    covered, unknown = checkpoint_modules.listed(found.entries, modules)
    for module in unknown:
        if not _small(module, shape.layers):
            raise _refused(name, f"{module!r:.60} among the modules at 16 bits")
    head = 2.0
    if found.mixed:
        each, head = _mixed_bytes(name, found.mixed, shape, modules)
    elif found.groups:
        each = _group_bytes(name, found.groups, shape, modules)
    else:
        each = [_usual_bytes(module, found.precision, shape) for module in modules]
        if all(each[index] == 2.0 for index in covered):
            return None
    each = [2.0 if index in covered else size for index, size in enumerate(each)]
    return checkpoint_modules.part_bytes(shape, modules, each, head)


def _check_expression(name: str, text: str) -> None:
    """Raise :class:`ConfigError` for an entry with a regular expression that is not valid."""
    if text.startswith("re:"):
        try:
            re.compile(text.removeprefix("re:"))
        except re.error as error:
            raise _refused(name, f"a module's expression that is not valid ({error})") from None


def _usual_bytes(module: LayerMatrix, precision: str, shape: Shape) -> float:
    """Return the bytes per weight that ``precision`` has in published checkpoints without a list of modules."""
    if precision == "mxfp4" and module.part != "experts":
        return 2.0
    if module.part == "linear" and not isinstance(shape.linear, Mamba2) and precision in {"awq-int4", "nvfp4"}:
        return 2.0
    return QUANTISED_BYTES[precision]


def _group_bytes(
    name: str, groups: Sequence[tuple[tuple[str, ...], str]], shape: Shape, modules: Sequence[LayerMatrix]
) -> list[float]:
    """Return the bytes per weight of ``modules``: of the first group that names it, else 2."""
    each = [2.0] * len(modules)
    free = set(range(len(modules)))
    for targets, precision in groups:
        covered, unknown = set(free), list[str]()
        if targets != EVERY:
            covered, unknown = checkpoint_modules.listed(targets, modules)
        for target in unknown:
            if not _small(target, shape.layers):
                raise _refused(name, f"config_groups for {target!r:.60}")
        for index in covered & free:
            each[index] = QUANTISED_BYTES[precision]
        free -= covered
    return each


def _mixed(name: str, quant: Mapping[str, Any]) -> dict[str, str]:
    """Return the precision of each module in ``quantized_layers``; empty if the checkpoint has only one."""
    algorithm, table = str(quant.get("quant_algo")).lower(), quant.get("quantized_layers")
    if _method(quant) not in BY_ALGORITHM or algorithm != MIXED:
        if table:
            raise _refused(name, "quantized_layers without quant_algo = 'MIXED_PRECISION'")
        return {}
    if not isinstance(table, Mapping) or not table:
        raise _refused(name, f"quant_algo = {quant['quant_algo']!r:.40} without quantized_layers")
    mixed: dict[str, str] = {}
    for module, one in table.items():
        found = ALGORITHMS.get(str(one.get("quant_algo")).lower()) if isinstance(one, Mapping) else None
        if found is None:
            raise _refused(name, f"quantized_layers.{module!s:.60} = {one!r:.60}")
        mixed[str(module)] = found
    return mixed


def _mixed_bytes(
    name: str, mixed: Mapping[str, str], shape: Shape, modules: Sequence[LayerMatrix]
) -> tuple[list[float], float]:
    """Return the bytes per weight of ``modules`` and of the head; a module that ``mixed`` omits has 16 bits."""
    experts: dict[str, set[str]] = {}
    plain: dict[str, str] = {}
    for module, precision in mixed.items():
        key = checkpoint_modules.renamed(PREFIX.sub("", module))
        first = EXPERT.sub("experts.0", key)
        if plain.setdefault(first, precision) != precision:
            raise _refused(name, f"experts of unequal precision ({module!s:.60})")
        if EXPERT.search(key):
            experts.setdefault(first, set()).add(key)
    count = shape.moe.experts if shape.moe else 0
    partial = next((first for first, keys in experts.items() if len(keys) != count), None)
    if partial is not None:
        raise _refused(name, f"quantized_layers with some experts of {partial!s:.60}")
    used: set[str] = set()
    sizes: list[float] = []
    for one in modules:
        paths = [alias.rsplit(".", cut)[0] for alias in one.names for cut in range(3)]
        key = next((path for path in paths if path in plain), "")
        used.add(key)
        sizes.append(QUANTISED_BYTES[plain[key]] if key else 2.0)
    for key in plain.keys() - used - {"lm_head"}:
        if not _small(key, shape.layers):
            raise _refused(name, f"quantized_layers.{key!s:.60}")
    return sizes, QUANTISED_BYTES[plain["lm_head"]] if "lm_head" in plain else 2.0


def _refused(name: str, what: str) -> ConfigError:
    return ConfigError(
        f"{name}: quantization_config has {what}, which the planner does not understand; "
        "describe the model by hand in models.toml, with `native` and `checkpoint_bytes`"
    )


def _unquantised(name: str, tables: tuple[Mapping[str, Any], ...]) -> str:
    keys = ("dtype", "torch_dtype")
    dtype = next((table[key] for table in reversed(tables) for key in keys if table.get(key)), "bfloat16")
    precision = DTYPES.get(str(dtype).removeprefix("torch."))
    if precision is None:
        raise ConfigError(
            f"{name}: dtype = {dtype!r:.40} is not a type of weights that the planner understands; "
            f"known: {', '.join(DTYPES)}"
        )
    return precision


def _method(quant: Mapping[str, Any]) -> str:
    """Return the method of a table; ModelOpt's own files name only an algorithm."""
    return str(quant.get("quant_method") or ("modelopt" if quant.get("quant_algo") else "")).lower()


def _precision(name: str, quant: Mapping[str, Any]) -> str:
    method = _method(quant)
    if method in BY_BITS:
        return _by_bits(name, quant)
    if method in BY_ALGORITHM:
        algorithm = quant.get("quant_algo", {"modelopt_fp4": "NVFP4", "modelopt_mxfp8": "MXFP8"}.get(method))
        found = ALGORITHMS.get(str(algorithm).lower())
        if found is None:
            raise _refused(name, f"quant_algo = {algorithm!r:.40}")
        return found
    if method == "bitsandbytes":
        four, eight = bool(quant.get("load_in_4bit")), bool(quant.get("load_in_8bit"))
        if four == eight:
            raise _refused(name, "bitsandbytes without one of load_in_4bit and load_in_8bit")
        return BITS[4 if four else 8]
    if method in PLAIN:
        return PLAIN[method]
    raise _refused(name, f"quant_method = {quant.get('quant_method')!r:.40}")


def _by_bits(name: str, quant: Mapping[str, Any]) -> str:
    bits = quant.get("bits", quant.get("w_bit"))
    precision = BITS.get(bits) if isinstance(bits, int) and not isinstance(bits, bool) else None
    if precision is None:
        raise _refused(name, f"bits = {bits!r:.40}")
    _group(name, quant.get("group_size", quant.get("q_group_size")))
    kind = str(quant.get("data_type", "int")).lower()
    if kind != "int":
        raise _refused(name, f"data_type = {kind!r:.40}")
    packing = str(quant.get("packing_format", "")).lower()
    if packing and not re.fullmatch(r"(?:auto_round:)?(?:auto_)?(?:awq|gptq)(?:-\w+)?|auto_round", packing):
        raise _refused(name, f"packing_format = {packing!r:.40}")
    return precision


def _group(name: str, size: object) -> None:
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size not in GROUPS):
        raise _refused(name, f"group_size = {size!r:.40}")


def _compressed(name: str, quant: Mapping[str, Any]) -> tuple[tuple[tuple[str, ...], str], ...]:
    """Return the targets and the precision of each group of a compressed-tensors table."""
    form = str(quant.get("format", ""))
    groups = quant.get("config_groups")
    if not groups:
        if form in FORMATS:
            return ((EVERY, FORMATS[form]),)
        raise _refused(name, f"format = {form!r:.40} without config_groups")
    if not isinstance(groups, Mapping):
        raise _refused(name, f"config_groups = {groups!r:.40}")
    found = [_of_group(name, f"config_groups.{key}", group, form=form) for key, group in groups.items()]
    general = {precision for targets, precision in found if targets == EVERY}
    if len(general) > 1:
        raise _refused(name, f"config_groups of unequal weights ({', '.join(sorted(general))})")
    # A group that names modules precedes one for every linear layer (``find_matched_target`` of vLLM 0.32).
    return tuple(sorted(found, key=lambda group: group[0] == EVERY))


def _of_group(name: str, key: str, group: object, *, form: str) -> tuple[tuple[str, ...], str]:
    targets = group.get("targets", list(EVERY)) if isinstance(group, Mapping) else None
    if not isinstance(targets, list) or not targets or not all(isinstance(one, str) for one in targets):
        raise _refused(name, f"{key}.targets = {targets!r:.60}")
    return tuple(targets), _group_precision(name, key, group, form=form)


def _group_precision(name: str, key: str, group: object, *, form: str) -> str:
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(group, Mapping) or not isinstance(weights, Mapping):
        raise _refused(name, f"{key} without weights")
    form = str(group.get("format") or form)
    bits, kind = weights.get("num_bits"), str(weights.get("type", "int"))
    if kind == "int" and form in {"pack-quantized", "int-quantized", ""} and bits in tuple(BITS):
        _group(name, weights.get("group_size"))
        return BITS[bits]
    if kind == "float" and bits == 8 and form in {"float-quantized", "naive-quantized", "mxfp8-quantized", ""}:
        return "fp8"
    if kind == "float" and bits == 4 and form == "nvfp4-pack-quantized":
        return "nvfp4"
    raise _refused(name, f"{key}.weights of {bits!r:.20} bits, type {kind!r:.20}, format {form!r:.40}")


def _fields(name: str, quant: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the modules that stay at 16 bits.

    Raises :class:`ConfigError` for a field that may give some weights another width.
    """
    entries: list[str] = []
    for key, value in quant.items():
        if key not in READ | HARMLESS:
            raise _refused(name, f"the field {key!r}")
        if key in OFF and value not in OFF[key]:
            raise _refused(name, f"{key} = {value!r:.40}")
        if key in LISTS and value:
            if not isinstance(value, list):
                raise _refused(name, f"{key} = {value!r:.40}")
            entries += map(str, value)
    return tuple(dict.fromkeys(entries))


def _small(module: str, layers: int) -> bool:
    """Return whether ``module`` has 16 bits in every precision, or is a part that is not counted."""
    plain = module.removeprefix("re:").replace("\\", "").rstrip("*.$")
    layer = re.search(r"layers\.(\d+)", plain)
    return SIXTEEN_BIT.search(plain) is not None or (layer is not None and int(layer.group(1)) >= layers)
