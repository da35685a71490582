"""YAML as a run's file is written: UTF-8, and each key once.

PyYAML itself keeps the last of two equal keys and says nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


class _OnceOnly(yaml.SafeLoader):
    """SafeLoader that refuses a mapping with the same key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if key_node.value in seen:
                    raise ValueError(f"{key_node.value!r} is there twice, in lines {seen[key_node.value]} and {line}")
                seen[key_node.value] = line
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds, as Python's own types.

    Raises OSError for a file that can't be read, and ValueError, naming the file, for one that isn't UTF-8, isn't YAML
    or has a key twice.
    """
    path = Path(path)
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path} isn't UTF-8: byte 0x{content[error.start]:02x} in line {line}. Save it in that encoding"
        ) from error
    try:
        return yaml.load(text, Loader=_OnceOnly)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
