"""LoRA itself: the layer, its variants, target modules, adapter files, combining and merging."""

from utils.lora.adalora import AdaLoRALinear, RankAllocator, Schedule, orthogonality
from utils.lora.checkpoint import convert_pickle, load_adapter, read_header, read_matrices, save_adapter
from utils.lora.combine import HOW, from_peft, into_peft, largest_difference, mask_seed, relative_error, weighted_sum
from utils.lora.config_fields import FIELDS
from utils.lora.fused import SHARE, FastLoRALinear, use_fast
from utils.lora.layer import (
    ALL_LINEAR,
    LoRALinear,
    check_hyperparameters,
    count_parameters,
    disabled,
    find_targets,
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
from utils.lora.target_modules import (
    ARCHITECTURES,
    check_targets,
    match_targets,
    propose_targets,
    tiny_random,
    unmatched,
)
from utils.lora.variants import DoRALinear, PiSSALinear, RsLoRALinear, expected_parameters, inject_vera

__all__ = [
    "ALL_LINEAR",
    "ARCHITECTURES",
    "AdaLoRALinear",
    "DoRALinear",
    "FIELDS",
    "FastLoRALinear",
    "HOW",
    "LoRALinear",
    "PiSSALinear",
    "RankAllocator",
    "RsLoRALinear",
    "SHARE",
    "Schedule",
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
    "inject_vera",
    "into_peft",
    "largest_difference",
    "load_adapter",
    "lora_layers",
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
    "use_fast",
    "weighted_sum",
    "wrap",
]
