"""Use cases of the coordinator, one file each.

membership   who is here: registration, heartbeats, leases
member       one run of one node, and how it is shown
sessions     which sessions there are: opening, cancelling, adopting, watching over them
session_run  one session from its assignment to its end, through losses
assigning    what each seat is told
committer    appends drafts to the registry
models       facts about models, asked once
placements   loads stages ahead of the first task
messages     what workers say
"""
