"""Words with their forms, for grammatical templates."""

from __future__ import annotations

from catchment.capabilities.packs._draw import words

PEOPLE = tuple(
    tuple(pair.split("/"))
    for pair in words(
        "teacher/teachers doctor/doctors farmer/farmers child/children woman/women man/men student/students "
        "driver/drivers nurse/nurses neighbor/neighbors artist/artists lawyer/lawyers soldier/soldiers "
        "singer/singers waiter/waiters boy/boys girl/girls king/kings dancer/dancers writer/writers "
        "customer/customers visitor/visitors guest/guests worker/workers pilot/pilots"
    )
)
OBJECTS = tuple(
    tuple(pair.split("/"))
    for pair in words(
        "key/keys book/books chair/chairs letter/letters box/boxes bottle/bottles picture/pictures shoe/shoes "
        "car/cars table/tables window/windows lamp/lamps coat/coats knife/knives plate/plates bag/bags "
        "shelf/shelves basket/baskets door/doors photo/photos ring/rings map/maps bicycle/bicycles watch/watches "
        "dress/dresses glass/glasses brush/brushes toy/toys pencil/pencils ticket/tickets"
    )
)
ADJECTIVES = words("old new small large broken beautiful heavy dirty expensive cheap wooden strange")
SHE = words("Anna Clara Emma Grace Mia Rosa Lucy Julia Sarah Helen")
HE = words("David Henry Jack Leo Paul Peter Mark Adam Martin Frank")
PLACES = words(
    "in the kitchen,near the lake,in the city,behind the house,at the station,in the park,on the farm,at the market,"
    "in the village,near the river,at the hotel,in the museum",
    ",",
)
TIMES = words(
    "Every morning,On Sundays,After lunch,In the summer,Every evening,During the week,On cold days,After school,"
    "Most of the time,Before dinner",
    ",",
)
PAST_TIMES = words(
    "Yesterday,Last week,Two years ago,Last night,A month ago,Last summer,On Monday,In 1995,An hour ago,That evening",
    ",",
)
DEGREES = words("very quite rather really so")
STATES = words("tired happy busy late ready angry hungry quiet nervous proud careful famous")
FAULTS = words("dirty broken missing new cheap old clean heavy wet empty ugly useful")
VERBS = (
    ("walk", "walks", "walking", "to work"),
    ("play", "plays", "playing", "chess with friends"),
    ("read", "reads", "reading", "the newspaper"),
    ("drink", "drinks", "drinking", "a cup of tea"),
    ("write", "writes", "writing", "long letters"),
    ("sing", "sings", "singing", "in the choir"),
    ("clean", "cleans", "cleaning", "the house"),
    ("watch", "watches", "watching", "the birds"),
    ("eat", "eats", "eating", "bread and cheese"),
    ("swim", "swims", "swimming", "in the lake"),
    ("buy", "buys", "buying", "fresh fruit"),
    ("sleep", "sleeps", "sleeping", "for an hour"),
)
# base, past, participle, a wrong regular form, an object
IRREGULAR = (
    ("break", "broke", "broken", "breaked", "the window"),
    ("eat", "ate", "eaten", "eated", "the cake"),
    ("write", "wrote", "written", "writed", "a letter"),
    ("take", "took", "taken", "taked", "the money"),
    ("steal", "stole", "stolen", "stealed", "a car"),
    ("choose", "chose", "chosen", "choosed", "a name"),
    ("see", "saw", "seen", "seed", "the film"),
    ("give", "gave", "given", "gived", "an answer"),
    ("forget", "forgot", "forgotten", "forgetted", "the address"),
    ("drive", "drove", "driven", "drived", "the truck"),
    ("begin", "began", "begun", "beginned", "the work"),
    ("drink", "drank", "drunk", "drinked", "the milk"),
    ("know", "knew", "known", "knowed", "the answer"),
    ("throw", "threw", "thrown", "throwed", "the ball"),
    ("draw", "drew", "drawn", "drawed", "a map"),
    ("wear", "wore", "worn", "weared", "a hat"),
    ("tear", "tore", "torn", "teared", "the paper"),
    ("hide", "hid", "hidden", "hided", "the key"),
)
# what stands before the preposition, the right preposition, wrong ones, what follows
COLLOCATIONS = (
    ("afraid", "of", ("from", "at"), "the dog"),
    ("interested", "in", ("for", "of"), "music"),
    ("good", "at", ("on", "of"), "tennis"),
    ("married", "to", ("on", "of"), "a doctor"),
    ("proud", "of", ("at", "to"), "the garden"),
    ("famous", "for", ("of", "at"), "good food"),
    ("responsible", "for", ("of", "at"), "the accident"),
    ("tired", "of", ("to", "for"), "the noise"),
    ("similar", "to", ("at", "of"), "the others"),
    ("full", "of", ("on", "at"), "ideas"),
    ("worried", "about", ("to", "on"), "the exam"),
    ("different", "from", ("at", "by"), "the others"),
    ("jealous", "of", ("at", "by"), "the neighbors"),
    ("allergic", "to", ("of", "on"), "milk"),
    ("aware", "of", ("at", "by"), "the danger"),
    ("capable", "of", ("to", "at"), "great things"),
)
VERB_PREPOSITION = (
    ("listened", "to", ("on", "of"), "the radio"),
    ("waited", "for", ("of", "to"), "the bus"),
    ("looked", "at", ("of", "by"), "the painting"),
    ("depended", "on", ("of", "at"), "the weather"),
    ("thought", "about", ("at", "by"), "the problem"),
    ("belonged", "to", ("of", "at"), "the club"),
    ("laughed", "at", ("of", "in"), "the joke"),
    ("paid", "for", ("of", "at"), "the tickets"),
    ("dreamed", "of", ("at", "on"), "a long holiday"),
    ("suffered", "from", ("on", "at"), "a cold"),
    ("agreed", "with", ("at", "of"), "the plan"),
    ("apologized", "for", ("of", "at"), "the mistake"),
)
ENJOY = ("enjoyed", "finished", "avoided", "kept", "stopped", "suggested", "practiced")
WANT = ("wanted", "decided", "hoped", "promised", "refused", "planned", "agreed")
COMPARED = (
    ("big", "bigger", "biggest"),
    ("old", "older", "oldest"),
    ("fast", "faster", "fastest"),
    ("strong", "stronger", "strongest"),
    ("heavy", "heavier", "heaviest"),
    ("tall", "taller", "tallest"),
    ("cheap", "cheaper", "cheapest"),
    ("good", "better", "best"),
    ("bad", "worse", "worst"),
    ("easy", "easier", "easiest"),
)
COUNTED = OBJECTS
MASS = words("water milk money sugar rice bread furniture traffic music luggage advice information snow sand")
