"""Load quantised weights: mapped from files that hold them, or made from a plain checkpoint tensor by tensor.

Peak memory is that of the result. From files on the CPU not even that is allocated: the model's tensors view the files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vl2.config import ModelConfig
from vl2.errors import UserError, memory_errors
from vl2.model import VL2
from vl2.quant.apply import allocate_quantized
from vl2.quant.config import QuantizationConfig
from vl2.quant.scheme import Scheme
from vl2.quant.write import empty_quantized, file_name, put
from vl2.weights.in_place import InPlace
from vl2.weights.load import (
    Progress,
    build_empty,
    check_tensors,
    fill,
    materialize,
    shape_of,
    stored_tensors,
)
from vl2.weights.mapped_file import MappedFile
from vl2.weights.names import Place, places
from vl2.weights.safetensors_file import StoredTensor, read_into

READ_AT_ONCE = 256 << 20  # bytes read between two reports of progress


def load_quantizing(
    folder: Path,
    scheme: Scheme,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> VL2:
    """Return the model of a plain checkpoint with its weights quantised as they are read, in evaluation mode."""
    config = ModelConfig.from_file(folder / "config.json")
    model = build_empty(config)
    stored = stored_tensors(folder)
    wanted = list(places(model))
    check_tensors({place.name: shape_of(model, place) for place in wanted}, stored, folder)
    allocate_quantized(model, scheme)
    dtype, device = dtype or getattr(torch, config.torch_dtype), torch.device(device)
    in_place = InPlace(stored, dtype)
    if device.type == "cpu":
        in_place.leave_table(model)

    def put_or_bring(place: Place, tensor: StoredTensor) -> None:
        if not in_place.brings(place.name):
            put(model, place, tensor)

    with memory_errors(f"the weights of {folder}"):
        materialize(model, dtype, device)
        fill(wanted, stored, put_or_bring, progress)
    return model.eval()


@dataclass(frozen=True, kw_only=True)
class MappedModel:
    """A model whose tensors view files, and where each of them lies."""

    model: VL2
    files: Mapping[Path, MappedFile]
    stored: Mapping[str, StoredTensor]  # by the names of the state dict

    def read(self, progress: Progress | None = None) -> None:
        """Bring all weights into memory now, file by file, so that the first answer does not wait for the disk."""
        total = sum(file.nbytes for file in self.files.values())
        done = 0
        for file in self.files.values():
            file.prefer_huge_pages(True)
            for start in range(0, file.nbytes, READ_AT_ONCE):
                nbytes = min(READ_AT_ONCE, file.nbytes - start)
                file.read(start, nbytes)
                done += nbytes
                if progress is not None:
                    progress(done, total)


def map_quantized(
    folder: Path,
    config: ModelConfig,
    quantization: QuantizationConfig,
    *,
    dtype: torch.dtype | None = None,
    file_kind: Callable[[Path], MappedFile] = MappedFile,
) -> MappedModel:
    """Return the model of a folder with quantised weights on the CPU, in evaluation mode. Nothing is read yet.

    A tensor is copied only where it is wanted in another type. UserError names what does not fit config.json.
    """
    model = empty_quantized(config, quantization.scheme, dtype or getattr(torch, config.torch_dtype))
    state = model.state_dict()
    stored = _checked(state, folder)
    files = {path: file_kind(path) for path in dict.fromkeys(tensor.path for tensor in stored.values())}
    for name, wanted in state.items():
        tensor = files[stored[name].path].tensor(stored[name])
        _assign(model, name, tensor.to(wanted.dtype))
    return MappedModel(model=model.eval(), files=files, stored=stored)


def read_quantized(
    folder: Path,
    config: ModelConfig,
    quantization: QuantizationConfig,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str,
    progress: Progress | None = None,
) -> VL2:
    """Return the same model on any device, with memory of its own."""
    model = empty_quantized(config, quantization.scheme, dtype or getattr(torch, config.torch_dtype))
    stored = _checked(model.state_dict(), folder)
    with memory_errors(f"the weights of {folder}"):
        materialize(model, dtype or getattr(torch, config.torch_dtype), torch.device(device))
    total = sum(tensor.nbytes for tensor in stored.values())
    done = 0
    for name, target in model.state_dict().items():
        read_into(target, stored[name])
        done += stored[name].nbytes
        if progress is not None:
            progress(done, total)
    return model.eval()


def _checked(state: Mapping[str, Tensor], folder: Path) -> dict[str, StoredTensor]:
    """Return where each tensor of a state dict lies; UserError unless the folder holds exactly these."""
    by_name = stored_tensors(folder)
    check_tensors({file_name(name): tuple(tensor.shape) for name, tensor in state.items()}, by_name, folder)
    stored = {name: by_name[file_name(name)] for name in state}
    for name, tensor in state.items():
        # Codes of another type would be read as other numbers; what is not quantised may be cast.
        if tensor.dtype.itemsize == 1 and stored[name].dtype != tensor.dtype:
            raise UserError(f"{folder} holds {name} as {stored[name].dtype}, and {tensor.dtype} is needed")
    return stored


def _assign(model: VL2, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    module: nn.Module = model.get_submodule(owner)
    is_parameter = leaf in dict(module.named_parameters(recurse=False))
    setattr(module, leaf, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)
