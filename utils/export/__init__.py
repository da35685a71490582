"""Out of the notebook: GGUF for llama.cpp, a Modelfile for Ollama, and what each server would refuse."""

from utils.front_door import front_door

__getattr__, __dir__, __all__ = front_door(
    __name__,
    {
        "breakages": "broken_exports",
        "edit": "edited",
        "errors": "ExportError",
        "gguf": "to_gguf",
        "hub": "hub_dry_run push roll_back",
        "hub_card": "Licences",
        "llama_cpp": "LlamaCpp",
        "mlx": "to_mlx",
        "modelfile_checks": "check_modelfile",
        "ollama": "modelfile write_modelfile",
        "preflight_report": "Preflight preflight",
        "rope": "rotate unrotate",
        "turns": "read_turns",
    },
)
