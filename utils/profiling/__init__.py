"""What a run costs: memory, arithmetic, traffic and time."""

from utils.front_door import front_door

__getattr__, __dir__, __all__ = front_door(
    __name__,
    {
        "activations": "checkpoint_blocks is_checkpointing saved_activation_bytes",
        "fit": "CARDS DoesNotFit refuse_too_large table what_fits",
        "flops": "dry_run",
        "forecast": "WontFit refuse_unless_it_fits",
        "gpu_step": "against_this_gpu",
        "latency": "measure timed",
        "memory": "GB Setup full_finetuning lora mixed_precision predict qlora",
        "memory_widget": "explore",
        "step_costs": "LayerRecord StepRecord deep_gradients layer_step",
        "traffic": "operations",
    },
)
