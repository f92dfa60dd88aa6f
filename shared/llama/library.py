"""libllama, called through ctypes: found inside the `xllamacpp` wheel, checked, and never guessed at.

Only this folder and the worker's engine know llama.cpp. Struct layouts are written down per library version, because a
wrong one would silently set a neighbouring field (engine.md section 3).
"""

import ctypes as C
import logging
import platform
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from shared.domain.errors import AbiMismatch, MissingLibrary

DISTRIBUTION = "xllamacpp"
GGML_TYPE_F32 = 0
GGML_TYPE_F16 = 1
GGML_TYPE_Q8_0 = 8
LOAD_MODE_READ = 0
"""`load_mode`: copy the weights into memory of the process, instead of mapping the file."""

_log = logging.getLogger(__name__)

_i32, _u32, _f32, _ptr, _size, _bool = C.c_int32, C.c_uint32, C.c_float, C.c_void_p, C.c_size_t, C.c_bool

EvalCallback = C.CFUNCTYPE(_bool, _ptr, _bool, _ptr)
"""(tensor, is_question, user_data) -> bool, called for every node of a graph."""
_LogCallback = C.CFUNCTYPE(None, C.c_int, C.c_char_p, _ptr)


class ModelParams(C.Structure):
    _fields_ = [
        ("devices", _ptr),
        ("tensor_buft_overrides", _ptr),
        ("n_gpu_layers", _i32),
        ("split_mode", _i32),
        ("load_mode", _i32),
        ("lazy_mode", _i32),
        ("main_gpu", _i32),
        ("tensor_split", _ptr),
        ("progress_callback", _ptr),
        ("progress_user_data", _ptr),
        ("kv_overrides", _ptr),
        ("vocab_only", _bool),
        ("check_tensors", _bool),
        ("use_extra_bufts", _bool),
        ("no_host", _bool),
        ("no_alloc", _bool),
        ("load_mtp", _bool),
    ]


class ContextParams(C.Structure):
    _fields_ = [
        ("n_ctx", _u32),
        ("n_batch", _u32),
        ("n_ubatch", _u32),
        ("n_seq_max", _u32),
        ("n_rs_seq", _u32),
        ("n_outputs_max", _u32),
        ("n_outputs_max_per_seq", _u32),
        ("n_threads", _i32),
        ("n_threads_batch", _i32),
        ("ctx_type", _i32),
        ("rope_scaling_type", _i32),
        ("pooling_type", _i32),
        ("attention_type", _i32),
        ("flash_attn_type", _i32),
        ("rope_freq_base", _f32),
        ("rope_freq_scale", _f32),
        ("yarn_ext_factor", _f32),
        ("yarn_attn_factor", _f32),
        ("yarn_beta_fast", _f32),
        ("yarn_beta_slow", _f32),
        ("yarn_orig_ctx", _u32),
        ("defrag_thold", _f32),
        ("cb_eval", _ptr),
        ("cb_eval_user_data", _ptr),
        ("type_k", _i32),
        ("type_v", _i32),
        ("moe_cache_size", _size),
        ("abort_callback", _ptr),
        ("abort_callback_data", _ptr),
        ("embeddings", _bool),
        ("offload_kqv", _bool),
        ("no_perf", _bool),
        ("op_offload", _bool),
        ("swa_full", _bool),
        ("kv_unified", _bool),
        ("samplers", _ptr),
        ("n_samplers", _size),
        ("ctx_other", _ptr),
    ]


class Batch(C.Structure):
    _fields_ = [
        ("n_tokens", _i32),
        ("token", _ptr),
        ("embd", _ptr),
        ("pos", _ptr),
        ("n_seq_id", _ptr),
        ("seq_id", _ptr),
        ("logits", _ptr),
    ]


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """Byte offsets inside a `ggml_tensor`."""

    type: int = 0
    ne: int = 16
    data: int = 248
    name: int = 256


@dataclass(frozen=True, slots=True)
class Layout:
    """What a library version looks like in memory."""

    build: str
    model_params: type[C.Structure]
    context_params: type[C.Structure]
    batch: type[C.Structure]
    tensor: TensorLayout


LAYOUTS = MappingProxyType(
    {"2026.10.11549": Layout("b11549", ModelParams, ContextParams, Batch, TensorLayout())},
)
"""Supported versions of the distribution. A new one joins after the tests passed with it."""

_Signature = tuple[type | None, list[Any]]  # Any: ctypes has no public type for "a C type"


def _signatures(layout: Layout) -> dict[str, _Signature]:
    """Every function that is called, in full: a missing result type would cut pointers to 32 bits."""
    text = C.c_char_p
    return {
        "llama_backend_init": (None, []),
        "llama_log_set": (None, [_LogCallback, _ptr]),
        "llama_model_default_params": (layout.model_params, []),
        "llama_context_default_params": (layout.context_params, []),
        "llama_model_load_from_file": (_ptr, [text, layout.model_params]),
        "llama_model_free": (None, [_ptr]),
        "llama_model_n_embd": (_i32, [_ptr]),
        "llama_model_n_layer": (_i32, [_ptr]),
        "llama_model_n_head": (_i32, [_ptr]),
        "llama_model_n_head_kv": (_i32, [_ptr]),
        "llama_model_meta_val_str": (_i32, [_ptr, text, _ptr, _size]),
        "llama_model_get_vocab": (_ptr, [_ptr]),
        "llama_model_chat_template": (text, [_ptr, text]),
        "llama_init_from_model": (_ptr, [_ptr, layout.context_params]),
        "llama_free": (None, [_ptr]),
        "llama_decode": (_i32, [_ptr, layout.batch]),
        "llama_get_logits": (_ptr, [_ptr]),
        "llama_set_n_threads": (None, [_ptr, _i32, _i32]),
        "llama_get_memory": (_ptr, [_ptr]),
        "llama_memory_seq_rm": (_bool, [_ptr, _i32, _i32, _i32]),
        "llama_memory_seq_pos_max": (_i32, [_ptr, _i32]),
        "llama_state_seq_get_size": (_size, [_ptr, _i32]),
        "llama_state_seq_get_data": (_size, [_ptr, _ptr, _size, _i32]),
        "llama_state_seq_set_data": (_size, [_ptr, _ptr, _size, _i32]),
        "llama_vocab_n_tokens": (_i32, [_ptr]),
        "llama_vocab_bos": (_i32, [_ptr]),
        "llama_vocab_eos": (_i32, [_ptr]),
        "llama_vocab_is_eog": (_bool, [_ptr, _i32]),
        "llama_vocab_get_add_bos": (_bool, [_ptr]),
        "llama_tokenize": (_i32, [_ptr, text, _i32, _ptr, _i32, _bool, _bool]),
        "llama_token_to_piece": (_i32, [_ptr, _i32, _ptr, _i32, _i32, _bool]),
        "ggml_get_name": (text, [_ptr]),
    }


class Library:
    """The loaded library. `api` has the C functions under their own names, with types declared.

    One per process (`load_library`): the C side has one log callback and one backend.
    """

    def __init__(self, api: C.CDLL, layout: Layout, version: str) -> None:
        self.api = api
        self.layout = layout
        self.version = version
        self._log_lines: deque[str] = deque(maxlen=50)
        self._log_callback = _LogCallback(self._take_log)  # kept: the C side holds only its address
        for name, (result, arguments) in _signatures(layout).items():
            function = getattr(api, name)
            function.restype, function.argtypes = result, arguments
        api.llama_log_set(self._log_callback, None)
        api.llama_backend_init()
        check_defaults(api.llama_model_default_params(), api.llama_context_default_params())

    @property
    def build_class(self) -> str:
        """The part of a numerics class that names the build, e.g. `llama/b11549/xllamacpp-2026.10.11549/...`."""
        machine = platform.machine().lower()
        code_path = "x86-64-avx2" if machine in {"x86_64", "amd64"} else machine
        return f"llama/{self.layout.build}/{DISTRIBUTION}-{self.version}/{code_path}/cpu"

    def last_log_lines(self, count: int = 4) -> str:
        """What the library said last, for error messages."""
        return " | ".join(list(self._log_lines)[-count:])

    def _take_log(self, _level: int, text: bytes, _user_data: int | None) -> None:
        line = text.decode("utf-8", "replace").strip()
        if line.strip("."):  # progress dots are no lines
            self._log_lines.append(line)
            _log.debug("libllama", extra={"line": line})


def check_defaults(model: C.Structure, context: C.Structure) -> None:
    """Raise `AbiMismatch` unless the library's defaults show up in the fields where this layout expects them."""
    expected = {
        "n_batch": 2048,
        "n_ubatch": 512,
        "n_seq_max": 1,
        "type_k": GGML_TYPE_F16,
        "type_v": GGML_TYPE_F16,
        "use_extra_bufts": True,
        "vocab_only": False,
    }
    for name, value in expected.items():
        found = getattr(context if hasattr(context, name) else model, name)
        if found != value:
            raise AbiMismatch(f"libllama's default of {name} reads as {found}, not {value}: the struct layout is wrong")


def layout_of(version: str) -> Layout:
    """The layout of a distribution version, or `AbiMismatch`."""
    layout = LAYOUTS.get(version)
    if layout is None:
        raise AbiMismatch(
            f"{DISTRIBUTION} {version} is installed, but only {', '.join(LAYOUTS)} is supported: "
            f"pip install {DISTRIBUTION}=={next(reversed(LAYOUTS))}"
        )
    return layout


def find_library_file() -> Path:
    """The wheel's extension module, found without importing it. Raises `MissingLibrary`."""
    spec = find_spec(DISTRIBUTION)
    files = sorted(Path(spec.origin).parent.glob(f"{DISTRIBUTION}*.so")) if spec and spec.origin else []
    if not files:
        raise MissingLibrary(
            f"the package {DISTRIBUTION} is not installed: pip install {DISTRIBUTION}=={next(reversed(LAYOUTS))}"
        )
    return files[0]


def open_library_file(path: Path, open_file: Callable[[str], C.CDLL] = C.CDLL) -> C.CDLL:
    """Map the library. Raises `MissingLibrary`, with the line that installs what the system lacks."""
    try:
        return open_file(str(path))
    except OSError as error:
        if "libgomp" in str(error):
            raise MissingLibrary(
                "the system library libgomp.so.1 is missing. Install it: apt-get install libgomp1"
            ) from error
        raise MissingLibrary(f"{path.name} cannot be loaded: {error}") from error


@cache
def load_library() -> Library:
    """Find, open and check the library; the same object on every call in this process.

    Set GOMP_SPINCOUNT before the first call: the thread pool reads it when the library is mapped.
    Raises `MissingLibrary`, `AbiMismatch`.
    """
    file = find_library_file()
    version = metadata.version(DISTRIBUTION)
    return Library(open_library_file(file), layout_of(version), version)
