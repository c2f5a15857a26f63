"""Code reading: what a few lines of Python print. The printed text is computed by running the same steps."""

from __future__ import annotations

from random import Random

from catchment.capabilities.packs._draw import Draft, between, choice_items, collect, pick, seeded, some, words
from catchment.capabilities.packs._words import COLOURS, NAMES, WORDS
from catchment.capabilities.tasks import Format, Item, Task

FORMATS = (
    Format("comment", "{prompt}\n# prints:"),
    Format("output", "Code:\n{prompt}\nOutput:", "\n"),
    Format("session", "This Python program\n\n{prompt}\n\nprints the following line:", "\n"),
)
SHORT = tuple(w for w in WORDS if 4 <= len(w) <= 6)
SHOTS = (
    Item('x = 5\ny = "cat"\nprint(y)', ("cat", "5", "y"), 0),
    Item('d = {"a": "sun", "b": "ice"}\nprint(d["a"])', ("sun", "ice", "a"), 0),
    Item('w = ["ink", "oak", "pie"]\nprint(w[1])', ("oak", "ink", "pie"), 0),
    Item('s = "tea"\nprint(s.upper())', ("TEA", "tea", "Tea"), 0),
)
VARIABLES = words("x y a b n k total count value size")
LISTS = words("items names words data things values")


def _near(rng: Random, right: int, *tempting: int) -> tuple[str, str, str]:
    """Three wrong numbers: the tempting ones first, then neighbours."""
    pool = [t for t in dict.fromkeys(tempting) if t != right]
    pool += [n for n in some(rng, (right + 1, right - 1, right + 2, right + 10, right + 3), 5) if n not in pool]
    pool = [n for n in pool if n >= 0 or right < 0]
    return str(pool[0]), str(pool[1]), str(pool[2])


def print_word(rng: Random) -> Draft:
    """A name bound to a string."""
    names, words = some(rng, VARIABLES[:6], 3), some(rng, SHORT, 4)
    k = pick(rng, (0, 1, 2))
    lines = [f'{n} = "{w}"' for n, w in zip(names, words[:3], strict=True)]
    wrong = tuple(w for i, w in enumerate(words) if i != k)
    return Draft("\n".join([*lines, f"print({names[k]})"]), words[k], wrong, "variable")


def print_number(rng: Random) -> Draft:
    """A name bound to a number."""
    names = some(rng, VARIABLES, 3)
    values = some(rng, range(10, 99), 4)
    k = pick(rng, (0, 1, 2))
    lines = [f"{n} = {v}" for n, v in zip(names, values[:3], strict=True)]
    wrong = tuple(str(v) for i, v in enumerate(values) if i != k)
    return Draft("\n".join([*lines, f"print({names[k]})"]), str(values[k]), wrong, "number")


def lookup(rng: Random) -> Draft:
    """A key of a dictionary."""
    keys, values = some(rng, NAMES, 3), some(rng, dict.fromkeys((*COLOURS, *SHORT[:20])), 4)
    k = pick(rng, (0, 1, 2))
    pairs = ", ".join(f'"{key.lower()}": "{v}"' for key, v in zip(keys, values[:3], strict=True))
    code = f'd = {{{pairs}}}\nprint(d["{keys[k].lower()}"])'
    return Draft(code, values[k], tuple(v for i, v in enumerate(values) if i != k), "dictionary")


def index(rng: Random) -> Draft:
    """An element of a list by its index."""
    words, name = some(rng, SHORT, 4), pick(rng, LISTS)
    k = pick(rng, (0, 0, 1, 2, -1))
    code = f"{name} = [{', '.join(repr(w) for w in words)}]\nprint({name}[{k}])"
    return Draft(code, words[k], tuple(w for w in words if w != words[k]), "index")


def formatted(rng: Random) -> Draft:
    """A formatted string with two names."""
    (a, b), (c, d) = some(rng, NAMES, 2), some(rng, COLOURS, 2)
    word = pick(rng, ("likes", "wears", "wants", "sees"))
    code = f'name = "{a}"\ncolor = "{c}"\nprint(f"{{name}} {word} {{color}}")'
    return Draft(code, f"{a} {word} {c}", (f"{b} {word} {c}", f"{a} {word} {d}", f"{c} {word} {a}"), "formatted")


def join(rng: Random) -> Draft:
    """Concatenation of two strings."""
    a, b = some(rng, SHORT, 2)
    name = pick(rng, VARIABLES[:4])
    first = pick(rng, (True, False))
    right, other = (f"{name} + '{b}'", a + b) if first else (f"'{b}' + {name}", b + a)
    swapped = b + a if first else a + b
    return Draft(f'{name} = "{a}"\nprint({right})', other, (swapped, a + a, b + b), "concatenation")


def add(rng: Random) -> Draft:
    """Two numbers added."""
    x, y = some(rng, VARIABLES, 2)
    a, b = between(rng, 2, 30), between(rng, 2, 9)
    code = f"{x} = {a}\n{y} = {x} + {b}\nprint({y})"
    return Draft(code, str(a + b), _near(rng, a + b, a, b), "sum")


def length(rng: Random) -> Draft:
    """The length of a string or list."""
    if pick(rng, (True, False)):
        word, name = pick(rng, SHORT), pick(rng, VARIABLES[:4])
        return Draft(f'{name} = "{word}"\nprint(len({name}))', str(len(word)), _near(rng, len(word)), "length")
    numbers, name = [between(rng, 1, 9) for _ in range(between(rng, 2, 6))], pick(rng, LISTS)
    size = len(numbers)
    return Draft(f"{name} = {numbers}\nprint(len({name}))", str(size), _near(rng, size), "length")


def condition(rng: Random) -> Draft:
    """Which branch is taken."""
    a, b, c, d = some(rng, SHORT, 4)
    x, limit = some(rng, range(1, 60), 2)
    name, sign = pick(rng, VARIABLES), pick(rng, ("<", ">"))
    true = x < limit if sign == "<" else x > limit
    code = f'{name} = {x}\nif {name} {sign} {limit}:\n    print("{a}")\nelse:\n    print("{b}")'
    return Draft(code, a if true else b, (b if true else a, c, d), "condition")


def boolean(rng: Random) -> Draft:
    """Membership in a list."""
    words, name = some(rng, SHORT, 4), pick(rng, LISTS)
    inside = pick(rng, (True, False))
    probe = words[pick(rng, (0, 1, 2))] if inside else words[3]
    code = f"{name} = [{', '.join(repr(w) for w in words[:3])}]\nprint('{probe}' in {name})"
    return Draft(code, str(inside), (str(not inside), "None", "Error"), "membership")


def loop(rng: Random) -> Draft:
    """The last value of a loop over a list, or the sum."""
    numbers, name = some(rng, range(1, 10), 3), pick(rng, VARIABLES)
    if pick(rng, (True, False)):
        right = sum(numbers)
        code = f"{name} = 0\nfor i in {numbers}:\n    {name} = {name} + i\nprint({name})"
        return Draft(code, str(right), _near(rng, right, numbers[-1], right - numbers[0]), "loop")
    code = f"for {name} in {numbers}:\n    last = {name}\nprint(last)"
    return Draft(code, str(numbers[-1]), (str(numbers[0]), str(numbers[1]), str(sum(numbers))), "loop")


def call(rng: Random) -> Draft:
    """A function that greets or doubles."""
    word, other, third, fourth = some(rng, (*NAMES, *(w.capitalize() for w in SHORT[:30])), 4)
    greeting = pick(rng, ("Hello", "Hi", "Dear", "Bye", "Welcome", "Thanks"))
    name = pick(rng, ("greet", "say", "hello", "message"))
    code = f'def {name}(who):\n    return "{greeting} " + who\n\nprint({name}("{word}"))'
    return Draft(code, f"{greeting} {word}", tuple(f"{greeting} {w}" for w in (other, third, fourth)), "call")


KINDS = (print_word, print_number, lookup, index, formatted, join, add, length, condition, boolean, loop, call)


def build() -> Task:
    """The task: 1,600 items of 12 kinds, four choices each."""
    return Task(
        name="code",
        items=choice_items(seeded("code order"), collect(seeded("code"), KINDS, 1608)),
        scorer="choice",
        formats=FORMATS,
        style="continue",
        shots=SHOTS,
        description="what a short Python program prints",
    )
