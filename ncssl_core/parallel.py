"""Several processes, one run: what `torchrun` starts shares every batch, and computes what one process would.

    torchrun --nproc-per-node 4 -m ncssl_core pretrain --data photos/ --batch 1024 --out runs/photos

One differentiable sum over processes serves the losses and batch normalisation; torch's own
`DistributedDataParallel` averages the gradients. The chapter *From a laptop to a cluster* says what that costs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _BatchNorm

from ncssl_core.base import InputError

_PATIENCE = timedelta(hours=1)  # what others wait for the first process while it probes; a dead one is seen at once


def processes() -> int:
    """How many processes share the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is: 0 writes the run's files."""
    return dist.get_rank() if processes() > 1 else 0


def started_by_torchrun() -> bool:
    """Whether this process is one of several that `torchrun` started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def started_again() -> bool:
    """Whether `torchrun --max-restarts` started this process anew after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Meet the other processes that `torchrun` started, if any; gives this process's device by name.

    Raises:
        InputError: the meeting point cannot be used.
    """
    ours = started_by_torchrun() and not (dist.is_available() and dist.is_initialized())
    if ours:
        cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
        try:
            store, place, count = next(rendezvous("env://", timeout=_PATIENCE))
            again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # or a new attempt would meet the last one's dead
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_PATIENCE, rank=place, world_size=count,
                store=PrefixStore(f"attempt {again}", store),
            )  # fmt: skip
        except (ValueError, RuntimeError) as error:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise InputError(f"the processes could not meet at {where}: {str(error).splitlines()[0]}") from error
    if processes() > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', rank())}"
    yield device
    if ours:  # not after an error: the others may wait for ever
        dist.destroy_process_group()


def total(x: Tensor) -> Tensor:
    """The sum of a tensor over all processes, on each of them; differentiable.

    Its gradient is the sum of the processes' gradients. If every process computes the same loss from totals, the
    gradients of its parameters are `processes()` times its share of the truth; the average over processes, as
    `DistributedDataParallel` takes it, is the gradient of one process with the whole batch.
    """
    return cast(Tensor, _Total.apply(x)) if processes() > 1 else x


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _summed(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(x: Tensor) -> Tensor:
    x = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x)
    return x


class SyncBatchNorm(_BatchNorm):
    """Batch normalisation over the samples of all processes, on any device; torch's own wants a GPU.

    Every process holds equally many samples. Same parameters, buffers and names as `BatchNorm1d` and `BatchNorm2d`.
    """

    def forward(self, x: Float[Tensor, "samples features ..."]) -> Float[Tensor, "samples features ..."]:
        """The normalised samples; in training the running statistics take in those of all processes."""
        if not self.training or processes() == 1:
            return super().forward(x)
        over = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        exact = x if x.dtype == torch.float64 else x.float()
        count = x.numel() // x.shape[1] * processes()
        mean = total(exact.sum(over)) / count
        centred = exact - mean.view(shape)
        variance = total(centred.square().sum(over)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        scale = torch.rsqrt(variance + self.eps)
        out = centred * (scale if self.weight is None else scale * self.weight).view(shape)
        return (out if self.bias is None else out + self.bias.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / float(cast(Tensor, self.num_batches_tracked))
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(variance.to(self.running_var), share)

    def _check_input_dim(self, x: Tensor) -> None:
        if x.ndim < 2:
            raise InputError(f"batch normalisation wants (samples, features, ...); given {tuple(x.shape)}")


def shared(module: nn.Module, device: torch.device) -> nn.Module:
    """A module, on its device, to be called where several processes train it; the module itself with one process.

    Its batch normalisations become synchronised in place.
    """
    if processes() == 1:
        return module
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
    else:
        for part in module.modules():
            if isinstance(part, _BatchNorm):
                part.__class__ = SyncBatchNorm
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(module, device_ids=ids)


def share_of(batch: int) -> slice:
    """The part of a batch that falls to this process.

    Raises:
        InputError: the batch cannot be shared out evenly, or leaves a process no sample.
    """
    if batch % processes():
        raise InputError(f"a batch of {batch} cannot be shared by {processes()} processes: wanted a multiple of them")
    each = batch // processes()
    return slice(rank() * each, (rank() + 1) * each)


def agreed(what: str, mine: dict[str, Any]) -> None:
    """Make sure that all processes were started alike.

    Raises:
        InputError: they were not; says which differs in what. Every process raises it.
    """
    if processes() == 1:
        return
    every: list[dict[str, Any]] = [{}] * processes()
    dist.all_gather_object(every, mine)
    for other, theirs in enumerate(every):
        if names := [n for n in every[0] if theirs.get(n) != every[0][n]]:
            said = ", ".join(f"{n} {theirs.get(n)!r} (process 0: {every[0][n]!r})" for n in names)
            raise InputError(f"process {other} has other {what}: {said}; all processes are started alike")


def highest(*numbers: float) -> list[float]:
    """The highest that any process gives, number for number."""
    if processes() == 1:
        return list(numbers)
    given = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(given, dist.ReduceOp.MAX)
    return [float(x) for x in given]


def by_first(job: Callable[[], Any]) -> Any:
    """What the first process alone does; gives None to the others.

    Raises:
        InputError: it did; every process does.
    """
    outcome, said = None, [""]
    if rank() == 0:
        try:
            outcome = job()
        except InputError as error:
            said = [str(error)]
    if processes() > 1:
        dist.broadcast_object_list(said)
    if said[0]:
        raise InputError(said[0])
    return outcome


def wait() -> None:
    """Go on when every process has come here."""
    highest(0.0)


@contextmanager
def first_one_first() -> Iterator[None]:
    """What the first process does alone, the others after it: so that they find what it leaves in a cache or folder."""
    if rank() > 0:
        wait()
    yield
    if rank() == 0:
        wait()


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process is gone."""
    told = str(error).lower()
    return processes() > 1 and (isinstance(error, dist.DistError) or "gloo" in told or "connection" in told)
