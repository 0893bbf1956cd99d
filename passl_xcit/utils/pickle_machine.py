"""Plain data out of pickles, without the pickle module.

`pickle.load` calls whatever a file names. Here a file's opcodes move plain values about on a stack and nothing
else: the few names that the files of a format need stand for inert objects of this package, and "calling" one runs
a method that checks every argument. Nothing is imported, looked up or called by a name from the file.

The opcodes are those of Python's `pickletools`.
"""

import struct

from passl_xcit.utils.errors import CheckpointError
from passl_xcit.utils.refusals import PLAIN, damaged, short, unwanted

MAX_OPCODES = 500_000
MAX_VALUES = 150_000
MAX_DEPTH = 16
# Among wider integers a file could choose keys that all collide in the dictionary.
MAX_KEY = 2**24

SCALARS = (int, float, bool, type(None))


class StandIn:
    """What is on the stack but not plain data: a name from the file, or an object that it is making.

    A file can call a stand-in, set its state, or leave it where a value belongs: what a subclass does not define is
    refused.
    """

    def call(self, machine, arguments):
        raise machine.unwanted("calls something that is not a constructor of plain data")

    def set_state(self, machine, state):
        raise machine.unwanted("sets the state of something that is not a new object")

    def plain(self, machine, depth):
        raise machine.unwanted("holds a class, a function or an object without data")


class Function(StandIn):
    """A name that may be called: `make(machine, arguments)` checks the arguments and gives what is made of them."""

    def __init__(self, make):
        self.make = make

    def call(self, machine, arguments):
        return self.make(machine, arguments)


class Machine:
    """The stack, marks and memo of one pickle; a subclass says which names a file of its format may use.

    Args:
        data: bytes of the whole file.
        name: what error messages call the file.
        position: where the pickle begins.
    """

    names = {}  # {(module, name): StandIn}
    refusals = {}  # {(module, name): a better explanation of why it is refused}
    hint = PLAIN

    def __init__(self, data, name, position=0):
        self.data, self.name, self.position = memoryview(data), name, position
        self.frame_end = 0
        self.stack, self.marks, self.memo = [], [], {}
        self.values = 0
        # Memoised bytes can be copied out again and again, so that a small file could fill the memory.
        self.budget = 8 * len(data) + 2**24

    def load(self):
        """The plain object of a pickle that ends where the data end."""
        top = self.run()
        if self.position != len(self.data):
            raise self.damaged(f"has {len(self.data) - self.position} bytes after its end")
        return self.plain(top, 0)

    def run(self):
        """The one object that the pickle leaves on the stack; `position` is then behind it."""
        if self.take(1) != b"\x80" or self.take(1)[0] not in (2, 3, 4, 5):
            raise self.unwanted("is not a pickle of protocol 2 to 5", "save it again with a newer program")
        for _ in range(MAX_OPCODES):
            code = self.take(1)[0]
            if code == ord("."):
                return self.result()
            operation = self.operations.get(code)
            if operation is None:
                raise self.unwanted(f"uses the pickle opcode {bytes([code])!r}")
            operation(self)
        raise self.unwanted(f"has more than {MAX_OPCODES:,} pickle opcodes")

    def result(self):
        if len(self.stack) != 1 or self.marks:
            raise self.damaged("does not leave exactly one object")
        return self.stack[0]

    def plain(self, value, depth):
        """A copy of `value` without stand-ins; what the file shared or nested in itself is bounded here."""
        self.values += 1
        if depth > MAX_DEPTH or self.values > MAX_VALUES:
            raise self.unwanted(f"nests deeper than {MAX_DEPTH} or has over {MAX_VALUES:,} values")
        kind = type(value)
        if kind in SCALARS:
            return value
        if kind is dict:
            return {key: self.plain(item, depth + 1) for key, item in value.items()}
        if kind is list or kind is tuple:
            return kind([self.plain(item, depth + 1) for item in value])
        if isinstance(value, StandIn):
            return value.plain(self, depth)
        self.spend(len(value))
        return bytes(value) if kind is memoryview else value

    def damaged(self, reason):
        return damaged(self.name, reason)

    def unwanted(self, reason, hint=None):
        return unwanted(self.name, reason, hint or self.hint)

    def spend(self, count):
        self.budget -= count
        if self.budget < 0:
            raise self.unwanted("unpacks to many times its own size")

    def take(self, count):
        """The next `count` bytes, not copied."""
        start, end = self.position, self.position + count
        if end > len(self.data):
            raise self.damaged(f"is cut short: {count} bytes wanted at byte {start}, {len(self.data) - start} left")
        if start < self.frame_end < end:
            raise self.damaged(f"has an item at byte {start} that crosses the end of its frame")
        self.position = end
        return self.data[start:end]

    def unsigned(self, width):
        return int.from_bytes(self.take(width), "little")

    def frame(self):
        length = self.unsigned(8)
        if self.position < self.frame_end or length > len(self.data) - self.position:
            raise self.damaged("has a frame that is longer than what is left of the file or the outer frame")
        self.frame_end = self.position + length

    def push(self, value):
        self.stack.append(value)

    def top(self):
        self.need(1)
        return self.stack[-1]

    def need(self, count):
        if len(self.stack) < count:
            raise self.damaged("takes more off the stack than was put there")

    def mark(self):
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self):
        if not self.marks:
            raise self.damaged("closes a list, tuple or dict that was not opened")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def pop(self, count):
        self.need(count)
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def integer(self, width, signed):
        self.push(int.from_bytes(self.take(width), "little", signed=signed))

    def real(self):
        self.push(struct.unpack(">d", self.take(8))[0])

    def text(self, width):
        self.push(self.decode(self.take(self.unsigned(width))))

    def decode(self, raw):
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError:
            raise self.damaged("has a text that is not UTF-8") from None

    def raw(self, width):
        self.push(self.take(self.unsigned(width)))

    def append(self, items):
        target = self.top()
        if type(target) is not list:
            raise self.damaged("appends to something that is not a list")
        target.extend(items)

    def set_items(self, items):
        target = self.top()
        if type(target) is not dict or len(items) % 2:
            raise self.damaged("sets items of something that is not a dict, or a key without a value")
        for key, value in zip(items[::2], items[1::2]):
            if type(key) is not str and not (type(key) is int and abs(key) < MAX_KEY):
                raise self.unwanted("has a dict key that is neither text nor a small integer")
            if key in target:
                raise self.damaged(f"has the key {short(key)} twice in one dict")
            target[key] = value

    def put(self, index):
        if index >= MAX_OPCODES:
            raise self.damaged(f"numbers an object {index}")
        self.memo[index] = self.top()

    def get(self, index):
        if index not in self.memo:
            raise self.damaged(f"refers to object {index}, which is not in it")
        self.push(self.memo[index])

    def global_line(self):
        """Two lines of text: a module and a name in it."""
        names = []
        for _ in range(2):
            line, found, _ = bytes(self.data[self.position : self.position + 256]).partition(b"\n")
            if not found:
                raise self.damaged("names a global without an end of line")
            names.append(self.decode(self.take(len(line) + 1)[:-1]))
        self.global_(names)

    def global_(self, names):
        if [type(part) for part in names] != [str, str]:
            raise self.damaged("names a global by something that is not text")
        module, name = names
        if (module, name) in self.refusals:
            raise CheckpointError(f"{self.name}: {self.refusals[module, name]}")
        if (module, name) not in self.names:
            raise self.unwanted(f"asks for {short(f'{module}.{name}')}, which is not plain data")
        self.push(self.names[module, name])

    def reduce(self):
        function, arguments = self.pop(2)
        if not isinstance(function, StandIn) or type(arguments) is not tuple:
            raise self.unwanted("calls something that is not a constructor of plain data")
        self.push(function.call(self, arguments))

    def build(self):
        target, state = self.pop(2)
        if not isinstance(target, StandIn):
            raise self.unwanted("sets the state of something that is not a new object")
        target.set_state(self, state)
        self.push(target)

    operations = {
        0x95: frame,
        ord("("): mark,
        ord("N"): lambda m: m.push(None),
        0x88: lambda m: m.push(True),
        0x89: lambda m: m.push(False),
        ord("J"): lambda m: m.integer(4, signed=True),
        ord("K"): lambda m: m.integer(1, signed=False),
        ord("M"): lambda m: m.integer(2, signed=False),
        0x8A: lambda m: m.integer(m.unsigned(1), signed=True),
        ord("G"): real,
        0x8C: lambda m: m.text(1),
        ord("X"): lambda m: m.text(4),
        0x8D: lambda m: m.text(8),
        ord("C"): lambda m: m.raw(1),
        ord("B"): lambda m: m.raw(4),
        0x8E: lambda m: m.raw(8),
        0x96: lambda m: m.raw(8),
        ord("]"): lambda m: m.push([]),
        ord("a"): lambda m: m.append(m.pop(1)),
        ord("e"): lambda m: m.append(m.pop_mark()),
        ord(")"): lambda m: m.push(()),
        0x85: lambda m: m.push(tuple(m.pop(1))),
        0x86: lambda m: m.push(tuple(m.pop(2))),
        0x87: lambda m: m.push(tuple(m.pop(3))),
        ord("t"): lambda m: m.push(tuple(m.pop_mark())),
        ord("}"): lambda m: m.push({}),
        ord("s"): lambda m: m.set_items(m.pop(2)),
        ord("u"): lambda m: m.set_items(m.pop_mark()),
        ord("q"): lambda m: m.put(m.unsigned(1)),
        ord("r"): lambda m: m.put(m.unsigned(4)),
        0x94: lambda m: m.put(len(m.memo)),
        ord("h"): lambda m: m.get(m.unsigned(1)),
        ord("j"): lambda m: m.get(m.unsigned(4)),
        ord("c"): global_line,
        0x93: lambda m: m.global_(m.pop(2)),
        ord("R"): reduce,
        ord("b"): build,
    }
