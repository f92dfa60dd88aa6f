"""A model that costs nothing and can be foretold: every layer mixes a row into what its slot has seen so far.

A token depends on the whole prefix before it, through every layer, so a lost, repeated, swapped or misplaced row
changes all tokens after it. A chain of stages gives exactly what the whole gives.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from services.worker.domain.batch import BatchLimits, check_places, check_rows, check_wanted
from services.worker.domain.token_rule import choose_token
from services.worker.engine.base import Engine, Ids, Mask, Rows, StageInfo, StageSpec
from services.worker.ports import EngineLoader, LoadedEngine, StageFile, TrialStage
from shared.contracts.messages import StageRef
from shared.domain.errors import BadBlob, BadSlot, EngineFault, WrongClass
from shared.domain.numerics import Profile
from shared.domain.task import SamplerParams

N_EMBD = 8
N_VOCAB = 64
MAX_ROWS = 512
NUMERICS_CLASS = "synthetic"
TRIAL_LAYERS = 2
TRIAL_SLOTS = 16

_WORD = (1 << 64) - 1
_DIGITS = 4  # 16 bits of a word each: exact as float32


def mix(word: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit depends on every bit."""
    word = (word + 0x9E3779B97F4A7C15) & _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)


def logits_of(word: int) -> npt.NDArray[np.float32]:
    """float32 [N_VOCAB] in [0, 16), from the last layer's word."""
    coarse = np.array([mix(word ^ (index << 32)) >> 60 for index in range(N_VOCAB)], np.float32)
    return coarse + np.arange(N_VOCAB, dtype=np.float32) * np.float32(0.5 / N_VOCAB)  # no two are equal


class _Layers:
    """Layers [start, end) of one sequence. `seen`: per layer, its state after each row."""

    def __init__(self, start: int, end: int) -> None:
        self._start = start
        self.seen: list[list[int]] = [[] for _ in range(start, end)]

    def __len__(self) -> int:
        return len(self.seen[0])

    def run(self, word: int) -> int:
        for index, states in enumerate(self.seen, self._start):
            word = mix(word ^ mix((states[-1] if states else 0) + index))
            states.append(word)
        return word

    def truncate(self, n_rows: int) -> None:
        for states in self.seen:
            del states[n_rows:]


class SyntheticModel:
    """The whole model, one sequence at a time: what any ring of stages must repeat."""

    def __init__(self, num_layers: int = 6) -> None:
        self.num_layers = num_layers

    def generate(
        self,
        prompt_ids: Sequence[int],
        num_tokens: int,
        *,
        sampler: SamplerParams | None = None,
        end_ids: Sequence[int] = (),
    ) -> list[int]:
        """The tokens after `prompt_ids`, up to and with the first of `end_ids`."""
        sampler = sampler or SamplerParams(temperature=0.0)
        layers = _Layers(0, self.num_layers)
        generated: list[int] = []
        word = 0
        for token_id in prompt_ids:
            word = layers.run(mix(token_id))
        while len(generated) < num_tokens and (not generated or generated[-1] not in end_ids):
            if generated:
                word = layers.run(mix(generated[-1]))
            record = choose_token(
                logits_of(word),
                position=len(layers) - 1,
                params=sampler,
                prompt_ids=prompt_ids,
                generated_ids=generated,
            )
            generated.append(record.token_id)
        return generated


class SyntheticEngine(Engine):
    def __init__(self, *, before_step: Callable[[], object] | None = None, n_embd: int = N_EMBD) -> None:
        """`before_step` is called at the start of every `forward`; it may wait, or raise."""
        self._before_step = before_step
        self._n_embd = n_embd
        self._spec: StageSpec | None = None
        self._slots: list[_Layers] = []
        self.steps: list[tuple[int, ...]] = []
        """The slots of every call so far, one entry per row."""
        self.n_threads = 0

    def load(self, spec: StageSpec) -> StageInfo:
        self._spec = spec
        self._slots = [_Layers(spec.layer_start, spec.layer_end) for _ in range(spec.n_slots)]
        self._limits = BatchLimits(
            takes_ids=spec.is_first_stage,
            n_embd=self._n_embd,
            n_vocab=N_VOCAB,
            n_slots=spec.n_slots,
            ctx_per_slot=spec.ctx_per_slot,
            max_rows=MAX_ROWS,
        )
        self.n_threads = spec.n_threads
        return StageInfo(
            n_embd=self._n_embd,
            n_vocab=N_VOCAB if spec.is_first_stage or spec.is_last_stage else None,
            numerics_class=NUMERICS_CLASS,
            profile=Profile.EXACT,
            small_rows=None,
            self_test_digest=f"{spec.layer_start}-{spec.layer_end}",
            kv_bytes_per_row=8 * (spec.layer_end - spec.layer_start),
            load_s=0.0,
        )

    def forward(self, x: Ids | Rows, slots: Ids, positions: Ids, want: Mask | None = None) -> Rows:
        spec = self._loaded()
        if self._before_step is not None:
            self._before_step()
        n = check_rows(x, self._limits)
        lengths = np.array([len(layers) for layers in self._slots], np.int32)
        check_places(slots, positions, n, lengths, self._limits)
        check_wanted(want, n, is_last_stage=spec.is_last_stage)
        self.steps.append(tuple(slots.tolist()))
        words = [self._slots[slot].run(word) for slot, word in zip(slots.tolist(), self._words(x), strict=True)]
        if not spec.is_last_stage:
            return self._hidden(words)
        wanted = [word for index, word in enumerate(words) if want is None or want[index]]
        return np.stack([logits_of(word) for word in wanted]) if wanted else np.empty((0, N_VOCAB), np.float32)

    def truncate(self, slot: int, n_rows: int) -> None:
        if not 0 <= n_rows <= len(self._slot(slot)):
            raise BadSlot(f"slot {slot} holds {len(self._slot(slot))} rows, not {n_rows}")
        self._slot(slot).truncate(n_rows)

    def drop(self, slot: int) -> None:
        self.truncate(slot, 0)

    def copy(self, src: int, dst: int) -> None:
        if len(self._slot(dst)):
            raise BadSlot(f"slot {dst} is not empty")
        self._slots[dst].seen = [list(states) for states in self._slot(src).seen]

    def export(self, slot: int) -> bytes:
        seen = np.array(self._slot(slot).seen, np.uint64)
        return f"{self._identity()}\n".encode() + seen.tobytes()

    def import_(self, slot: int, blob: bytes) -> int:
        identity, newline, raw = blob.partition(b"\n")
        if not newline or len(raw) % 8:
            raise BadBlob("not an exported sequence")
        if identity.decode() != self._identity():
            raise WrongClass("a sequence of another stage")
        if len(self._slot(slot)):
            raise BadSlot(f"slot {slot} is not empty")
        layers = self._slots[slot]
        layers.seen = np.frombuffer(raw, np.uint64).reshape(len(layers.seen), -1).tolist()
        return len(layers)

    def set_threads(self, n_threads: int) -> None:
        self.n_threads = n_threads

    @property
    def is_closed(self) -> bool:
        return self._spec is None

    def close(self) -> None:
        self._spec = None

    def _words(self, x: Ids | Rows) -> Iterator[int]:
        if self._loaded().is_first_stage:
            return (mix(int(token_id)) for token_id in x)
        digits = x[:, :_DIGITS].astype(np.uint64)
        return (sum(int(digit) << (16 * place) for place, digit in enumerate(row)) for row in digits)

    def _hidden(self, words: Sequence[int]) -> Rows:
        hidden = np.zeros((len(words), self._n_embd), np.float32)
        for place in range(_DIGITS):
            hidden[:, place] = [(word >> (16 * place)) & 0xFFFF for word in words]
        return hidden

    def _slot(self, slot: int) -> _Layers:
        self._loaded()
        if not 0 <= slot < len(self._slots):
            raise BadSlot(f"there is no slot {slot}")
        return self._slots[slot]

    def _loaded(self) -> StageSpec:
        if self._spec is None:
            raise EngineFault("no stage is loaded")
        return self._spec

    def _identity(self) -> str:
        spec = self._loaded()
        return f"{NUMERICS_CLASS} {spec.stage_digest} {spec.layer_start}-{spec.layer_end}"


class SyntheticLoader(EngineLoader):
    """Loads any file as layers of `SyntheticModel`. `engines`: all it made, oldest first."""

    def __init__(self, *, before_step: Callable[[], object] | None = None, n_embd: int = N_EMBD) -> None:
        self._before_step = before_step
        self._n_embd = n_embd
        self.engines: list[SyntheticEngine] = []

    def load(self, ref: StageRef, file: StageFile, *, n_slots: int, ctx_per_slot: int) -> LoadedEngine:
        engine = SyntheticEngine(before_step=self._before_step, n_embd=self._n_embd)
        spec = StageSpec(
            path=file.path,
            stage_digest=file.stage_digest,
            is_first_stage=ref.layers.start == 0,
            is_last_stage=ref.layers.end == ref.num_layers,
            layer_start=ref.layers.start,
            layer_end=ref.layers.end,
            n_slots=n_slots,
            ctx_per_slot=ctx_per_slot,
            n_threads=1,
        )
        info = engine.load(spec)
        self.engines.append(engine)
        return LoadedEngine(
            engine=engine,
            n_embd=info.n_embd,
            n_vocab=info.n_vocab,
            numerics_class=info.numerics_class,
            profile=info.profile,
            small_rows=info.small_rows,
            self_test_digest=info.self_test_digest,
            kv_bytes_per_row=info.kv_bytes_per_row,
        )

    def load_trial(self) -> TrialStage:
        engine = SyntheticEngine(before_step=self._before_step, n_embd=self._n_embd)
        spec = StageSpec(
            path=Path("trial"),
            stage_digest="",
            is_first_stage=False,
            is_last_stage=False,
            layer_start=1,
            layer_end=1 + TRIAL_LAYERS,
            n_slots=TRIAL_SLOTS,
            ctx_per_slot=256,
            n_threads=1,
        )
        engine.load(spec)
        return TrialStage(engine, self._n_embd, TRIAL_SLOTS, layer_bytes=TRIAL_LAYERS * 1_000)
