"""The tested library of the course: one module for one idea.

Nothing heavy is imported here, because Colab imports :mod:`utils.course.colab` before anything is installed.
"""

import logging
import warnings

# On processors with AVX512-bf16 bitsandbytes warns that an optional, downloadable kernel is missing. The course doesn't
# need it, and a notebook's output must not depend on the processor.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# PEFT 0.21 still asks transformers for a property by its old name.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
# The first backward pass on a GPU says so of its own thread, and does what it says.
warnings.filterwarnings("ignore", message="Attempting to run cuBLAS, but there was no current CUDA context")
