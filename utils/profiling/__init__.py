"""What a run costs: memory, arithmetic, traffic and time."""

from utils.front_door import front_door

__getattr__, __dir__, __all__ = front_door(
    __name__,
    {
        "activations": "checkpoint_blocks is_checkpointing saved_activation_bytes",
        "fit": "CARDS DoesNotFit fit_table needed refuse_unless_it_fits what_fits",
        "flops": "step_flops",
        "gpu_step": "prediction_on_this_gpu",
        "latency": "timed",
        "memory": "GB Setup full_finetuning lora mixed_precision predict qlora",
        "memory_widget": "explore",
        "step_costs": "LayerRecord StepRecord layer_step",
        "traffic": "operations",
    },
)
