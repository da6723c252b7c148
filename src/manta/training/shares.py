"""Tensors of which every process holds a share, as FSDP2 makes them (`DTensor`), and those that are held whole."""

from torch import Tensor


def is_share(tensor: Tensor) -> bool:
    """Whether a tensor is held in shares."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: all of it, if it is not held in shares."""
    return tensor.to_local() if is_share(tensor) else tensor  # pyright: ignore


def gathered(tensor: Tensor) -> Tensor:
    """A whole tensor from the shares that all processes hold of it; all of them ask for it at once."""
    return tensor.detach().full_tensor() if is_share(tensor) else tensor.detach()  # pyright: ignore


def share_of(whole: Tensor, like: Tensor) -> Tensor:
    """This process's share of a tensor that every process has whole, shared out as another one is."""
    if not is_share(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    # Without a source nothing is sent: every process cuts its share.
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)  # pyright: ignore
