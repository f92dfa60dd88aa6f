"""`python -m tests.byzantine.demo [ATTACK]`: shows how one lying worker is caught, step by step."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.byzantine.attacks import ATTACKS
from tests.byzantine.cells import play
from tests.byzantine.clusters import HONEST_WORKERS, NUM_TOKENS, QUESTIONS, ask_all, honest_cluster, oracle, states
from tests.byzantine.roles import ROLES, STAGES, Cell


def show(model: Path, attack: str, cell: Cell) -> bool:
    """Whether all went as it should."""
    says = ATTACKS[attack].says
    _step(f"The whole model in one process answers {len(QUESTIONS)} prompts with {NUM_TOKENS} tokens each: the truth.")
    right = oracle(model)
    with tempfile.TemporaryDirectory() as scratch:
        _step(
            f"A cluster starts: {HONEST_WORKERS} honest workers hold a model cut into {STAGES} stages. Every token is"
            " computed twice, by different workers: by an executor, then by an auditor that replays it."
        )
        with honest_cluster(model, Path(scratch) / "cluster") as cluster:
            _tell("the cluster answers as the whole model does" if ask_all(cluster) == list(right) else "WRONG ANSWERS")
            _step(f"A fourth worker joins. It is the {cell}, and there it {says}. The same prompts are asked again.")
            outcome = play(cluster, attack, cell, right=right, number=0)
            _tell(f"lies told: {outcome.lies}, about {outcome.windows} windows of tokens")
            _tell(f"answers: {outcome.wrong} wrong, {len(outcome.failures)} missing")
            _tell(f"the liar, {outcome.liar}, is {outcome.liar_state}{': ' * bool(outcome.reason)}{outcome.reason}")
            _tell("honest workers evicted: " + str(outcome.honest_evicted))
            if outcome.liar_state == "evicted":
                _tell("its key is refused from now on; the evidence can be downloaded and checked by anybody")
            else:
                _tell("nothing proves its guilt, so it is not evicted: the tasks went on without it")
            _step("The cluster is asked once more, without the liar.")
            _tell("the answers are the same" if ask_all(cluster) == list(right) else "WRONG ANSWERS")
            _tell(f"workers: {', '.join(sorted(states(cluster).values()))}")
    print("\n" + (", ".join(outcome.faults) or "As it should be."))
    return not outcome.faults


def _step(text: str) -> None:
    print(f"\n{text}", flush=True)


def _tell(text: str) -> None:
    print(f"  {text}", flush=True)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.byzantine.demo", description=__doc__)
    parser.add_argument("attack", nargs="?", default="wrong-hidden", choices=ATTACKS, metavar="ATTACK")
    parser.add_argument("--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("--stage", type=int, default=1, choices=range(STAGES))
    parser.add_argument("--role", default="executor", choices=ROLES)
    asked = parser.parse_args(arguments)
    return 0 if show(asked.model.resolve(), asked.attack, Cell(asked.stage, asked.role)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
