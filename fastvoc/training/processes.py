"""Several processes that train together, one batch shared among them: torchrun starts them, torch.distributed does it.

    torchrun --nproc-per-node 4 -m fastvoc train waveglow --data DIR --out DIR

Every process keeps all weights; DistributedDataParallel averages the gradients. The first one writes the files.
"""

import os

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastvoc.errors import ConfigError, DeviceError


def join(device: torch.device) -> tuple[int, int]:
    """(number of this process, how many there are): (0, 1) unless torchrun started it."""
    n = int(os.environ.get("WORLD_SIZE", 1))
    if n == 1:
        return 0, 1
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return torch.distributed.get_rank(), n


def local_device(name: str) -> torch.device:
    """The device of that name; "cuda" is the GPU of this process's number on its machine."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"there is no device {name!r}", hint="Expected cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"{name} was asked for, but torch sees no GPU here.", hint="Use --device cpu.")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return device


def rows_of(rank: int, n_processes: int, batch_size: int) -> slice:
    """The items of a batch that are this process's."""
    if batch_size % n_processes:
        raise ConfigError(f"batch_size {batch_size} cannot be shared by {n_processes} processes: it is no multiple")
    mine = batch_size // n_processes
    return slice(rank * mine, (rank + 1) * mine)


def shared(network: nn.Module, n_processes: int) -> nn.Module:
    """The network, its gradients averaged over the processes."""
    return DistributedDataParallel(network) if n_processes > 1 else network
