"""What a model does: metrics, parity with PEFT, what it forgot, and what went wrong in a run."""

from utils.evaluate.diagnose import examine, strength, vital_signs, watched
from utils.evaluate.diagnose_cases import admit, attached, healthy_batches, open_servers, serve
from utils.evaluate.forgetting import measure, scaled
from utils.evaluate.gates import held_out_stories
from utils.evaluate.merged_answers import answered, answers_in_new_process
from utils.evaluate.metrics import complete, exact_match, perplexity
from utils.evaluate.parity import copy_start, differences, shake, trainable
from utils.evaluate.report import change, evaluate

__all__ = [
    "admit",
    "answered",
    "answers_in_new_process",
    "attached",
    "change",
    "complete",
    "copy_start",
    "differences",
    "evaluate",
    "exact_match",
    "examine",
    "healthy_batches",
    "held_out_stories",
    "measure",
    "open_servers",
    "perplexity",
    "scaled",
    "serve",
    "shake",
    "strength",
    "trainable",
    "vital_signs",
    "watched",
]
