"""Where a model's parameters and tables lie in memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coordcheck.recording.graph.arguments import is_measured
from coordcheck.recording.graph.operands import Operand


class Homes:
    """Where a model's parameters and tables lie: what else lies there is a view of them."""

    def __init__(self, model: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
        self._parameters: dict[int, list[tuple[str, Tensor]]] = {}
        self._tables: set[int] = set()
        self._model, self._named = model, parameters

    def find(self) -> None:
        """Look where they lie now."""
        for name, parameter in self._named.items():
            if not isinstance(parameter, nn.parameter.UninitializedParameter) and parameter.layout is torch.strided:
                home = parameter.untyped_storage().data_ptr()
                self._parameters.setdefault(home, []).append((name, parameter))
        buffers = (buffer for module in self._model.modules() for buffer in module._buffers.values())
        self._tables = {
            buffer.untyped_storage().data_ptr()
            for buffer in buffers
            if buffer is not None and buffer.layout is torch.strided and buffer.numel()
        }

    def operand(self, tensor: Tensor) -> Operand | None:
        """The view of a parameter that a tensor is, if it is one."""
        if tensor.layout is not torch.strided or not is_measured(tensor):
            return None
        for name, parameter in self._parameters.get(tensor.untyped_storage().data_ptr(), ()):
            offset = tensor.storage_offset() - parameter.storage_offset()
            if 0 <= offset < max(parameter.numel(), 1) and tensor.dtype == parameter.dtype:
                return Operand(name, tuple(tensor.shape), tuple(tensor.stride()), int(offset), 1.0, tensor.dtype)
        return None

    def is_table(self, tensor: Tensor) -> bool:
        """Whether it is one of the model's tables; ids pick, wherever they are kept."""
        if not is_measured(tensor) and tensor.dtype is not torch.bool:
            return False
        return tensor.layout is torch.strided and tensor.untyped_storage().data_ptr() in self._tables
