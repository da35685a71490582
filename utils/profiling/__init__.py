"""What a run costs: memory, arithmetic, traffic and time."""

from utils.profiling.activations import checkpoint_blocks, is_checkpointing, saved_activation_bytes
from utils.profiling.fit import CARDS, DoesNotFit, refuse_too_large, table, what_fits
from utils.profiling.flops import dry_run
from utils.profiling.forecast import WontFit, refuse_unless_it_fits
from utils.profiling.gpu_step import against_this_gpu
from utils.profiling.latency import measure, timed
from utils.profiling.memory import GB, Setup, full_finetuning, lora, mixed_precision, predict, qlora
from utils.profiling.memory_widget import explore
from utils.profiling.step_costs import LayerRecord, StepRecord, deep_gradients, layer_step
from utils.profiling.traffic import operations

__all__ = [
    "CARDS",
    "DoesNotFit",
    "GB",
    "LayerRecord",
    "Setup",
    "StepRecord",
    "WontFit",
    "against_this_gpu",
    "checkpoint_blocks",
    "deep_gradients",
    "dry_run",
    "explore",
    "full_finetuning",
    "is_checkpointing",
    "layer_step",
    "lora",
    "measure",
    "mixed_precision",
    "operations",
    "predict",
    "qlora",
    "refuse_too_large",
    "refuse_unless_it_fits",
    "saved_activation_bytes",
    "table",
    "timed",
    "what_fits",
]
