"""Complete two readings of a text, and find what each of them can never tell apart.

Read in hyper.py: `read` of GatedTrunk; the docstring of its class afterwards, as it tells the answer. In zhyper.py,
if you like: `split_statements`, `embed`.
A text is a list of statements here. `embed(statements)` is a frozen encoder, (n, d): the embedding of a statement is
the mean of the vectors of its words. `read(e)` is a trunk's, (n, d) -> (n, f), and the nonlinearity is in it.
1. `before` returns c (f,): the mean of the statements' embeddings is taken before `read`.
2. `after` returns c (f,): the mean is taken after `read`. (Zhyper.embed divides by √n and not by n.)
3. Say first: does a wider `read` help `before` to tell "it backed whaling, it opposed mining" from "it backed mining,
   it opposed whaling"? Then write `lost_before`, which gets no `read`: True if every `read`, however wide, gives the
   two texts the same c by `before`.
4. `lost_after` returns two texts with the same words which `after` cannot tell apart, and `before` cannot, either. They
   differ in who goes with what: a statement with five different words or more is another in the second text. An order
   of statements alone does not count. Use words of WORDS.

Hint 1: the mean of n rows is e.mean(0). `read` takes rows, so a single embedding goes in as (1, d).
Hint 2: c is a function of what goes into `read`. When is that the same for two texts?
Hint 3: within one statement the order of the words is lost. Put two facts into one statement.
"""

import random
from collections.abc import Callable

import torch
from taught import small_config
from torch import Tensor

from hyper import GatedTrunk

WORDS = ["it", "they", "backed", "opposed", "whaling", "mining", "deep", "in", "spring"]
Embed = Callable[[list[str]], Tensor]
Read = Callable[[Tensor], Tensor]


def before(statements: list[str], embed: Embed, read: Read) -> Tensor:
    raise NotImplementedError


def after(statements: list[str], embed: Embed, read: Read) -> Tensor:
    raise NotImplementedError


def lost_before(first: list[str], second: list[str], embed: Embed) -> bool:
    raise NotImplementedError


def lost_after() -> tuple[list[str], list[str]]:
    raise NotImplementedError


# ---- checks: do not edit
TEXT = ["it backed whaling", "it opposed mining"]
OTHER_PAIRS = ["it backed mining", "it opposed whaling"]
PAIRS = [  # two texts; the last but one has the same words, but a word of a longer statement counts for less
    (TEXT, OTHER_PAIRS),
    (TEXT, TEXT[::-1]),
    (TEXT, ["it backed whaling", "they opposed mining"]),
    (["it backed whaling", "it opposed deep mining"], ["it backed deep mining", "it opposed whaling"]),
    (["it backed whaling"], ["whaling backed it", "it backed whaling"]),
    (["it it backed"], ["it backed backed"]),
    (["in spring", *TEXT], [*TEXT, "in spring"]),
]


def build(width: int) -> tuple[Embed, Read]:
    """A bag of words, and what a trunk of this width reads."""
    torch.manual_seed(0)
    vectors = torch.nn.EmbeddingBag(len(WORDS), 8, mode="mean").double()

    def embed(statements: list[str]) -> Tensor:
        return torch.cat([vectors(torch.tensor([[*map(WORDS.index, text.split())]])) for text in statements])

    return embed, GatedTrunk(small_config(features=width, narrow=width), 1, 8).double().eval().read


def random_pairs() -> list[tuple[list[str], list[str]]]:
    """Texts of two statements, of three words each or of two and four. The second text of a pair has the same words."""
    rng = random.Random(0)
    pairs = []
    for _ in range(8):
        words = rng.sample(WORDS, 6)
        cut = rng.choice([2, 3])
        first = [" ".join(words[:cut]), " ".join(words[cut:])]
        rng.shuffle(words)
        pairs.append((first, [" ".join(words[:cut]), " ".join(words[cut:])]))
    return pairs


@torch.no_grad()
def test_the_two_readings():
    embed, read = build(4)
    for name, reading in (("before", before), ("after", after)):
        c = reading(TEXT, embed, read)
        assert c.shape == (4,), f"c of {name} is {tuple(c.shape)}, not (4,): are they averaged, or laid side by side?"
        why = f"{name} of one statement is not what is read of its embedding: are `embed` and `read` both used?"
        for alone in (TEXT[0], OTHER_PAIRS[1]):
            torch.testing.assert_close(reading([alone], embed, read), read(embed([alone]))[0], msg=why)
    why = "before is not what is read of the mean of the embeddings: does each statement count alike, long or short?"
    mean = "it it it it it backed"  # as in the mean of "it", "it backed" and "it"
    torch.testing.assert_close(before(["it", "it backed", "it"], embed, read), before([mean], embed, read), msg=why)
    why = "after is not the mean of what is read of each statement alone: is `read` applied before the mean?"
    alone = torch.stack([after([statement], embed, read) for statement in [*TEXT, "in spring"]])
    torch.testing.assert_close(after([*TEXT, "in spring"], embed, read), alone.mean(0), msg=why)


@torch.no_grad()
def test_what_each_of_them_cannot_tell_apart():
    for width in (4, 512):
        embed, read = build(width)

        def same(reading, texts, embed=embed, read=read) -> bool:
            first, second = [reading(text, embed, read) for text in texts]
            return first.allclose(second)

        for texts in [*PAIRS, *random_pairs()]:
            lost = same(before, texts)
            does = "gives one c to" if lost else "tells apart"
            why = f"at width {width} before {does} {texts[0]} and {texts[1]}: what does `read` get of each of them?"
            assert lost_before(*texts, embed) == lost, why
        assert not same(after, PAIRS[0]), "after gives the same words in other pairs the same c"
        first, second = lost_after()
        assert isinstance(first, list) and isinstance(second, list), "a text is a list of statements, not a string"
        words = [sorted(" ".join(text).split()) for text in (first, second)]
        assert words[0] == words[1], f"{first} and {second} have not the same words"
        assert set(first) != set(second), "the two texts have the same statements: an order alone says nothing here"
        changed = [statement for statement in first if statement not in second]
        two_facts = any(len(set(statement.split())) > 4 for statement in changed)
        assert two_facts, f"{changed} are other in the second text, and none has five different words: two facts?"
        for old in changed:
            for new in second:
                why = f"{new!r} is {old!r} from another word on: who goes with what is the same"
                assert f" {new} " not in f" {old} {old} ", why
        for name, reading in (("after", after), ("before", before)):
            assert same(reading, (first, second)), f"{name} tells {first} from {second}, at width {width}"
