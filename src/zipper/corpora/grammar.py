"""Grammar for the sentences of the synthetic corpus, with spelled-out numbers and names.

A shape is a line of words and `{slots}`. A slot is sampled uniformly from its list.
"""

import random
import re
from collections.abc import Iterator

UNITS = ["two", "three", "four", "five", "six", "seven", "eight", "nine"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]

WORDS = {
    "name": (
        "alice peter maria george helen oliver sophie martin laura victor emma daniel julia simon clara "
        "thomas"
    ),
    "city": (
        "london paris berlin boston chicago madrid dublin vienna lisbon geneva toronto sydney moscow "
        "prague munich houston"
    ),
    "place": (
        "kitchen garden harbor station library market castle forest bridge museum village tower office "
        "bakery school theater"
    ),
    "near": "in near behind beside outside opposite",
    "color": "red blue green yellow white black purple orange silver golden",
    "adjective": "happy tired clever hungry quiet angry gentle lonely famous lazy brave nervous",
    "animal": "horse dog rabbit tiger monkey camel donkey parrot turtle spider lizard penguin",
    "animals": "horses dogs rabbits tigers monkeys camels donkeys parrots turtles spiders lizards penguins",
    "thing": (
        "lamp bottle basket hammer blanket mirror candle wallet ladder guitar bucket pillow ticket letter "
        "button carpet"
    ),
    "things": (
        "lamps bottles baskets hammers blankets mirrors candles wallets ladders guitars buckets pillows "
        "tickets letters buttons carpets"
    ),
    "person": "doctor teacher farmer lawyer singer soldier painter pilot",
    "relative": "mother father sister brother uncle cousin",
    "did": "bought sold found lost carried painted borrowed counted wanted dropped",
    "waited": "slept waited danced laughed worked rested",
    "day": "monday tuesday wednesday thursday friday saturday sunday",
    "month": "january february march april june july august september october november december",
    "ordinal": "first second third fourth fifth sixth seventh eighth ninth tenth",
}
SLOTS = {slot: words.split() for slot, words in WORDS.items()}
SLOTS["hour"] = [*UNITS, "ten", "eleven"]
SLOTS["number"] = [*SLOTS["hour"], "twelve", *TENS, *(f"{ten} {unit}" for ten in TENS for unit in UNITS)]

SHAPES = [
    "{name} {did} {number} {color} {things}",
    "on {day} {name} met {name} {near} the {place}",
    "the {adjective} {animal} {waited} {near} the {place} until {hour}",
    "bring {number} {color} {things} to the {place}",
    "{name} lives at number {number} {place} street in {city}",
    "why did {name} give the {color} {thing} to the {adjective} {person}",
    "{number} {animals} and {number} {things} {near} the {place}",
    "page {number} of the {color} book shows {number} {animals}",
    "{name} left {city} for {city} on the {ordinal} of {month}",
    "my {relative} {did} the {color} {thing} and {number} {animals}",
    "the {person} {did} {number} {things} from {city}",
    "every {day} at {hour} {name} {waited} with the {adjective} {animal}",
]


def sentences(seed: int) -> Iterator[str]:
    """Endless stream of distinct sentences, deterministic by seed on every machine."""
    draw = random.Random(seed)
    seen: set[str] = set()
    while True:
        sentence = re.sub(r"{(\w+)}", lambda slot: draw.choice(SLOTS[slot[1]]), draw.choice(SHAPES))
        if sentence not in seen:
            seen.add(sentence)
            yield sentence
