"""LoRA itself: the layer, its variants, target modules, adapter files, combining and merging."""

from utils.front_door import front_door

__getattr__, __dir__, __all__ = front_door(
    __name__,
    {
        "adalora": "AdaLoRA RankAllocator Schedule orthogonality",
        "checkpoint": "convert_pickle load_adapter read_header read_matrices save_adapter",
        "combine": "HOW combined_error from_peft hotswap into_peft largest_difference mask_seed relative_norm shuffled "
        "weighted_sum",
        "config_fields": "FIELDS",
        "fused": "SHARE use_fused",
        "layer": (
            "LoRA LoRALinear count_parameters disabled inject lora_layers merge merge_and_unload refuse_second remove "
            "unmerge wrap"
        ),
        "lowrank": "energy_captured relative_spectrum",
        "merging": "dequantized merge_files stored_4bit",
        "multi_adapter": "route stack_adapters unstack_adapters",
        "refusals": "check_hyperparameters",
        "target_modules": (
            "ALL_LINEAR ARCHITECTURES MIXED check_targets find_targets match_targets propose_targets tiny_random "
            "upcycled"
        ),
        "variants": "DoRA PiSSA RsLoRA VeRA expected_parameters lora_plus_groups",
    },
)
