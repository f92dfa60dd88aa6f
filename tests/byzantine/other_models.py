"""An engine over other weights, or with another cache, than everybody else's: cheaper to run, and not the model."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize, quantize

from services.worker.engine.base import EngineSettings, KvType
from services.worker.engine.llama_stage import LlamaModel, LlamaSlots, SlotsSpec
from services.worker.ports import EngineLoader, Ints, LoadedEngine, Mask, Rows, StageEngine, StageFile, TrialStage
from shared.contracts.messages import StageRef
from shared.llama.library import Library
from tests.byzantine.seat_watch import Place


@dataclass(frozen=True, slots=True)
class OtherModel:
    """How the stage that the liar runs differs from the one it was told to run."""

    weights: gguf.GGMLQuantizationType | None = None
    """In place of the file's Q4_1; None: as they are."""
    settings: EngineSettings | None = None
    """None: those of the honest engine."""

    def open(self, library: Library, ref: StageRef, file: StageFile, *, n_slots: int, ctx: int) -> LlamaSlots:
        path = file.path
        if self.weights is not None:
            path = path.with_suffix(f".{self.weights.name}")
            requantize(file.path, path, self.weights)
        model = LlamaModel(library, path)
        spec = SlotsSpec(
            is_first_stage=ref.layers.start == 0,
            is_last_stage=ref.layers.end == ref.num_layers,
            n_slots=n_slots,
            ctx_per_slot=ctx,
            n_threads=1,
            settings=self.settings or model.default_settings(),
        )
        return LlamaSlots(model, spec)


F16_CACHE = EngineSettings(kv_type=KvType.F16)


def requantize(source: Path, target: Path, weights: gguf.GGMLQuantizationType) -> None:
    """Write the GGUF file `source` with its Q4_1 matrices as `weights`."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind, *item = field.types
            writer.add_key_value(name, field.contents(), kind, sub_type=item[-1] if item else None)
    for tensor in reader.tensors:
        if tensor.tensor_type is gguf.GGMLQuantizationType.Q4_1:
            data = quantize(dequantize(np.asarray(tensor.data), tensor.tensor_type), weights)
            writer.add_tensor(tensor.name, data, raw_dtype=weights)
        else:
            writer.add_tensor(tensor.name, np.asarray(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class TwoEngines:
    """Both run every row; which of them answers depends on the seat."""

    def __init__(
        self, honest: StageEngine, other: LlamaSlots, lies: Callable[[], bool], note: Callable[[], None]
    ) -> None:
        self._honest = honest
        self._other = other
        self._lies = lies
        self._note = note

    def forward(self, x: Ints | Rows, slots: Ints, positions: Ints, want: Mask | None = None) -> Rows:
        right = self._honest.forward(x, slots, positions, want)
        wrong = self._other.forward(x, slots, positions, want)
        if not self._lies():
            return right
        if not np.array_equal(right, wrong):
            self._note()
        return wrong

    def copy(self, src: int, dst: int) -> None:
        self._honest.copy(src, dst)
        if rows := self._other.length(src):
            self._other.write_state(dst, self._other.read_state(src), rows)

    def truncate(self, slot: int, n_rows: int) -> None:
        self._honest.truncate(slot, n_rows)
        self._other.truncate(slot, n_rows)

    def drop(self, slot: int) -> None:
        self._honest.drop(slot)
        self._other.drop(slot)

    def set_threads(self, n_threads: int) -> None:
        self._honest.set_threads(n_threads)
        self._other.set_threads(n_threads)

    def close(self) -> None:
        self._honest.close()
        self._other.close()


class OtherModelLoader(EngineLoader):
    """Loads the honest engine, says what that one's self-test gave, and runs another beside it."""

    def __init__(self, honest: EngineLoader, other: OtherModel, library: Library, place: Place) -> None:
        self._honest = honest
        self._other = other
        self._library = library
        self._place = place

    def load(self, ref: StageRef, file: StageFile, *, n_slots: int, ctx_per_slot: int) -> LoadedEngine:
        loaded = self._honest.load(ref, file, n_slots=n_slots, ctx_per_slot=ctx_per_slot)
        other = self._other.open(self._library, ref, file, n_slots=n_slots, ctx=ctx_per_slot)
        engine = TwoEngines(
            loaded.engine, other, lies=lambda: self._place.lies_in(ref), note=self._place.computed_falsely
        )
        return replace(loaded, engine=engine)

    def load_trial(self) -> TrialStage:
        return self._honest.load_trial()
