"""A small grammar that writes product reviews: the data of the demonstration, and of nothing worth measuring.

Counting words is not enough to judge them: opinions are negated ("anything but clean"), and where a review praises one
thing and blames another, the order says which of the two is meant ("although the food was cold, ..."). Some words are
misspelt, and of every hundred labels two are wrong, as in data that people made.
"""

from __future__ import annotations

import random
import re

POSITIVE, NEGATIVE, NEUTRAL = "positive", "negative", "neutral"
WRONG_LABELS = 0.02
MISSPELT = 0.01

ASPECTS = {
    "restaurant": "food soup bread service menu wine dessert waiter terrace",
    "hotel": "room bed bathroom breakfast view staff lobby pool shower",
    "headphones": "sound bass cable case fit microphone battery headband volume",
    "laptop": "screen keyboard battery fan hinge speaker charger touchpad camera",
    "novel": "plot ending style translation dialogue humour cover beginning hero",
    "film": "story cast music camerawork pace ending script lighting editing",
    "bicycle": "frame saddle gearing brake paint bell tyre handlebar lamp",
    "coffee machine": "coffee grinder milk foam tank display pump manual spout",
}
PRAISE = (
    "good great excellent superb lovely pleasant impressive wonderful brilliant delightful charming splendid perfect "
    "outstanding remarkable clever thoughtful solid convincing marvellous"
)
BLAME = (
    "bad poor awful terrible dreadful disappointing horrible shoddy miserable dull clumsy annoying useless careless "
    "unpleasant mediocre pathetic ridiculous weak hopeless"
)
LUKEWARM = "average ordinary passable acceptable unremarkable usual standard middling"
ADVERBS = ["", "", "", "really ", "very ", "truly ", "rather ", "quite ", "simply ", "absolutely "]

CLAUSES = {  # {a} an aspect, {+} praise, {-} blame, {=} neither, {v} an adverb
    POSITIVE: [
        "the {a} is {v}{+}",
        "the {a} was {v}{+}",
        "I love the {a}",
        "I like the {v}{+} {a}",
        "what a {+} {a}",
        "the {a} is not {-} at all",
        "the {a} was never {-}",
        "the {a} is anything but {-}",
        "nobody could call the {a} {-}",
        "I can find no fault with the {a}",
        "I had expected a {-} {a} and was wrong",
        "the {a} is far from {-}",
    ],
    NEGATIVE: [
        "the {a} is {v}{-}",
        "the {a} was {v}{-}",
        "I hate the {a}",
        "I dislike the {v}{-} {a}",
        "what a {-} {a}",
        "the {a} is not {+} at all",
        "the {a} was never {+}",
        "the {a} is anything but {+}",
        "nobody could call the {a} {+}",
        "I can find no excuse for the {a}",
        "I had expected a {+} {a} and was wrong",
        "the {a} is far from {+}",
    ],
    NEUTRAL: [
        "the {a} is {v}{=}",
        "the {a} is neither {+} nor {-}",
        "the {a} is as one would expect",
        "the {a} does its job",
        "about the {a} there is nothing to say",
        "the {a} is not {+}, and not {-} either",
    ],
}
CONTRASTS = [  # {1} is said on the side, {2} is what the reviewer means
    "although {1}, {2}",
    "{1}, but {2}",
    "{2}, although {1}",
    "{1}; still, {2}",
    "{2}, even if {1}",
    "while {1}, {2}",
    "some say that {1}, yet {2}",
    "I do not mind that {1}, as {2}",
]
FACTS = [
    "my sister recommended it",
    "this is my second {kind}",
    "we chose it in March",
    "I paid with a voucher",
    "it was a present",
    "a friend of mine chose the same {kind}",
    "I compared it with three others",
    "I read about it in the paper",
]
VERDICTS = {
    POSITIVE: ["I would choose the same {kind} again", "I would not give it back", "five stars", "worth every cent"],
    NEGATIVE: ["I would not choose the same {kind} again", "I would give it back", "one star", "not worth one cent"],
    NEUTRAL: ["three stars", "one can take it or leave it", "some will like it, some will not"],
}


def reviews(count: int, seed: int) -> list[tuple[str, str, str]]:
    """(product, review, label), no review twice; the same for the same seed."""
    rng = random.Random(seed)
    written: dict[str, tuple[str, str, str]] = {}
    while len(written) < count:
        kind = rng.choice(list(ASPECTS))
        label = rng.choice([POSITIVE, POSITIVE, NEGATIVE, NEGATIVE, NEUTRAL])
        text = misspell(review(kind, label, rng), rng)
        if rng.random() < WRONG_LABELS:
            label = rng.choice([other for other in CLAUSES if other != label])
        written.setdefault(text, (kind, text, label))
    return list(written.values())


def review(kind: str, label: str, rng: random.Random) -> str:
    """Opinions and facts in any order; the opinions agree with the label, or one of them is said on the side."""
    aspects = rng.sample(ASPECTS[kind].split(), 3)
    if label != NEUTRAL and rng.random() < 0.5:
        aside = clause(aspects[0], NEGATIVE if label == POSITIVE else POSITIVE, rng)
        meant = clause(aspects[1], label, rng)
        sentences = [rng.choice(CONTRASTS).replace("{1}", aside).replace("{2}", meant)]
    else:
        sentences = [clause(aspect, label, rng) for aspect in aspects[: rng.randint(1, 3)]]
    sentences += rng.sample(FACTS, rng.choice([0, 0, 1, 2]))
    rng.shuffle(sentences)
    if rng.random() < 0.15:
        sentences.append(rng.choice(VERDICTS[label]))
    return " ".join(sentence[0].upper() + sentence[1:] + "." for sentence in sentences).replace("{kind}", kind)


def clause(aspect: str, label: str, rng: random.Random) -> str:
    text = rng.choice(CLAUSES[label]).replace("{a}", aspect).replace("{v}", rng.choice(ADVERBS))
    for mark, words in (("{+}", PRAISE), ("{-}", BLAME), ("{=}", LUKEWARM)):
        text = text.replace(mark, rng.choice(words.split()))
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def misspell(text: str, rng: random.Random) -> str:
    """Now and then two neighbouring letters inside a word change places."""
    words = text.split(" ")
    for i, word in enumerate(words):
        if len(word) > 4 and rng.random() < MISSPELT:
            at = rng.randrange(1, len(word) - 3)
            words[i] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)
