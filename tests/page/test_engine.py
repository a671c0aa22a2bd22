"""Clicks that wait together are decoded together, and those that nobody waits for are not."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sam_jax.page import engine
from sam_jax.page.engine import Engine, Recent
from sam_jax.prompts import Prompts

TOKENS = engine.TOKENS
"""As users have them: the server that all tests share has fewer."""


class SlowDecoder:
    """Answers how many prompt sets a call had, when it may."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.may_go = threading.Event()

    def __call__(self, variables: Any, image: Any, prompts: Prompts) -> Any:
        self.calls.append(len(prompts.valid))
        assert self.may_go.wait(20)
        if image == "broken":
            raise ValueError("This image is broken.")
        return np.arange(len(prompts.valid))


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> SlowDecoder:
    slow = SlowDecoder()
    monkeypatch.setattr(engine, "compile", lambda *_, **__: slow)
    monkeypatch.setattr(engine, "TOKENS", TOKENS)
    return slow


@pytest.fixture
def at_work(decoder: SlowDecoder, untyped: None) -> Iterator[Engine]:
    running: Any = Engine(SimpleNamespace(model=None, variables=None))  # type: ignore[arg-type]
    yield running
    running.close()


def click(points: int = 1) -> Prompts:
    return Prompts.build(points=np.zeros((1, points, 2)), labels=np.ones((1, points), int), images=False)


def wait_for(decoder: SlowDecoder, calls: int) -> None:
    for _ in range(2000):
        if len(decoder.calls) >= calls:
            return
        threading.Event().wait(0.005)
    raise AssertionError(decoder.calls)


def test_what_waits_together_is_one_call(at_work: Engine, decoder: SlowDecoder) -> None:
    image, other = SimpleNamespace(embedding="one"), SimpleNamespace(embedding="other")
    first = at_work.decode(image, click())
    wait_for(decoder, 1)  # it is being decoded, so all others wait
    waiting = [at_work.decode(image, click()) for _ in range(6)]
    waiting += [at_work.decode(other, click()), at_work.decode(image, click(points=9))]
    decoder.may_go.set()
    assert [future.result(20) for future in (first, *waiting)] == [0, 0, 1, 2, 3, 0, 1, 0, 0]
    assert decoder.calls == [1, 4, 2, 1, 1]


def test_what_nobody_waits_for_is_not_decoded(at_work: Engine, decoder: SlowDecoder) -> None:
    image = SimpleNamespace(embedding="one")
    first = at_work.decode(image, click())
    wait_for(decoder, 1)
    stale, wanted = at_work.decode(image, click()), at_work.decode(image, click())
    assert stale.cancel()
    decoder.may_go.set()
    assert wanted.result(20) == 0
    assert first.done()
    assert decoder.calls == [1, 1]


def test_one_that_fails_harms_no_other(at_work: Engine, decoder: SlowDecoder) -> None:
    decoder.may_go.set()
    broken = at_work.decode(SimpleNamespace(embedding="broken"), click())
    with pytest.raises(ValueError, match="broken"):
        broken.result(20)
    assert at_work.decode(SimpleNamespace(embedding="one"), click()).result(20) == 0


def test_an_image_that_failed_is_tried_again(at_work: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = iter([ValueError("It is no image."), "prepared"])

    def prepare(image: Any) -> Any:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(at_work, "_prepare_image", prepare)
    image: Any = SimpleNamespace(id="a")
    with pytest.raises(ValueError, match="no image"):
        at_work.prepare(image).result(20)
    assert not at_work.is_prepared(image)
    assert at_work.prepare(image).result(20) == "prepared"
    assert at_work.prepare(image).result(20) == "prepared"  # without another try
    assert at_work.is_prepared(image)


def test_the_last_ones_are_kept() -> None:
    recent = Recent[int](2)
    for name, value in (("a", 1), ("b", 2)):
        recent.put(name, value)
    assert recent.get("a") == 1
    recent.put("c", 3)
    assert [recent.peek(name) for name in "abc"] == [1, None, 3]
