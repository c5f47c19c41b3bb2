"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what was written there takes its place if the block succeeds.

    After any exception, KeyboardInterrupt and SystemExit included, the temporary file is gone and `path` is as it was.
    Raises plain OSErrors: the caller knows what it was writing and words them.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the output folder {path.parent} does not exist")
    if path.exists() and not path.is_file():  # replacing /dev/null or a pipe by a file is never what was meant
        raise OSError(f"{path} exists and is not a regular file")
    temporary = path.with_name(f".{path.name}.tmp.{os.getpid()}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
