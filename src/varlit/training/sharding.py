"""Stage 2 on GPUs that each hold a part of the weights: FSDP2 behind Lightning's strategy.

Weights, gradients, AdamW's state and the average are spread over all processes by rows. What
leaves a run is whole: pictures, exports and, unless asked otherwise, checkpoints.
"""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from varlit.disks import must_be_written
from varlit.errors import UserError
from varlit.models.initialization import shapes_only
from varlit.models.var import VAR
from varlit.training.lora import merge_weights
from varlit.training.shard_files import in_parts, joined, open_parts, write_parts


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all processes of all nodes.

    A ModelParallelStrategy without tensor parallelism, and with checkpoints of the same form as
    those of one process, so that a run may go on with any strategy on any number of devices.
    """

    def __init__(
        self,
        reshard_after_forward: bool = True,
        save_in_parts: bool = False,
        process_group_backend: str | None = None,
        timeout_s: int = 1800,
    ) -> None:
        """Plan the sharding.

        Args:
            reshard_after_forward: Free a block's gathered weights after its forward pass and
                gather them again for its backward; false is faster and needs their memory.
            save_in_parts: Every process writes its own part of a checkpoint; `varlit consolidate`
                makes one file of them. Otherwise the first process writes all.
            process_group_backend: nccl or gloo; null follows the device.
            timeout_s: Seconds after which a process that waits for another gives up.
        """
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_in_parts,
            process_group_backend=process_group_backend,
            timeout=timedelta(seconds=timeout_s),
        )
        self.reshard_after_forward, self.save_in_parts = reshard_after_forward, save_in_parts

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning hands the optimizer's state over, as with other strategies."""
        return True

    def setup_environment(self) -> None:
        """Make a mesh of all processes.

        Raises:
            UserError: If the stage has no sharding.
        """
        if not is_overridden("configure_model", self.lightning_module):
            raise UserError(
                "--trainer fsdp shards the transformer only; for the tokenizer take --trainer ddp"
            )
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def shard(self, network: VAR) -> None:
        """Spread the weights of a network over the processes, once.

        In bf16-mixed blocks are gathered in bf16 and their gradients summed in fp32; what is not
        in a block, embeddings and head, is gathered in fp32, as the residual stream is.
        """
        if isinstance(network, FSDPModule):
            return
        mesh = self.device_mesh["data_parallel"]
        policy = MixedPrecisionPolicy()
        if self.precision_plugin.precision == "bf16-mixed":
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        # An average is never trained; its weights must be in their place when it is moved.
        frozen = not any(p.requires_grad for p in network.parameters())
        reshard = self.reshard_after_forward or frozen
        for block in network.layers:
            fully_shard(block, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy)
        fully_shard(network, mesh=mesh, reshard_after_forward=True if frozen else None)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Weights: whole in the first process, or this process's part."""
        assert self.lightning_module is not None
        return self._to_save(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """State of an optimizer: whole in the first process, or this process's part."""
        content = getattr(optimizer, "_optimizer", optimizer).state_dict()
        state = {number: self._to_save(slots) for number, slots in content["state"].items()}
        return {**content, "state": state}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint, whole or in parts; every process must call it."""
        path = Path(self.broadcast(filepath))
        if self.save_in_parts:
            remedy = "checkpoints saved before are as they were; make room and run it again"
            with must_be_written(path, remedy):
                write_parts(
                    checkpoint,
                    path,
                    self.global_rank,
                    self.world_size,
                    self.barrier,
                    self.checkpoint_io.save_checkpoint,
                )
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, whole or in parts; tensors stay on disk until they are used.

        Lightning asks a strategy such as this one without its `weights_only`: it is always so.
        """
        path = Path(self.broadcast(checkpoint_path))
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return open_parts(content, path) if in_parts(content) else content

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Copy this process's rows of each weight."""
        assert self.lightning_module is not None
        state, saved = self.lightning_module.state_dict(), checkpoint["state_dict"]
        if strict and state.keys() != saved.keys():
            surplus = sorted(state.keys() ^ saved.keys())
            raise RuntimeError(f"Error(s) in loading state_dict: only one side has `{surplus[0]}`")
        with torch.no_grad():
            for name in state.keys() & saved.keys():
                _local(state[name]).copy_(_rows_like(joined(saved[name]), state[name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Hand this process's rows of the state to each optimizer."""
        for optimizer, content in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            numbers = [n for group in content["param_groups"] for n in group["params"]]
            weights = [p for group in optimizer.param_groups for p in group["params"]]
            places = dict(zip(numbers, weights, strict=True))
            state = {
                number: {
                    name: _spread(joined(slot), places[number]) for name, slot in slots.items()
                }
                for number, slots in content["state"].items()
            }
            optimizer.load_state_dict({**content, "state": state})

    def _to_save(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        if self.save_in_parts:
            return dict(tensors)
        return gather(tensors, torch.device("cpu"), keep=self.is_global_zero)


def gather(
    tensors: Mapping[str, Any], device: torch.device | None = None, keep: bool = True
) -> dict[str, Any]:
    """Make tensors whole, one after the other; every process must call it.

    Args:
        tensors: Some of them spread over the processes.
        device: Where the whole ones go; None leaves them where they are.
        keep: Whether this process wants them; others hold one at a time and return nothing.
    """
    kept = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if keep:
            kept[name] = full.detach().to(device) if isinstance(full, Tensor) else full
    return kept


def whole(tensor: Any) -> Any:
    """A tensor that is spread over the processes, whole on each; others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_network(network: VAR, keep: bool) -> VAR | None:
    """A whole copy of a sharded network, in eval mode, in the processes that keep it.

    Every process must call it. It takes 4 bytes a weight.
    """
    weights = gather(network.state_dict(), keep=keep)
    if not keep:
        return None
    with shapes_only():
        copy = VAR(network.config, network.tokenizer_config, network.num_classes)
    copy.load_state_dict(merge_weights(weights), assign=True)
    return copy.eval().requires_grad_(False)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _rows_like(full: Tensor, like: Tensor) -> Tensor:
    """The rows of a whole tensor that this process holds, as FSDP2 deals them out."""
    if full.shape != like.shape:
        raise RuntimeError(
            f"Error(s) in loading state_dict: shape {list(full.shape)}, not {list(like.shape)}"
        )
    if not isinstance(like, DTensor):
        return full
    rank, size = like.device_mesh.get_local_rank(), like.device_mesh.size()
    share = -(-len(full) // size)
    return full[rank * share : (rank + 1) * share]


def _spread(value: Any, like: Tensor) -> Any:
    """State of a weight, spread as the weight is; counters of steps are left alone."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.ndim == 0:
        return value
    rows = _rows_like(value, like).to(like.device).clone()
    return DTensor.from_local(
        rows,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
