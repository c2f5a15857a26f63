"""Word lists that several tasks draw from."""

from __future__ import annotations

from catchment.capabilities.packs._draw import words

NAMES = words(
    "Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Mia Noah Olive Paul Rosa Sam Tina Victor Wendy "
    "Oscar Nora Luke Jane Peter Lucy Mark Sarah Adam Ruth Simon Julia Martin Helen Frank"
)
COLOURS = words("red blue green yellow black white brown pink orange purple grey")
THINGS = words(
    "ball cup hat book lamp bag box pen coat key ring chair clock plate spoon scarf bottle basket drum kite mirror "
    "pillow wallet ladder bucket candle hammer blanket bell broom"
)
PLACES = words(
    "drawer garage kitchen garden cellar attic car bedroom office hall shed bathroom cupboard library barn tent"
)
CITIES = words(
    "Paris Rome London Berlin Madrid Vienna Tokyo Cairo Oslo Dublin Lisbon Athens Moscow Boston Chicago Sydney"
)
JOBS = words("doctor teacher farmer baker pilot nurse lawyer painter singer driver writer cook")
WORDS = words(
    "tree river cloud stone bread horse winter summer bridge window garden silver music paper island mountain forest "
    "letter yellow doctor mother father sister brother school market dinner kitchen table apple banana orange lemon "
    "cherry pepper tomato potato onion carrot sugar butter cheese coffee water bottle pocket jacket button ribbon "
    "basket blanket candle lantern hammer ladder rocket engine ticket station village castle tower church temple "
    "desert ocean harbor beach valley meadow flower rabbit tiger monkey turtle spider eagle pigeon chicken donkey "
    "dragon wizard knight prince queen king giant shadow mirror picture story poem number color circle square "
    "triangle corner center pencil eraser notebook camera radio guitar piano violin trumpet soldier sailor farmer "
    "painter singer dancer teacher student baker plumber judge lawyer nurse pilot driver hunter fisher thunder "
    "lightning rainbow snow storm breeze planet comet moon star galaxy signal magnet copper iron gold diamond pearl "
    "wood glass cotton wool leather velvet feather cloth needle thread shirt trouser glove helmet boot sandal"
)
