"""What a model does: metrics, parity with PEFT, what it forgot, and what went wrong in a run."""

from utils.front_door import front_door

__getattr__, __dir__, __all__ = front_door(
    __name__,
    {
        "diagnose": "chart_of examine strength vital_signs watched",
        "diagnose_cases": "admit attached healthy_batches open_servers serve",
        "forgetting": "measure_forgetting scaled",
        "gates": "held_out_stories",
        "merged_answers": "answered answers_in_new_process",
        "metrics": "complete exact_match perplexity",
        "parity": "copy_start differences shake trainable",
        "report": "change evaluate",
        "triggers": "turned_by whole_words",
    },
)
