import pytest

from shared.domain.ids import ModelId
from shared.domain.task import TaskGroup, Verification
from tests.fakes.tasks import make_task


@pytest.mark.parametrize(
    ("group", "text"),
    [
        (TaskGroup(ModelId("tiny-1.0_x")), "tiny-1.0_x"),
        (TaskGroup(ModelId("tiny"), Verification.AUDIT, 1), "tiny:audit:1"),
        (TaskGroup(ModelId("tiny"), Verification.QUORUM, 12), "tiny:quorum:12"),
    ],
)
def test_a_group_is_found_again_in_its_name(group: TaskGroup, text: str) -> None:
    assert str(group) == text
    assert TaskGroup.parse(text) == group


def test_tasks_that_need_the_same_plan_are_one_group() -> None:
    audited = {make_task(verification=Verification.AUDIT, max_byzantine=1).group for _ in range(2)}
    assert len(audited) == 1
    assert make_task().group not in audited
