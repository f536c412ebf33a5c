"""Services for the tests on Ray."""

import os
import threading
import time

from dbjax.runtime import Future


class Log:
    """A service that writes down what it is told."""

    def __init__(self, node):
        self.node, self.said, self.opened = node, [], Future("opening")

    def say(self, word):
        self.said.append(word)
        return len(self.said)

    async def slow(self, word):
        self.said.append(f"{word} begins")
        await self.node.sleep(0.05)
        return self.say(f"{word} ends")

    def fail(self):
        raise OverflowError("too much")

    def unsendable(self):
        return threading.Lock()

    def wait(self):
        return self.opened

    def open(self):
        self.opened.set_result("open")

    def life(self):
        return self.node.incarnation, os.getpid()

    def words(self):
        return self.said


class Middle:
    def __init__(self, node, log):
        self.node, self.log = node, log

    async def relay(self, word):
        return await self.log.call(Log.say, await self.node.compute(str.upper, word))


class Counter:
    """Counts calls, each once; knows how to go on."""

    def __init__(self, node):
        self.counted, self.last = 0, 0

    def add(self, number):
        if number > self.last:
            self.counted, self.last = self.counted + 1, number
        return self.counted

    def pid(self):
        return os.getpid()

    def give_up(self):
        """Finds that the other copy does not answer, as if the connection to it were broken."""
        from dbjax.runtime.ray.handle import PEERS

        PEERS.tell("suspect", PEERS["counter/backup"].peer._replace(actor=None))

    def state(self):
        return self.counted, self.last

    def restore(self, state, checkpoint=False):
        self.counted, self.last = state


class Slow:
    """An argument that takes its time to compile."""

    def __init__(self):
        self.compiled = 0

    def compile_ahead(self):
        time.sleep(1)
        self.compiled += 1
