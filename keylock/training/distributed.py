"""The processes that train one lock together; a process by itself is a group of one.

Every process draws the same batches and the same random numbers, and computes its own rows of each batch. Gradients are
added up after the backward pass. So a step of several processes is the step that one takes on the whole batch, up to
rounding, and a run may be resumed with another number of processes. `DistributedDataParallel` is not used: it hooks
into one backward pass, and locks take gradients of gradients.

References:
    Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB 2020.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

import torch
from torch import Tensor, distributed

from keylock.errors import DataError, InputError, TrainingError

__all__ = ["DistributedGroup", "joined"]

# The leader trains a reference model and measures while the others wait.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class DistributedGroup:
    """Who trains together.

    Attributes:
        rank: Which of the processes this is, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "DistributedGroup":
        """Return the group of the process group, where there is one."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def parts(self, count: int, each: int) -> list[slice]:
        """Return this process's rows of a batch, in so many parts, as equal as can be.

        Args:
            count: Rows of the batch.
            each: Parts of every process.

        Raises:
            DataError: The rows cannot be shared equally.
        """
        if count % self.size or count // self.size < each:
            whole = self.size * each
            raise DataError(
                f"a batch of {count} images cannot be shared by {self.size} processes in {each} parts each: take a "
                f"batch size that {self.size} divides, of at least {whole}, and leave out the last, smaller batch"
            )
        rows = count // self.size
        ends = [self.rank * rows + rows * part // each for part in range(each + 1)]
        return [slice(first, last) for first, last in pairwise(ends)]

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over all processes, in place.

        Raises:
            TrainingError: Another process has ended.
        """
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _others_needed():
            distributed.all_reduce(flat)
        first = 0
        for tensor in tensors:
            last = first + tensor.numel()
            tensor.copy_(flat[first:last].view_as(tensor))
            first = last

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a number over all processes."""
        summed = value.detach().clone()
        self.sum_([summed])
        return summed / self.size

    def share_(self, tensor: Tensor) -> None:
        """Give every process the leader's tensor, in place."""
        if self.size > 1:
            with _others_needed():
                distributed.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Wait until all processes are here.

        Raises:
            TrainingError: Another process has ended.
        """
        if self.size > 1:
            with _others_needed():
                distributed.barrier()


@contextmanager
def _others_needed() -> Iterator[None]:
    """Say in words that a process is gone, which the libraries that send to it say in terms of sockets."""
    try:
        yield
    except RuntimeError as error:
        raise TrainingError(
            "another process of this run has ended, so it cannot go on: see what that one wrote; what was reached is "
            "kept, and resume=True goes on from there"
        ) from error


@contextmanager
def joined(environment: Mapping[str, str], *, device: str = "auto") -> Iterator[DistributedGroup]:
    """Join the processes that `torchrun` started with this one, inside the block.

    Args:
        environment: Has WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT where `torchrun` started the process.
        device: What they train on; with `auto` and `cuda` every process takes a GPU of its own.

    Raises:
        InputError: There are fewer GPUs than processes, or all would take one.
    """
    if int(environment.get("WORLD_SIZE", "1")) < 2:
        yield DistributedGroup()
        return
    on_gpus = torch.cuda.is_available() and device.partition(":")[0] in ("auto", "cuda")
    if on_gpus:
        torch.cuda.set_device(_own_gpu(environment, device))
    distributed.init_process_group("nccl" if on_gpus else "gloo", timeout=_PATIENCE)
    try:
        yield DistributedGroup.current()
    finally:
        distributed.destroy_process_group()


def _own_gpu(environment: Mapping[str, str], device: str) -> int:
    place, count = int(environment.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if device.startswith("cuda:"):
        raise InputError(f"several processes cannot share the GPU {device}: give device=cuda, and each takes its own")
    if place >= count:
        raise InputError(
            f"there is no GPU for process {place + 1} of this machine, which has {count}: start as many as there are "
            "GPUs, or give device=cpu"
        )
    return place
