import time

import pytest

from services.api.domain.chat_template import ChatMessage, ChatTemplate
from shared.domain.errors import TemplateError

USER = (ChatMessage("user", "hi"),)


def template(source: str, limit_s: float = 5.0, max_characters: int = 10_000) -> ChatTemplate:
    return ChatTemplate(
        source,
        bos_token="<s>",
        eos_token="</s>",
        now=time.monotonic,
        limit_s=limit_s,
        max_characters=max_characters,
    )


def test_a_template_sees_messages_tokens_and_the_generation_prompt() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m.content | trim }}{{ eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    assert template(source).render((ChatMessage("user", " hi "), ChatMessage("assistant", "yo"))) == (
        "<s>[user]hi</s>[assistant]yo</s>>"
    )


def test_a_template_that_refuses_says_why() -> None:
    with pytest.raises(TemplateError, match="roles must alternate"):
        template("{{ raise_exception('roles must alternate') }}").render(USER)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].missing.deeper }}",
        "{{ messages[9].content }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ 1 // 0 }}",
        "{{ 'x' * 10000000000 }}",
        "{{ 9 ** 999999999 }}",
        "{{ messages * 100000000 }}",
        "{% for a in range(100000000) %}x{% endfor %}",
        "{{ cycler }}{{ nothing() }}",
    ],
)
def test_whatever_a_foreign_template_does_wrong_is_its_failure(source: str) -> None:
    with pytest.raises(TemplateError):
        template(source).render(USER)


@pytest.mark.parametrize("source", ["{% for %}", "{{ 'open", "{% endif %}", "x" * 600_000])
def test_a_broken_template_is_found_at_once(source: str) -> None:
    with pytest.raises(TemplateError):
        template(source)


def test_a_template_that_never_ends_is_stopped() -> None:
    source = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    began_s = time.monotonic()
    with pytest.raises(TemplateError, match="too long"):
        template(source, limit_s=0.05).render(USER)
    assert time.monotonic() - began_s < 2


def test_a_template_that_writes_too_much_is_stopped() -> None:
    with pytest.raises(TemplateError, match="too long a prompt"):
        template("{% for a in range(9999) %}{{ 'x' * 10 }}{% endfor %}", max_characters=1_000).render(USER)
