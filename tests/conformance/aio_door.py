"""The asynchronous client behind the synchronous interface, so that the same facts hold for it."""

from __future__ import annotations

import asyncio
import inspect
import threading

import kvstate
from kvstate.key_mapping import KeyMapping


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, awaitable):
        return asyncio.run_coroutine_threadsafe(awaitable, self.loop).result(60)

    def each(self, iterator):
        async def following():
            return await anext(iterator)

        try:
            while True:
                yield self.run(following())
        except StopAsyncIteration:
            return
        finally:
            self.run(iterator.aclose())

    def plain(self, function):
        def call(*arguments, **options):
            result = function(*arguments, **options)
            if inspect.isasyncgen(result):
                return self.each(result)
            return self.run(result) if inspect.isawaitable(result) else result

        return call

    def end(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(30)
        self.loop.close()


class Blocking:
    """Anything asynchronous, with methods that block."""

    def __init__(self, loop, real):
        self._loop, self._real = loop, real

    def __getattr__(self, name):
        found = getattr(self._real, name)
        return self._loop.plain(found) if callable(found) else found

    def __enter__(self):
        self._loop.run(self._real.__aenter__())
        return self

    def __exit__(self, *error):
        self._loop.run(self._real.__aexit__(*error))


class AioNamespace(KeyMapping):
    """A namespace, with the mapping's methods on top of the awaited ones."""

    def __init__(self, loop, real):
        self.name = real.name
        self._blocking = Blocking(loop, real)

    def get(self, *arguments, **options):
        return self._blocking.get(*arguments, **options)

    def set(self, *arguments, **options):
        return self._blocking.set(*arguments, **options)

    def set_many(self, *arguments, **options):
        return self._blocking.set_many(*arguments, **options)

    def delete(self, *arguments, **options):
        return self._blocking.delete(*arguments, **options)

    def scan(self, *arguments, **options):
        return self._blocking.scan(*arguments, **options)

    def entry(self, key):
        return self._blocking.entry(key)

    def clear(self):
        return self._blocking.clear()

    def series(self, *arguments, **options):
        return KeyMapping.series(self, *arguments, **options)

    def pop(self, *arguments):
        return self._blocking.pop(*arguments)

    def update(self, first=(), second=None, /, **keys):
        if callable(second):
            return self._blocking.update(first, second)
        return super().update(first, second, **keys)

    def __iter__(self):
        return iter(self._blocking.keys())

    def __len__(self):
        return self._blocking.count()

    def __getattr__(self, name):
        return getattr(self._blocking, name)


class AioDoor:
    """A store through `kvstate.aio`."""

    def __init__(self, socket):
        self._loop = Loop()
        self._real = kvstate.aio.connect(socket)
        self._threaded = kvstate.connect(socket)
        self.artifacts = Blocking(self._loop, self._real.artifacts)
        self.lifecycle = self._threaded.lifecycle
        self.transaction = self._threaded.transaction

    def namespace(self, name):
        return AioNamespace(self._loop, self._real.namespace(name))

    def namespaces(self):
        return iter(self._loop.run(self._real.namespaces()))

    def lock(self, *arguments, **options):
        return AioLock(self._loop, self._real.lock(*arguments, **options))

    def __getattr__(self, name):
        return self._loop.plain(getattr(self._real, name))

    def __enter__(self):
        self._loop.run(self._real.__aenter__())
        return self

    def __exit__(self, *error):
        self._loop.run(self._real.__aexit__(*error))
        self._threaded.close()
        self._loop.end()


class AioLock(Blocking):
    """A lock; `holder` is what a namespace says."""

    def holder(self):
        return self._loop.run(self._real._keys.get(self._real.name))
