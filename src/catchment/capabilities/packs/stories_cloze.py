"""Little stories with the last word missing: one word makes sense, the others do not."""

from __future__ import annotations

from random import Random

from catchment.capabilities.packs._draw import Draft, choice_items, collect, pick, seeded
from catchment.capabilities.packs._stories import FORMATS, OPENINGS, child
from catchment.capabilities.tasks import Task

# the story, the word that fits, words that do not
CUES: tuple[tuple[str, str, str], ...] = (
    ("{He} was very thirsty. {His} mom gave {him} a glass of", "water", "sand grass paper"),
    ("{He} was tired. It was night, so {he} went to", "bed", "lunch milk rain"),
    ("It was raining. {He} did not want to get wet, so {he} took an", "umbrella", "apple egg orange"),
    ("It was cold outside. {He} put on a warm", "coat", "cake fish cup"),
    ("{He} had a pet dog. The dog wagged its", "tail", "car book hat"),
    ("The bird opened its wings and flew up into the", "sky", "cup shoe box"),
    ("{He} saw a fish. The fish was swimming in the", "water", "tree bed sky"),
    ("{He} was hungry. {He} ate a big red", "apple", "chair rock shoe"),
    ("It was {his} birthday. {His} mom made a big", "cake", "sock stone door"),
    ("{He} fell down and hurt {his} knee. {He} started to", "cry", "cook fly paint"),
    ("{He} wanted to draw a picture. {He} took some paper and a", "crayon", "spoon fish shoe"),
    ("{His} hands were dirty. {He} washed them with water and", "soap", "bread toys sand"),
    ("At night {he} looked up and saw the moon and the", "stars", "forks shoes beds"),
    ("{He} went to the farm and saw a cow. The cow said,", "moo", "woof quack meow"),
    ("{He} had a little cat. The cat said,", "meow", "moo woof quack"),
    ("{His} dog saw a stranger and said,", "woof", "moo meow quack"),
    ("{He} went to the pond and saw a duck. The duck said,", "quack", "woof moo meow"),
    ("{He} loved to read. {He} went to the library and got a", "book", "cow bath cloud"),
    ("{He} was scared of the dark, so mom turned on the", "light", "soup shoe tree"),
    ("{He} planted a seed in the garden. Soon it grew into a pretty", "flower", "car spoon dog"),
    ('{He} broke the vase by accident. {He} told mom, "I am', "sorry", "green seven tall"),
    ('{He} got a present from {his} grandma. {He} said, "Thank', "you", "cup dog red"),
    ("{He} wanted to play in the snow. {He} made a big", "snowman", "soup sandwich pencil"),
    ("{He} went to the beach and played in the", "sand", "oven bed fridge"),
    ("{He} was sick. Mom took {him} to see the", "doctor", "spoon potato moon"),
    ("{He} put on {his} shoes and {his}", "socks", "trees spoons clouds"),
    ("{He} sat down at the table to eat {his}", "dinner", "bike rain sky"),
    ("{He} liked to ride {his} new", "bike", "soup apple sun"),
    ("{He} climbed up the big", "tree", "milk juice rain"),
    ("The bunny was hungry, so {he} gave it a", "carrot", "truck chair shoe"),
    ("{He} gave the monkey at the zoo a yellow", "banana", "bus bed sun"),
    ("{He} saw a mouse. The mouse wanted to eat some", "cheese", "cars rocks books"),
    ("The baby was sleepy. {He} gave the baby a soft", "blanket", "rock knife truck"),
    ("{He} opened the door with a", "key", "cookie frog flower"),
    ("The soup was too", "hot", "tall kind angry"),
    ("{He} brushed {his}", "teeth", "soup tree cars"),
    ("{He} wanted to be clean, so {he} took a", "bath", "nap tree rock"),
    ("{He} blew out the candles and made a", "wish", "shoe fish bus"),
    ("The bee was making sweet", "honey", "socks cars stones"),
    ("{He} saw a spider. The spider was making a", "web", "cake pie bed"),
    ("{He} went to bed, and dad read {him} a", "story", "potato shoe spoon"),
    ("{He} looked out of the window. The sun was", "shining", "eating reading talking"),
    ("The ice cream was cold and", "sweet", "angry loud tall"),
    ("{He} was afraid of the big, loud", "noise", "milk butter feather"),
    ("{He} shared {his} toys with {his} best", "friend", "soup wall shoe"),
    ("{He} got on the swing. The swing went up and", "down", "red eat sleep"),
    ("The hen sat in the nest. She had three little", "eggs", "cars shoes books"),
    ("{He} was happy. {He} had a big smile on {his}", "face", "spoon car door"),
    ('{He} hugged {his} mom and said, "I love', "you", "soup rock bus"),
    ("{He} put the milk back in the", "fridge", "bath tree bed"),
    ("The frog sat on a rock. Then it began to", "jump", "read cook drive"),
    ("{He} wanted to buy a toy, but {he} had no", "money", "sky nose rain"),
    ("{He} listened to the music and started to", "dance", "melt bake rain"),
    ("The boat was floating on the", "lake", "bread roof chair"),
    ("{He} cut the paper with the", "scissors", "banana pillow milk"),
    ("{He} saw a rainbow after the", "rain", "shoe cookie bed"),
    ("The car stopped because the light was", "red", "hungry kind sleepy"),
    ("{He} hit the drum and it was very", "loud", "thirsty salty hungry"),
)
MIDDLES = ("", "", " {He} was a good {child}.", " {He} liked to play.", " {He} had a kind mom.")


def cloze(rng: Random) -> Draft:
    """A cue after an opening, told of a girl or a boy."""
    someone = child(rng)
    cue, right, wrong = pick(rng, CUES)
    prompt = someone.tell(f"{pick(rng, OPENINGS)}{pick(rng, MIDDLES)} {cue}")
    return Draft(prompt, right, tuple(wrong.split()), right)


def build() -> Task:
    """The task: 1,600 items over 58 cues."""
    return Task(
        name="stories_cloze",
        items=choice_items(seeded("stories cloze order"), collect(seeded("stories cloze"), (cloze,), 1600)),
        scorer="choice",
        formats=FORMATS,
        style="continue",
        description="the word that completes a little story",
    )
