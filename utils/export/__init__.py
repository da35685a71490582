"""Out of the notebook: GGUF for llama.cpp, a Modelfile for Ollama, and what each server would refuse."""

from utils.front_door import front_door

__getattr__, __dir__, __all__ = front_door(
    __name__,
    {
        "errors": "ExportError",
        "gguf": "to_gguf",
        "llama_cpp": "LlamaCpp",
        "hub": "hub_dry_run push roll_back",
        "hub_card": "Licences",
        "mlx": "to_mlx",
        "preflight": "Preflight preflight",
        "rope": "rotate",
        "ollama": "modelfile write_modelfile",
        "modelfile_checks": "check_modelfile",
        "turns": "read_turns",
    },
)
