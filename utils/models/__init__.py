"""The only package that names a model, reads COURSE_PROFILE or picks a dtype."""

from utils.front_door import front_door

__getattr__, __dir__, __all__ = front_door(
    __name__,
    {
        "configs": "REAL_MODELS lora_parameter_count meta_model",
        "device": (
            "ASSETS PROFILES ROOT TINY_DIR Profile best_device compute_dtype model_device profile trainer_precision "
            "weights_dtype widen_trainable"
        ),
        "errors": "ModelUnavailable",
        "loading": "four_bit_config keep_trainable load_4bit load_base load_config load_tiny load_tokenizer",
    },
)
