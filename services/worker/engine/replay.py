"""Does the model give this answer? Computes a checked answer once more and compares what its receipts name.

Run as a program in a process of its own, because a file the library dislikes may abort it:
`python -m services.worker.engine.replay MODEL < receipt.json` prints one JSON line (`ReplayVerdict`) and ends with 0
when everything is equal, 1 when not. Any other end means the library gave up on the model.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from services.worker.domain.batching import rows_of
from services.worker.domain.token_rule import choose_token
from services.worker.engine.base import Ids, Rows
from services.worker.engine.llama_stage import LlamaModel, LlamaSlots, SlotsSpec
from shared.contracts.receipts import BundleBody
from shared.domain.bundle import Bundle, check_bundle
from shared.domain.chain import RowChain, chain_start, class_hash, id_bytes, record_bytes, sampler_hash
from shared.domain.errors import ButterflyError
from shared.domain.guarantee import Guarantee
from shared.domain.numerics import Profile, call_rows
from shared.domain.sampler import check_sampler
from shared.domain.task import TokenRecord
from shared.llama.cutting import ModelFile, cut_stage, open_model
from shared.llama.library import Library, load_library

MAX_RECEIPT_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ReplayVerdict:
    equal: bool
    reason: str
    """For people: what differs; when equal, why less than everything was compared, or nothing."""
    num_tokens: int = 0
    num_digests: int = 0
    """Chain values of the receipts that were computed again."""


def replay(library: Library, path: Path, bundle: Bundle, *, n_threads: int = 1) -> ReplayVerdict:
    """Check the bundle, then run its ids through the model: every token must be the one the token rule gives.

    In the receipts' own numerics class every boundary's chain must have the agreed values, too: the rows are run in
    calls of the session's row class. Cuts the model at the receipts' boundaries, into a temporary folder of the size of
    the model. Raises `InvalidInput` for a bundle that does not hold, `BadModelFile`, `UnsupportedModel`, `OutOfMemory`.
    """
    agreed = check_bundle(bundle)
    model = open_model(path)
    if model.root() != agreed.model_root:
        return ReplayVerdict(equal=False, reason=f"{path.name} is not the model that gave this answer")
    check_sampler(bundle.sampler, model.n_vocab)
    same_class = agreed.profile is not Profile.TOLERANT and library.build_class == agreed.numerics_class
    bounds = sorted({boundary for each in agreed.windows for boundary in each.ends})
    with ExitStack() as open_parts:
        folder = Path(open_parts.enter_context(tempfile.TemporaryDirectory(prefix="butterfly-replay-")))
        stages = _stages(model, bounds, folder) if same_class else [path]
        chain = _Stages(library, stages, num_rows=_num_rows(bundle), n_threads=n_threads, open_parts=open_parts)
        return _compare(chain, bundle, agreed, bounds if same_class else None)


def _compare(stages: "_Stages", bundle: Bundle, agreed: Guarantee, bounds: Sequence[int] | None) -> ReplayVerdict:
    """`bounds` None: compare the ids alone."""
    ids = [*bundle.prompt_ids, *(record.token_id for record in bundle.records)]
    chains = _start_chains(bundle, agreed, bounds or ())
    first_choice = len(bundle.prompt_ids) - 1
    start = 0
    while start < _num_rows(bundle):
        num_prompt = len(bundle.prompt_ids)
        stop = start + call_rows(start, num_known=_num_rows(bundle), num_prompt=num_prompt, row_class=agreed.row_class)
        first_logits = max(start, first_choice)
        rows = stages.forward(np.array(ids[start:stop], np.int32), start, num_logits=max(0, stop - first_logits))
        records: list[TokenRecord] = []
        for row in range(first_logits, stop):
            chosen = choose_token(
                rows[-1][row - first_logits],
                position=row,
                params=bundle.sampler,
                prompt_ids=bundle.prompt_ids,
                generated_ids=ids[first_choice + 1 : row + 1],
            )
            if chosen.token_id != ids[row + 1]:
                return _other_token(row - first_choice, chosen.token_id, ids[row + 1], bounds)
            records.append(chosen)
        if bounds is not None:
            _extend(chains, bounds, ids[start:stop], rows, records)
        start = stop
    num_tokens = len(ids) - len(bundle.prompt_ids)
    if bounds is None:
        reason = f"this machine does not compute in the class {agreed.numerics_class}: only the tokens were compared"
        return ReplayVerdict(equal=True, reason=reason, num_tokens=num_tokens)
    return _compare_chains(chains, agreed, num_tokens)


def _start_chains(bundle: Bundle, agreed: Guarantee, bounds: Sequence[int]) -> dict[int, RowChain]:
    numerics, chains = class_hash(agreed.numerics_class), {}
    for boundary in bounds:
        is_top = boundary == bounds[-1]
        sampler = sampler_hash(bundle.sampler) if is_top else ""
        start = chain_start(agreed.model_root, boundary, numerics_hash=numerics, sampler=sampler)
        chains[boundary] = RowChain(start, row=len(bundle.prompt_ids) - 1 if is_top else 0)
    return chains


def _extend(
    chains: Mapping[int, RowChain],
    bounds: Sequence[int],
    ids: Sequence[int],
    rows: Sequence[Rows],
    records: Sequence[TokenRecord],
) -> None:
    """`rows`: of each stage, the last one's are logits."""
    chains[bounds[0]].extend(map(id_bytes, ids))
    for boundary, hidden in zip(bounds[1:-1], rows, strict=False):
        chains[boundary].extend(rows_of(hidden))
    chains[bounds[-1]].extend(map(record_bytes, records))


def _compare_chains(chains: Mapping[int, RowChain], agreed: Guarantee, num_tokens: int) -> ReplayVerdict:
    num_digests = 0
    for each in agreed.windows:
        for boundary, digest in each.ends.items():
            if chains[boundary].at(each.window.row_end).hex() != digest:
                where = f"window {each.window.index}, the boundary at layer {boundary}"
                return ReplayVerdict(equal=False, reason=f"{where}: the model gives other rows than were signed")
            num_digests += 1
    return ReplayVerdict(equal=True, reason="", num_tokens=num_tokens, num_digests=num_digests)


def _other_token(index: int, chosen: int, found: int, bounds: Sequence[int] | None) -> ReplayVerdict:
    reason = f"token {index} of the answer is {found}, the model gives {chosen}"
    if bounds is None:
        reason += " (but this machine computes in another numerics class, so this proves nothing)"
    return ReplayVerdict(equal=False, reason=reason)


def _num_rows(bundle: Bundle) -> int:
    return bundle.entries[-1].row_end


def _stages(model: ModelFile, bounds: Sequence[int], folder: Path) -> list[Path]:
    if len(bounds) == 2:  # the ids and the head: nobody cut it
        return [model.path]
    paths = []
    for start, end in pairwise(bounds):
        path = folder / f"{start}-{end}.gguf"
        cut_stage(model, start, end).write_to(path)
        paths.append(path)
    return paths


class _Stages:
    """One slot over the stages of a model, in this process; the whole model is a chain of one."""

    def __init__(
        self, library: Library, paths: Sequence[Path], *, num_rows: int, n_threads: int, open_parts: ExitStack
    ) -> None:
        self._stages: list[LlamaSlots] = []
        for index, path in enumerate(paths):
            model = LlamaModel(library, path)
            open_parts.callback(model.close)
            spec = SlotsSpec(
                is_first_stage=index == 0,
                is_last_stage=index == len(paths) - 1,
                n_slots=1,
                ctx_per_slot=num_rows,
                n_threads=n_threads,
                settings=model.default_settings(),
            )
            slots = LlamaSlots(model, spec)
            open_parts.callback(slots.close)
            self._stages.append(slots)

    def forward(self, ids: Ids, start: int, *, num_logits: int) -> list[Rows]:
        """What each stage gives for the rows from `start` on; of the last one the logits of so many last rows. Who asks
        for more of them may get other bits: the library leaves out what nobody wants."""
        slot = np.zeros(len(ids), np.int32)
        positions = np.arange(start, start + len(ids), dtype=np.int32)
        given: list[Rows] = []
        rows: Ids | Rows = ids
        wanted = np.arange(len(ids)) >= len(ids) - num_logits
        for stage in self._stages:
            want = wanted if stage is self._stages[-1] else None
            rows = stage.forward(rows, slot, positions, want).astype(np.float32, copy=False)
            given.append(rows)
        return given


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="compute an answer once more and compare it with its receipt")
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parsed = parser.parse_args(arguments)
    try:
        bundle = BundleBody.model_validate_json(sys.stdin.buffer.read(MAX_RECEIPT_BYTES)).bundle()
        verdict = replay(load_library(), parsed.model, bundle, n_threads=parsed.threads)
    except ValidationError:
        verdict = ReplayVerdict(equal=False, reason="standard input holds no receipt")
    except ButterflyError as error:
        verdict = ReplayVerdict(equal=False, reason=error.message)
    sys.stdout.write(json.dumps(asdict(verdict)) + "\n")
    return 0 if verdict.equal else 1


if __name__ == "__main__":
    sys.exit(main())
