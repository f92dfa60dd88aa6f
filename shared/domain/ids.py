"""The names of things. Distinct types, so that passing one for another is a type error."""

from typing import NewType

TaskId = NewType("TaskId", str)
"""UUIDv7, lower-case hex with dashes: sorts by the time of submission."""
NodeId = NewType("NodeId", str)
ModelId = NewType("ModelId", str)
PlanId = NewType("PlanId", str)
"""Content hash of a plan: equal plans have equal ids."""
Epoch = NewType("Epoch", int)
"""Fences coordinators and workers: rises with each (re)assignment of a session."""
Attempt = NewType("Attempt", int)
"""Fences schedulers: rises with each claim of a task."""
