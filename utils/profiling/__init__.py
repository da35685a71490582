"""What a run costs: memory, arithmetic, traffic and time."""

from utils.profiling.activations import checkpoint_blocks, is_checkpointing, saved_activation_bytes
from utils.profiling.fit import CARDS, DoesNotFit, needed, refuse_unless_it_fits, table, what_fits
from utils.profiling.flops import step_flops
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
    "against_this_gpu",
    "checkpoint_blocks",
    "deep_gradients",
    "explore",
    "full_finetuning",
    "is_checkpointing",
    "layer_step",
    "lora",
    "measure",
    "mixed_precision",
    "needed",
    "operations",
    "predict",
    "qlora",
    "refuse_unless_it_fits",
    "saved_activation_bytes",
    "step_flops",
    "table",
    "timed",
    "what_fits",
]
