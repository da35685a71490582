"""The only package that names a model, reads COURSE_PROFILE or picks a dtype."""

from utils.models.configs import REAL_MODELS, lora_parameter_count, meta_model
from utils.models.device import (
    ASSETS,
    PROFILES,
    ROOT,
    TINY_DIR,
    Profile,
    best_device,
    compute_dtype,
    model_device,
    profile,
    trainer_precision,
    weights_dtype,
    widen_trainable,
)
from utils.models.errors import ModelUnavailable
from utils.models.loading import four_bit_config, keep_trainable, load_4bit, load_base, load_config, load_tokenizer

__all__ = [
    "ASSETS",
    "ModelUnavailable",
    "PROFILES",
    "Profile",
    "REAL_MODELS",
    "ROOT",
    "TINY_DIR",
    "best_device",
    "compute_dtype",
    "four_bit_config",
    "keep_trainable",
    "load_4bit",
    "load_base",
    "load_config",
    "load_tokenizer",
    "lora_parameter_count",
    "meta_model",
    "model_device",
    "profile",
    "trainer_precision",
    "weights_dtype",
    "widen_trainable",
]
