"""Grammar: one continuation is English, the others break one rule."""

from __future__ import annotations

from random import Random

from catchment.capabilities.packs import _lexicon as lex
from catchment.capabilities.packs._draw import Draft, choice_items, collect, pick, seeded, some
from catchment.capabilities.tasks import Format, Task

FORMATS = (
    Format("plain"),
    Format("text", "Text: {prompt}"),
    Format("correct", "Here is a sentence in good English.\n\n{prompt}"),
)
MEET = ("saw", "met", "visited", "called", "helped", "thanked", "followed")


def agreement(rng: Random) -> Draft:
    """Number of subject and of the verb *to be*, with a time in front."""
    plural = pick(rng, (0, 1))
    noun = pick(rng, lex.PEOPLE)[plural]
    rest = f"{pick(rng, lex.DEGREES)} {pick(rng, lex.STATES)}"
    right, wrong = ("is", "are") if not plural else ("are", "is")
    prompt = f"{pick(rng, lex.TIMES)}, the {noun} {pick(rng, lex.PLACES)}"
    return Draft(prompt, f"{right} {rest}.", (f"{wrong} {rest}.", f"being {rest}."), "subject and verb")


def attractor(rng: Random) -> Draft:
    """The subject decides the number, not the noun next to the verb."""
    plural = pick(rng, (0, 1))
    head, other = some(rng, lex.OBJECTS, 2)
    joint = pick(rng, ("next to", "near", "behind", "under", "beside", "in front of"))
    prompt = f"The {head[plural]} {joint} the {pick(rng, lex.ADJECTIVES)} {other[1 - plural]}"
    right, wrong = ("was", "were") if not plural else ("were", "was")
    fault = pick(rng, lex.FAULTS)
    return Draft(prompt, f"{right} {fault}.", (f"{wrong} {fault}.", f"been {fault}."), "attractor")


def verb_form(rng: Random) -> Draft:
    """Third person singular or plural of a full verb."""
    plural = pick(rng, (0, 1))
    noun = pick(rng, lex.PEOPLE)[plural]
    bare, third, gerund, rest = pick(rng, lex.VERBS)
    right, wrong = (third, bare) if not plural else (bare, third)
    prompt = f"{pick(rng, lex.TIMES)} the {pick(rng, ('old', 'young', 'tall', 'friendly'))} {noun}"
    return Draft(prompt, f"{right} {rest}.", (f"{wrong} {rest}.", f"{gerund} {rest}."), "verb form")


def determiner(rng: Random) -> Draft:
    """Determiner and noun agree in number."""
    plural = pick(rng, (0, 1))
    noun = pick(rng, lex.OBJECTS)[plural]
    rest = f"{pick(rng, lex.ADJECTIVES)} {noun}."
    right, wrong = (("this", "that"), ("these", "those"))[:: -1 if plural else 1]
    prompt = (
        f"{pick(rng, lex.PAST_TIMES)} {pick(rng, lex.SHE + lex.HE)} {pick(rng, ('bought', 'sold', 'found', 'lost'))}"
    )
    return Draft(prompt, f"{pick(rng, right)} {rest}", tuple(f"{w} {rest}" for w in wrong), "determiner")


def participle(rng: Random) -> Draft:
    """Participle after *have*, past tense without it."""
    base, past, done, regular, thing = pick(rng, lex.IRREGULAR)
    who = f"the {pick(rng, lex.PEOPLE)[0]}"
    if pick(rng, (True, False)):
        prompt = f"{pick(rng, ('This time', 'By now', 'Without asking,', 'In the end,'))} {who} has already"
        return Draft(
            prompt + f" {pick(rng, ('quickly', 'simply', 'secretly', 'happily'))}",
            f"{done} {thing}.",
            (f"{base} {thing}.", f"{regular} {thing}."),
            "participle",
        )
    prompt = f"{pick(rng, lex.PAST_TIMES)}, {who} {pick(rng, lex.PLACES)}"
    return Draft(
        prompt,
        f"{past} {thing}.",
        (f"{done} {thing}." if done != past else f"{base}s {thing}.", f"{regular} {thing}."),
        "past tense",
    )


def reflexive(rng: Random) -> Draft:
    """The reflexive pronoun agrees with its subject."""
    who = pick(rng, ("she", "he", "they"))
    subject = {
        "she": pick(rng, lex.SHE),
        "he": pick(rng, lex.HE),
        "they": f"The {pick(rng, lex.PEOPLE)[1]}",
    }[who]
    forms = {"she": "herself", "he": "himself", "they": "themselves"}
    verb = pick(rng, ("looked at", "talked about", "was proud of", "laughed at", "took care of"))
    verb = verb.replace("was", "were") if who == "they" else verb
    rest = pick(rng, ("in the mirror", "after the game", "before the test", "all day", "again"))
    prompt = f"{subject} {pick(rng, lex.PLACES)} {verb}"
    wrong = tuple(f"{form} {rest}." for key, form in forms.items() if key != who)
    return Draft(prompt, f"{forms[who]} {rest}.", wrong, "reflexive")


def polarity(rng: Random) -> Draft:
    """*Ever* and *any* need a negation."""
    noun, place = pick(rng, lex.PEOPLE)[0], pick(rng, lex.PLACES)
    opening = pick(rng, ("As far as we know", "To be honest", "In my opinion", "If you ask me", "In fact"))
    say = pick(rng, ("I think", "I am sure", "they say", "people believe", "I suppose"))
    where = pick(rng, ("in this town", "in this family", "in this school", "in this story", "so far"))
    verb = pick(rng, ("slept", "worked", "waited", "danced", "played"))
    rest = f"{noun} has ever {verb} {place}."
    prompt = f"{opening}, {say} that {where}"
    return Draft(prompt, f"no {rest}", (f"one {rest}", f"the {rest}"), "negative polarity")


def adjective_order(rng: Random) -> Draft:
    """Number, size, colour, noun."""
    count, size = pick(rng, ("two", "three", "four", "five")), pick(rng, ("big", "small", "large", "little"))
    colour, noun = pick(rng, ("red", "blue", "green", "black", "white")), pick(rng, lex.OBJECTS)[1]
    prompt = f"{pick(rng, lex.SHE + lex.HE)} {pick(rng, ('bought', 'saw', 'found', 'wanted', 'painted'))}"
    prompt += f" {pick(rng, ('only', 'exactly', 'at least', 'another'))}"
    wrong = (f"{size} {count} {colour} {noun}.", f"{count} {noun} {size} {colour}.")
    return Draft(prompt, f"{count} {size} {colour} {noun}.", wrong, "word order")


def collocation(rng: Random) -> Draft:
    """Adjective and its preposition."""
    word, right, wrong, rest = pick(rng, lex.COLLOCATIONS)
    prompt = f"The {pick(rng, lex.PEOPLE)[0]} {pick(rng, lex.PLACES)} was {word}"
    return Draft(prompt, f"{right} {rest}.", tuple(f"{w} {rest}." for w in wrong), "collocation")


def verb_preposition(rng: Random) -> Draft:
    """Verb and its preposition."""
    word, right, wrong, rest = pick(rng, lex.VERB_PREPOSITION)
    prompt = f"{pick(rng, lex.PAST_TIMES)} the {pick(rng, lex.PEOPLE)[1]} {word}"
    return Draft(prompt, f"{right} {rest}.", tuple(f"{w} {rest}." for w in wrong), "preposition")


def case(rng: Random) -> Draft:
    """Object form of a pronoun."""
    right, *wrong = pick(
        rng, (("him", "he", "himself"), ("them", "they", "their"), ("me", "I", "my"), ("us", "we", "our"))
    )
    prompt = f"{pick(rng, lex.PAST_TIMES)}, {pick(rng, lex.SHE)} {pick(rng, MEET)}"
    rest = pick(rng, lex.PLACES)
    return Draft(prompt, f"{right} {rest}.", tuple(f"{w} {rest}." for w in wrong), "pronoun")


def auxiliary(rng: Random) -> Draft:
    """Bare verb after *can* and *did*, gerund after *to be*."""
    bare, third, gerund, rest = pick(rng, lex.VERBS)
    noun, time = pick(rng, lex.PEOPLE), pick(rng, lex.TIMES).lower()
    modal = pick(rng, ("can", "will", "must", "should", "is", "was"))
    right, wrong = (gerund, bare) if modal in ("is", "was") else (bare, gerund)
    prompt = f"{pick(rng, ('I know that', 'We heard that', 'It seems that'))} {time} the {noun[0]} {modal}"
    return Draft(prompt, f"{right} {rest}.", (f"{wrong} {rest}.", f"{third} {rest}."), "auxiliary")


def comparative(rng: Random) -> Draft:
    """Comparative before *than*."""
    positive, right, superlative = pick(rng, lex.COMPARED)
    a, b = some(rng, lex.OBJECTS, 2)
    prompt = f"{pick(rng, lex.SHE + lex.HE)} says that this {a[0]} is"
    rest = f"than that {b[0]}."
    return Draft(prompt, f"{right} {rest}", (f"{positive} {rest}", f"{superlative} {rest}"), "comparative")


def quantity(rng: Random) -> Draft:
    """*Many* and *few* count, *much* and *little* measure."""
    counted = pick(rng, (True, False))
    noun = pick(rng, lex.COUNTED)[1] if counted else pick(rng, lex.MASS)
    rest = f"{noun} {pick(rng, lex.PLACES)}."
    right, wrong = ("many", ("much", "a")) if counted else ("much", ("many", "a"))
    prompt = f"{pick(rng, lex.SHE + lex.HE)} {pick(rng, ('said', 'thought', 'wrote', 'noticed', 'knew'))}"
    prompt += f" {pick(rng, ('yesterday', 'again', 'today', 'later'))} that there"
    verb = "were" if counted else "was"
    return Draft(f"{prompt} {verb} not", f"{right} {rest}", tuple(f"{w} {rest}" for w in wrong), "quantity")


def complement(rng: Random) -> Draft:
    """Gerund or infinitive after a verb."""
    bare, third, gerund, rest = pick(rng, lex.VERBS)
    gerundive = pick(rng, (True, False))
    verb = pick(rng, lex.ENJOY if gerundive else lex.WANT)
    right, wrong = (gerund, bare) if gerundive else (f"to {bare}", gerund)
    prompt = f"{pick(rng, lex.PAST_TIMES)} the {pick(rng, lex.PEOPLE)[pick(rng, (0, 1))]} {verb}"
    return Draft(prompt, f"{right} {rest}.", (f"{wrong} {rest}.", f"{third} {rest}."), "complement")


def tense(rng: Random) -> Draft:
    """The time in front decides the tense."""
    base, past, done, _, thing = pick(rng, lex.IRREGULAR)
    who = f"the {pick(rng, lex.PEOPLE)[0]}"
    times = ("Tomorrow", "Next week", "Next year", "One day in the future", "In two days", "Tomorrow morning")
    prompt = f"{pick(rng, times)}, {who} {pick(rng, lex.PLACES)}"
    return Draft(prompt, f"will {base} {thing}.", (f"has {done} {thing}.", f"will {past} {thing}."), "tense")


KINDS = (agreement, attractor, verb_form, determiner, participle, reflexive, polarity, adjective_order, collocation,
         verb_preposition, case, auxiliary, comparative, quantity, complement, tense)  # fmt: skip


def build() -> Task:
    """The task: 1,600 items of 16 kinds, three choices each."""
    return Task(
        name="language",
        items=choice_items(seeded("language order"), collect(seeded("language"), KINDS, 1600)),
        scorer="choice",
        formats=FORMATS,
        style="continue",
        description="which continuation is grammatical English",
    )
