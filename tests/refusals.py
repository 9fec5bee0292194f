"""Checks that a call, or a run of the command line, said in one line what the user can mend."""

import pytest

from stdc_fast.errors import UserError


def refusal(call, *arguments, **options):
    """What a call that is refused says."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused(run, *names, summary=False, code=2):
    """Checks a failed run: its exit code, one line for each of the names, no traceback."""
    assert run.code == code, run.err
    assert "Traceback" not in run.err
    messages = run.messages
    if summary:
        assert "failed" in messages[-1]
        messages = messages[:-1]
    assert len(messages) == len(names), run.err
    for name, message in zip(names, messages, strict=True):
        assert name in message
    return messages


def refused_quietly(run, name):
    """The same for a run with --quiet: that one line is all that it says."""
    (message,) = refused(run, name)
    assert run.lines == [message]
    assert run.out == ""
    return message
