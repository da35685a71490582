"""LoRA itself: the layer, its variants, target modules, adapter files, combining and merging."""

from utils.lora.adalora import AdaLoRA, RankAllocator, Schedule, orthogonality
from utils.lora.checkpoint import convert_pickle, load_adapter, read_header, read_matrices, save_adapter
from utils.lora.combine import HOW, from_peft, into_peft, largest_difference, mask_seed, relative_error, weighted_sum
from utils.lora.config_fields import FIELDS
from utils.lora.fused import SHARE, use_fused
from utils.lora.layer import (
    LoRA,
    LoRALinear,
    count_parameters,
    disabled,
    inject,
    lora_layers,
    merge,
    refuse_second,
    remove,
    unmerge,
    wrap,
)
from utils.lora.lowrank import energy_captured, relative_spectrum
from utils.lora.merging import arrival, dequantized, merge_files, stored_4bit
from utils.lora.multi_adapter import route, stack_adapters
from utils.lora.refusals import check_hyperparameters
from utils.lora.target_modules import (
    ALL_LINEAR,
    ARCHITECTURES,
    check_targets,
    find_targets,
    match_targets,
    propose_targets,
    tiny_random,
    unmatched,
)
from utils.lora.variants import DoRA, PiSSA, RsLoRA, VeRA, expected_parameters, lora_plus_groups

__all__ = [
    "ALL_LINEAR",
    "ARCHITECTURES",
    "AdaLoRA",
    "DoRA",
    "FIELDS",
    "HOW",
    "LoRA",
    "LoRALinear",
    "PiSSA",
    "RankAllocator",
    "RsLoRA",
    "SHARE",
    "Schedule",
    "VeRA",
    "arrival",
    "check_hyperparameters",
    "check_targets",
    "convert_pickle",
    "count_parameters",
    "dequantized",
    "disabled",
    "energy_captured",
    "expected_parameters",
    "find_targets",
    "from_peft",
    "inject",
    "into_peft",
    "largest_difference",
    "load_adapter",
    "lora_layers",
    "lora_plus_groups",
    "mask_seed",
    "match_targets",
    "merge",
    "merge_files",
    "orthogonality",
    "propose_targets",
    "read_header",
    "read_matrices",
    "refuse_second",
    "relative_error",
    "relative_spectrum",
    "remove",
    "route",
    "save_adapter",
    "stack_adapters",
    "stored_4bit",
    "tiny_random",
    "unmatched",
    "unmerge",
    "use_fused",
    "weighted_sum",
    "wrap",
]
