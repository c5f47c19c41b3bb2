"""YAML settings beside a checkpoint (config.yml of ParallelWaveGAN), as plain data.

Upstream reads them with a loader that makes any Python object a tag asks for; of those tags only python/tuple is taken.
"""

from pathlib import Path

from fastvoc.errors import ConfigError, ResourceLimitError, UnsafeCheckpointError

MAX_BYTES = 1 << 20


def read_yaml(path) -> dict:
    """The mapping that a YAML file holds. Runs nothing from it.

    Raises UnsafeCheckpointError naming a tag that asks for a Python object; ConfigError where the file is no YAML or no
    mapping; ResourceLimitError past 1 MB; ImportError without PyYAML.
    """
    try:
        import yaml
    except ImportError:
        raise ImportError(f"{path} is a YAML file: pip install pyyaml") from None
    path = Path(path)
    if path.stat().st_size > MAX_BYTES:
        raise ResourceLimitError(f"{path} is larger than {MAX_BYTES} bytes, too large for a model's settings")

    class Loader(yaml.SafeLoader):
        def flatten_mapping(self, node):
            # Merged mappings are copied: a few lines of merges of merges make gigabytes
            if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
                raise ConfigError(f"{path}: merge keys (<<) are not read, line {node.start_mark.line + 1}")

    def tagged(loader, suffix, node):
        if suffix == "tuple" and isinstance(node, yaml.SequenceNode):
            return tuple(loader.construct_sequence(node, deep=True))
        raise UnsafeCheckpointError(
            f"{path} asks for a Python object (python/{suffix}, line {node.start_mark.line + 1}), which could run code. "
            "Nothing was run."
        )

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", tagged)
    try:
        with path.open("rb") as file:
            values = Loader(file).get_single_data()
    except (yaml.YAMLError, RecursionError, UnicodeDecodeError, ValueError, TypeError) as fault:
        if isinstance(fault, ConfigError):
            raise
        raise ConfigError(f"{path} is no valid YAML: {' '.join(str(fault).split())[:300]}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a YAML mapping, not a {type(values).__name__}")
    return values
