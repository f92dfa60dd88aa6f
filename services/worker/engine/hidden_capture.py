"""Takes the hidden state out of a running graph: libllama returns it only after the final norm, where it is useless."""

import ctypes

import numpy as np

from services.worker.engine.base import Rows
from shared.llama.library import GGML_TYPE_F32, EvalCallback, Library


class HiddenCapture:
    """The evaluation callback of one context. It copies tensor `l_out-<last layer>` and ends the graph there.

    The callback is asked about every node before the wanted one, hundreds of times a call, so it compares only an
    address: the graph is laid out in the same memory each time. Where that fails (`rows` is then short), the
    caller runs the call again with `search=True`, which compares names.
    """

    def __init__(self, library: Library, layer_count: int, n_embd: int) -> None:
        self.callback = EvalCallback(self._on_node)
        """Must stay referenced as long as a context holds its address."""
        self.rows = 0
        """Rows taken since `start`."""
        self.layout_is_wrong = False
        """The library's own answer for a tensor's name differs from the bytes where this layout expects it."""
        self.target = f"l_out-{layer_count - 1}"
        self._name = self.target.encode()
        self._name_and_end = self._name + b"\0"
        self._n_embd = n_embd
        self._layout = library.layout.tensor
        self._get_name = library.api.ggml_get_name
        self._address: int | None = None
        self._search = True
        self._out: Rows = np.empty((0, n_embd), np.float32)

    def start(self, out: Rows, *, search: bool) -> None:
        """Let the next call write its rows to `out`, float32 [n, n_embd]."""
        self._out, self.rows = out, 0
        self._search = search or self._address is None

    def _on_node(self, tensor: int, is_question: bool, _user_data: int | None) -> bool:  # noqa: FBT001 - C calls it
        if is_question:
            return tensor == self._address or (self._search and self._get_name(tensor) == self._name)
        return self._take(tensor)

    def _take(self, tensor: int) -> bool:
        """Copy the tensor. False ends the graph, which spares the final norm and the head."""
        layout = self._layout
        if ctypes.string_at(tensor + layout.name, len(self._name_and_end)) != self._name_and_end:
            self.layout_is_wrong |= self._get_name(tensor) == self._name
            return True  # another tensor at the known address
        self._address = tensor
        width, n_rows = (ctypes.c_int64 * 2).from_address(tensor + layout.ne)
        is_float32 = ctypes.c_int32.from_address(tensor + layout.type).value == GGML_TYPE_F32
        if is_float32 and width == self._n_embd and self.rows + n_rows <= len(self._out):
            data = ctypes.c_void_p.from_address(tensor + layout.data).value
            ctypes.memmove(self._out.ctypes.data + self.rows * width * 4, data or 0, n_rows * width * 4)
            self.rows += n_rows
        return False
