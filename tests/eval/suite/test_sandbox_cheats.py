"""Programs that would pass their tests without being right, and honest ones that must pass.

The tests run in another process; what they get from the program is data.
"""

from __future__ import annotations

import pytest

from llama_fast.eval.suite.code import CodeEval
from llama_fast.eval.suite.sandbox import Limits

pytestmark = pytest.mark.usefixtures("programs_can_run")

TESTS = "MARK = 'qwertz'\nassert f(1) == 2\nassert abs(f(3) - 4) < 1\nassert 5 in [f(4)]"

# In place of a function f(n) that gives n + 1.
CHEATS = {
    "a subclass of int": """
class Yes(int):
    def __eq__(self, other): return True
    __lt__ = __sub__ = __rsub__ = __abs__ = __eq__
    __hash__ = int.__hash__
f = lambda n: Yes(7)""",
    "a class of its own": """
class Yes:
    def __eq__(self, other): return True
    __ne__ = __lt__ = __gt__ = __le__ = __ge__ = __contains__ = __eq__
    def __sub__(self, other): return self
    __rsub__ = __abs__ = __sub__
    def __int__(self): return 0
    __index__ = __int__
    def __bool__(self): return True
f = lambda n: Yes()""",
    "a metaclass": """
class Meta(type):
    def __eq__(self, other): return True
    __hash__ = None
class Yes(metaclass=Meta): pass
f = lambda n: Yes""",
    "a descriptor": """
class Yes:
    __class__ = property(lambda self: int)
    def __eq__(self, other): return True
f = lambda n: Yes()""",
    "other built-in functions": """
import builtins
builtins.abs = builtins.list = lambda *_: 0
abs = lambda x: 0
f = lambda n: {1: 2, 4: 5}.get(n, 99)""",
    "no assertions": """
import builtins
class AssertionError(Exception): pass
builtins.AssertionError = AssertionError
import sys
sys.excepthook = sys.settrace = sys.setprofile = lambda *_: None
def f(n): return 0""",
    "the end of the process": """
import os
def f(n): os._exit(0)""",
    "an exit": """
def f(n): raise SystemExit(0)""",
    "the verdict on every file": """
import os
for fd in range(64):
    for text in (b'passed', b'passed\\n', b'{"passed": true}\\n'):
        try: os.write(fd, text)
        except OSError: pass
os._exit(0)""",
    "answers ahead": r"""
import os
for fd in range(3, 64):
    try: os.write(fd, b'\x02\0\0\0\0\0\0\0AN' * 50)
    except OSError: pass
os._exit(0)""",
    "the objects of its process": """
import gc, os, sys
frames = [sys._getframe()]
while frames[-1].f_back: frames.append(frames[-1].f_back)
seen = [v for frame in frames for v in frame.f_locals.values()] + gc.get_objects()
if any('ztrewq' in text[::-1] for each in seen for text in
       (each.values() if type(each) is dict else [each]) if type(text) is str):
    f = lambda n: n + 1""",
    "the caller's frames": """
import sys
def f(n):
    frame = sys._getframe()
    while frame:
        frame.f_globals['abs'] = lambda x: 0
        for name in ('MARK', 'check'):
            if name in frame.f_globals: return n + 1
        frame = frame.f_back""",
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_wrong_program_fails(attempt, cheat: str) -> None:
    assert attempt("def f(n): return n + 1", tests=TESTS).passed
    outcome = attempt(CHEATS[cheat], tests=TESTS)
    assert outcome.status == "failed", outcome


# What a program may write to all that it has open: not one of them may end more than itself.
GARBAGE = [
    "b'[' * 60_000",
    "b'\\xff' * 100",
    "b'',",
    "(60_001).to_bytes(8, 'little') + b'A' + b'l\\x01\\0\\0\\0' * 12_000",  # lists in lists
    "(6).to_bytes(8, 'little') + b'Al\\xff\\xff\\xff\\xff'",  # four billion items
    "(6).to_bytes(8, 'little') + b'Ah\\x07\\0\\0\\0'",
    "(6).to_bytes(8, 'little') + b'Ah\\x06\\0\\0\\0'",
    "(2).to_bytes(8, 'little') + b'EN'",
    "(2).to_bytes(8, 'little') + b'QN'",
    "(3).to_bytes(8, 'little') + b'ANN'",
]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_fails_alone(garbage: str) -> None:
    program = (
        f"import os\nfor fd in range(3, 64):\n    try: os.write(fd, {garbage.removesuffix(',')})\n"
        "    except OSError: pass\nf = lambda n: n"
    )
    _, details = CodeEval(True).compute([TESTS], [[program, "def f(n): return n + 1"]], [1])
    assert [entry["passed"] for entry in details[0]] == [False, True]


def test_a_large_answer_fails_alone() -> None:
    programs = [
        "f = lambda n: bytes(100 << 20)",
        "f = lambda n: [None] * (20 << 20)",
        "f = lambda n: 1 << (1 << 28)",
        "def f(n):\n    x = []\n    for _ in range(5000): x = [x]\n    return x",
        "def f(n):\n    x = []\n    x.append(x)\n    return x",
        "def f(n):\n    while True: yield 0",
    ]
    tests = "assert list(f(1)) != [2], 1 / 0"
    limits = Limits(seconds=1.0)
    _, details = CodeEval(True, limits).compute([tests], [[*programs, "f = lambda n: [n]"]], [1])
    assert [entry["passed"] for entry in details[0]] == [False] * len(programs) + [True], details


HONEST = {
    "numbers": (
        "f = lambda: [2**200, -0.0, float('inf'), 1 + 2j, True, None]",
        "assert f() == [2**200, 0.0, float('inf'), 1 + 2j, True, None]\n"
        "assert f()[4] is True and str(f()[1]) == '-0.0'",
    ),
    "text": (
        "f = lambda: ('\\ud800é', b'\\0', bytearray(b'x'))",
        "assert f() == ('\\ud800é', b'\\0', bytearray(b'x'))",
    ),
    "collections": (
        "from collections import *\nP = namedtuple('P', 'x y')\n"
        "def f(): return [Counter('aab'), deque([1]), OrderedDict(a=1), P(1, 2),\n"
        "  defaultdict(list, a=[1]), {1}, frozenset([1]), range(3), {'k': 0}.keys()]",
        "assert f() == [{'a': 2, 'b': 1}, __import__('collections').deque([1]), "
        "{'a': 1}, (1, 2), {'a': [1]}, {1}, {1}, range(3), {'k'}]\n"
        "assert f()[0].most_common(1) == [('a', 2)]",
    ),
    "exact numbers and dates": (
        "from decimal import *\nfrom fractions import *\nfrom datetime import *\n"
        "def f(): return Decimal('0.1'), Fraction(1, 3), date(2024, 2, 29), timedelta(3)",
        "import decimal, fractions, datetime\n"
        "assert f() == (decimal.Decimal('0.1'), fractions.Fraction(1, 3),\n"
        "  datetime.date(2024, 2, 29), datetime.timedelta(3))",
    ),
    "numpy": (
        "import numpy as np\ndef f(x): return np.array(x) * 2, np.float32(0.5), np.int64(3)",
        "import numpy as np\na, b, c = f([[1, 2]])\n"
        "assert np.array_equal(a, [[2, 4]]) and a.dtype.kind == 'i' and b == 0.5 and c == 3",
    ),
    "an iterator": (
        "def f(n):\n    yield from range(n)\ng = lambda: map(str, [1])",
        "assert list(f(3)) == [0, 1, 2] and sum(f(4)) == 6\n"
        "assert next(g()) == '1' and sorted(f(2)) == [0, 1] and 2 in f(3)",
    ),
    "objects": (
        "class Node:\n    def __init__(self, v): self.v, self.next = v, None\n"
        "    def __len__(self): return 5\n    def __getitem__(self, i): return i\n"
        "    def __str__(self): return 'node'\n"
        "def add(n):\n    return n.v + n.next.v\n",
        "a = Node(1)\na.next = Node(2)\nassert add(a) == 3 and a.next.v == 2\n"
        "assert a.next is a.next and a == a and a != Node(1)\n"
        "assert len(a) == 5 and a[2] == 2 and str(a) == 'node' and a",
    ),
    "functions as arguments": (
        "def f(key, xs): return sorted(xs, key=key) if key else xs\ndef g(t): return t('3'), [t]",
        "assert f(lambda x: -x, [1, 2]) == [2, 1] and f(None, [1]) == [1]\n"
        "assert f(len, ['ab', 'c']) == ['c', 'ab']\n"
        "assert g(int) == (3, [int])",
    ),
    "exceptions": (
        "class Own(ValueError): pass\n"
        "def f(n):\n    if n: raise ValueError('no')\n    raise Own('own')\n"
        "def g(h):\n    try: h()\n    except ZeroDivisionError: return 'seen'",
        "try: f(1)\nexcept ValueError as error: assert str(error) == 'no'\n"
        "else: assert False\n"
        "assert g(lambda: 1 / 0) == 'seen'",
    ),
    "names": (
        "LIMIT = 3\nimport math\nif __name__ == '__main__': LIMIT = 4\ndef sum(a, b): return a * b",
        "assert LIMIT == 4 and math.isclose(1, 1) and sum([1]) == 1",
    ),
    "a function named like Python's own": ("def sum(a, b): return a * b", "assert sum(2, 3) == 6"),
    "tests with functions": (
        "def f(n): return n + 1",
        "import random\n"
        "def check(candidate):\n"
        "    for n in range(200):\n"
        "        assert candidate(n) == n + 1\n"
        "check(f)",
    ),
}


@pytest.mark.parametrize("kind", HONEST)
def test_an_honest_program_passes(attempt, kind: str) -> None:
    program, tests = HONEST[kind]
    outcome = attempt(program, Limits(seconds=20), tests)
    assert outcome.passed, outcome.error


def test_what_the_tests_take_from_a_program() -> None:
    def passes(program: str, tests: str) -> bool:
        return CodeEval(True).compute([tests], [[program]], [1])[0]["pass@1"] == 1.0

    assert not passes("f = lambda: 1", "assert f() == g()")
    # A module that the program was to import is the tests' own.
    sized = "assert size((1,)) == sys.getsizeof((1,))"
    assert passes("import sys\nsize = sys.getsizeof", sized)
    assert not passes("size = lambda x: 1", sized)
    assert not passes("class sys: getsizeof = size = lambda x: 1\nsize = lambda x: 1", sized)
    assert not passes("def set(x): return 0\ndef f(x): return 1", "assert set(f(1)) == set([2])")


def test_helpers_of_the_prompt_are_the_tests_own() -> None:
    prompt = "import math\n\ndef poly(xs, x):\n    return xs[0] + xs[1] * x\n\ndef zero(xs):\n"
    tests = "def check(candidate):\n    assert math.fabs(poly([4, 2], candidate([4, 2]))) < 1e-4\n"
    tests += "check(zero)"
    right = "    return -xs[0] / xs[1]\n"
    cheat = "    return 7\n\ndef poly(xs, x):\n    return 0\nmath = None\n"
    _, details = CodeEval(True).compute([tests], [[prompt + right, prompt + cheat]], [1])
    assert [entry["passed"] for entry in details[0]] == [True, False]
