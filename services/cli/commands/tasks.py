"""`butterfly tasks`: see, submit and cancel tasks."""

import json

from services.cli.clients.gateway import Gateway, Task
from services.cli.commands.arguments import DEMO, Invocation, Subcommands, add_api, api_url, not_negative, positive
from services.cli.domain.table import table


def add_to(commands: Subcommands) -> None:
    parser = commands.add_parser("tasks", help="see, submit and cancel tasks")
    add_api(parser)
    parser.set_defaults(run=_list, limit=20)
    actions = parser.add_subparsers(metavar="ACTION", title="actions (default: list)")

    listing = actions.add_parser("list", help="the latest tasks")
    listing.add_argument("--limit", type=positive, default=20, metavar="N", help="at most 100 (%(default)s)")
    listing.set_defaults(run=_list)

    show = actions.add_parser("show", help="one task with its result, as JSON")
    show.add_argument("task_id", metavar="ID")
    show.set_defaults(run=_show)

    cancel = actions.add_parser("cancel", help="stop a task")
    cancel.add_argument("task_id", metavar="ID")
    cancel.set_defaults(run=_cancel)

    submit = actions.add_parser("submit", help="queue a chat message; prints the task's id")
    submit.add_argument("message", metavar="MESSAGE")
    submit.add_argument("--model", default=DEMO, metavar="M", help="(%(default)s)")
    submit.add_argument("--max-tokens", type=positive, metavar="N")
    submit.add_argument("--priority", type=not_negative, default=0, metavar="P", help="0 to 100, higher first")
    submit.set_defaults(run=_submit)

    for action in (listing, show, cancel, submit):
        add_api(action, inherited=True)


def _list(invocation: Invocation) -> int:
    tasks = _gateway(invocation).tasks(limit=invocation.arguments.limit)
    print(table(("TASK", "STATUS", "MODEL", "CREATED"), [_row(task) for task in tasks]) if tasks else "no tasks")
    return 0


def _show(invocation: Invocation) -> int:
    task = _gateway(invocation).task(invocation.arguments.task_id)
    print(json.dumps(task, indent=2, ensure_ascii=False))
    return 0


def _cancel(invocation: Invocation) -> int:
    task = _gateway(invocation).cancel(invocation.arguments.task_id)
    print(f"{task.task_id} {task.status}")
    return 0


def _submit(invocation: Invocation) -> int:
    arguments = invocation.arguments
    task = _gateway(invocation).submit(
        arguments.model, arguments.message, max_tokens=arguments.max_tokens, priority=arguments.priority
    )
    print(task.task_id)
    return 0


def _gateway(invocation: Invocation) -> Gateway:
    return Gateway(api_url(invocation.arguments))


def _row(task: Task) -> tuple[str, str, str, str]:
    status = f"{task.status} ({task.error.code})" if task.error else task.status
    return task.task_id, status, task.model, task.created_at or "-"
