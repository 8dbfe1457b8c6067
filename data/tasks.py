"""Small tasks in words: the description says what to do, the prompt is only the input.

"Write only the largest number of the list." turns "In: 7 3 9\\nOut:" into " 9", as in Super-NaturalInstructions but
short enough for a small GPT to learn. A family is a set of tasks on inputs of one form, drawn from one distribution:
nothing but the description tells its tasks apart, and any two of them nearly always give different answers. Opposite
tasks (first and last, sort up and down) are worded alike but for the opposite words.

What the backbone has read, its `documents`: inputs followed by their output under *some* task of the family, half of
the time the family's first, its majority task. So it may know every function, also those of the `UNSEEN` tasks, and
every fact of `ANIMALS`, but it has never been told which task is meant. A sixth of the documents are descriptions on
their own: the training wordings of the trained tasks, none that is held out and none of an unseen task.

Of the inputs of each family 15 % are reserved by a hash: no document and no row of `train` has one, in any task;
all other splits use nothing else, `validation` a third of them that is its own. That goes for pairs of animals too: the
pair is new, each animal of it is not.
`minimal_pairs` asks two opposite tasks of one input, in a wording in which only the opposite words differ. There is
no `ood` and no `locality`: a task has no combination of values to break, and leaves nothing of its input unsaid.
"""

import hashlib
import random
import re
from collections.abc import Callable
from typing import NamedTuple

from data import Data, Record

WORDS = ["air", "bed", "cup", "day", "ear", "fan", "gas", "hat", "ice", "jar", "key", "leg", "map", "net", "oil", "pen"]
FACTS = """
cow moo calf barn, dog bark puppy kennel, cat meow kitten basket, horse neigh foal stable, pig oink piglet sty,
sheep baa lamb fold, hen cluck chick coop, duck quack duckling pond, goose honk gosling lake, goat bleat kid shed,
lion roar cub den, wolf howl whelp lair, bear growl cub cave, frog croak tadpole marsh, owl hoot owlet tree,
bee buzz larva hive, eagle screech eaglet nest, mouse squeak pup hole, dove coo squab loft, donkey bray colt field
"""
ANIMALS = {animal: facts for animal, *facts in map(str.split, FACTS.split(","))}  # animal: [sound, young, home]
FAMILIES = {  # family: (what inputs are made of, how many of these: no two alike)
    "letters": ("abcdefghijklmnopqrstuvwxy", (4, 5)),
    "digits": ("123456789", (3, 4, 5)),
    "words": (WORDS, (3, 4)),
    "pair": (list(ANIMALS), (2,)),
}


class Task(NamedTuple):
    """A function from a list of items to the items of the answer; its wordings are in `WORDINGS`."""

    family: str
    name: str
    rule: Callable[[list[str]], list]

    def answer(self, items: list[str]) -> str:
        """The answer to a list of items, e.g. " 9" to ["7", "3", "9"] for the task largest."""
        return "".join(f" {item}" for item in self.rule(items))


TASKS = [  # the first of each family is its majority task
    Task("letters", "copy", lambda x: x),
    Task("letters", "reverse", lambda x: x[::-1]),
    Task("letters", "first", lambda x: x[:1]),
    Task("letters", "last", lambda x: x[-1:]),
    Task("letters", "second", lambda x: x[1:2]),
    Task("letters", "second_last", lambda x: x[-2:-1]),
    Task("letters", "drop_first", lambda x: x[1:]),
    Task("letters", "drop_last", lambda x: x[:-1]),
    Task("letters", "next_letter", lambda x: [chr(ord(letter) + 1) for letter in x]),
    Task("digits", "sort_up", lambda x: sorted(x)),
    Task("digits", "sort_down", lambda x: sorted(x, reverse=True)),
    Task("digits", "largest", lambda x: [max(x)]),
    Task("digits", "smallest", lambda x: [min(x)]),
    Task("digits", "largest_smallest", lambda x: [max(x), min(x)]),
    Task("digits", "add_one", lambda x: [int(digit) + 1 for digit in x]),
    Task("digits", "double_each", lambda x: [2 * int(digit) for digit in x]),
    Task("digits", "count", lambda x: [len(x)]),
    Task("words", "first_two", lambda x: x[:2]),
    Task("words", "last_two", lambda x: x[-2:]),
    Task("words", "repeat_last", lambda x: [*x, x[-1]]),
    Task("words", "swap_ends", lambda x: [x[-1], *x[1:-1], x[0]]),
    Task("words", "last_to_front", lambda x: [x[-1], *x[:-1]]),
    Task("words", "replace_first", lambda x: ["none", *x[1:]]),
    Task("words", "initials", lambda x: [word[0] for word in x]),
    Task("pair", "sound_first", lambda x: [ANIMALS[x[0]][0]]),
    Task("pair", "sound_last", lambda x: [ANIMALS[x[1]][0]]),
    Task("pair", "sound_both", lambda x: [ANIMALS[animal][0] for animal in x]),
    Task("pair", "young_first", lambda x: [ANIMALS[x[0]][1]]),
    Task("pair", "young_last", lambda x: [ANIMALS[x[1]][1]]),
    Task("pair", "young_both", lambda x: [ANIMALS[animal][1] for animal in x]),
    Task("pair", "home_first", lambda x: [ANIMALS[x[0]][2]]),
    Task("pair", "home_last", lambda x: [ANIMALS[x[1]][2]]),
    Task("pair", "home_both", lambda x: [ANIMALS[animal][2] for animal in x]),
]

UNSEEN = {  # never trained; possible in principle, since trained tasks show each part of what these ask for:
    "second_last",  # second: which letter; last and reverse: what it means to count from the end
    "drop_last",  # drop_first: all the letters but one; last: which one
    "sort_down",  # sort_up: in order of size; largest_smallest and smallest: big and small change sides
    "last_two",  # first_two: two words of the list; repeat_last and last_to_front: those at the end
    "sound_both",  # sound_first and sound_last: which fact; young_both and home_both: of each animal, in order
    "home_last",  # home_first and home_both: which fact; sound_last and young_last: of which animal
}
DRAWS, DOCUMENTS, MAJORITY_SHARE = 150, 10_000, 0.5  # rows a wording, documents with an input, share of the majority
EVALUATED = 480  # rows of each other split
VALIDATION, RESERVED = 5, 15  # per cent of inputs that only validation uses, and that it and the evaluated splits use

OPPOSITES = (
    "first last, start end, starts ends, opens closes, before after, left right, up down, big small, high low, "
    "higher lower, highest lowest, bigger smaller, biggest least, largest smallest, maximum minimum"
)
OPPOSITE = {a: b for pair in map(str.split, OPPOSITES.split(",")) for a, b in (pair, pair[::-1])}

# twelve wordings of a task, the last two held out for `new_wording`; a task not listed takes its opposite's, flipped
TEXT = """
copy: Write the letters again just as they are given. Copy every letter and keep the order of the list. Return the whole
list of letters without any change. Say all the letters once more in the same order. Change nothing and give back all
the letters you read. The answer is the same list of letters as the input. Repeat the given letters from the first to
the last. Keep each letter in its place and write them all. Output the input letters as they stand, with none left out.
Give the same letters back in the order you see them. Write every letter of the input and change nothing at all. Return
each letter in the same order, with nothing left out.
reverse: Write the letters in the opposite order, from end to start. Reverse the list so that the last letter comes
first. Read the letters backwards and write them that way. Turn the whole list of letters around, end before start. Give
all the letters back to front, starting with the last. Return every letter, but in reverse order this time. The answer
is the list of letters read from right to left. Start at the end and go back letter by letter. Flip the order of the
letters, and the first becomes the last. Say the letters backwards until you reach the first one. Give the whole list of
letters backwards, the last one first. Turn the order around and write every letter from right to left.
first: Write only the first letter of the list. Give the letter that stands at the start of the list. Return the letter
that comes before all the others. Take the first of the letters and leave the rest out. The answer is the one letter at
the very start. Keep the first letter and drop every other one. Say what letter the list starts with and nothing more.
Pick the letter on the far left of the input. Output just one letter, the one that opens the list. Look at the start and
copy the single letter there. Return only the letter that opens the input, nothing more. Write the one letter on the far
left and leave the rest.
second: Write only the second letter of the list. Give the letter that stands right after the first one. Return the
letter in place number two of the input. Skip one letter and write just the one that follows it. The answer is the
letter next to the first. Count to two in the list and say that letter. Leave the first letter out and take only the
next one. Pick the second letter from the start and nothing else. Output just one letter, the one in second place. Look
behind the first letter and copy the single letter there. Take the letter that follows the first one, nothing more. Say
only the letter that stands in place two of the list.
second_last: Write only the second letter from the end of the list. Give the letter that stands right before the last
one. Return the letter next to the last one of the input. Start at the end and take only the second letter. The answer
is the letter just before the final one. Count to two from the end and say that letter. Leave the last letter out and
take only the one before it. Pick the second letter from the right and nothing else. Output just one letter, the second
when you read backwards. Look before the last letter and copy the single letter there. Take the one letter that the last
one follows, nothing more. Read from right to left and say only the second letter.
drop_first: Write all the letters except the first one. Drop the first letter and keep the rest in order. Leave out the
letter at the start of the list. Return the list of letters without its first one. Remove the first letter and give back
all the others. The answer is every letter that comes after the first. Write every letter except for the one on the
left. Cut the first letter off and copy all that remains. Throw the start letter away and say those that remain. Skip
the first letter and write all of the others. Give every letter except the first, in the same order. Copy the letters
and drop the one that stands at the start.
next_letter: Change every letter into the next one of the alphabet. For each letter write the one that follows it in the
alphabet. Replace all letters with those right after them in the alphabet. Move each letter one step forward in the
alphabet. Give its next letter in the alphabet for every letter listed. Step forward in the alphabet by one for each
letter. The answer has b for a, c for b, and so on. Return each letter shifted by one place in the alphabet. Keep the
order, but write the letter after each in the alphabet. Turn every letter into the one that the alphabet has next. Write
the next letter of the alphabet for each letter given. Move all letters forward by one place in the alphabet.
sort_up: Sort the numbers from the smallest to the largest. Write the numbers by size, from small ones to big ones. Put
the list in order, beginning with the lowest number. Return all the numbers sorted, and let the smallest lead. Arrange
the numbers so that each is followed by a bigger one. The answer is the sorted list, from low numbers to high ones.
Begin with the smallest number and go up to the biggest. Give the numbers in order, as when you count up. Order the list
by size, with small numbers at the front. List the numbers again, but sort them from low to high. Arrange the list in
order of size, from small to big. Write all the numbers by size, beginning with the smallest one.
largest: Write only the largest number of the list. Return the biggest of the numbers you are given. Find the number
that is higher than all the others. The answer is the highest number in the input. Pick the maximum of the numbers and
leave the others out. Say which number of the list is the biggest. Compare the numbers and output the largest of them.
Give just one number, the maximum of the list. Look for the highest number and write nothing else. Tell me the number
that is bigger than every other. Find the highest number and say only that one. Give the one number that is bigger than
the rest.
largest_smallest: Write the largest number and then the smallest one. Give two numbers, the biggest of the list and the
least. Return the maximum first and after it the minimum. Find the highest number and the lowest, and write both. The
answer is the largest number followed by the smallest. Say only the biggest number and then only the least. Keep just
the maximum and the minimum, in that order. Output the greatest number, then the lowest, and no others. Pick two by
size, the highest one before the lowest. Tell me the maximum and the minimum of the numbers. Find the greatest number
and the smallest, and say both. Return two numbers, the highest first and the lowest after it.
add_one: Add one to each number and keep the order. Write every number of the list plus one. Return the list with each
number made one bigger. Raise all the numbers by one and write them down. For each number give the next number after it.
Count one step up from every number in the list. The answer has two for one, three for two, and so on. Make each number
of the list larger by exactly one. Increase every number by one and leave the order alone. Give the number that follows,
for each number you read. Make every number one larger and keep them in order. For each number of the list write that
number plus one.
double_each: Double each number and keep the order of the list. Write every number of the list times two. Return the
list with each number made twice as big. Multiply all the numbers by two and write them down. For each number give the
sum of it and itself. Add every number to itself and write what you get. The answer has two for one, four for two, and
so on. Make each number of the list two times as large. Take twice every number and leave the order alone. Give two
times the number, for each number you read. Make every number twice as large and keep them in order. For each number of
the list write that number times two.
count: Count the numbers and write how many there are. Say how many numbers the list has in all. Give the length of the
list, not the numbers in it. Return the count of the numbers in the input. The answer is how long the list of numbers
is. Tell me how many numbers you were given. Do not copy the numbers, but count them all. Write three if you see three
numbers, and so on. Find out how many numbers stand in the list. Output one number, the length of the whole input. Count
how many numbers stand in the input and say it. Write the length of the list that you were given.
first_two: Write only the first two words of the list. Keep two words from the start and drop the rest. Return the first
two words in order, nothing else. Take the two words at the very start of the list. The answer is the pair of words that
opens the list. Copy the two words on the left, leave the others out. Give the two words on the far left of the input.
Leave out everything that comes after the first two words. Cut the list so that only its first two words remain. Say the
first two words and forget the others. Take only the pair of words at the start. Write just the two words with which the
list starts.
repeat_last: Copy the words and write the last one twice. Repeat the last word at the end of the list. Return all the
words, with the final word two times. Write the list, then say its last word once more. Add another copy of the last
word behind the list. The answer is the list followed by its last word again. Double only the word at the end and keep
the others. Give every word in order, but the final one twice. Make the list one word longer by repeating its last word.
After the whole list write the word that closes it again. Say all the words and write the final one twice. Add the last
word once more at the end.
swap_ends: Swap the first word of the list and the last one. Let the words at the two ends of the list change places.
Put the last word first and the first word last. Exchange the first word with the final one, keep the middle. Return the
list with both outer words in the other one's place. The answer has only its two outer words changed around. Switch the
beginning word and the end word, move nothing else. Write the words with the first and the last exchanged. Trade the
places of the first word and the last word. Keep the middle as it is and swap both outer words. Let the first word and
the final word change places. Switch the words at the two ends and keep the middle.
last_to_front: Move the last word to the front of the list. Take the last word away and put it before the others. Write
the final word first and then the rest in order. Bring the word at the end to the very beginning. Rotate the list by one
step, and the last word leads. The answer starts with the last word, then all the others follow. Shift every word one
place right, and the last goes first. Give the end word first, the others after it as before. Put the final word in
front and leave the other words alone. Return the list after its last word moved to the start. Bring the final word to
the front and keep the others in order. Write the last word, then all the words before it in order.
replace_first: Replace the first word by none and keep the others. Write none where the first word stands, then copy the
rest. Change the first word of the list into the word none. Put none in place of the word at the start. Return the list
with none in the place of its first word. The answer begins with none, and after it come the other words. Swap the first
word for none and leave the others alone. Say none, skip the first word, and write those that follow. Cut off the first
word and write none in its place. Hide the first word behind none and copy all the others. Put none where the list has
its first word. Write none for the word at the beginning and keep the rest.
initials: Write only the first letter of each word. Return the letters with which the words begin. Give the opening
letter of every word in the list. Cut each word down to the letter it begins with. The answer is one letter for each
word, its first. For every word say the letter at its start. Shorten all the words to a single letter, the first. Keep
just the first letter of every word, in order. Spell only the beginning of each word, one letter long. Take the initial
letter from each of the words. Give one letter for every word, the one it begins with. Shorten each word of the list to
its opening letter.
sound_first: Write the sound that the first animal makes. Say what noise the first of the two animals makes. Give the
cry of the animal at the start. Return the call of the first animal, not the last. Tell me how the first animal sounds
when it calls. The answer is the voice of the animal named first. Forget the last animal and write the noise of the
first. Find the sound of the animal on the left. Look at the first animal only and name its cry. Name the noise you hear
from the first animal. Say the cry of the animal on the left. Give the sound you hear from the animal named first.
sound_both: Write the sound that each of the animals makes. Say what noise both of the two animals makes. Give the cry
of the first animal and of the last. Return two sounds, the call of each animal, in order. Tell me how both animals
sound, one after the other. The answer is the voice of one animal and of the other. Write the noise of the first animal,
then of the last. Find the sound of the left animal and of the right one. Look at both animals and name the cry of each.
Name the noise you hear from each of the two animals. Say the cry of both animals in the same order. Give two sounds
that you hear, one for each animal.
young_first: Write the name for the young of the first animal. Say what the baby of the first animal is called. Give the
child of the animal at the start. Return the young of the first animal, not the last. Tell me who has the first animal
as its mother. The answer is the baby of the animal named first. Forget the last animal and write the young of the
first. Find the name for the child of the animal on the left. Look at the first animal only and name its little one.
Name the baby that one day will be the first animal. Say the little one of the animal on the left. Give the name for the
baby that the first animal has.
young_both: Write the names for the young of both animals. Say what the babies of the two animals are called. Give the
child of each animal, in the same order. Return two names, the young of the first and the last. Tell me who has each of
these animals as its mother. The answer is the baby of one animal and of the other. Write the young of the first animal,
then of the last. Find the child of the left animal and of the right one. Look at both animals and name the little one
of each. Name both babies, one for each of the animals. Say the child of each of the two animals. Give the names for the
babies of both animals.
home_first: Write the place where the first animal lives. Say where the first of the two animals sleeps. Give the home
of the animal at the start. Return the house of the first animal, not the last. Tell me where to look for the first
animal at night. The answer is the home of the animal named first. Forget the last animal and write the home of the
first. Find the place to sleep for the animal on the left. Look at the first animal only and name its house. Name the
place to which the first animal goes home. Say where the animal on the left lives and sleeps. Give the house in which
the first animal sleeps.
home_both: Write the places where both of the animals live. Say where each of the two animals sleeps. Give the home of
each animal, in the same order. Return two houses, of the first animal and of the last. Tell me where to look for both
animals at night. The answer is the home of one animal and of the other. Write the home of the first animal, then of the
last. Find the place to sleep for each of the animals. Look at both animals and name the house of each. Name both places
to which the animals go home. Say where both of the animals live and sleep. Give the house in which each of the animals
sleeps.
"""


def flip(text: str) -> str:
    """The text with each word that has an opposite replaced by it: "drop_first" becomes "drop_last"."""
    return re.sub("[a-z]+", lambda word: OPPOSITE.get(word[0], word[0]), text)


def read_wordings(text: str) -> dict[str, list[str]]:
    """The sentences of every task, from paragraphs that open with its name or, flipped, with that of its opposite.

    Raises KeyError for a task that has neither. {"last": ["Write only the last letter of the list.", ...], ...}
    """
    listed = {name: " ".join(lines.split()) for name, lines in re.findall(r"^(\w+):([^:]+\.)$", text, re.MULTILINE)}
    names = [task.name for task in TASKS]
    texts = {name: listed[name] if name in listed else flip(listed[flip(name)]) for name in names}
    return {name: re.findall(r"\w[^.]+\.", sentences) for name, sentences in texts.items()}


WORDINGS = read_wordings(TEXT)


def use_of(items: list[str], seed: int) -> str:
    """What an input is for, by a hash that is the same in every process: train, validation or evaluation."""
    digest = hashlib.sha256(f"{seed} {' '.join(items)}".encode()).digest()
    percent = int.from_bytes(digest[:8], "big") % 100
    return "validation" if percent < VALIDATION else "evaluation" if percent < RESERVED else "train"


def load(path: str | None, seed: int) -> Data:
    """All splits and the documents, the same for the same seed. Raises ValueError if given a path."""
    if path is not None:
        raise ValueError("the data set tasks is generated: leave out --data-path")
    rng = random.Random(seed)

    def draw(family: str, use: str) -> list[str]:
        pool, lengths = FAMILIES[family]
        while True:
            items = rng.sample(pool, rng.choice(lengths))
            if use_of(items, seed) == use:
                return items

    def row(task: Task, wording: str, items: list[str], split: str) -> Record:
        return Record(task.name, wording, f"In: {' '.join(items)}\nOut:", task.answer(items), split)

    trained = [task for task in TASKS if task.name not in UNSEEN]
    unseen = [task for task in TASKS if task.name in UNSEEN]
    known = [(task, wording) for task in trained for wording in WORDINGS[task.name][:10]]
    records = [row(t, wording, draw(t.family, "train"), "train") for t, wording in known for _ in range(DRAWS)]
    for split, tasks, wordings in (
        ("validation", trained, slice(10)),
        ("seen", trained, slice(10)),
        ("new_wording", trained, slice(10, 12)),
        ("unseen", unseen, slice(12)),
    ):
        use = "validation" if split == "validation" else "evaluation"
        for number in range(EVALUATED):
            task = tasks[number % len(tasks)]
            wording = rng.choice(WORDINGS[task.name][wordings])
            records.append(row(task, wording, draw(task.family, use), split))
    opposites = [(a, b) for a in trained for b in trained if a.name < b.name and flip(a.name) == b.name]
    for number in range(EVALUATED // 2):
        (a, b), wording = opposites[number % len(opposites)], rng.randrange(10)
        items = draw(a.family, "evaluation")
        records += [row(task, WORDINGS[task.name][wording], items, "minimal_pairs") for task in (a, b)]

    documents = [wording for _, wording in known] * round(DOCUMENTS / 5 / len(known))
    for _ in range(DOCUMENTS):
        family = rng.choice(list(FAMILIES))
        majority, *others = [task for task in TASKS if task.family == family]
        task = majority if rng.random() < MAJORITY_SHARE else rng.choice(others)
        items = draw(family, "train")
        documents.append(f"In: {' '.join(items)}\nOut:{task.answer(items)}")
    rng.shuffle(documents)
    return Data("tasks", records, documents, template="In: {}\nOut:")
