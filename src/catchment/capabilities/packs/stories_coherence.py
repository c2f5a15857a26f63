"""Little stories without an end: one sentence ends the story, the others belong to other stories."""

from __future__ import annotations

from random import Random

from catchment.capabilities.packs._draw import Draft, choice_items, collect, pick, seeded, some
from catchment.capabilities.packs._stories import FORMATS, OPENINGS, child
from catchment.capabilities.tasks import Task

# what happens, the sentence that ends it
PLOTS: tuple[tuple[str, str], ...] = (
    ("{He} saw a big red balloon and wanted it. But the string broke.", "The balloon flew away into the sky."),
    ("{He} was very thirsty. {He} asked {his} mom for a drink.", "Mom gave {him} a cup of cold water."),
    ("{His} dog ran away from home. {He} looked for the dog all day.", "At last, {he} found the dog in the park."),
    ("{He} made a tall tower with blocks. Then the cat jumped on it.", "The tower fell down on the floor."),
    ("{He} played in the mud and got very dirty. Mom saw {him}.", "Mom gave {him} a warm bath with soap."),
    ("{He} could not sleep. The room was very dark.", "Dad came and turned on the light."),
    ("It was {his} birthday. All {his} friends came to the party.", "They ate cake and sang a happy song."),
    ("{He} found a little bird on the ground. Its wing was hurt.", "{He} helped the bird until it could fly again."),
    ("{He} wanted to see the animals. Mom and dad took {him} to the zoo.", "{He} saw a lion and a big elephant."),
    ("{He} planted a seed in the garden. {He} gave it water every day.", "Soon, a pretty flower grew."),
    ("It snowed all night. In the morning, everything was white.", "{He} went outside and made a snowman."),
    ("{He} dropped the cup and it broke. Mom was not angry.", '"I am sorry I broke the cup," {he} said.'),
    ("{He} was riding {his} bike very fast. {He} hit a rock.", "{He} fell off the bike and hurt {his} knee."),
    ("{He} was sick and had to stay in bed.", "The doctor came and gave {him} medicine."),
    ("It started to rain. {He} had no umbrella.", "{He} ran home and was all wet."),
    ("{He} was hungry after school. Mom was cooking in the kitchen.", "Mom gave {him} a bowl of hot soup."),
    ("{He} saw a kitten high up in a tree. It could not get down.", "Dad climbed up and saved the kitten."),
    (
        "{He} wanted to bake cookies with grandma. They mixed the flour and the sugar.",
        "They put the cookies in the hot oven.",
    ),
    ("{He} lost {his} favorite teddy bear. {He} was very sad.", "{He} found the teddy bear under the bed."),
    ("{He} went to the beach with {his} dad. {He} had a bucket and a shovel.", "They made a big castle in the sand."),
    ("{He} was scared of the water. Dad held {his} hand in the pool.", "Soon {he} learned how to swim."),
    ("{He} wanted to read a new story. Mom took {him} to the library.", "They found a book with many pictures."),
    ("{He} got a box of crayons. {He} sat down with some paper.", "{He} drew a picture of {his} family."),
    ("The baby was crying in the crib. {He} wanted to help.", "{He} sang to the baby and it stopped crying."),
    ("{He} put a hat on the dog. The dog looked very silly.", "Everyone looked at the dog and laughed."),
    ("{He} went fishing with grandpa. They sat in a boat on the lake.", "They caught a big fish."),
    ("{He} did not want to share the toy car. {His} friend was sad.", "Then {he} let {his} friend play with the car."),
    ("{He} heard a loud noise in the sky. It was thunder.", "{He} was scared and hid under the blanket."),
    ("{He} had a loose tooth. {He} moved it with {his} finger.", "The tooth came out, and {he} showed it to mom."),
    ("{He} saw an apple on a high branch. {He} could not reach it.", "Dad picked the apple and gave it to {him}."),
    ("{He} gave {his} bunny some food every morning.", "The bunny ate the carrot and hopped."),
    ("{He} went to bed. {He} closed {his} eyes.", "{He} fell asleep and had a nice dream."),
)
MIDDLES = ("", "", " {He} liked to play.", " It was a nice day.", " {He} was happy.")


def coherence(rng: Random) -> Draft:
    """A plot, its own end, and the ends of three other plots."""
    someone = child(rng)
    plot, right = pick(rng, PLOTS)
    wrong = some(rng, [end for _, end in PLOTS if end != right], 3)
    prompt = someone.tell(f"{pick(rng, OPENINGS)}{pick(rng, MIDDLES)} {plot}")
    return Draft(prompt, someone.tell(right), tuple(someone.tell(w) for w in wrong), plot.split(".")[0][:40])


def build() -> Task:
    """The task: 1,600 items over 32 plots."""
    return Task(
        name="stories_coherence",
        items=choice_items(seeded("stories coherence order"), collect(seeded("stories coherence"), (coherence,), 1600)),
        scorer="choice_per_byte",
        formats=FORMATS,
        style="continue",
        description="the sentence that ends a little story",
    )
