"""Gives `AsyncAggregator` the interface of `Aggregator`, so that one test can run for both."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol, TypeVar, cast

from redisagg import Aggregator, AsyncAggregator, AsyncReceipt

T = TypeVar("T")

KINDS = ("threads", "asyncio")


class Make(Protocol):
    """Makes an aggregator that is closed when the test ends; `config` changes `quick_config`."""

    def __call__(
        self, *, name: str = "tests", url: Any = None, sink: Any = None, **config: Any
    ) -> Aggregator: ...


class LoopThread:
    """An event loop in its own thread, which runs coroutines for other threads."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test-loop")
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine and returns its result.

        Raises:
            TimeoutError: it took longer than a minute.
        """
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def close(self) -> None:
        """Stops the loop and its thread."""
        if self._thread.is_alive():  # else the loop was stopped already
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()


class Blocking:
    """An object with blocking methods in place of coroutine functions."""

    def __init__(self, loop: LoopThread, inner: Any) -> None:
        self._loop = loop
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if not inspect.iscoroutinefunction(value):
            return value

        def blocking(*args: Any, **kwargs: Any) -> Any:
            result = self._loop.run(value(*args, **kwargs))
            return Blocking(self._loop, result) if isinstance(result, AsyncReceipt) else result

        return blocking


class OnLoop(Blocking):
    """An `AsyncAggregator` with blocking methods: each call waits for its coroutine."""

    def __init__(self, loop: LoopThread, make: Callable[[], AsyncAggregator]) -> None:
        async def made() -> AsyncAggregator:
            return make()

        super().__init__(loop, loop.run(made()))

    def __enter__(self) -> OnLoop:
        self._loop.run(self._inner.__aenter__())
        return self

    def __exit__(self, *details: Any) -> None:
        self._loop.run(self._inner.__aexit__(*details))


class AggregatorMaker:
    """Makes aggregators of one kind; use `making`, which closes them."""

    def __init__(self, kind: str, stack: contextlib.ExitStack) -> None:
        self.kind = kind
        self._stack = stack
        self._loop: LoopThread | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Aggregator:
        """Makes an aggregator with these arguments; does not start it."""
        if self.kind == "threads":
            aggregator = Aggregator(*args, **kwargs)
        else:
            if self._loop is None:
                self._loop = LoopThread()
                self._stack.callback(self._loop.close)
            on_loop = OnLoop(self._loop, lambda: AsyncAggregator(*args, **kwargs))
            aggregator = cast(Aggregator, on_loop)
        self._stack.callback(aggregator.close)
        return aggregator


@contextlib.contextmanager
def making(kind: str) -> Iterator[AggregatorMaker]:
    """Makes aggregators of a kind, ``threads`` or ``asyncio``; closes them when the block ends."""
    with contextlib.ExitStack() as stack:
        yield AggregatorMaker(kind, stack)
