"""The only module that talks to other ranks: rank, exact global sums, do-once.

One process without `torchrun` is the same code with a world of one. Gradients are summed here
once per optimizer step, behind the last micro-step, because ranks may need different numbers of
micro-steps for their share of a batch.
"""

import datetime
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

_BUCKET_NUMBERS = 2**24


def start() -> None:
    """Join the process group that `torchrun` describes; nothing without it."""
    if "RANK" not in os.environ or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(minutes=60))


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process among all, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_rank() -> bool:
    """Whether this process writes files and talks to the user."""
    return rank() == 0


def device() -> torch.device:
    """The device of this process."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def computes_in_bf16() -> bool:
    """Whether the device of this process is a GPU that multiplies in bfloat16 by itself.

    Older ones do so in steps that take longer than float32.
    """
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def global_sum(values: Tensor) -> Tensor:
    """The sum over ranks of a tensor of counts or totals; every rank gets it."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def global_any(flag: bool) -> bool:
    """Whether the flag is up on any rank."""
    if world_size() == 1:
        return flag
    return bool(global_sum(torch.tensor([float(flag)], device=device())).item() > 0)


def smallest(value: int) -> int:
    """The smallest of a whole number that every rank has."""
    if world_size() == 1:
        return value
    values = torch.zeros(world_size(), dtype=torch.int64, device=device())
    values[rank()] = value
    return int(global_sum(values).min())


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its sum over ranks; a missing gradient counts as zero."""
    if world_size() == 1:
        return
    bucket: list[Tensor] = []
    size = 0
    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        size += parameter.grad.numel()
        if size >= _BUCKET_NUMBERS:
            _sum_bucket(bucket)
            bucket, size = [], 0
    if bucket:
        _sum_bucket(bucket)


def _sum_bucket(gradients: list[Tensor]) -> None:
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    offset = 0
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()


@contextmanager
def main_rank_first() -> Iterator[None]:
    """The body runs on the main rank, then on the others: for work whose result is kept on disk.

    If the main rank fails, the others still pass the barrier and fail by themselves.
    """
    if not is_main_rank():
        barrier()
    try:
        yield
    finally:
        if is_main_rank():
            barrier()
