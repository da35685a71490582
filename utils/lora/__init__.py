"""LoRA itself: the layer, its variants, target modules, adapter files, combining and merging."""

from utils.front_door import front_door

__getattr__, __dir__, __all__ = front_door(
    __name__,
    {
        "adalora": "AdaLoRALinear RankAllocator Schedule orthogonality",
        "checkpoint": "convert_pickle load_adapter read_header read_matrices save_adapter",
        "combine": "HOW from_peft into_peft largest_difference mask_seed relative_error weighted_sum",
        "config_fields": "FIELDS",
        "fused": "SHARE FastLoRALinear use_fast",
        "layer": (
            "ALL_LINEAR LoRALinear check_hyperparameters count_parameters disabled find_targets inject lora_layers "
            "merge refuse_second remove unmerge wrap"
        ),
        "lowrank": "energy_captured relative_spectrum",
        "merging": "arrival dequantized merge_files stored_4bit",
        "multi_adapter": "route stack_adapters",
        "target_modules": "ARCHITECTURES check_targets match_targets propose_targets tiny_random unmatched",
        "variants": "DoRALinear PiSSALinear RsLoRALinear expected_parameters inject_vera",
    },
)
