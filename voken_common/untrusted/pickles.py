"""Pickles of others: walked once without building anything, so that reading them is cheap and shallow.

A pickle of a few kilobytes can make its reader nest tuples until the interpreter crashes, double them until a hash
takes years, or address a memo of gigabytes. The walk here runs over the instructions with two numbers in place of every
object, how deep it is and how many objects hashing it visits, and refuses what no checkpoint needs. It has no
recursion, its time is linear in the number of instructions, and it bounds that number.
"""

from __future__ import annotations

import mmap
import pickletools
from typing import NoReturn

from voken_common.untrusted.limits import LimitError

LARGEST = 64 << 20
"""Bytes of one pickle; the tensors of a checkpoint lie beside it. Tens of thousands of tensors take ten million."""
MOST_STEPS = 2_000_000
"""Instructions, of which a tensor takes about fifty; a name to be looked up counts as `_NAME_COST`."""
DEEPEST = 50
"""Tuples within each other."""
LARGEST_VALUE = 100_000
"""Objects in a tuple, those in its tuples included as often as they are in it."""
MOST_WORK = 20_000_000
"""Objects that building all values visits."""
LONGEST_NUMBER = 400
"""Characters or bytes of an integer."""
_NAME_COST = 100
_MEMO_GAP = 256

_Value = tuple[int, int]
_LEAF: _Value = (0, 1)
_MUTABLE: _Value = (1, 1)
"""A list, set or dictionary: it cannot be hashed, so what is in it does not count for what it is in."""

_FIXED = {"K": 1, "M": 2, "J": 4, "G": 8}
_COUNTED = {"U": 1, "T": 4, "X": 4, "\x8c": 1, "\x8d": 8, "C": 1, "B": 4, "\x8e": 8, "\x96": 8, "\x8a": 1, "\x8b": 4}
_LINES = {"I": 1, "L": 1, "F": 1, "S": 1, "V": 1, "P": 1, "c": 2, "i": 2}
_NUMBERS = frozenset("ILF\x8a\x8b")
_PUSHED: dict[str, _Value] = dict.fromkeys("KMJGUTXCBILFSVPcN)\x8c\x8d\x8e\x96\x8a\x8b\x88\x89", _LEAF) | dict.fromkeys(
    "]}\x8f", _MUTABLE
)
_TAKES = {"R": 2, "\x81": 2, "\x92": 3, "Q": 1, "\x85": 1, "\x86": 2, "\x87": 3, "\x93": 2}
_TAKES_TO_MARK = frozenset("t\x91io")
"""These make one value, that can be hashed, of several."""
_FILLS = {"a": 1, "s": 2, "b": 1}
_FILLS_TO_MARK = frozenset("eu\x90")
_NAMES = {opcode.code: opcode.name for opcode in pickletools.opcodes}


def pickle_end(data: bytes | mmap.mmap, start: int = 0) -> int:
    """Walk one pickle and return where it ends.

    Args:
        data: holds it.
        start: where it begins.

    Raises:
        LimitError: an instruction that there is not, or that no checkpoint needs; or more than the limits above.
    """
    return _Walk(data, start).run()


class _Walk:
    def __init__(self, data: bytes | mmap.mmap, start: int):
        self._data, self._position = data, start
        self._end = min(len(data), start + LARGEST)
        self._stack: list[_Value] = []
        self._marks: list[int] = []
        self._memo: dict[int, _Value] = {}
        self._steps = self._work = 0

    def run(self) -> int:
        data, stack = self._data, self._stack
        while True:
            if self._position >= self._end:
                self._refuse(f"it does not end within {self._end} bytes")
            self._steps += 1
            if self._steps > MOST_STEPS:
                self._refuse(f"it has more than {MOST_STEPS} instructions")
            code = chr(data[self._position])
            self._position += 1
            if code in _PUSHED:
                self._skip_argument(code)
                stack.append(_PUSHED[code])
            elif code in "q\x94rhjpg":
                self._memory(code)
            elif code == "(":
                self._marks.append(len(stack))
            elif code in _TAKES:
                if code == "\x93":
                    self._steps += _NAME_COST
                stack.append(self._made(self._pop(_TAKES[code])))
            elif code in _TAKES_TO_MARK:
                self._skip_argument(code)
                stack.append(self._made(self._pop_to_mark()))
            elif code in _FILLS:
                self._joined(self._pop(_FILLS[code]))
            elif code in _FILLS_TO_MARK:
                self._joined(self._pop_to_mark())
            elif code in "ld":
                self._joined(self._pop_to_mark())
                stack.append(_MUTABLE)
            elif code == ".":
                return self._position
            else:
                self._rare(code)

    def _rare(self, code: str) -> None:
        if code == "0":
            if self._marks and self._marks[-1] == len(self._stack):
                self._marks.pop()
            else:
                self._pop(1)
        elif code == "1":
            self._pop_to_mark()
        elif code == "2":
            self._stack.append(self._top())
        elif code == "\x80":
            if self._number(1) > 5:
                self._refuse("it is of a protocol after 5")
        elif code == "\x95":
            if self._number(8) > self._end - self._position:
                self._refuse("it is cut off")
        elif code in _NAMES:
            self._refuse(f"it has the instruction {_NAMES[code]}, which no checkpoint needs")
        else:
            self._refuse(f"byte {ord(code)} is no instruction")

    def _skip_argument(self, code: str) -> None:
        start = self._position
        if code in _FIXED:
            self._move(_FIXED[code])
        elif code in _COUNTED:
            self._move(self._number(_COUNTED[code]))
        elif code in _LINES:
            for _ in range(_LINES[code]):
                self._line()
        if code in _NUMBERS and self._position - start > LONGEST_NUMBER:
            self._refuse(f"it has an integer of more than {LONGEST_NUMBER} digits")
        if code in "ci":
            self._steps += _NAME_COST

    def _memory(self, code: str) -> None:
        """The instructions that keep a value under a number, or bring one back."""
        if code == "\x94":
            key = len(self._memo)
        elif code in "pg":
            digits = self._line()
            if not digits.isdigit() or len(digits) > 9:
                self._refuse("a number of the memo is none")
            key = int(digits)
        else:
            key = self._number(1 if code in "qh" else 4)
        if code in "hjg":
            if key not in self._memo:
                self._refuse(f"it takes number {key} from the memo, where nothing is")
            self._stack.append(self._memo[key])
            return
        if key > self._steps + _MEMO_GAP:
            self._refuse(f"it keeps a value under number {key}, far beyond those before")
        self._memo[key] = self._top()

    def _made(self, parts: list[_Value]) -> _Value:
        """A value that can be hashed, made of others."""
        value = self._joined(parts)
        if value[1] > LARGEST_VALUE:
            self._refuse(f"tuples hold each other so often that one has more than {LARGEST_VALUE} objects")
        return value

    def _joined(self, parts: list[_Value]) -> _Value:
        """The value made of others, all of which are visited in the making."""
        depth, size = 0, 1
        for part_depth, part_size in parts:
            if part_depth > depth:
                depth = part_depth
            size += part_size
        self._work += size
        if depth >= DEEPEST:
            self._refuse(f"tuples are nested more than {DEEPEST} deep")
        if self._work > MOST_WORK:
            self._refuse(f"building it visits more than {MOST_WORK} objects")
        return depth + 1, size

    def _top(self) -> _Value:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            self._refuse("it takes a value where none is")
        return self._stack[-1]

    def _pop(self, count: int) -> list[_Value]:
        if len(self._stack) - count < (self._marks[-1] if self._marks else 0):
            self._refuse("it takes a value where none is")
        parts = self._stack[-count:]
        del self._stack[-count:]
        return parts

    def _pop_to_mark(self) -> list[_Value]:
        if not self._marks:
            self._refuse("it takes values from a mark, and there is none")
        mark = self._marks.pop()
        parts = self._stack[mark:]
        del self._stack[mark:]
        return parts

    def _number(self, size: int) -> int:
        begin = self._position
        self._move(size)
        return int.from_bytes(self._data[begin : self._position], "little")

    def _line(self) -> bytes:
        begin = self._position
        found = self._data.find(b"\n", begin, self._end)
        if found < 0:
            self._refuse("it is cut off")
        self._position = found + 1
        return self._data[begin:found]

    def _move(self, size: int) -> None:
        if size > self._end - self._position:
            self._refuse("it is cut off")
        self._position += size

    def _refuse(self, reason: str) -> NoReturn:
        raise LimitError(f"its pickle is refused at byte {self._position}: {reason}")
