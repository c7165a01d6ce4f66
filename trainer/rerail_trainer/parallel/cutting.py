"""Which parameters tensor and expert ranks cut, along which dimension, and the cutting of a model that has no
values yet.

Tensor ranks: the first matrix of a pair by its outputs, the second by its inputs (Shoeybi et al., 2019), so
that nothing has to be exchanged between the two. Expert ranks: whole experts.
"""

import torch
from torch import nn

from .mesh import Place, Ranks
from .shards import Cut, Holding, hold

_TENSOR_DIM = {
    ".attention.query.weight": 0,
    ".attention.key.weight": 0,
    ".attention.value.weight": 0,
    ".attention.out.weight": 1,
    ".feed_forward.gate.weight": 0,
    ".feed_forward.up.weight": 0,
    ".feed_forward.down.weight": 1,
    ".shared.gate.weight": 0,
    ".shared.up.weight": 0,
    ".shared.down.weight": 1,
    ".experts.gate": 1,
    ".experts.up": 1,
    ".experts.down": 2,
}
"""By the end of the parameter's name: the dimension that tensor ranks cut."""

_WHOLE_HEADS = (".attention.query_norm.weight", ".attention.key_norm.weight")
"""Cut by tensor ranks where they normalise the whole projection, not each head."""


def cuts_of(name: str, dims: int, place: Place, norm_whole: bool) -> tuple[Cut, ...]:
    """The cuts of the parameter `name` of `dims` dimensions; norm_whole: model.qk_norm is "full"."""
    mesh, cuts = place.mesh, []
    if mesh.expert > 1 and is_expert(name):
        cuts.append(Cut(0, place.expert, mesh.expert))
    if mesh.tensor > 1:
        found = next((dim for end, dim in _TENSOR_DIM.items() if name.endswith(end)), None)
        if norm_whole and name.endswith(_WHOLE_HEADS):
            found = dims - 1
        if found is not None:
            cuts.append(Cut(found, place.tensor, mesh.tensor))
    return tuple(cuts)


def is_expert(name: str) -> bool:
    """Whether a parameter belongs to the experts that expert ranks deal among each other."""
    return ".experts." in name


def cut_parameters(model: nn.Module, place: Place, norm_whole: bool) -> None:
    """Gives `model`, which has no values yet, parameters of the size of this rank's part."""
    for name, parameter in list(model.named_parameters()):
        cuts = cuts_of(name, parameter.dim(), place, norm_whole)
        if not cuts:
            continue
        shape = list(parameter.shape)
        for cut in cuts:
            shape[cut.dim] //= cut.parts
        owner, _, own_name = name.rpartition(".")
        smaller = torch.empty(shape, dtype=parameter.dtype, device=parameter.device)
        setattr(model.get_submodule(owner), own_name, nn.Parameter(smaller))


def holders(name: str, cuts: tuple[Cut, ...], place: Place) -> Ranks:
    """The ranks that hold the same part of a parameter, or would if FSDP did not cut it further: over them
    its gradient is summed.
    """
    if place.mesh.expert > 1 and is_expert(name):
        return place.same_expert_ranks
    return place.data_ranks if cuts else tuple(range(place.mesh.world_size))


def mark_parts(model: nn.Module, place: Place, norm_whole: bool) -> None:
    """Writes on the parameters of a model, once they have memory, which part of the whole they are."""
    for name, parameter in model.named_parameters():
        cuts = cuts_of(name, parameter.dim(), place, norm_whole)
        copy, copies = _copy(name, cuts, place, hasattr(parameter, "device_mesh"))
        hold(parameter, Holding(cuts, copy, copies))


def _copy(name: str, cuts: tuple[Cut, ...], place: Place, by_fsdp: bool) -> tuple[int, int]:
    if not by_fsdp:
        ranks = holders(name, cuts, place)
        return ranks.index(place.rank), len(ranks)
    # What lies outside the blocks FSDP cuts over tensor ranks too, so that they are no copies of each other.
    if cuts or not name.startswith("blocks."):
        return 0, 1
    return place.tensor, place.mesh.tensor
