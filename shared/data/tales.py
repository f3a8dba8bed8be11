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

    "nap": '''<^day> {he} fell asleep on {hers} {thing}, and {friend} [sighed|laughed|hummed].

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
    """One dict per row; also "a", for the first column, and "^form"s. After / a row may go on.

    >>> _table("name", "owl")
    [{'name': 'owl', 'a': 'an owl', '^name': 'Owl', '^a': 'An owl'}]
    """
    table = []
    for line in re.sub(r"/\s*\n", "/ ", rows).strip().splitlines():
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
    badger / a burrow / paw / plodded / a stripe down a serious nose / making lists
    hedgehog / a hollow log / paw / pattered / sharp prickles and soft manners / curling up to think
    mouse / a teacup house / paw / scurried / ears as thin as petals / nibbling the corners of books
    mole / a tunnel / paw / shuffled / a velvet coat and tiny spectacles / digging up the wrong lawn
    otter / a riverside cabin / paw / scampered / whiskers that always dripped / juggling pebbles
    squirrel / a treehouse / paw / skipped / a tail fit for a queen / hiding things twice
    hare / a hayloft / paw / bounded / ears that could hear the grass grow / thumping on the floor
    bear / a cave / paw / lumbered / fur the colour of toast / yawning in company
    beaver / a lodge / paw / ambled / teeth like piano keys / mending what was not broken
    kitten / a basket house / paw / tiptoed / four white socks / pouncing on shadows
    puppy / a kennel / paw / bounced / feet too big for the rest / barking at the moon
    raccoon / an attic / paw / padded / a mask like a burglar in a play / washing every spoon twice
    owl / a belfry / wing / flapped / eyes like two full moons / saying everything three times
    duckling / a boathouse / wing / waddled / fluff like a dandelion clock / jumping in puddles
    goat / a shed / hoof / clattered / a beard like a professor / eating the newspaper
    """,
)
# that: what it is like; used: what one does with it; harm: what went wrong; mend: how it is put
# right; soothe: how it comforts somebody small in the dark.
THINGS = _table(
    "name fine that used harm mend soothe",
    """
    bell / a brass bell / that rang as clear as water / rang it three times /
        the clapper fell out / hung the clapper on a loop of wire / rang it soft and slow
    compass / a copper compass / that always knew the way home / found north with it /
        the needle came loose / set the needle straight with a hairpin /
        showed how the needle always points home
    drum / a red drum / that could be heard three fields away / beat a slow march on it /
        the skin split / patched the skin with an old glove / tapped it as gently as rain
    flute / a wooden flute / that sounded like a thrush after rain / played a jig on it /
        the end snapped off / bound the end with thread / played the sleepiest tune there is
    hat / a straw hat / that had room for two under the brim / tried it on in front of the window /
        the brim tore / sewed up the brim with tiny stitches / turned it over to make a bed
    jug / a blue jug / that poured without a drip / filled it with daisies /
        the handle came off / stuck the handle on with glue / filled it with warm milk
    kite / a paper kite / that flew higher than the rooks / flew it over the roofs /
        the paper ripped / pasted new paper over the rip / propped it up like a little tent
    lantern / a tin lantern / that glowed like a small sun / lit it and made shadow rabbits /
        the glass cracked / put in a new pane of glass / lit it, and the dark took three steps back
    mirror / a round mirror / that made every face look friendly / made faces in it /
        the frame came apart / nailed the frame together / caught the moon in it, for company
    parasol / a lace parasol / that opened like a flower / twirled it on one shoulder /
        the lace tore / darned the lace / opened it overhead like a roof
    quilt / a patchwork quilt / that had a patch for every birthday / curled up under it /
        the seam burst / stitched the seam / spread it out, warm from the bed
    ribbon / a silk ribbon / that was as blue as noon / tied it in a bow /
        the end frayed / hemmed the end / tied it in a bow, to be brave in
    scarf / a woollen scarf / that went round four times / wrapped up warm in it /
        a stitch ran all the way down / picked up the stitch and knitted it again /
        wound it round and round
    teapot / a china teapot / that never let tea go cold / made tea in it /
        the lid broke in two / glued the lid together / poured camomile tea from it
    umbrella / an enormous umbrella / that could keep a family dry / sat under it /
        the handle came off / whittled a new handle / put it up, to keep off the drips
    violin / a little violin / that made old folk dance / played a waltz on it /
        a string snapped / put on a new string / played a lullaby on it
    """,
)
# A month with its weather: three things to see, hear or smell, so that no rose blooms in the snow.
MONTHS = _table(
    "name sky sign scene air",
    """
    January / frosty / the puddles had turned to glass / Snow squeaked underfoot /
        The air smelled of chimney smoke
    February / pale / snowdrops were peeping out / Icicles dripped from every roof /
        A thin mist lay in the hollows
    March / gusty / the washing danced on the lines / The wind tugged at every tail /
        New lambs were bleating far off
    April / showery / the first blossom was out / Rain and sun took turns /
        A rainbow stood over the fields
    May / mild / the hawthorn was in flower / Cuckoos called to one another /
        The grass was full of buttercups
    June / bright / the roses were open / Butterflies flickered over the clover beds /
        The hay smelled warm and sweet
    July / hot / even the bees moved slowly / Dust rose at every step /
        Somewhere a lazy cricket sang
    August / golden / the wheat stood tall / Poppies nodded along the path /
        The brambles were heavy with fruit
    September / hazy / swallows were gathering on the wires / Cobwebs sparkled with dew /
        The air smelled of ripe plums
    October / windy / the leaves were turning red / Conkers lay shining on the path /
        A bonfire crackled somewhere
    November / foggy / lamps were lit by teatime / Wet leaves stuck to everything /
        The trees dripped, plip, plop
    December / snowy / holly berries shone in the hedges / Fat white flakes drifted down /
        The whole world had gone quiet
    """,
)
PLACES = _words(
    """
    arch, bridge, duck pond, elm, fountain, gate, haystack, jetty, lighthouse, mill, old oak, pump,
    sundial, tower, well
    """
)
PLEDGED = _words(
    """
    beetle, crow, donkey, frog, goose, heron, lizard, magpie, newt, pigeon, rooster, snail, toad
    """
)
WISHES = _table(  # something to buy, and what cannot be made without it
    "name dish",
    """
    almonds / marzipan
    butter / shortbread
    cheese / a cheese pie
    eggs / pancakes
    flour / dumplings
    golden syrup / flapjacks
    honey / honey cake
    jam / a jam roll
    lemons / lemonade
    milk / rice pudding
    nuts / nut brittle
    oats / porridge
    potatoes / potato soup
    raisins / fruit buns
    sugar / toffee
    treacle / treacle tart
    vinegar / pickles
    yeast / fresh bread
    """,
)
TREATS = _words(
    """
    apples, buns, cherries, dumplings, figs, gingernuts, hazelnuts, muffins, oatcakes, peaches,
    strawberries, turnovers
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
    row["name"]
    for row in _words(
        "zero, one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen"
    )
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
    "owed": PLEDGED,
    "wish": WISHES,
    "treat": TREATS,
    "sum": SUMS,
    "land": LANDS,
    "season": MONTHS,
    "later": MONTHS,
    "sex": PRONOUNS,
}
PROBE_KINDS = {  # which slot tests which kind of memory
    "hero": "hero",
    "friend": "friend",
    "thing": "object",
    "treat": "object",
    "place": "place",
    "sum": "count",
    "owed": "promise",
    "wish": "quote",
}

# ---------------------------------------------------------------------------------------------
# 2. The rules: sentences and phrases that many plots share.
# ---------------------------------------------------------------------------------------------

RULES = """
@trait: bashful, bold, bouncy, brave, cheerful, clever, clumsy, curious, dreamy, fidgety,
 forgetful, friendly, gentle, giggly, hopeful, hungry, jolly, lively, merry, mischievous, nimble,
 plump, polite, proud, quick, quiet, restless, round, scruffy, shy, sleepy, small, stubborn,
 talkative, thoughtful, tidy, tiny, wide-awake, wiry, young
@trait2: bright-eyed, good-hearted, good-natured, kind-hearted, light-footed, rosy-cheeked,
 soft-spoken, sweet-toothed, tender-hearted, warm-hearted, mild-mannered, wild-haired
@colour: black, blue, brown, cherry-red, cream, crimson, green, grey, lilac, pink, purple, red,
 scarlet, sea-green, turquoise, violet, white, yellow
@weekday: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday
@relative: aunt, cousin, godfather, godmother, grandfather, grandmother, great-aunt, great-uncle,
 stepbrother, stepsister, twin sister, uncle, half-sister, second cousin, stepmother, stepfather
@job: baker, barber, beekeeper, blacksmith, bookbinder, bus driver, carpenter, chimney sweep,
 circus clown, clockmaker, cobbler, coal miner, dancer, doctor, ferryman, fiddler, fisherman,
 gardener, glassblower, juggler, librarian, lifeboat captain, lock-keeper, mapmaker, milliner,
 night watchman, painter, pastry cook, pilot, plumber, poet, postmaster, potter, puppeteer,
 sailor, schoolteacher, shepherd, ship's cook, shipwright, signalman, stonemason, tailor,
 tightrope walker, toymaker, train driver, wandering minstrel, weaver, woodcutter
@folk: bearded, bow-legged, busy, cheerful, dashing, famous, forgetful, freckled, gruff, jolly,
 kindly, lonely, musical, near-sighted, nervous, patient, poetic, retired, sleepy, stout, tall,
 travelling, whistling, white-haired
@giver
{his} <relative>
{his} <relative>, the <folk> <job>
a <folk> <job> {he} had [helped|nursed|fed|met] one [winter|spring|summer|autumn]
@whose
{thing.that}
from <giver>
@hobby: acrobatics, archery, baking, ballet, birdwatching, bookbinding, carpentry, checkers,
 chess, conjuring, cookery, crochet, embroidery, fencing, fishing, gardening, hopscotch, juggling,
 knitting, marbles, map-making, opera, origami, painting, pottery, puppetry, rope-skipping,
 rowing, sailing, singing, skating, somersaults, stargazing, stilt-walking, swimming, tap dancing,
 ventriloquism, weaving, whittling, yodelling
@fear: bagpipes, balloons, bats, bubbles, cold baths, deep water, draughts, echoes, empty
 wardrobes, fireworks, ghosts, haircuts, hiccups, high places, jellyfish, ladders, lightning, long
 words, mathematics, moths, nightmares, owing money, pirates, scarecrows, shadows, sneezing, soap,
 spiders, squeaky doors, stage fright, steam engines, thunder, tunnels, vampires, wasps, wet socks
@trinket: bobbin, bottle cork, brass hinge, bus ticket, button, candle stub, cotton reel, door
 key, feather, fir cone, fishing float, fossil, glass bead, glass marble, glove, gold tassel,
 hairpin, horseshoe, mitten, paintbrush, paper fan, pebble, pencil stub, pine cone, playing card,
 pocket comb, postage stamp, rubber ball, nail, seashell, shoelace, thimble, soup spoon, spinning
 top, teaspoon, tin soldier, toy boat, walnut shell, watch chain, wooden peg
@nice: battered, beautiful, borrowed, chewed, cheerful, chipped, clean, curious, dusty, faded,
 foreign, forgotten, fine, grubby, handsome, lost, lucky, mended, muddy, nearly new, plain,
 pretty, second-best, shiny, small, spare, sticky, much-loved, wonky
@tin: biscuit tin, boot, cake tin, flowerpot, hatbox, hat, matchbox, sock, pickle jar, pillowcase,
 saucepan, shoebox, soup bowl, toy chest, tea caddy, top drawer
@veg: barley, bean, cabbage, carrot, cauliflower, celery, chestnut, leek, lentil, mushroom,
 nettle, onion, parsnip, pea, pumpkin, spinach, swede, tomato, turnip, watercress
@fruit: apple, apricot, bilberry, blackberry, blueberry, cherry, cranberry, damson, gooseberry,
 loganberry, mulberry, pear, plum, quince, raspberry, redcurrant, rhubarb, strawberry
@dish: cake, cobbler, crumble, fool, flan, pie, pudding, sponge, strudel, tart, trifle
@baked: buttery, crisp, crumbly, famous, golden, heart-shaped, homemade, lopsided, perfect, juicy,
 second-best, spiced, steaming, sticky, sweet, towering, upside-down, warm, wobbly
@cake
<baked> <fruit> <dish>
@soup
[clear|creamy|hot|peppery|salty|smooth|thick|thin] <veg> [soup|stew|broth|hotpot]
@supper
<soup> with [buttered|hot|crusty|fresh] [toast|bread|rolls|crumpets]
<cake> with [cream|custard|cocoa|ice cream|candles]
@chair: armchair, bed, bench, bookcase, chest of drawers, cupboard, desk, dresser, footstool,
 grandfather clock, hatstand, piano, rocking chair, sofa, stove, table, wardrobe, washstand
@old: creaky, crooked, lopsided, old, painted, scratched, wobbly, wooden, worm-eaten
@vessel: bathtub, bread bin, bucket, butter churn, coal scuttle, coffee pot, cookie jar, copper
 pan, flour bin, kettle, knitting bag, laundry basket, letter box, linen chest, log basket, mop
 bucket, picnic basket, rain barrel, sewing box, soup tureen, wash bowl, watering can, wheelbarrow
@big: blue, brown, chipped, dented, green, large, leaky, little, patched, red, rusty, spare,
 yellow
@plant: bluebells, carrots, chives, ferns, geraniums, herbs, ivy, lavender, marigolds, mint, moss,
 pansies, parsley, primroses, radishes, sage, thyme, violets
@house
{kind.home} with a <colour> [door|front door|porch|chimney|window|letter box]
{kind.home} with [pots|a pot|a whole row|a tangle] of <plant> [by the door|under the window]
@opening
Once upon a time, {land}, there lived a <trait>, <trait2> {kind} [called|named] {hero}.
Once there was a <trait>, <trait2> {kind} with {kind.look}, and {his} name was {hero}.
There was once a <trait> {kind}, {hero} by name, who lived {land} in <house>.
{hero} was a <trait>, <trait2> {kind} who lived {land}, in <house>.
{hero} the {kind} lived {land}, in <house>.
{^land} lived a <trait>, <trait2> {kind} with {kind.look}. [Everybody called {him}|{His} name was]
 {hero}.
{^land}, in <house>, lived a <trait>, <trait2> {kind} [called|named] {hero}.
[Everybody|Nearly everybody] {land} knew {hero}, the <trait> {kind} who could not stop
 {kind.habit}.
This is the [story|tale] of {hero}, a <trait> {kind} who [loved|dreamed of|lived for] <hobby>.
@pal
who [loved|taught|was learning|talked of nothing but] <hobby>
who was afraid of <fear>, [but of little else|and owned up to it|especially on <weekday>s]
who made the [best|stickiest|lightest|tallest|finest] <fruit> <dish> [for miles|in the county|of
 all]
who always carried a <nice> <trinket>, [for luck|just in case|nobody knew why]
who wore a <colour> [bonnet|cap|waistcoat|cloak|bow tie|pinafore] [in all weathers|on <weekday>s]
who [lived with|took after|wrote to] {hers} <relative>
@day
one {season.sky} <weekday>[ morning| afternoon|] in {season}
one {season.sky} <weekday>[ morning| afternoon|]
one {season.sky} [morning|afternoon] in {season}
one <weekday> in {season}, when {season.sign},
@weather
{season.scene}.
{season.air}.
@bird: blackbird, blue tit, chaffinch, dove, finch, jackdaw, linnet, robin, rook, skylark,
 sparrow, starling, swift, thrush, wagtail, woodpecker, wren
@perky: bold, bright-eyed, cheeky, chirpy, dozy, fat, fluffy, glossy, grumpy, nosy, plump,
 ruffled, small, solemn, speckled, tuneful
@bug: bumblebee, butterfly, caterpillar, centipede, cricket, slug, ladybird, moth, spider, worm
@worn: broken, crooked, leaning, mossy, muddy, sunny, weathered, wobbly
@spot: barrel, beanpole, chimney, clothes line, doorstep, fence, gatepost, hedge, lamp post, log,
 molehill, stone, tree stump, wall, windowsill
@aside
<weather>
A <perky> <bird> [sang|whistled|was preening|watched|hopped] on a <worn> <spot>[, all by itself|,
 tail up|].
On a <worn> <spot> a <perky> <bird> [told|was telling] a <bug> [the news|a joke|a secret|to hurry
 up].
A <perky> <bug> [crossed|was crossing] the path, [in no hurry|on important business|carrying a
 crumb].
From an open window came [the smell of <cake>|the smell of <soup>|[banjo|piano|trumpet] scales].
@trade: baker, barber, beekeeper, blacksmith, butcher, candlemaker, clockmaker, cobbler, dentist,
 doctor, fishmonger, florist, grocer, hatter, joiner, miller, painter, potter, saddler, tailor
@past
past the <trade>'s [shop|window|door|garden|yard]
[past|behind|round] the [mossy|tumbledown|whitewashed|empty|ivy-clad|thatched|sleepy]
 [barn|chapel|cottage|cowshed|dovecote|farmhouse|stable|schoolhouse|summerhouse|granary]
past the [crooked|leaning|weathered|lonely|wobbly] [signpost|scarecrow|fence|lamp post|milestone]
@over
over the [hill|heath|common|meadow|stepping stones|stile|village green]
[down|along|up] the [winding|muddy|narrow|stony|shady] [lane|path|track|cart road|footpath]
[across|through] the [bean|barley|cabbage|maize|pumpkin|wheat|stubble] field
through the [beech|fir|birch|hazel|pine|willow] [wood|copse|trees|grove]
@walk
{He} [{kind.went}|hurried|went|set off] <past> and <over>.
<^past> {he} {kind.went}, and <over>.
<^over> {he} {kind.went}, [humming|whistling|counting {his} steps|thinking of <cake>].
@together
They [set off|went|hurried|walked] <past> and <over>.
<^past> they went, and <over>, [arm in arm|one behind the other|talking of <hobby>].
@search
{He} looked [under|behind|on top of] the <old> <chair>, [inside|beneath] the <vessel> and even in
 the <vessel>.
Under the <old> <chair> {he} found a <nice> <trinket>. [In|Behind] the <vessel> {he} found
 [another|dust|nothing].
{He} [emptied|searched|shook out] the <big> <vessel>, the <vessel> and the <big> <vessel>, but
 found only a <trinket>.
It was not [in|behind] the <vessel>. It was not [under|behind] the <old> <chair>. [Not a
 trace|Nowhere]!
@heavy: bag of coal, barrel of nails, boot full of mud, boulder, cannonball, church door, flat
 iron, millstone, sack of turnips, stone, wet blanket, wet overcoat
@sad
{His} heart was as heavy as a <heavy>.
{He} [sat|flopped] down on the <old> [bench|sofa|footstool|rocking chair|bed] and [wiped {his}
 eyes|sighed|wept a little|sniffed].
{He} felt [hollow|small|lost|wretched|miserable|lonely], and [not even <cake> helped|supper went
 cold|the house was too quiet].
[A tear|One tear|A large tear] [rolled|ran|trickled] down {his} nose.
@glad
They laughed until [the <old> <chair> shook|the <bird>s joined in|their sides ached|they had
 hiccups].
Then they [sat down to|shared|had] <supper>.
There was <supper> [for two|for both|to celebrate], and [<hobby>|a song|a story] afterwards.
They danced [round the <old> <chair>|on the <old> table|all down the lane|till the stars came
 out].
@dream: clouds, elephants, fireflies, flying, gingerbread houses, hot-air balloons, islands,
 comets, mermaids, mountains, parades, rainbows, sailing ships, shooting stars, snowmen, spring
@end
That night {he} [slept soundly|slept like a top|smiled in {his} sleep] and dreamed of <dream>.
If you are ever {land} of an evening, you may [still|just|even] hear them
 [laughing|singing|chattering].
[Outside|Overhead] the [moon|evening star] [came out|rose], and all was well.
They were friends [from that day on|ever after], [in sunshine and rain|<weekday>s included].
After that they met every <weekday> for <hobby> and <cake>.
@close
<glad>
<end>
@cry
cried
called
shouted
@murmur
whispered
murmured
said softly
@waiting
<weather>
Every [evening|morning|<weekday>] {he} looked down the lane, [but nobody came|and sighed|and
 waited].
To pass the time {he} [took up|practised|tried] <hobby>, and <hobby>, and then <hobby>.
"It is [lost|gone] for good," [chirped|said] a <perky> <bird>, but {he} would not listen.
@meeting
[By the path|On a <worn> <spot>|Under a hedge] sat {pal.a}, [thin and cold|hugging {hers}
 knees|all alone]. "I am {friend}," {she} said, "and I have [eaten nothing since <weekday>|had
 only <veg> broth all week|lost my way and my lunch]."
Somebody was [crying|sniffing|sighing] [by the path|behind a hedge]: {pal.a} named {friend}, who
 had [missed three meals|not eaten since <weekday>|dropped {hers} lunch in a <big> <vessel>].
@guest
{He} [lit the stove|fetched a <colour> blanket|found dry socks] and warmed some <soup>.
{He} [put|sat] {her} [by the fire|in a <colour> blanket] and [cut|brought|offered] some <cake>.
They ate <cake> and [talked of <hobby>|played cards|told ghost stories] until the candle burned
 low.
@comfort
"[Are you afraid|Afraid]?" {he} <murmur>. "Only of <fear>," {she} said.
[A twig cracked.|The moon hid.|Their shadows wobbled.|An acorn fell. Tock!|Something sneezed.]
@why
"[What is the matter|What has happened|Whatever is wrong|Why so sad|Why the long face]?"
"{hero}! [Whatever is wrong|Why are you sad|What has happened], {?hero}?"
"{hero}! Oh my dear {?hero}, [what is it|what is wrong]?"
@trouble
Tiles flew
Trees bent low
Chimneys whistled
The sky turned <colour>
A <big> <vessel> sailed past the window
"""

# ---------------------------------------------------------------------------------------------
# 3. The plots. Each follows the opening, which ends its sentence; a blank line is a new paragraph.
# ---------------------------------------------------------------------------------------------

PLOTS = {
    "lost": """
[Dearest of all to {him} was|What {he} loved best was|{He} was proudest of] {thing.fine} <whose>.
<^day> {he} took it to the {place} and {thing.used}.

[But next|The next] morning the {?thing} was [gone|missing|nowhere to be seen]! <search>[ <sad>|]

[In came {friend}, {pal.a} <pal>.|There was a knock, and in came {friend} the {pal}.|Along came
{friend} the {pal}, <pal>.] <why> "[I have lost it|It is gone|I have looked everywhere|My
{?thing}! My own {?thing}]," {he} [said|sighed|sobbed]. "[Think|Think back|Think hard]," {she}
said. "Where did you have it last?" "By the {?place}![| Right by the {?place}!]"

[<together> |Off they ran. |<aside> ]There[, by|, right by] the {?place}, [wet with dew|behind a
<worn> <spot>|guarded by a <perky> <bird>|with a <perky> <bug> asleep on it], lay the {?thing}.
{He} [hugged it|laughed|could not speak], and then {thing.used}. [<end>|<glad>|"Next time," said
{?friend}, "keep it in a <tin>, {?hero}."]
""",
    "lent": """
{He} [owned|had|treasured] {thing.fine} <whose>. [Next door lived|{His} neighbour was|Over the way
lived] {friend} the {pal}, <pal>.

<^day> {she} [came to say goodbye|stood on the step with a <colour> bag|tapped at the window]. "I
am off to visit [my <relative>|a <folk> <job>]. [May I|Could I|Might I] borrow your {?thing}?"
{He} [swallowed|took a deep breath|looked at the floor]. "[Take it|Of course]," {he} said. "[Then
I will|I shall] bring you some {wish}," {she} promised. "Some {?wish}!" {he} <murmur>.

[The weeks went by. |Days passed. |A month crept by. |]<waiting>

[Then|At last], one {later.sky} [evening|afternoon|morning|<weekday>] in {later}, [somebody
knocked|the latch clicked|there were steps outside]. [{He} {kind.went}|{He} ran|{He} flew] to the
door. It was {?friend}, [muddy to the knees|out of breath|thin but smiling|with a <nice> <trinket>
behind one ear]! "Here is your {?thing}," {she} said. "It has [met a <folk> <job>|kept me
company|been my pillow]. And here, in this <tin>, is some {?wish}." [{He} {thing.used}.
<close>|"[The best of it|Best of all]," {he} said, "is having you home, {?friend}."[ <glad>|]|"You
remembered, {?friend}!" {he} <cry>.[ <end>|]]
""",
    "errand": """
<^day> {his} <relative> [looked into the <big> <vessel>|opened the <old> cupboard|put on a
<colour> apron]. "[Dear me|Oh bother|Bless me]! [We cannot make|There can be no] {wish.dish}
without {wish}[. Run and buy some|. Off you go], {?hero}!"

"Some {?wish}, some {?wish}," {he} said, [over and over|all the way|in time with {his} feet].
[<walk> |<aside> |]By the {place} {he} met {friend} the {pal}, <pal>. "[Come and play|Stay a
while|Look, I have found a <nice> <trinket>]!" said {?friend}. They [took turns at <hobby>|shared
<cake>|talked of <fear>], and {he} forgot [the time|everything else]. [Bong! The church clock|A
distant clock] struck [three|four|five].

[In the shop {he} went blank.|Now what was it?|At the counter {his} head was empty.] [Candles?
Soap? A <trinket>?|A <trinket>? A <trinket>?] {He} shut {his} eyes and thought of [the
kitchen|<weekday>|home]. "Some {?wish}, please!"

[Supper was|That night there was|The whole house smelled of] {wish.dish}, and beside {his} plate
[lay|stood] {thing.fine} <whose>. "For you, {?hero}," said a voice, "because you
remembered."[ <end>| And the first to see the {?thing}, [next morning|on <weekday>] by the
{?place}, was {?friend}.]
""",
    "count": """
In [a|the] shop window [stood|was] {thing.fine}. The <colour> ticket said: {sum.had} {treat}. So
{he} [saved|helped a <folk> <job>|swept up for the <trade>] all {season}, until {he} had
{?sum.had}. Into a <tin> they went, and off {he} {kind.went}.

<meeting> {He} looked at the {?treat}. [{He} thought of the shop. |{He} sighed. |]{He} [gave
{her}|picked out|handed over] {sum.gave}, and {she} ate [them all|every crumb|so fast that {she}
hiccuped]. [How many were left? Only {?sum.left}. |]"[Thank you|How kind|Bless you]," said
{?friend}.

[<walk> |<aside> |]The <folk> shopkeeper [counted aloud|counted them|counted twice]. "I make it
{?sum.left}. The price is {?sum.had}." "[I met|There was|I had to feed] a hungry {pal}," {he}
<murmur>, [red as a beetroot|twisting {his} tail|looking at the floor]. [The clock ticked.
|]"[Then {?sum.left} will do|Call it paid|Kindness pays the rest]."

So {he} went home with the {?thing} under one {kind.paw} and {?friend} [skipping|humming|trotting]
[behind|alongside]. [<close>|"[I would have eaten all|You could have kept all] {?sum.had},
{?hero}," {she} said.]
""",
    "race": """
<^day> a <colour> notice hung on the {place}: "[Great race|Race] today! First prize,
{thing.fine}!" [{friend} the {pal}, <pal>, read it twice.|{friend} the {pal} read it aloud.] "[I
shall win|That is mine]," {she} said.

{He} had no running shoes, but the {owed} [next door|over the way] had a <colour> pair. "[Borrow
mine|Take them]. What do I get?" "First turn for the {?owed}," {he} promised. [They fitted like
gloves.|They squeaked.|"The {?owed} first!"|"If I win, the {?owed} first!"]

[Ready, steady, go|Bang! Off they went]! [<walk> |<aside> |]{She} was [far ahead|in front] when
{she} [tripped over|ran into|fell over] a <big> <vessel>. "[Ouch|Oh, my foot]!" {He} could have
run past. [Oh, how {he} wanted to! |]"{friend}! [Lean on me|Up you get|Take my {kind.paw}],
{?friend}," {he} said, and they [hobbled|limped] to the {?place}, [last of all|after the <job> on
stilts].

The umpire, a <folk> <job>, [wiped both eyes|blew the whistle|shook their paws]. "[Anybody can
run|Legs are common]. Kindness is rarer. The {?thing} goes to {?hero}!" And who [had|got] the
first turn? The {?owed}, [of course|as promised].[ <close>|]
""",
    "storm": """
<^day> a storm came up. <trouble>, and somebody [knocked|scratched|bumped] at the door. It was
{pal.a}, [wet through|dripping|with no hat and one <colour> shoe]. "I am {friend}," {she} said,
"and my house by the {place} has [lost its roof|blown away|filled with rain]." "[Come in|Oh, come
in], {?friend}!"

<guest> In the morning {she} had gone, but on the <old> <chair> [stood|lay] {thing.fine}, and a
note: "[Thank you|With love|I will not forget]."

[A year went by.|Months went by.] {He} often {thing.used}, and wondered. Then, one {later.sky}
<weekday> in {later}, [the postman|a <perky> <bird>] brought a letter. "[The roof is on|The house
is mended]. [Come to tea|Do come|Come soon], and bring the {?thing}!" It was signed: {?friend}.

[<walk> |<aside> |][And there|There], by the {?place}, stood a house with a <colour> door, and
from the window [came|drifted] the smell of <cake>. "[How dry you are|You are dry]!" {he} <cry>.
"[And you|You] are just in time, {?hero}," {she} said.[ <close>|]
""",
    "present": """
{His} best friend was {friend} the {pal}, <pal>. [Soon|On <weekday>] it would be {hers} birthday.
{He} [bought|saved up for|found] {thing.fine}, wrapped it in [<colour> paper|a <colour>
cloth|cabbage leaves], and hid it by the {place}. "[By the way|Tell me], what would you bake,"
{he} asked, "if you had some {wish}?" "Some {?wish}? {^wish.dish}," {she} said. "Why?" "[No
reason|Oh, nothing]," said {?hero}, and [turned pink|looked at the sky|coughed].

The day came, {season.sky} and still. [<weather> |][No card came.|Nobody called.] "[They
forgot|They have all forgotten]," {she} told the <old> <chair>, and [ate cold <veg> soup|tried not
to mind|counted {hers} <nice> <trinket>s].

[Then a note came|A letter slid] under the door, [tied to a <nice> <trinket>|in <colour>
ink|folded like a boat]. "[Look|Go and look|Please look] by the {?place}," it said. [<^past> {she}
{pal.went}, and <over>. |Off {she} {pal.went}, <over>. |]There, in <colour> string, was the
{?thing}! "[Happy birthday|Surprise], {?friend}!" {he} <cry>, [jumping out|popping up|falling out]
from behind a <worn> <spot>. [<glad>|"And now for {wish.dish}!"[ <end>|]|They had {wish.dish},
which took all the {?wish}.[ "So that was why you asked, {?hero}!" {she} said.|]]
""",
    "broken": """
{friend} the {pal}, <pal>, [owned|had] {thing.fine}[ {thing.that}|]. <^day> {he} took it from the
<old> [cupboard|dresser|chest of drawers|shelf|wardrobe|desk], only to look, and [slip|oops|bump],
{thing.harm}! {His} [ears|cheeks] [went|turned] [hot|red|pink|scarlet]. {He} hid it by the
{place}, [under a <big> <vessel>|under some leaves|behind a <worn> <spot>].

"[I cannot find|I have lost|Somebody took] my {?thing}," said {?friend}. "[Not I|No]," {he}
<murmur>, and [supper tasted of soap|looked at {his} feet|the <cake> stuck in {his} throat].
[<sad> |]All night {he} lay awake. [The <old> <chair> creaked: you, you, you.|The clock said:
tell, tell, tell.|Even the moon seemed to know.]

[At sunrise|At first light|Before breakfast] {he} was at {hers} door. "{friend}! It was me,
{?friend}. I [broke it|spoiled it], and it is by the {?place}." [It was very quiet.|A clock
ticked.|{She} put down {hers} cup.] Then {she} smiled. "[Thank you for telling me|I am glad you
told me|That was brave], {?hero}. [I once broke a <folk> <job>'s <nice> <trinket>|I once sat on my
<relative>'s <cake>]."

[<together> |]They fetched the {?thing}, and between them they {thing.mend}. [You could hardly see
the join.|It was not perfect, but neither are friends.|Over <cake> they laughed about
it.][ <end>|]
""",
    "noise": """
One {season.sky} [<weekday>|evening|night] in {season} {he} [went to bed early|could not sleep|lay
reading]. [Boo-oom|Hoo-oo|Krrr-eek|Flap-thud|Snuffle-sniff]! [It was not the wind.|It was not the
gate.|{He} pulled up the <colour> blanket.] [Boo-hoo|Ee-ee-oo|Bump]! It came from the {place}.

Next door slept {friend} the {pal}, <pal>. "{friend}! [Wake up|Come quickly|I heard a noise],
{?friend}!" {She} took a <nice> <trinket>, [for courage|just in case]. {He} took {thing.fine}.
[Off they crept, <over>.|On tiptoe they went, <over>.] [<comfort>|They held paws.]

They [peeped|looked] behind the {?place}, and there, [in|beside|under] a <big> <vessel>, sat a
very small {owed}. "[I am lost|I cannot sleep]," it <murmur>, "[and I am afraid of <fear>|and I
miss my <relative>]." "[Poor|There, there,] {?owed}," {she} said. {He} sat down close by and
{thing.soothe}. [Soon|In a minute] all was still.

[At|Before] breakfast there was a note on the step, [tied to|under] a <nice> <trinket>.
"[Dear|Kind] {?hero}, I [slept|dreamed of <dream>]. [Love from|Your friend,] the {?owed}." And
[next to it|beside it], [polished|wrapped in a leaf], lay the {?thing}.[ <end>|]
""",
    "map": """
<^day> {he} [opened|dusted|dropped] a <nice> book on <hobby>, and out fell a map. A <colour> cross
marked a spot by the {place}. {He} had no spade, but the {owed} [next door|over the way] did.
"[What do I get|What is it worth]?" "The first slice of my next <fruit> <dish>," {he} promised.
["Agreed!"|"The {owed} first, and none before the {?owed}."]

{friend} the {pal}, <pal>, came to help. [<together> |<aside> |]By the {?place} they dug, and
found a <nice> <trinket>. [They dug again, and found a <big> <vessel>. |{She} leaned on the spade.
|It began to drizzle. ]"One more try, {?friend}," {he} said. Clunk! There was a <colour> box, and
in [it|the box], wrapped in [wool|straw|an old sail], {thing.fine}. [They took turns all the way
home.|{She} {thing.used}, and then so did {he}.]

[Next day|That evening] {he} baked. [There was flour on the <old> <chair>. |The smell went down
the lane. |]"[Is it ready|May I have some], {?hero}?" {she} asked[, spoon in {pal.paw}|]. "[Not
yet|Wait]," {he} said. "The first slice goes to the {?owed}."[ In the middle of the table stood
the {?thing}.| <close>|]
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
    promised: str = ""
    wish: str = ""
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
    hidden = ("sum", "season", "later")
    plain = {renamed.get(s, s): v for s, v in names.items() if s not in hidden}
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

    Tales do not repeat: the cheapest of 6,000 costs 95 bits (the median 142). Even if all tales
    cost only 75 bits, a million of them would hold a repetition with a chance of 1.4e-11.
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
