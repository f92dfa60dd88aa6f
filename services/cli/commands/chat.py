"""`butterfly chat`: talk to a model in the terminal."""

import argparse
import sys
from collections.abc import Callable, Sequence

from services.cli.clients.gateway import Gateway
from services.cli.commands.arguments import Invocation, Subcommands, add_api, api_url, positive
from shared.domain.errors import ButterflyError, ModelNotFound

Message = dict[str, str]


def add_to(commands: Subcommands) -> None:
    parser = commands.add_parser(
        "chat",
        help="talk to a model in the terminal",
        description="Answer one message, or keep a conversation until Ctrl-D. Ctrl-C cancels an answer.",
    )
    parser.add_argument("message", nargs="?", metavar="MESSAGE", help="ask this and end")
    add_api(parser)
    parser.add_argument("--model", metavar="M", help="default: the first that the cluster serves")
    parser.add_argument("--max-tokens", type=positive, metavar="N")
    parser.add_argument("--temperature", type=float, metavar="T")
    parser.add_argument("--seed", type=int, metavar="S", help="the same seed gives the same answer")
    parser.set_defaults(run=run)


def run(invocation: Invocation) -> int:
    arguments = invocation.arguments
    gateway = Gateway(api_url(arguments))
    model = arguments.model or _first_model(gateway)

    def answer(messages: Sequence[Message]) -> str:
        return _answer(gateway, model, messages, arguments)

    if arguments.message is not None:
        answer([{"role": "user", "content": arguments.message}])
    else:
        _converse(model, answer)
    return 0


def _first_model(gateway: Gateway) -> str:
    models = gateway.models()
    if not models:
        raise ModelNotFound("the cluster serves no model: `butterfly models add` adds one")
    return models[0]


def _answer(gateway: Gateway, model: str, messages: Sequence[Message], arguments: argparse.Namespace) -> str:
    """Print the answer as it comes; the whole of it."""
    parts: list[str] = []
    stream = gateway.chat(
        model,
        messages,
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        seed=arguments.seed,
    )
    for text in stream:
        parts.append(text)
        sys.stdout.write(text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return "".join(parts)


def _converse(model: str, answer: Callable[[Sequence[Message]], str]) -> None:
    """Questions from standard input until its end. A failed answer leaves the conversation as it was."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print(f"Talking to {model}; Ctrl-D ends.")
    messages: list[Message] = []
    while True:
        try:
            question = input("> " if is_terminal else "")
        except EOFError:
            return
        if not question.strip():
            continue
        asked = [*messages, {"role": "user", "content": question}]
        try:
            messages = [*asked, {"role": "assistant", "content": answer(asked)}]
        except KeyboardInterrupt:
            print("\n(cancelled)")
        except ButterflyError as error:
            print(f"butterfly: {error.message}", file=sys.stderr)
