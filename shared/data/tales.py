"""Tales: short children's stories from a grammar whose exact probability is known.

A tale is written by making random choices, one after the other, and every choice has a price:
picking one of n equally likely ways costs log2(n) bits. What is already settled costs nothing.

    One [grey|windy|quiet|golden] morning {hero} lost the {thing}. ... "Here is your {thing}!"
        `------- 2 bits -------'          `4.6 bits'     `4 bits'                    `0 bits'

No two sequences of choices write the same text (tests/test_tales.py checks it by reading tales
back), so the prices add up to the exact code length: bits = -log2 P(text). Their sum over a
corpus, divided by its characters, is the *entropy floor*: the line on a loss plot, in bits per
character, that no model can go below in expectation. See `write_corpus` for the reason.

The 0-bit places are where memory is tested: the answer is certain to whoever remembers, and one
of many to whoever does not. Each is a `Probe` with its distance in characters.

    python shared/data/tales.py                                  # three tales
    python shared/data/tales.py --size 5MB --out tales.txt       # a training corpus
    python shared/data/tales.py --split valid --floor            # its floor in bits per character
    python shared/data/tales.py --probes 10                      # what must be remembered

How to read and extend the grammar. In RULES a line starting with @ names a rule, each line after
it is one way to write it (a line that starts with a blank continues the way before it);
`@name: red, blue` is a list of words. A line break is a blank, but none after | and |]:

    [a|b|]          one of these, equally likely; the last one here is nothing at all
    <rule>          one way of a rule, drawn anew each time; <^rule> starts with a capital
    {slot}          a thing the tale remembers: drawn at its first mention, the same ever after
    {slot.form}     another column of its table: {kind.home}; {^kind.a} starts with a capital
    {?slot}         the same, and a recall probe: only where nothing else could come next
    {he} {his} ...  the hero's pronoun; {she} {her} {hers} is the friend's, always the other one

A new plot is one more string in PLOTS, a blank line between paragraphs. It follows the opening,
which has named {hero} and {kind}, and must mention {thing}:

    "nap": '''<^when> {he} fell asleep on {hers} {thing}, and {friend} [sighed|laughed|hummed].

    "Good morning, {?friend}," said the {kind}.''',

Give no two ways the same text, and let a slot's first mention show which entry was drawn; the
tests find it if you forget. (A new plot changes every corpus: renew the golden hash there.)
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import random
import re
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

if __package__ in (None, ""):  # run as a script, perhaps without `pip install -e .`
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from shared import UserError

# ---------------------------------------------------------------------------------------------
# 1. The lexicon: tables that slots are drawn from. The first column is the form of plain {slot}.
# ---------------------------------------------------------------------------------------------


def _table(columns: str, rows: str) -> list[dict[str, str]]:
    """One dict per line of `rows`; also "a", for the first column, and "^form"s.

    >>> _table("name", "owl")
    [{'name': 'owl', 'a': 'an owl', '^name': 'Owl', '^a': 'An owl'}]
    """
    table = []
    for line in rows.strip().splitlines():
        cells = [cell.strip() for cell in line.split("/")]
        row = dict(zip(columns.split(), cells, strict=True))
        row["a"] = f"{'an' if cells[0][0] in 'aeiou' else 'a'} {cells[0]}"
        capitals = {"^" + form: text[:1].upper() + text[1:] for form, text in row.items()}
        table.append({**row, **capitals})
    return table


def _words(listed: str) -> list[dict[str, str]]:
    """A table of plain words between commas."""
    return _table("name", "\n".join(re.split(r",\s+", listed.strip())))


# Names go with every kind and with both pronouns, so nothing but memory tells who it is. Within
# a table all first letters differ: a character model's very next letter already shows its guess.
NAMES = _words(
    """
    Alder, Bramble, Clover, Dusty, Ember, Fennel, Ginger, Hazel, Indigo, Juniper, Kit, Lolly,
    Mallow, Nutmeg, Oakley, Pip, Quill, Rowan, Sorrel, Tansy, Umber, Vesper, Willow, Yarrow
    """
)
KINDS = _table(
    "name home paw went look habit",
    """
    fox / a den / paw / trotted / a tail like a paintbrush / sneezing at roses
    badger / a burrow / paw / plodded / one white stripe and a serious face / making lists
    hedgehog / a cottage / paw / pattered / sharp prickles and soft manners / curling up
    mouse / a hole / paw / scurried / ears as thin as petals / nibbling the corners of books
    mole / a tunnel / paw / shuffled / a velvet coat and tiny spectacles / digging by mistake
    otter / a cabin / paw / scampered / whiskers that always dripped / juggling pebbles
    squirrel / a treehouse / paw / skipped / a tail fit for a queen / hiding things twice
    hare / a hollow / paw / bounded / ears that heard the grass grow / thumping on the floor
    bear / a cave / paw / lumbered / fur the colour of toast / yawning in company
    beaver / a lodge / paw / paddled along / teeth like piano keys / mending the furniture
    kitten / a basket / paw / tiptoed / socks of white fur / pouncing on shadows
    puppy / a kennel / paw / tumbled / feet too big for the rest / barking at the moon
    raccoon / an attic / paw / sneaked / a mask like a burglar / washing every spoon
    owl / a nest / wing / fluttered / eyes like two full moons / saying things three times
    duckling / a boathouse / wing / waddled / feathers like dandelion fluff / splashing
    goat / a shed / hoof / clattered / a beard like a professor / eating the newspaper
    """,
)
THINGS = _table(  # hurt: what can go wrong with it; used: what one does with it, something/one `it`
    "name fine hurt used",
    """
    bell / a brass bell / a crack in it / rang it three times
    compass / a copper compass / a bent needle / found north with it
    drum / a red drum / a hole in it / beat a slow march on it
    flute / a wooden flute / a chip in it / played a tune on it
    hat / a straw hat / a dent in it / tried it on
    jug / a blue jug / a broken handle / filled it with daisies
    kite / a paper kite / a rip in it / flew it over the roofs
    lantern / a tin lantern / a cracked glass / lit it
    mirror / a round mirror / a scratch across it / made faces in it
    parasol / a lace parasol / a bent rib / twirled it
    quilt / a patchwork quilt / a tear in it / curled up under it
    ribbon / a silk ribbon / a stain on it / tied it in a bow
    scarf / a woollen scarf / a loose thread / wrapped up warm in it
    teapot / a china teapot / a broken spout / made tea in it
    umbrella / an enormous umbrella / a split in it / sat under it
    violin / a little violin / a snapped string / played a waltz on it
    """,
)
PLACES = _words(
    """
    arch, bridge, chapel, elm, fountain, gate, haystack, jetty, mill, orchard, pump, quarry, stile,
    tower, well
    """
)
HELPERS = _words(
    """
    beetle, crow, donkey, frog, goose, heron, lizard, magpie, newt, pigeon, rooster, snail, toad
    """
)
WISHES = _words(
    """
    almonds, butter, cheese, dates, eggs, flour, honey, jam, lemons, mustard, onions, pepper,
    raisins, salt, tea, vinegar
    """
)
SWAPS = _words(
    """
    armchair, bathtub, cuckoo clock, feather bed, globe, ladder, piano, rocking horse, sledge,
    trumpet, wheelbarrow
    """
)
TREATS = _words(
    """
    acorns, biscuits, chestnuts, figs, gooseberries, muffins, pears, radishes, strawberries, turnips
    """
)
LANDS = _words(
    """
    in Thistle Wood, at the edge of Fernwood, beside the River Wend, under Blackberry Hill,
    on the island of Skerry, in the village of Mossy Bottom, at the end of Cobbler Lane,
    near the town of Little Hopping, above Whistling Bay, in a valley called Windle,
    behind the hills of Ambermoor, in the gardens of Marrow Hall, on Pebble Shore,
    among the pines of Greywater, down in Buttercup Dell, up on Harrow Heath
    """
)
# The hero's forms, then the friend's (she, her, hers as in "her paw"): always the other pronoun,
# so that "he" and "she" never leave the reader in doubt who is meant.
PRONOUNS = _table(
    "he him his himself she her hers herself",
    """
    he / him / his / himself / she / her / her / herself
    she / her / her / herself / he / him / his / himself
    """,
)
NUMBERS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
]
# Sums had - gave = left: every `left` from two to nine meets every `gave` from two to four once,
# so what is left is evenly spread and what was given away says nothing about it.
SUMS = _table(
    "had gave left",
    "\n".join(
        f"{NUMBERS[left + gave]} / {NUMBERS[gave]} / {NUMBERS[left]}"
        for left in range(2, 10)
        for gave in range(2, 5)
    ),
)
SLOTS = {  # two slots of one table never hold the same entry
    "hero": NAMES,
    "friend": NAMES,
    "kind": KINDS,
    "pal": KINDS,
    "thing": THINGS,
    "place": PLACES,
    "helper": HELPERS,
    "owed": HELPERS,
    "wish": WISHES,
    "swap": SWAPS,
    "swap2": SWAPS,
    "treat": TREATS,
    "sum": SUMS,
    "land": LANDS,
    "sex": PRONOUNS,
}
PROBE_KINDS = {  # which slot tests which kind of memory
    "hero": "hero",
    "friend": "friend",
    "thing": "object",
    "swap": "object",
    "sum": "count",
    "place": "place",
    "helper": "helper",
    "owed": "promise",
    "treat": "object",
    "wish": "quote",
}

# ---------------------------------------------------------------------------------------------
# 2. The rules: sentences and phrases that many plots share.
# ---------------------------------------------------------------------------------------------

RULES = """
@adj: battered, bent, blue, broken, brown, bumpy, cheap, chipped, clean, creaky, crooked, damp,
 dented, dusty, faded, fancy, fat, flowery, foreign, frayed, fuzzy, giant, gleaming, glossy,
 golden, green, handsome, heavy, hollow, homemade, huge, jolly, knobbly, leaky, lopsided, lumpy,
 mossy, mouldy, muddy, neat, noisy, painted, pale, patched, pink, plain, polished, precious,
 purple, ragged, red, rusty, scarlet, scratched, secondhand, shabby, shiny, silver, slippery,
 smelly, smoky, spotted, squeaky, sticky, striped, stubborn, tilted, tiny, violet, wobbly, wooden,
 worn, wrinkled, yellow
@indoor: bath mat, bed, biscuit tin, blanket chest, bookcase, bread bin, bucket, candlestick,
 carpet, clock, coal box, coffee pot, cooker, cradle, cupboard, curtain, cushion, deckchair, desk,
 dishrack, doormat, dresser, dustpan, flour bin, footstool, frying pan, grandfather clock,
 hatstand, hearthrug, high chair, kettle, larder, laundry basket, looking glass, mangle, mattress,
 mousetrap, music stand, nightcap, pantry, piano stool, pillow, rolling pin, saucepan, sewing box,
 shelf, sink, sofa, soup ladle, stove, table, tablecloth, vase, wardrobe, washstand, washtub,
 windowsill
@outdoor: bakery, bandstand, barn, beehive, bench, birdbath, boathouse, boulder, bus stop, cabbage
 patch, cartwheel, cherry tree, chicken run, corner shop, cottage, cowshed, dustbin, farmhouse,
 fence, flagpole, flower bed, fruit stall, garden shed, gooseberry bush, greenhouse, hawthorn, hay
 barn, haycart, hedge, henhouse, hollow log, lamp post, merry-go-round, milestone, molehill,
 pavilion, pigsty, pine tree, plough, post office, rabbit hutch, railway station, rose bush,
 scarecrow, schoolhouse, seesaw, shed, signpost, snowdrift, stable, statue, sundial, swing,
 tractor, tree stump, wall, water trough, wheat field, woodpile
@trinket: badge, bead, bobbin, bookmark, bootlace, bottle, bracelet, buckle, button, candle, cap,
 coin, comb, cork, cotton reel, cup, doorknob, feather, fishhook, fork, garter, glove, hairpin,
 hammer, hinge, horseshoe, key, keyring, locket, magnet, marble, medal, mitten, nail, napkin,
 nutcracker, pebble, peg, pencil, pepper mill, pipe, playing card, postcard, purse, rattle, ruler,
 saucer, shell, shoe, slipper, sock, spinning top, spoon, stamp, teaspoon, thimble, ticket, tin
 soldier, walnut shell, yoyo
@ground: bog, brook, common, cornfield, dunes, footpath, green, heath, hill, lane, lawn, log,
 marsh, meadow, moor, pasture, plank, railway line, ridge, sandbank, slope, square, stepping
 stones, stream
@found
<indoor>
<outdoor>
@pot: barrel, basin, bucket of paint, butter churn, cannon, coal scuttle, drainpipe, flowerpot,
 gravy boat, hammock, keyhole, kitchen drawer, milk can, packing case, paddling pool, picnic
 basket, pothole, rain barrel, rowing boat, saddlebag, suitcase, trombone, watering can,
 wastepaper basket
@colour: black, brown, crimson, golden, lemon, lilac, pink, purple, scarlet, silver, turquoise,
 violet, white, yellow
@wild: bumpy, damp, dark, dewy, empty, grassy, lonely, misty, narrow, quiet, shady, silent, soggy,
 steep, stony, sunny, tangled, wide, windy, winding
@creature: bat, bee, bullock, bumblebee, buzzard, caterpillar, centipede, chicken, cow, cricket,
 cuckoo, falcon, foal, gnat, grasshopper, guinea pig, hamster, hen, horse, kingfisher, ladybird,
 lamb, lark, llama, mosquito, moth, nightingale, parrot, partridge, peacock, pelican, penguin,
 pheasant, piglet, quail, ram, robin, seagull, shrew, slug, sparrow, spider, starling, stork,
 swallow, swan, tadpole, turkey, wasp, woodpecker, worm, wren
@did: bowed, blinked, changed its mind, coughed, dozed off, fell over, giggled, groaned, hiccuped,
 hummed a hymn, kept out of it, looked away, nodded, pretended not to see, said good evening,
 scratched its chin, shook its head, sneezed, stared, sulked, took notes, took no notice, turned
 pink, yawned
@manner: absently, bitterly, blankly, boldly, bravely, brightly, briskly, calmly, carefully,
 casually, cautiously, cheerfully, coldly, crossly, curiously, dreamily, dryly, dully, eagerly,
 faintly, fiercely, firmly, frankly, gently, gladly, grandly, gravely, grimly, gruffly, happily,
 helpfully, hoarsely, hopefully, idly, kindly, lazily, lightly, loudly, meekly, merrily, mildly,
 modestly, nervously, patiently, plainly, politely, primly, proudly, quickly, quietly, sadly,
 shyly, sleepily, slowly, smugly, softly, solemnly, sternly, stiffly, sweetly, thoughtfully,
 timidly, warmly, wearily
@said: admitted, agreed, announced, argued, barked, boomed, breathed, called, chuckled, coughed,
 cried, croaked, crowed, declared, exclaimed, gasped, grumbled, grunted, hissed, insisted,
 laughed, moaned, mumbled, murmured, muttered, panted, puffed, remarked, roared, said, sang,
 screeched, sighed, sniffed, snorted, sobbed, squeaked, stammered, thundered, wailed, warbled,
 wheezed, whimpered, whined, whispered, yawned, yelled, yelped
@asked: asked, wondered, demanded, inquired, begged, shouted, repeated, piped up
@went: hurried, marched, wandered, strolled, raced, tramped, danced, stumbled, crept, strode,
 rambled, dashed, trudged, rushed, sauntered, hopped
@person: baker, barber, beekeeper, bishop, blacksmith, bookseller, bricklayer, bus driver,
 butcher, captain, carpenter, chimney sweep, clockmaker, clown, cobbler, conductor, cook, cowboy,
 dancer, dentist, detective, diver, doctor, duke, farmer, fiddler, fortune teller, gamekeeper,
 gardener, general, giant, glassblower, goblin, governor, grocer, hairdresser, judge, juggler,
 knight, librarian, lighthouse keeper, lion tamer, locksmith, magician, mayor, milkmaid, nurse,
 painter, pastry cook, photographer, pilot, pirate, plumber, poet, professor, sailor, sculptor,
 shepherd, shopkeeper, soldier, tailor, teacher, tightrope walker, toymaker, trombonist, weaver,
 window cleaner, wizard, wrestler
@human: bald, barefoot, bearded, boastful, bow-legged, careless, charming, chatty, cheerful,
 clumsy, cross, curly-headed, dashing, famous, fearless, forgetful, freckled, frowning, generous,
 giggling, gloomy, greedy, grumpy, homesick, hungry, hurried, jolly, kind, left-handed, lonely,
 melancholy, musical, mysterious, near-sighted, nosy, penniless, poor, quarrelsome, red-nosed,
 retired, rich, sentimental, shivering, sleepy, soft-spoken, sunburnt, talkative, tall, thin,
 toothless, travelling, well-dressed, whistling, wise, wrinkled
@trait: bold, bossy, brave, careful, cautious, cheerful, clever, clumsy, curious, dreamy, fidgety,
 friendly, fussy, gentle, grumpy, hasty, hopeful, lazy, lively, lonely, merry, messy, modest,
 nimble, plump, polite, proud, quiet, restless, shy, silly, skinny, sleepy, small, solemn,
 stubborn, talkative, thoughtful, tidy, young
@sky: bright, blustery, chilly, clear, cloudy, crisp, drizzly, dull, foggy, frosty, golden, grey,
 hazy, hot, mild, misty, quiet, rainy, silvery, sleepy, snowy, stormy, sunny, warm
@weekday: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday
@month: January, February, March, April, May, June, July, August, September, October, November,
 December
@taste: baked, bitter, boiled, burnt, charred, chewy, chilled, chopped, cold, creamy, crisp,
 crumbly, crusty, delicious, double, dry, flaky, fluffy, fresh, fried, frosted, frothy, grilled,
 hot, lumpy, mashed, melted, mild, moist, mushy, peppery, pickled, plain, rich, roast, runny,
 sizzling, smoky, soft, soggy, sour, spicy, spongy, stale, steaming, sticky, stirred, sugary,
 sweet, tangy, tasteless, thick, toasted, warm, watery, wobbly
@crop: acorn squash, apple, apricot, artichoke, asparagus, barley, bean, beetroot, bilberry,
 blackberry, blackcurrant, blueberry, broccoli, cabbage, carrot, cauliflower, celery, cherry,
 chickpea, cinnamon, coconut, cranberry, cucumber, dandelion, elderberry, garlic, hazelnut, leek,
 lentil, lettuce, maize, marrow, melon, mint, mushroom, nettle, orange, parsnip, pea, peach,
 potato, pumpkin, quince, raspberry, rhubarb, spinach, sweetcorn, tomato, vanilla, watercress
@dish: bake, bread, broth, brownies, buns, cake, cordial, crackers, croquettes, crumble, custard,
 dumplings, flapjacks, fritters, hash, hotpot, jelly, loaf, mash, meringue, mousse, noodles,
 omelette, pancakes, pasties, pickle, pie, porridge, pudding, puree, risotto, rolls, salad,
 sandwiches, sauce, scones, sherbet, sorbet, souffle, soup, stew, tart, toast, trifle, waffles
@ing: baking, blazing, blinking, boiling, bouncing, bubbling, buzzing, chattering, clattering,
 creeping, crumbling, dancing, dazzling, drifting, dripping, flapping, floating, frozen,
 galloping, giggling, glittering, gobbling, groaning, hopping, howling, jiggling, jumping,
 knitting, leaping, limping, marching, melting, mumbling, rattling, ringing, roaring, rolling,
 rumbling, scampering, shivering, singing, sizzling, skating, skipping, sleeping, sliding,
 sneezing, snoring, spinning, spluttering, squirming, stumbling, swimming, thundering, trembling,
 tumbling, wandering, whistling, wobbling, wriggling, yodelling
@oats: acrobats, artichokes, bagpipes, bananas, beans, beetroots, biscuits, blackbirds, bookends,
 broomsticks, buckets, bumblebees, cabbages, candlesticks, carrots, castanets, catfish, chickpeas,
 chimneys, codfish, corkscrews, crumpets, cucumbers, daffodils, doughnuts, dumplings, elbows,
 featherdusters, flapjacks, galoshes, haddocks, hairbrushes, hiccups, jellyfish, kippers, ladles,
 lobsters, mackerel, marmalade, meatballs, monkeys, noodles, oysters, pancakes, pickles,
 porcupines, pumpkins, rhubarb, sardines, saucepans, sausages, shoelaces, snowballs, spoons,
 teacups, thunderbolts, toadstools, trousers, turnovers, waffles, whiskers
@sad: cold, dizzy, empty, foolish, forgotten, gloomy, guilty, helpless, hollow, limp, lonely,
 lost, miserable, sick, small, stupid, tearful, tired, unlucky, wretched
@game: cards, chess, dominoes, hide and seek, hopscotch, leapfrog, pirates, skittles, snap, tag
@hobby: archery, baking, bird-watching, boating, bowling, boxing, camping, canoeing, carpentry,
 chess, climbing, cooking, cricket, cycling, dancing, debating, drawing, embroidery, farming,
 fencing, fishing, flying, gardening, geology, golf, gossip, gymnastics, history, hockey, jogging,
 juggling, knitting, magic, marching, mountaineering, opera, painting, poetry, pottery, reading,
 riding, rowing, sailing, sewing, singing, skating, skiing, sleepwalking, spelling, swimming,
 tennis, weaving, whittling, wrestling, yodelling
@fear: arithmetic, bagpipes, bald men, balloons, bandages, beards, bees, brooms, bubbles, caves,
 clowns, crowds, custard, deep water, dentists, drains, draughts, echoes, escalators, feathers,
 fog, forks, gargoyles, geography, ghosts, gravy, hail, haircuts, hiccups, high places, jellyfish,
 lightning, locked doors, long words, lullabies, mathematics, Mondays, monsters, moths, mud,
 noises, puddles, shadows, soap, spiders, stairs, strangers, thunder, trains, vampires, whispers,
 wolves
@opening
Once upon a time, {land}, there lived a <trait> {kind} [called|named] {hero}.
Once upon a time there was a <trait>, <trait2> {kind} with {kind.look}, and {his} name was {hero}.
{hero} was a <trait> {kind} who lived {land} in {kind.home} with <door>.
{hero} the {kind} lived {land}, in {kind.home} with <door>.
[Long ago|Not long ago|Last <month>], {land}, there lived a <trait> {kind} with {kind.look}.
 [Everybody called {him}|{His} name was] {hero}.
Everybody {land} knew {hero}, a <trait> {kind} with {kind.look}.
There was once a <trait> {kind}, {hero} by name, who was known {land} for {kind.habit}.
This is [a story|a tale|what they tell] about {hero}, a <trait> {kind} who lived {land}.
@trait2: good-natured, hard-working, hot-tempered, long-legged, soft-hearted, short-sighted,
 sweet-toothed, warm-hearted
@door
a <adj> [door|chimney|roof|letter box|window|ceiling]
[no|only one|neither bed nor|room for nine and a] <indoor>
a <adj> <indoor> and [a <adj> <trinket>|very little else|a view of the sea]
@quirk
<habit>
"[Good morning|Look out|Well done|Good old], {?hero}!" the <person>s used to <shout> <manner>.
<^person>s sang about {him}: "<^taste> {?hero}, <ing> {?hero}!"
@shout: bellow, call, chant, cry, hum, mumble, mutter, say, shout, sigh, sing, whisper
@habit
{He} [collected|kept|hid|treasured] <trinket>s in a <adj> [jar|boot|tin|drawer|box|sock], and
 [counted|sorted|dusted|admired|kissed] them [every <weekday>|whenever it rained|at bedtime].
{He} [loved|hated|was good at|was mad about|dreamed of] <hobby>, but [was afraid of <fear>|only on
 <weekday>s|never when anybody looked|kept it secret].
{He} [said good night to|had long talks with|sang to|bowed to|told riddles to] the <adj> <indoor>
 every [evening|<weekday>|morning].
On <weekday>s {he} [did a little <hobby>|played <game>|polished the <indoor>|wrote to a <person>|
 ate nothing but <crop> <dish>], and on other days {he} [meant to|slept|practised <hobby>|was
 sorry].
{He} was [afraid|tired|fond|proud|jealous] of <fear>, [but|though] [not|seldom|never] on
 <weekday>s.
@pal
who [loved|taught|hated|dreamed of|talked of nothing but] <hobby>
who was afraid of <fear>[ and <hobby>|]
who [lived on|smelled of|could never refuse] <taste> <crop> <dish>
who always [carried|lost|wore] a <adj> <trinket>
who [once met|had married|was rude to|looked like] a <human> <person>
@when
one <sky> <weekday> [in|at the end of] <month>
one <sky> [morning|afternoon|evening] [in|early in|late in] <month>
on a <sky> [morning|afternoon|evening] in <month>
@aside
<weather>
A <creature> [on|under|behind|inside|beside] [a|the] <adj> [<indoor>|<outdoor>] <did>.
A <creature> and a <person> [were playing|quarrelled over|stopped their] <game>.
@weather
Rain [drummed|pattered|tapped|danced|tiptoed|dripped] on the <adj> [<outdoor>|roof|windows].
The wind [hummed|sighed|grumbled|whistled|sneezed|howled] [round|behind|over|through] the <wild>
 <ground>.
The [sun|moon] [sat|hung|dozed|floated|balanced] above the <outdoor> like a <adj> <trinket>.
[Mist|Fog|Smoke|Dusk|Silence] [lay|curled|drifted|crept|settled] over the <wild> <ground>.
The air smelled of <crop> <dish> and [wet leaves|bonfires|snow|ink|wool|adventure|<crop> <dish>].
@walk
{He} <went> [past|round|behind|beyond] the <adj> <outdoor> and [over|across|down] the <wild>
 <ground>.
The [path|road|way|track] [led|ran|wandered|wound] [past|round|behind] the <adj> <outdoor> and
 [over|across] the <wild> <ground>.
[Past|Round|Beyond] the <outdoor> {he} <went>, and [over|across] the <ground>, [humming|thinking
 of <hobby>|never stopping|out of breath|as <sad> as a <adj> <trinket>].
@route
[past|round|behind] the <adj> <outdoor> and [over|across] the <wild> <ground>
@down
{His} heart [sank|dropped|fell|went down] like a <adj> <trinket> [in|into] <crop> <dish>.
{He} [sat down|flopped down|sank down] on a <adj> <indoor>, [feeling <sad>|as <sad> as a
 <person>].
{He} felt as <sad> as a <creature> in a <adj> <trinket>.
[Not even|Neither sleep nor|Neither tears nor] <crop> <dish> could cheer {him} up.
@supper
<taste> <crop> <dish>
@glad
They [laughed|danced|cheered|sang|played <game>] until [the <adj> <indoor> shook|a <human>
 <person> complained|the <creature>s joined in|the <outdoor> fell down].
Then they had <supper>, and [<supper>|a second helping|<game> until midnight].
They [shared|ate|dropped] <supper>, [telling|whispering|inventing] [jokes|riddles|stories] about a
 <human> <person>.
@hero
{hero}
the {kind}
@friend
{friend}
the {pal}
@oh
<^ing> <oats>
@proverb
[A|Every|No] <adj> <trinket> [needs|deserves|fears|hides] a <adj> <indoor>
Never [trust|lend|kiss|wake|tickle|follow] a <human> <person>
[One|A] <trinket> [in the <indoor>|today] is worth [two|ten] [by the <outdoor>|tomorrow]
@end
And if you go {land} [in <month>|on a <sky> night|one <weekday>], you may [still|even|just] hear
 them [laughing|arguing|singing|playing <game>].
[Sleep|Bed] came [early|softly|late], and the dreams were of [<hobby>|<fear>|<taste> <crop>
 <dish>].
"<^oh>," <said> the {pal}, and [blew out the candle|put out the light|dreamed of <hobby>|<did>].
"<^proverb>," <said> the {pal} <manner>, and <did>.
"""

# ---------------------------------------------------------------------------------------------
# 3. The plots. Each follows the opening, which ends its sentence; a blank line is a new paragraph.
# ---------------------------------------------------------------------------------------------

PLOTS = {
    "lost": """
[<quirk> |][Of all {his} treasures|Best of all] {he} loved {thing.fine}, [a present from|bought
from|won at <game> from] a <human> <person>.

[But|Then,] <when>, the {?thing} was [gone|missing]. {He} looked [under|behind|beside] the <adj>
<indoor>, [inside|beneath] the <indoor> and [even|twice] in the <crop> <dish>, but found [only|
nothing but] a <adj> <trinket>.[ <down>|]

[Luckily|Just then|Before long] {friend} came by, {pal.a} <pal>. "<^proverb>," <said> <friend>
<manner>. "Where were you yesterday?" "[I was|I played <game>] by the {place}," <said>
<hero>.[ <aside>|][ <walk>|]

[There, by|Sure enough, by] the {?place}, [under|behind] a <adj> <found>, [sat|lay|shone|waited]
the {?thing}[, and a <creature> was asleep on it|, full of <crop> <dish>|]. "<^oh>! Next time,"
<said> {?friend}, "[tie it to|keep it in|leave it with] your <adj> <indoor>,
{?hero}."[ <glad>| <end>|]
""",
    "lent": """
[<quirk> |]Next door lived {friend} the {pal}, <pal>.

<^when> <friend> stood at the door with a <adj> <trinket> in one {pal.paw}. "I am off to [see|
visit|marry|help] a <human> <person>," {she} <said>. "May I borrow your {thing}?" {He} felt <sad>,
but a friend is a friend. "[Then|In return,] bring me some {wish}," <said> {?hero} <manner>.

[<aside> |][<^month> [passed|went by|crept along]. |][<down> |]["Perhaps a <human> <person> stole
it," {he} told the <adj> <indoor>. |]Then, <when>, [steps|a <taste> <dish> smell|loud <hobby>
noises] came from [behind|beyond] the <outdoor>, and there stood {?friend}, as <sad> as a
<creature>. "<^oh>! Here is your {?thing}," {she} <said> <manner>. "[It frightened|It surprised|I
hid it from] a <human> <person>. And [inside|under] this <adj> <trinket> is some
{?wish}."[ <glad>| <end>| "What a friend you are, {?friend}," <said> {?hero} <manner>.|]
""",
    "errand": """
[<quirk> |]<^when> {his} <human> [grandmother|aunt|grandfather|uncle] looked up from the <adj>
<indoor>. "[You|We] cannot make <crop> <dish> without {wish}," came the verdict. "[Run and buy|
Fetch] me some, and do not [talk to|play <game> with|follow] any <person>s!"

"Some {?wish}, some {?wish}," {he} <said> <manner>. [<walk> |][<aside> |][At the <adj> <outdoor>|
Half way there] {he} met {friend} the {pal}, <pal>.[ "Come and play <game>," <said> {?friend}
<manner>, but {he} [shook {his} head|hurried on].|]

The shop was full of <adj> <trinket>s and <adj> <oats>. "<^oh>! What will it be?" <asked> the
{helper} behind the counter. <^hero> [thought of|stared at] a <adj> <trinket>. "Some {?wish},
please," {he} <said>, [all in one breath|feeling <sad>|turning pink].

[At home {he} found|{He} ran home to] <supper>, and beside the plate lay {thing.fine}. "That is
for you, {?hero}," {he} was told <manner>, "because you remembered."[ And who came to see the
{?thing} on <weekday>? It was {?friend}, with a <adj> <trinket>.| <end>|]
""",
    "count": """
[<quirk> |]<^when> {he} [picked|was given|found|earned|won] {sum.had} {treat}, put them in a <adj>
[basket|pail|boot|bag|sock] and set off for [market|the fair|town], [all {?sum.had} of them|with
{?sum.had} {?treat} to sell|no more, no less].

[<walk> |]Beside a <adj> <outdoor> sat {pal.a}, as <sad> as a <creature>. "I am {friend}, and I
have [had|eaten] nothing but <crop> <dish> since <weekday>," {she} <said>. <^hero> looked at the
{?treat} <manner> and gave {her} {sum.gave}. "<^oh>!" <said> {?friend} <manner>.[ <aside>|][ "How
many have you now?" {she} <asked>. "I have {?sum.left}," <said> {?hero} <manner>.|]

[At|Behind] the <adj> <outdoor> a <human> {helper} was selling {thing.fine}. "What does it cost?"
<asked> <hero>. "[Turn out|Show me] your pockets," said the seller. [<down> |]Out they came, with
a <adj> <trinket>, and there were {?sum.left}. "<^oh>! That will do," <said> the {?helper}
<manner>.

So {he} went home with the {?thing} under one {kind.paw} and {?friend} [beside|behind] {him}.
"This morning you had {?sum.had}," <said> {?friend} <manner>, "and [now you have a friend|now look
at us], {?hero}."[ <glad>| <end>|]
""",
    "race": """
[<quirk> |]<^when> a <adj> notice hung on the {place}: "Great race! Umpire, a <human> <person>.
First prize, {thing.fine}." "You will never win," <said> {friend} the {pal}, <pal>. "I will so,"
<said> {?hero} <manner>. "And the {owed} behind the <outdoor> shall have the first turn. I
promise."[ "The {?owed}?" <said> {?friend} <manner>.|]

"<^oh>!" cried the umpire, and off they went <route>. [<aside> |]<^friend> was [far ahead|in the
lead] when [a <adj> <trinket> tripped {her}|{she} fell into a <adj> <pot>|a <creature> bit {her}].
"<^oh>!" {she} <said>. <^hero> stopped. "[Lean on me|Up you get|Take my {kind.paw}], {?friend},"
{he} <said>, and they hobbled to the {?place}, [last of all|late for <supper>|as <sad> as a
<creature>].

"<^proverb>," <said> the umpire <manner>. "Legs are common, [hearts|friends] are rare. The
{?thing} goes to {?hero}!" And who had the first turn? The {?owed}, [of course|as
promised].[ <glad>| <end>| Then it was the turn of {?friend}.|]
""",
    "storm": """
[<quirk> |]<^when> a storm came over the <wild> <ground>, and the <adj> <outdoor> [blew|sailed|
washed] away. Somebody [knocked|scratched|bumped] at the door <manner>. Outside stood {pal.a}, as
<sad> as a <creature>, with a <adj> <trinket>. "I am {friend}," {she} <said>. "Have you <crop>
<dish>?"

{He} [dusted|fetched|offered] the <adj> <indoor> and warmed <supper>. The visitor [ate <manner>|
talked of <hobby>], and [slept|snored] [on|under|beside] the <indoor>. In the morning [the guest|
the stranger] had gone, and on the <adj> <indoor> [stood|lay] {thing.fine}.

[<^month> came|A year went by]. [<quirk> |][<aside> |]Then, on a <sky> <weekday>, a <human>
<person> brought a letter. "Dear friend," it began, "come to my <adj> <outdoor> and bring the
{?thing}. There will be <supper>." It was signed: {?friend}.

[<walk> |]"<^oh>! You found me!" <said> {?friend} <manner>. "How dry you are!" <said> {?hero}
<manner>.[ <glad>| <end>|]
""",
    "present": """
{His} best friend was {friend} the {pal}, <pal>. <^when> <friend> had a birthday coming. In secret
{he} [bought|won|borrowed money for] {thing.fine}, wrapped it in a <adj> [curtain|cabbage leaf|
newspaper] and hid it by the {place}. "What would you like to eat?" {he} asked {her} <manner>.
"<^crop> <dish> with {wish}," {she} <said>. "Why?" "No reason," <said> {?hero}, and [turned pink|
dropped a <adj> <trinket>|hid behind the <adj> <indoor>].

The day came, <sky> and still. [<aside> |]["They forgot me," {she} told the <adj> <indoor>
<manner>. |]Then a note came under the door, tied to a <adj> <trinket>. "Look by the {?place}," it
said in <colour> ink.

{She} <went> <route>. There, [in|under|beside] a <adj> <pot>, was the {?thing}! "<^oh>! Surprise!"
<said> {?hero}, falling [out of|over|into] a <adj> <outdoor>. "And we shall have <taste> <dish>,
with plenty of {?wish}."[ <glad>| <end>| "You only pretended to play <game>!" <said> {?friend}
<manner>.|]
""",
    "broken": """
{friend} the {pal}, <pal>, lived across the <wild> <ground> and owned {thing.fine}. <^when> {he}
took it from the <adj> <indoor>, only to look, and [slip|crash|oops]! Now there was {thing.hurt}.
{He} <went> to the {place} and [buried|hid] it under a <adj> <trinket>. "<^oh>! Have you seen my
{?thing}?" <asked> {?friend}. "Not I," <said> {?hero} <manner>, and the words tasted of <taste>
<crop> <dish>.

{He} could not sleep[, not with a <adj> <trinket> in the bed|]. [<aside> |]"What is it?" <asked> a
{helper} at the <adj> window, and out came the whole story. "A lie," was the answer, "[is like a
<adj> <trinket> in a boot|grows like <crop> <dish> in the <indoor>|is worse than <fear>]."

[Next morning|At sunrise] {he} <went> <route>. "It was me, {?friend}," {he} <said> <manner>. "I
broke it, and it is by the {?place}." [The <indoor> creaked. |]"I knew, {?hero}," {she} <said>
<manner>. "I once broke it too, on a <human> <person>." With a <adj> <trinket> and some <taste>
<crop> <dish> they mended the {?thing}[, and the {?helper} <did>|].[ <glad>| <end>|]
""",
    "noise": """
[<quirk> |]<^when> {he} woke with a start. [Boo-oom|Hoo-wump|Krrr-eek|Flap-flap-thud|Tick-a-dong]!
It came from the {place}. [<down> |]Next door lived {friend} the {pal}, <pal>. "<^oh>! It is a
<ing> <person>," {he} <said>. "<^person>s [play <game>|eat <dish>] at this hour," <said> {?friend}
<manner>. So {she} took a <adj> <trinket>, and {he} took {thing.fine}, and they went to see.

[<aside> |][<walk> |]["Are you afraid?" {he} <asked>. "Only of <fear>," <said> {?friend}. |]They
[peeped|looked] behind the {?place}, and there, stuck in a <adj> <pot>, was a {helper}.

"I beg your pardon," <said> the {?helper} <manner>. "I was [practising <hobby>|looking for <crop>
<dish>|hiding from a <human> <person>|dreaming of <fear>], and I am so <sad>." "Keep this till
morning," <said> {?hero}, and held out the {?thing}. [<weather> |]Then [nothing stirred|all was
still].

At breakfast [it stood|it lay] on the doorstep, [inside|under|beside] a <adj> <trinket>, with a
note: "It was better than <crop> <dish>!"[ "<^proverb>," <said> {friend}
<manner>.|][ <glad>| <end>|]
""",
    "map": """
[<quirk> |]<^when> {he} [opened|dusted|dropped] a <adj> book about <hobby>, and out fell a map. A
<colour> cross marked a spot by the {place}, and a <human> <person> had written: "[Dig deep|Bring
a spade]!" The {owed} behind the <adj> <outdoor> had a spade. "But what do I get?" "The first
[bite|taste] of my next <taste> <dish>," <said> {?hero} <manner>. "I promise."[ So the {?owed}
<did> and handed it over.|]

{friend} the {pal}, <pal>, came along. [<walk> |][<aside> |]They dug, and found a <adj> <trinket>
and some <adj> <oats>. [<down> |]["<^proverb>," <said> {?friend} <manner>. |]Clunk! There was a
<adj> box, and in the box, under a <adj> <trinket>, {thing.fine}. "<^oh>!" <said> <friend>.

Back they <went> from the {?place}, <route>, with the {?thing} between them. Then {he} baked. "Is
it ready?" <asked> {?friend} <manner>, holding a <adj> spoon. "[Not yet|Wait]," <said> {?hero}
<manner>. "The first one goes to the {?owed}."[ <glad>| <end>|]
""",
    "swap": """
{He} had {thing.fine}, but was [tired|bored] of it. <^when> {he} took it to the fair.
[<aside> |]"<^oh>! I will give you {swap.a} for that," <said> a <human> {helper} <manner>. So {he}
set off with the {?swap} <route>. But [it was heavy|{his} back ached|a <creature> bit it], and at
the <adj> <outdoor> {he} swapped it for {swap2.a} from a <human> <person>.[ <down>|]

[On|Under|Behind] a <adj> <outdoor> sat {friend} the {pal}, <pal>. "I always wanted one of those,"
<said> {?friend} <manner>. "[Look|See] what I got from a {?helper} for a <adj> <trinket>. Will you
have it instead?" And {she} held out the {?thing}! {He} [could not speak|fell over a <adj> <pot>|
{thing.used} all the way home].

"And what did you learn, {?hero}?" <asked> a <human> <person> on <weekday>. "<^proverb>," {he}
<said> <manner>. "I do not miss the {?swap}. And I have a friend called
{?friend}."[ <glad>| <end>|]
""",
}

# ---------------------------------------------------------------------------------------------
# 4. From templates to a graph: text, choices and slots.
# ---------------------------------------------------------------------------------------------


class _OneOf:
    """A choice between equally likely ways; each way is a tuple of nodes."""

    __slots__ = ("bits", "size", "turned", "ways")

    def __init__(self, ways: list[tuple[Any, ...]]) -> None:
        self.ways = ways
        self.turned = [way[::-1] for way in ways]  # back to front, as a stack wants them
        self.size = len(ways)
        self.bits = math.log2(len(ways))


class _Slot(NamedTuple):
    """A place for a remembered thing: which slot, in which form, and whether it is a probe."""

    name: str
    form: str
    asks: bool


_TOKEN = re.compile(r"[\[\]|]|<\^?\w+>|\{[?^]?[\w.]+\}|[^\[\]|<{]+")


def _slot(inside: str) -> _Slot:
    """`?sum.left` -> _Slot("sum", "left", True); `He` -> _Slot("sex", "^he", False)."""
    asks, inside = inside.startswith("?"), inside.lstrip("?")
    capital, inside = "^" * inside.startswith("^"), inside.lstrip("^")
    if inside.lower() in PRONOUNS[0]:
        return _Slot("sex", "^" * inside[0].isupper() + inside.lower(), asks)
    name, _, form = inside.partition(".")
    return _Slot(name, capital + (form or next(iter(SLOTS[name][0]))), asks)


def _capital(way: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same way, its first letter a capital."""
    first = way[0]
    if isinstance(first, str):
        return (first[:1].upper() + first[1:], *way[1:])
    if isinstance(first, _Slot):
        return (first._replace(form="^" + first.form.lstrip("^")), *way[1:])
    return (_OneOf([_capital(each) for each in first.ways]), *way[1:])


def _parse(tokens: Iterator[str], rule: Callable[[str], _OneOf]) -> list[tuple[Any, ...]]:
    """Take tokens up to the bracket that closes (or the end): the ways between the bars."""
    ways: list[list[Any]] = [[]]
    for token in tokens:
        if token == "]":
            break
        if token == "|":
            ways.append([])
        elif token == "[":
            ways[-1].append(_OneOf(_parse(tokens, rule)))
        elif token[0] == "{":
            ways[-1].append(_slot(token[1:-1]))
        elif token[:2] == "<^":
            ways[-1].append(_OneOf([_capital(way) for way in rule(token[2:-1]).ways]))
        elif token[0] == "<":
            ways[-1].append(rule(token[1:-1]))
        else:
            ways[-1].append(token)
    return [tuple(way) for way in ways]


def _compile() -> tuple[_OneOf, dict[str, tuple[Any, ...]]]:
    """The opening's choice, and each plot as a tuple of nodes."""
    lines: dict[str, list[str]] = {}
    done: dict[str, _OneOf] = {}

    def sequence(template: str) -> tuple[Any, ...]:
        # A line break is a blank, but not after a bar or an optional part, which brings its own.
        flat = re.sub(r"(\|\]?|\[)\n(?!\n)", r"\1", template)
        flat = re.sub(r"(?<!\n)\n(?!\n)", " ", flat).replace("\n\n", "\n")
        return _parse(iter(_TOKEN.findall(flat)), rule)[0]

    def rule(name: str) -> _OneOf:
        if name not in done:
            done[name] = _OneOf([sequence(way) for way in lines[name]])
        return done[name]

    # A word list, `@taste: burnt, cold`, is a rule with one word on each line.
    listed = re.sub(
        r"(?m)^(@\w+): ((?:.+\n )*.+)",
        lambda found: "\n".join([found[1], *re.split(r",\s+", found[2])]),
        RULES.strip(),
    )
    for line in listed.splitlines():
        if line[0] == "@":
            lines[line[1:]] = current = []
        elif line[0] == " " or (current and current[-1].count("[") > current[-1].count("]")):
            current[-1] += "\n" + line.strip()
        else:
            current.append(line)
    plots = {name: sequence(" " + template.strip()) for name, template in PLOTS.items()}
    return rule("opening"), plots


_OPENING, _PLOTS = _compile()

# ---------------------------------------------------------------------------------------------
# 5. Writing a tale, and its facts and probes.
# ---------------------------------------------------------------------------------------------

Combination = tuple[str, str, str]  # plot, kind, thing


def held_out(plot: str, kind: str, thing: str) -> bool:
    """Whether this combination belongs to validation: a fixed tenth, the same on every machine."""
    return zlib.crc32(f"{plot}/{kind}/{thing}".encode()) % 10 == 0


_EVERY = [(p, k["name"], t["name"]) for p in PLOTS for k in KINDS for t in THINGS]
COMBINATIONS: dict[str, list[Combination]] = {
    "train": [each for each in _EVERY if not held_out(*each)],
    "valid": [each for each in _EVERY if held_out(*each)],
}
_ROW = {row["name"]: row for table in (KINDS, THINGS) for row in table}


class Probe(NamedTuple):
    """One thing to remember: after `prompt` the tale goes on with `answer`, certainly.

    Answer and candidates begin with a blank and differ in their first letter, so a guesser's
    chance is 1 / len(candidates). `distance` is in characters, from the end of the last earlier
    mention of the answer (of the last number told, for a count) to the end of the prompt.
    """

    kind: str
    prompt: str
    answer: str
    candidates: tuple[str, ...]
    distance: int


class Facts(NamedTuple):
    """What happens in a tale; "" (or 0) where it has no such thing. Numbers are plain ints."""

    plot: str
    split: str
    hero: str
    kind: str
    pronoun: str = ""
    friend: str = ""
    friend_kind: str = ""
    thing: str = ""
    place: str = ""
    helper: str = ""
    promised: str = ""
    wish: str = ""
    swap: str = ""
    treat: str = ""
    land: str = ""
    had: int = 0
    gave: int = 0
    left: int = 0


class Tale(NamedTuple):
    """A story with its code length in bits, -log2 P(text | split), and what it is about."""

    text: str
    bits: float
    facts: Facts
    probes: tuple[Probe, ...]


class _Draft(NamedTuple):
    """What the writer (or the reader) keeps: enough to work out facts and probes on demand."""

    pieces: list[str]
    bits: float
    known: dict[str, dict[str, str]]
    mentions: list[tuple[_Slot, int]]  # slot, index of its piece
    plot: str


def _draft(rng: random.Random, split: str) -> _Draft:
    """Write one tale. The price of each choice is added at the moment it is made."""
    chance = rng.random  # the one function of `random` that never changes between versions
    combinations = COMBINATIONS[split]
    plot, kind, thing = combinations[int(chance() * len(combinations))]
    bits = math.log2(len(combinations))
    known = {"kind": _ROW[kind], "thing": _ROW[thing]}
    pieces: list[str] = []
    mentions: list[tuple[_Slot, int]] = []
    stack = [*_PLOTS[plot][::-1], _OPENING]
    while stack:
        node = stack.pop()
        if node.__class__ is str:
            pieces.append(node)
        elif node.__class__ is _OneOf:
            bits += node.bits
            stack += node.turned[int(chance() * node.size)]
        else:
            name, form, _ = node
            if name not in known:
                rows = _free_rows(name, known)
                known[name] = rows[int(chance() * len(rows))]
                bits += math.log2(len(rows))
            if name in PROBE_KINDS:
                mentions.append((node, len(pieces)))
            pieces.append(known[name][form])
    return _Draft(pieces, bits, known, mentions, plot)


def _free_rows(name: str, known: dict[str, dict[str, str]]) -> list[dict[str, str]]:
    """The rows a new slot may take: those of its table that no other slot holds."""
    table = SLOTS[name]
    taken = [row for other, row in known.items() if SLOTS[other] is table]
    return [row for row in table if row not in taken] if taken else table


def _facts(draft: _Draft) -> Facts:
    """The tale's facts, from what its slots hold."""
    names = {slot: next(iter(row.values())) for slot, row in draft.known.items()}
    renamed = {"sex": "pronoun", "pal": "friend_kind", "owed": "promised"}
    plain = {renamed.get(s, s): v for s, v in names.items() if s not in ("sum", "swap2")}
    split = "valid" if held_out(draft.plot, plain["kind"], plain["thing"]) else "train"
    if "sum" in draft.known:
        for form in ("had", "gave", "left"):
            plain[form] = NUMBERS.index(draft.known["sum"][form])
    return Facts(plot=draft.plot, split=split, **plain)


def _candidates(slot: _Slot, known: dict[str, dict[str, str]], salt: int) -> tuple[str, ...]:
    """Up to eight answers with different first letters: the right one, its rivals, others.

    A rival is the entry another slot of this tale took from the same table (the friend's name,
    when the hero's is asked), or another number of the same sum: having seen a word somewhere
    before must not be enough.
    """
    row, table = known[slot.name], SLOTS[slot.name]
    if slot.name == "sum":
        words = [row[slot.form], row["gave"], row["had"], *NUMBERS[2:10]]
    else:
        rivals = [known[name][slot.form] for name in known if SLOTS[name] is table]
        others = [other[slot.form] for other in table]
        others.sort(key=lambda word: zlib.crc32(f"{salt}{word}".encode()))
        words = [row[slot.form], *rivals, *others]
    chosen: dict[str, str] = {}
    for word in words:
        if len(chosen) < 8:
            chosen.setdefault(word[0], word)
    return tuple(" " + chosen[letter] for letter in sorted(chosen))


def _finish(draft: _Draft) -> Tale:
    """Text, bits, facts and probes of a draft."""
    text = "".join(draft.pieces)
    starts = list(itertools.accumulate((len(piece) for piece in draft.pieces), initial=0))
    probes, ends = [], {}
    for slot, index in draft.mentions:
        if slot.asks:
            due = starts[index] - 1  # the blank before the answer is part of the answer
            choices = _candidates(slot, draft.known, due)
            answer = " " + draft.pieces[index]
            kind, distance = PROBE_KINDS[slot.name], due - ends[slot.name]
            probes.append(Probe(kind, text[:due], answer, choices, distance))
        ends[slot.name] = starts[index + 1]
    return Tale(text, draft.bits, _facts(draft), tuple(probes))


def write_tale(rng: random.Random, split: str = "train") -> Tale:
    """One tale of the split "train" or "valid", with its bits, facts and probes."""
    return _finish(_draft(rng, split))


def write_tales(seed: int = 0, split: str = "train") -> Iterator[Tale]:
    """Tales without end, the same for the same seed. They do not repeat: see `write_corpus`."""
    rng = random.Random(seed)
    while True:
        yield write_tale(rng, split)


def _corpus_parts(characters: int, seed: int, split: str) -> Iterator[tuple[str, float]]:
    """(text, bits) of one tale after the other, each text with the separator before it."""
    rng, total = random.Random(seed), 1  # the newline at the end
    while total < characters:
        draft = _draft(rng, split)
        text = ("\n\n" if total > 1 else "") + "".join(draft.pieces)
        total += len(text)
        yield text, draft.bits


def write_corpus(characters: int, seed: int = 0, split: str = "train") -> tuple[str, float]:
    """Whole tales, just over `characters` in all, and the floor in bits per character.

    Tales are joined by blank lines and the text ends with a newline; all of its characters count,
    separators too, which cost nothing: a blank line never occurs inside a tale, and the grammar
    itself says where a tale is over.

    Why no model can beat the floor in expectation. Each tale is drawn independently from one
    distribution P, the grammar's, given the split. Its first draw is one of the N combinations
    of plot, kind and thing in that split, for log2(N) bits; the rest are drawn as they are
    written. No two sequences of draws give the same text, so the sum of their prices is exactly
    -log2 P(text), and its mean is P's entropy. A model that spends -log2 Q(text) bits pays on
    average KL(P || Q) >= 0 bits more (Gibbs' inequality), whatever it is and however large: it
    can be lucky on one tale, not on many. A model that knows the grammar but not which tenth is
    held out pays log2(10) = 3.3 bits a tale more on validation text, less than 0.005 bits per
    character, and so may come that near to the floor but no nearer.

    Tales do not repeat, as even the likeliest costs well over 100 bits: the chance of any
    repetition in a billion tales is below 1e-12.
    """
    parts = list(_corpus_parts(characters, seed, split))
    text = "".join(part for part, _ in parts) + "\n"
    return text, math.fsum(bits for _, bits in parts) / len(text)


# ---------------------------------------------------------------------------------------------
# 6. Reading: the same grammar run backwards.
# ---------------------------------------------------------------------------------------------


class _Reading(NamedTuple):
    """A derivation under way: what is left to emit, as a linked list, and what happened so far."""

    todo: tuple[Any, Any] | None  # (node, todo after it)
    at: int  # characters read
    bits: float
    known: dict[str, dict[str, str]]
    mentions: tuple[Any, Any] | None  # linked list of ((slot, start, end), earlier)
    plot: str


def _readings(text: str, prefix: bool = False) -> list[_Reading]:
    """Every way the grammar can write `text` (or, if `prefix`, something that starts with it).

    Depth first over all choices, each branch dropped at the first character that departs from
    the text. Bits are those of the whole process, before it is split into train and valid.
    """
    found = []
    agenda = [_Reading((_OPENING, (None, None)), 0, 0.0, {}, None, "")]
    while agenda:
        reading = agenda.pop()
        todo, at, bits, known, mentions, plot = reading
        if todo is None or (prefix and at >= len(text)):
            if at == len(text) or (prefix and at > len(text)):
                found.append(reading)
            continue
        node, rest = todo
        if node.__class__ is str:
            if _fits(text, node, at, prefix):
                agenda.append(_Reading(rest, at + len(node), bits, known, mentions, plot))
        elif node.__class__ is _OneOf or node is None:
            ways = node.ways if node else _PLOTS.values()
            names = [plot] * len(ways) if node else list(_PLOTS)
            for way, name in zip(ways, names, strict=True):
                if not way or way[0].__class__ is not str or _fits(text, way[0], at, prefix):
                    cost = bits + math.log2(len(ways))
                    agenda.append(_Reading(_chain(way, rest), at, cost, known, mentions, name))
        else:
            rows = [known[node.name]] if node.name in known else _free_rows(node.name, known)
            for row in rows:
                word = row[node.form]
                if _fits(text, word, at, prefix):
                    seen = ((node, at, at + len(word)), mentions)
                    more = known if node.name in known else {**known, node.name: row}
                    cost = bits + math.log2(len(rows))
                    agenda.append(_Reading(rest, at + len(word), cost, more, seen, plot))
    return found


def _fits(text: str, word: str, at: int, prefix: bool) -> bool:
    """Whether `word` may stand at position `at`; of a prefix, as far as the prefix goes."""
    return text.startswith(word, at) or (prefix and word.startswith(text[at:]))


def _chain(way: tuple[Any, ...], rest: tuple[Any, Any] | None) -> tuple[Any, Any] | None:
    """Put the nodes of `way` in front of the linked list `rest`."""
    for node in reversed(way):
        rest = (node, rest)
    return rest


def read_tale(text: str) -> Tale | None:
    """The tale that `text` is, with exact bits, facts and probes; None if it is none.

    An exact parser and, as it works from the text alone, an independent check of the writer.
    A blank around the text is forgiven, nothing else is.
    """
    text = text.strip()
    readings = _readings(text)
    if not readings:
        return None
    _, _, bits, known, link, plot = readings[0]
    mentions = []
    while link:
        mentions.append(link[0])
        link = link[1]
    pieces, indices, end = [], [], 0
    for slot, start, stop in reversed(mentions):
        pieces += [text[end:start], text[start:stop]]
        indices.append((slot, len(pieces) - 1))
        end = stop
    pieces.append(text[end:])
    own = COMBINATIONS[_facts(_Draft([], 0, known, [], plot)).split]
    bits += math.log2(len(own) / len(_EVERY))  # the split is known, so its share is not paid for
    tracked = [(slot, index) for slot, index in indices if slot.name in PROBE_KINDS]
    return _finish(_Draft(pieces, bits, known, tracked, plot))


def prefix_bits(text: str) -> float:
    """-log2 P(a tale starts with `text`), exact, both splits together; infinite if none does."""
    chance = math.fsum(2.0**-reading.bits for reading in _readings(text, prefix=True))
    return -math.log2(chance) if chance else math.inf


def recall_probes(count: int, seed: int = 0) -> list[Probe]:
    """`count` probes from validation tales, kinds and distances as even as the tales allow.

    Probes are sorted into cells by kind and by distance (under 16 characters, 16-31, 32-63, and
    so on in doublings) and dealt from the kinds, and within a kind from the distances, in turn.
    """
    cells: dict[str, dict[int, list[Probe]]] = {}
    limit = 500 + 2 * count  # tales to search: rare cells stay thin rather than take for ever
    wanted, found = 4 + count // 16, 0
    for number, tale in enumerate(write_tales(seed, "valid")):
        for probe in tale.probes:
            bucket = max(4, probe.distance.bit_length())
            cell = cells.setdefault(probe.kind, {}).setdefault(bucket, [])
            if len(cell) < wanted:
                cell.append(probe)
                found += 1
        if number > limit and found >= count:
            break
    piles = [_deal([cells[kind][bucket] for bucket in sorted(cells[kind])]) for kind in cells]
    return _deal(piles)[:count]


def _deal(piles: list[list[Probe]]) -> list[Probe]:
    """One from each pile in turn, until all are empty."""
    turns = itertools.zip_longest(*piles)
    return [probe for turn in turns for probe in turn if probe is not None]


# ---------------------------------------------------------------------------------------------
# 7. The command line.
# ---------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """argparse with this project's way of refusing: one line, what is wrong and what to do."""

    def error(self, message: str) -> None:
        raise UserError(f"{message}: see --help")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked; all bad values are reported together."""
    parser = _Parser(
        prog="tales.py", description="Short children's stories whose exact probability is known."
    )
    add = parser.add_argument
    add("--tales", metavar="N", default="3", help="how many tales to write (default: 3)")
    add("--size", metavar="SIZE", help="write this much text instead: 300000, 500KB, 5MB")
    add("--seed", metavar="S", default="0", help="same seed, same tales (default: 0)")
    add("--split", metavar="SPLIT", default="train", help="train or valid (default: train)")
    add("--out", metavar="FILE", type=Path, help="write to this file, not to the screen")
    add(
        "--floor",
        action="store_true",
        help="print the entropy floor, in bits per character, of the sample (default: of 1 MB)",
    )
    add("--probes", metavar="N", help="print N recall probes from validation tales instead")
    given = parser.parse_args(argv)
    problems = []
    if given.split not in COMBINATIONS:
        problems.append(f"--split {given.split} is unknown: use train or valid")
    for flag, low in (("tales", 1), ("seed", None), ("size", 1), ("probes", 1)):
        text = getattr(given, flag)
        if text is None:
            continue
        number = re.fullmatch(r"(-?\d{1,15})((?:[KMG]B?)?)", text.strip(), re.IGNORECASE)
        if number is None or (number[2] and flag != "size"):
            problems.append(f"--{flag} {text} is no number: give one such as 7")
            continue
        value = int(number[1]) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[number[2][:1].upper()]
        if low is not None and value < low:
            problems.append(f"--{flag} {text} is too small: give at least {low}")
        setattr(given, flag, value)
    if problems:
        raise UserError("; ".join(problems))
    return given


@contextlib.contextmanager
def _destination(path: Path | None) -> Iterator[Any]:
    """Standard output, or a file that appears whole under its name or not at all."""
    if path is None:
        yield sys.stdout
        return
    if path.is_dir():
        raise UserError(f"--out {path} is a folder: name a file in it")
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as problem:
        raise UserError(f"cannot write {path} ({problem.strerror}): name another file") from None
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as file:  # noqa: PTH123
            yield file
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)  # mkstemp made it private; files usually are not
        Path(temporary).replace(path)
    except OSError as problem:
        raise UserError(f"cannot write {path} ({problem.strerror}): name another file") from None
    finally:
        Path(temporary).unlink(missing_ok=True)


def _print_probes(count: int, seed: int) -> None:
    for probe in recall_probes(count, seed):
        end = probe.prompt[-60:].replace("\n", " / ")
        print(f"{probe.kind:8}{probe.distance:5} characters   ...{end}__")
        print(f"{'':12}answer{probe.answer}, out of{','.join(probe.candidates)}")


def _run(given: argparse.Namespace) -> None:
    """Do what the (checked) command line asks."""
    if given.probes:
        _print_probes(given.probes, given.seed)
        return
    if given.size is None and given.floor and given.out is None:
        given.size = 10**6
    bits, characters = [], 1
    parts = _corpus_parts(given.size or sys.maxsize, given.seed, given.split)
    silent = given.floor and given.out is None
    with contextlib.nullcontext() if silent else _destination(given.out) as file:
        for number, (text, price) in enumerate(parts, 1):
            bits.append(price)
            characters += len(text)
            if file:
                file.write(text)
            if given.size is None and number == given.tales:
                break
        if file:
            file.write("\n")
    if given.floor:
        print(f"{math.fsum(bits) / characters:.5f} bits per character ({characters} characters)")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status (2 after a mistake of the user's)."""
    try:
        _run(_arguments(argv))
        sys.stdout.flush()
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
