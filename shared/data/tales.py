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
    hat / a straw hat / that had room for two under the brim / tried it on at every angle /
        the brim tore / sewed up the brim with tiny stitches / turned it over to make a bed
    jug / a blue jug / that poured without a drip / poured pretend lemonade from it /
        the handle came off / stuck the handle on with glue / filled it with warm milk
    kite / a paper kite / that flew higher than the rooks / ran in circles until it flew /
        the paper ripped / pasted new paper over the rip / propped it up like a little tent
    lantern / a tin lantern / that glowed like a small sun / lit it and felt at home /
        the glass cracked / put in a new pane of glass / lit it, and the dark took three steps back
    mirror / a round mirror / that made every face look friendly / made faces in it /
        the frame came apart / nailed the frame together / caught the moon in it, for company
    parasol / a lace parasol / that opened like a flower / twirled it on one shoulder /
        the lace tore / darned the lace / opened it overhead like a roof
    quilt / a patchwork quilt / that had a patch for every birthday /
        rolled up in it like a sausage / the seam burst / stitched the seam /
        spread it out, warm from the bed
    ribbon / a silk ribbon / that was as blue as noon / tied it in a bow /
        the end frayed / hemmed the end / tied it in a bow, to be brave in
    scarf / a woollen scarf / that went round four times / wrapped up warm in it /
        a stitch ran all the way down / picked up the stitch and knitted it again /
        wound it round and round
    teapot / a china teapot / that never let tea go cold / lifted the lid and peeped inside /
        the lid broke in two / glued the lid together / poured camomile tea from it
    umbrella / an enormous umbrella / that could keep a family dry / opened it and sat underneath /
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
    apples, buns, crumpets, dumplings, figs, gingernuts, hazelnuts, muffins, oatcakes, pears,
    sugarplums, turnovers
    """
)
LANDS = _words(
    """
    in Thistle Wood, near Fernwood, by the River Wend, under Blackberry Hill, on Skerry Island,
    in Mossy Bottom, in Cobbler Lane, near Little Hopping, above Whistling Bay, in Windle Dale,
    on Amber Moor, behind Marrow Hall, on Pebble Shore, by Lake Greywater, in Buttercup Dell,
    on Harrow Heath
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
 talkative, thoughtful, tidy, tiny, wide-awake, wiry, young, bookish, bossy, calm, careful, chatty,
 chubby, cosy, daring, dainty, drowsy, faithful, funny, fussy, glum, greedy, hasty, honest, humble,
 lanky, lazy, lonely, loyal, modest, musical, neat, noisy, patient, peaceful, penniless, plucky,
 prim, sensible, serious, skinny, sly, solemn, steady, strong, trusting, wise
@trait2: bright-eyed, good-hearted, good-natured, kind-hearted, light-footed, rosy-cheeked,
 soft-spoken, sweet-toothed, tender-hearted, warm-hearted, mild-mannered, wild-haired, well-read,
 short-sighted, muddle-headed, quick-witted, big-hearted, clear-headed, free-spirited,
 high-spirited, hard-working, late-rising, level-headed, light-hearted, quick-tempered, sharp-eyed,
 silver-tongued, slow-moving, smooth-talking, starry-eyed, stout-hearted, tone-deaf
@colour: black, blue, brown, cherry-red, cream, crimson, green, grey, lilac, pink, purple, red,
 scarlet, sea-green, turquoise, violet, white, yellow, beige, buttercup, charcoal, chestnut,
 copper, coral, fawn, gold, lemon, lime, maroon, mauve, mustard, navy, peach, pearl, plum, rose,
 rust, sand, silver, tan, teal, sky-blue, bottle-green
@weekday: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday
@relative: aunt, cousin, godfather, godmother, grandfather, grandmother, great-aunt, great-uncle,
 stepbrother, stepsister, twin sister, uncle, half-sister, second cousin, stepmother, stepfather
@job: baker, barber, beekeeper, blacksmith, bookbinder, bus driver, carpenter, chimney sweep,
 circus clown, clockmaker, cobbler, coal miner, dancer, doctor, ferryman, fiddler, fisherman,
 gardener, glassblower, juggler, librarian, lifeboat captain, lock-keeper, mapmaker, milliner,
 night watchman, painter, pastry cook, pilot, plumber, poet, postmaster, potter, puppeteer, sailor,
 schoolteacher, shepherd, ship's cook, shipwright, signalman, stonemason, tailor, tightrope walker,
 toymaker, train driver, wandering minstrel, weaver, woodcutter, bugler, piper, butler, cellist,
 chemist, conjuror, cook, dentist, drummer, farmer, fireman, fortune-teller, ghost hunter, jester,
 judge, knife grinder, lamplighter, lawyer, magician, messenger, miller, monk, nurse, bandsman,
 pedlar, pirate, printer, professor, ragman, saddler, scholar, sculptor, sheriff, singer, soldier,
 thatcher, tinker, tuba player, vicar, waiter, watchmaker, wrestler, zookeeper
@folk: bearded, bow-legged, busy, cheerful, dashing, famous, forgetful, freckled, gruff, jolly,
 kindly, lonely, musical, near-sighted, nervous, patient, poetic, retired, sleepy, stout, tall,
 travelling, whistling, white-haired, bald, bashful, bossy, brisk, chatty, clumsy, cross, dainty,
 daring, dreamy, fussy, gentle, giddy, grand, handsome, hasty, hearty, lanky, lean, limping, lucky,
 merry, plump, proud, ragged, rosy, scatterbrained, shy, silent, singing, smiling, sniffing,
 solemn, stooping, stubborn, surly, tiny, tired, wise, wrinkled, young
@giver
{his} <relative>
{his} <relative>, the <folk> <job>
@whose
{thing.that}
from <giver>
from a <folk> <job>
won at <hobby>
swapped for a <nice> <trinket>
swapped for <cake>
@hobby: acrobatics, archery, baking, ballet, birdwatching, bookbinding, carpentry, checkers, chess,
 conjuring, cookery, crochet, embroidery, fencing, fishing, gardening, hopscotch, juggling,
 knitting, marbles, map-making, opera, origami, painting, pottery, puppetry, rope-skipping, rowing,
 sailing, singing, skating, somersaults, stargazing, stilt-walking, swimming, tap dancing,
 ventriloquism, weaving, whittling, yodelling, angling, bowls, cartwheels, clog dancing, conkers,
 cricket, croquet, darts, debating, dominoes, drumming, duets, falconry, farming, gossip,
 handstands, hiking, jousting, leapfrog, lace-making, magic, marching, mime, music, philosophy,
 poetry, printing, riddles, skipping, sledging, sculpture, spelling, tennis, tiddlywinks, tightrope
 walking, whistling, woodwork, wrestling, yoga
@fear: bagpipes, balloons, bats, bubbles, cold baths, deep water, draughts, echoes, empty
 wardrobes, fireworks, ghosts, haircuts, hiccups, high places, jellyfish, ladders, lightning, long
 words, mathematics, moths, nightmares, owing money, pirates, scarecrows, shadows, sneezing, soap,
 spiders, squeaky doors, stage fright, steam engines, thunder, tunnels, vampires, wasps, wet socks
@trinket: bobbin, bottle cork, brass hinge, bus ticket, button, candle stub, cotton reel, door key,
 feather, fir cone, fishing float, fossil, glass bead, glass marble, glove, gold tassel, hairpin,
 horseshoe, mitten, paintbrush, paper fan, pebble, pencil stub, pine cone, playing card, pocket
 comb, postage stamp, rubber ball, nail, seashell, shoelace, thimble, soup spoon, spinning top,
 teaspoon, tin soldier, toy boat, walnut shell, watch chain, wooden peg, badge, ball of wool, bead,
 bracelet, bootlace, brooch, bucket handle, candle, chess pawn, coat hook, coin, conker, corkscrew,
 curtain ring, darning needle, dice cup, doorknob, timer, fish hook, hatpin, key ring, lens,
 locket, magnet, medal, nutcracker, penknife, penny, pepper pot, pin cushion, ring, ruler, safety
 pin, spring, stopwatch, sugar lump, tap, tassel, toothbrush, torch, whistle, yo-yo, zip
@nice: beautiful, borrowed, curious, dusty, fine, forgotten, grubby, handsome, little, lost, lucky,
 much-loved, muddy, nearly new, perfect, plain, precious, pretty, second-best, small, spare,
 splendid, sticky, wonderful, bargain, battered, best, cheap, cheerful, clean, common, dear,
 doubtful, dull, faithful, familiar, famous, favourite, genuine, good, gorgeous, hidden, humble,
 hard-won, jolly, large, long-lost, magic, mysterious, new, noble, nice, peculiar, pleasant,
 pointless, proper, puzzling, rare, royal, secret, silly, simple, spotless, strange, stray, stolen,
 suspicious, trusty, valuable, very fine, worthless
@bit: a bent pin, a bit of string, a crumb of cheese, a curl of bark, a knot of wool, a lump of
 chalk, a peppermint, a piece of wax, a scrap of lace, a toffee wrapper, half a biscuit, some
 fluff, three dried peas, two acorns, two bright beans, a very small poem
@tin: biscuit tin, boot, cake tin, flowerpot, hatbox, matchbox, sock, pickle jar, pillowcase,
 saucepan, shoebox, soup bowl, toy chest, tea caddy, bread basket
@veg: barley, bean, cabbage, carrot, cauliflower, celery, chestnut, leek, lentil, mushroom, nettle,
 onion, parsnip, pea, pumpkin, spinach, swede, tomato, turnip, watercress, artichoke, asparagus,
 beetroot, cucumber, fennel, garlic, kale, marrow, potato, radish, sorrel, yam
@fruit: apple, apricot, bilberry, blackberry, blueberry, cherry, cranberry, damson, gooseberry,
 loganberry, mulberry, pear, plum, quince, raspberry, redcurrant, rhubarb, strawberry, banana,
 coconut, currant, fig, ginger, grape, greengage, lemon, lime, mango, medlar, melon, orange, peach
@dish: cake, cobbler, crumble, fool, flan, pie, pudding, sponge, strudel, tart, trifle, bun,
 dumpling, fritter, jelly, mousse, pancake, scone, slice, turnover, waffle
@baked: buttery, crisp, crumbly, famous, golden, heart-shaped, homemade, lopsided, perfect, juicy,
 second-best, spiced, steaming, sticky, sweet, towering, half-eaten, warm, wobbly, bitter, burnt,
 cheap, cold, creamy, dainty, fluffy, frosted, glazed, heavenly, hot, huge, light, little,
 magnificent, marbled, minty, nutty, peppery, plain, rich, runny, salty, sour, speckled, squashed,
 tiny, toasted, wonderful
@cake
a <baked> <fruit> <dish>
@soup
[clear|creamy|hot|peppery|salty|smooth|thick|thin] <veg> [soup|stew|broth|hotpot]
@supper
<soup> with [buttered|hot|crusty|fresh] [toast|bread|rolls|crumpets]
<cake> with [cream|custard|cocoa|ice cream|candles]
<soup>, and then <cake>
<fruit> jam on [buttered|hot|crusty|fresh] [toast|bread|rolls|crumpets]
@chair: armchair, bed, bench, bookcase, chest of drawers, cupboard, desk, dresser, footstool,
 grandfather clock, hatstand, piano, rocking chair, sofa, stove, table, wardrobe, washstand
@old: creaky, crooked, lopsided, old, painted, scratched, wobbly, grand, second-hand, little,
 heavy, dusty, blue, broken-backed, chipped, cosy, cracked, dark, draughty, faded, fine, green,
 grey, groaning, huge, narrow, noisy, plain, polished, red, rickety, shabby, small, solid,
 squeaking, sturdy, tall, half-eaten, white, yellow
@vessel: bathtub, bread bin, bucket, butter churn, coal scuttle, coffee pot, cookie jar, copper
 pan, flour bin, kettle, knitting bag, laundry basket, letter box, linen chest, log basket, mop
 bucket, picnic basket, rain barrel, sewing box, soup tureen, wash bowl, watering can, wheelbarrow,
 barrel, basin, bath, birdcage, canoe, cauldron, coal sack, cradle, dustbin, fish tank, flower
 basket, gramophone, hamper, hen coop, jam pan, milk churn, mixing bowl, parcel, pie dish, pram,
 saddlebag, sink, sledge, suitcase, tea chest, trunk, tuba, vase
@big: blue, brown, chipped, dented, green, large, leaky, little, patched, red, rusty, spare,
 yellow, battered, black, broad, clean, crooked, deep, dirty, faded, gleaming, grey, heavy, hefty,
 huge, long, mossy, muddy, new, noisy, pink, polished, purple, rickety, round, shabby, shiny,
 silver, square, sticky, striped, tall, white, wide
@plant: bluebells, carrots, chives, ferns, geraniums, herbs, ivy, lavender, marigolds, mint, moss,
 pansies, parsley, primroses, radishes, sage, thyme, violets
@garment: apron, beret, bonnet, bow tie, cap, cape, cardigan, cloak, coat, jacket, jersey,
 pinafore, sash, shawl, tunic, waistcoat, bathrobe, belt, blazer, boiler suit, bowler, cummerbund,
 dressing gown, frock, gown, helmet, kilt, kimono, nightcap, nightgown, poncho, raincoat, robe,
 skirt, smock, sunhat, sweater, tailcoat, tie, top hat, tutu, vest, wig
@tune: a carol, a hymn, a jig, a lullaby, a march, a polka, a sea song, a tango, a tune with no
 end, a waltz, an old rhyme, half a song, scales, something sad, something silly, the same three
 notes, a ballad, a duet, a gavotte, a hornpipe, a love song, a madrigal, a minuet, a nursery
 rhyme, a reel, a rumba, a samba, a serenade, a sonata, a symphony, an anthem, nothing much
@happily: all smiles, beaming, bouncing, dancing on the spot, grinning, nodding, on tiptoe, out of
 breath, pink with joy, turning round twice, with a bow, with a curtsy, with a hop, with a laugh,
 with a twirl, with a wink, aglow, brightly, cheerfully, chuckling, dancing, giggling, gladly,
 grandly, hopping, humming, kindly, laughing, merrily, proudly, skipping, smiling, spinning,
 sweetly, warmly, wide-eyed, winking, with a flourish, with a grin, with a skip, with a smile, with
 a whoop, with great joy, without a pause, at last, at once, quick as a wink, yawning
@sadly: blinking hard, close to tears, head down, in a small voice, in a whisper, looking at the
 floor, red in the face, shivering, trembling, turning away, very low, with a cough, with a gulp,
 with a hiccup, with a sigh, with a sniff, blushing, crying, dolefully, faintly, frowning,
 gloomily, glumly, gravely, hoarsely, in tears, limply, meekly, miserably, moping, mournfully,
 quietly, quivering, shyly, sighing, sniffing, sobbing, softly, sorrowfully, stammering,
 swallowing, timidly, weakly, wearily, with a groan, with a moan, with a wince, with one tear
@oh: Bless me, Buttons and braces, Crumbs and candles, Dear me, Fiddlesticks, Good heavens,
 Goodness, Gracious, Great gooseberries, Jumping jellyfish, Mustard and cress, My stars, Oh my,
 Pickles and plums, Soap and bubbles, Thunder and toast
@goods: birdseed, boot polish, buttons, candles, glue, ink, matches, mustard, nails, paper, pegs,
 pepper, pins, soap, starch, string
@house
{kind.home} with a <colour> [door|front door|porch|chimney|window|letter box]
{kind.home} with [pots|a pot|a whole row|a tangle] of <plant> [by the door|under the window]
{kind.home} full of [<dream>, all painted by hand|clocks|maps|<trinket>s|<plant>]
@opening
Once upon a time, {land}, lived a <trait>, <trait2> {kind} [called|named] {hero}, with a <nice>
 <trinket> [for luck|for company].
There was once a <trait>, <trait2> {kind} in a <colour> <garment>, and {his} name was {hero}.
{hero} was a <trait>, <trait2> {kind} who lived {land} with {his} <relative>, a <folk> <job>.
{hero} the {kind} was <trait>, <trait2> and [fond of|mad about|hopeless at|famous for] <hobby>.
 {He} lived in <house>.
{^land} lived {hero}, a <trait>, <trait2> {kind} with {kind.look}.
[Everybody|Nearly everybody] {land} knew {hero}, the <trait> {kind} who could not stop
 {kind.habit}.
This is the [story|tale] of {hero}, a <trait>, <trait2> {kind} who [loved|dreamed of|lived for]
 <hobby>, <hobby> and <cake>.
Do you know {hero}, the <trait>, <trait2> {kind}? {He} lives on <fruit> jam and wears a <colour>
 <garment>.
A <trait> {kind} named {hero} kept <bit>, a <nice> <trinket> and a <nice> <trinket> in {his}
 <colour> <garment>.
Long ago {hero}, a <trait>, <trait2> {kind}, lived {land} on <fruit> jam and <cake>.
@pal
who [loved|taught|was learning] <hobby>
who feared <fear> and <fear>
who made the [best|stickiest|lightest|tallest|finest] <fruit> <dish> [for miles|of all]
with a <nice> <trinket>
in a <colour> <garment>
in a <colour> <garment> and a <colour> <garment>
whose <relative> was a <folk> <job>
@day
one {season} <weekday>
one <weekday> in {season}
on the [first|second|third|last] <weekday> of {season}
one {season.sky} <weekday> in {season}
one {season} <weekday>, [halfway through|just after|just before] [breakfast|lunch|tea|a
 nap|<hobby>],
@weather
{season.scene}.
{season.air}.
@bird: blackbird, blue tit, bullfinch, chaffinch, dove, finch, jackdaw, jay, linnet, robin, rook,
 sparrow, starling, thrush, wagtail, woodpecker, wren
@perky: bold, bright-eyed, cheeky, chirpy, dozy, fat, fluffy, glossy, grumpy, nosy, plump, ruffled,
 small, solemn, speckled, tuneful, brisk, brown, chatty, clever, cross, daring, dishevelled,
 drowsy, fussy, greedy, haughty, hungry, snowy, jaunty, jolly, little, lonely, mischievous, noisy,
 pert, polite, portly, proud, quarrelsome, scruffy, shy, sleepy, slim, tame, thoughtful, tubby
@bug: centipede, flea, gnat, grub, moth, slug, spider, woodlouse, worm
@perch: a beanpole, a broken fence, a chimney pot, a church roof, a gatepost, a lamp post, a
 milestone, a mossy wall, a rain barrel, a scarecrow, a tree stump, a washing line, a wheelbarrow,
 a windowsill, somebody's hat, the handle of a spade
@cover: a compost heap, a garden wall, a gooseberry bush, a heap of leaves, a laurel hedge, a log
 pile, a milestone, a mossy stone, a rain barrel, a rose bush, a row of bins, a stack of buckets, a
 stack of flowerpots, a tree stump, a wheelbarrow, an old door
@load: a barrel of apples, a basket of kittens, a bass drum, a box of candles, a cage of doves, a
 cheese as big as a wheel, a crate of eggs, a goat on a string, a ladder, a leaking bucket, a pile
 of plates, a pram full of books, a roll of carpet, a sack of onions, a tall stack of hats, an
 armful of brooms
@aside
<weather>
<passer>
<passer2>
On <perch> a <perky> <bird> told a <perky> <bug> [the news|a joke|a secret].
[An open|A high|A cellar|A kitchen] window smelled of [<cake>|<soup>].
A <folk> <job> went by with <load> and a <nice> <trinket>.
@trade: baker, barber, beekeeper, blacksmith, butcher, candlemaker, clockmaker, cobbler, dentist,
 doctor, fishmonger, florist, grocer, hatter, joiner, miller, painter, potter, saddler, tailor
@past
past the <trade>'s [shop|window|door|garden|yard]
[past|behind|round] the [mossy|tumbledown|whitewashed|empty|ivy-clad|thatched|sleepy]
 [barn|chapel|cottage|cowshed|dovecote|farmhouse|stable|schoolhouse|summerhouse|granary]
past the [crooked|leaning|weathered|lonely|wobbly] [signpost|scarecrow|fence|lamp post|milestone]
past a <folk> <job> with <load>
@over
over the [hill|heath|common|meadow|stepping stones|stile|village green]
[down|along|up] the [winding|muddy|narrow|stony|shady] [lane|path|track|cart road|footpath]
[across|through] the [bean|barley|cabbage|maize|pumpkin|wheat|stubble] field
through the [beech|fir|birch|hazel|pine|willow] [wood|copse|trees|grove]
@walk
{He} {kind.went} past a <folk> <job>, a <perky> <bird> and a <big> <vessel>.
<^past>, and past a <folk> <job>, {he} {kind.went}.
{He} {kind.went} <over>, past a <folk> <job> in a <colour> <garment>.
<^over> {he} {kind.went}, dreaming of <cake>.
@together
They hurried past a <folk> <job>, a <perky> <bird> and a <big> <vessel>.
They went <over>, past a <folk> <job> in a <colour> <garment>.
<^over> they went, sharing <cake>.
@search
{He} looked [under|behind] the <old> <chair>, in the <big> <vessel> and in the <vessel>.
Under the <old> <chair> lay a <nice> <trinket>, and [in|behind] the <big> <vessel> <bit>.
{He} shook out the <big> <vessel>, the <vessel> and the <big> <vessel>. Nothing!
Out of the <vessel> came a <trinket>, and out of the <big> <vessel> <bit>.
{He} asked a <perky> <bird>, a <perky> <bug> and a <folk> <job>. Nobody knew.
@heavy: bag of coal, barrel of nails, boot full of mud, boulder, cannonball, church door, flat
 iron, millstone, sack of turnips, stone, wet blanket, wet overcoat
@sad
{His} heart was as heavy as a <heavy>.
{He} flopped down on the <old> <chair>. Not even <cake> helped.
A <folk> <job> offered {him} <cake>, but {he} only sniffed.
@dream: clouds, comets, elephants, fireflies, flying, gingerbread houses, hot-air balloons,
 icebergs, islands, mermaids, mountains, parades, rainbows, sailing ships, shooting stars, snowmen,
 spring, treasure, volcanoes, whales, acrobats, angels, balloons, bells, camels, castles, circuses,
 deserts, dolphins, dragons, fairies, fame, giants, kings, knights, lions, parrots, peacocks,
 penguins, pirates, princes, queens, rivers, robots, rockets, snow, sunsets, tigers, trains,
 unicorns, waterfalls, wizards
@end
That night {he} dreamed of <dream>, <dream> and <cake>.
Supper was <soup>, and then <cake>.
"[What a day|That was a day]," {he} told the <old> <chair>, <happily>.
{He} hummed <tune> all the way to bed, and dreamed of <dream>.
A <folk> <job> played <tune>, and {he} fell asleep in a <colour> <garment>.
@end2
A <folk> <job> brought <cake>, and a <folk> <job> played <tune>.
They swapped a <nice> <trinket> for a <nice> <trinket>, and were friends ever after.
They danced [round|on] the <old> <chair> to <tune>, and ate <cake>.
After that they met every <weekday> for <hobby> and <cake>.
Till bedtime they talked of <hobby>, <dream> and a <folk> <job>.
<end>
@cry
cried
called
shouted
@low
whispered
murmured
mumbled
said softly
@postcard: Frogs in my soup, Good food and kind folk, I have learned to swim, I miss our lane, It
 rains every day, Lost one sock and found two, My nose is sunburnt, So many stairs
@waiting
Every <weekday> {he} looked down the lane, but saw only a <folk> <job>.
To pass the time {he} [took up|practised|tried] <hobby>, and <hobby>, and then <hobby>.
"[Lost|Gone] for good," said a <perky> <bird> on <perch>.
A postcard of <dream> came. "<postcard>," it said.
Once {he} saw {her}! But no, it was a <folk> <job> with <load>.
@hungry
eaten nothing since <weekday>
had only <veg> broth all week
swapped my supper for a <nice> <trinket>
dropped my <fruit> <dish> in a <big> <vessel>
@meeting
[By the path|On <perch>|Behind <cover>] sat {pal.a} in a <colour> <garment>. "I am {friend}," {she}
 said, <sadly>, "and I have <hungry>."
"[Please|Excuse me]," said {pal.a}, <sadly>, "my name is {friend}, and I have <hungry>."
Somebody was [crying|sniffing|sighing] behind <cover>. It was {friend}, {pal.a} in a <colour>
 <garment>, who had dropped <cake>.
@guest
{He} found {her} a <colour> <garment> and warmed some <soup>.
{He} sat {her} by the fire with <soup>, <cake> and <tune>.
They ate <cake> and told tales of <dream> and <fear>.
{She} had <supper>, a bath, and {his} <colour> <garment> to sleep in.
@why
"[What is the matter|What has happened|Whatever is wrong|Why so sad]?"
"{hero}! [Whatever is wrong|Why are you sad|What has happened], {?hero}?"
"{hero}! I heard you [sniff|sigh|groan] from the [bus stop|church|garden|gate|lane]! What is it,
 {?hero}?"
"<oh>! Have you lost [a <nice> <trinket>|at <hobby>|your <relative>]?"
@state
behind <cover>
guarded by a <perky> <bird>
hung with cobwebs
none the worse
where {he} had left it
with a <perky> <bug> asleep on it
with <bit> inside
wet with dew
@trouble
The sky turned <colour>. Past flew a <big> <vessel> and a <colour> <garment>.
A <folk> <job> blew by, and then a <big> <vessel>.
Down the lane bowled the <trade>'s sign and a <big> <vessel>.
Off came a <job>'s <garment>, and off flew a <big> <vessel>.
@passer
A <folk> <job> [waved|went by with|was selling|had lost|sat mending] a <nice> <trinket>.
A <folk> <job> in a <colour> <garment> [nodded|waved|yawned|bowed].
A <folk> <job> was [singing of|dreaming of|selling|eating] <cake>.
A <perky> <bird> on <perch> [sang|whistled] <tune>.
A <folk> <job> was teaching <hobby> to a <folk> <job>.
@noises
[Creak|Flap|Scratch|Sniff|Thud|Tock]
[Boo-hoo|Ee-oo|Hoo-oo|Krr-eek|Mm-mm|Plip-plop]
@passer2
A <folk> <job> and a <folk> <job> went by, humming <tune>.
A <folk> <job> and a <perky> <bird> were sharing <cake>.
A <folk> <job> was chasing a <colour> <garment> round a <big> <vessel>.
@cloth: bedspread, blanket, cloak, curtain, flag, handkerchief, napkin, overcoat, petticoat, rug,
 sack, sail, shawl, sheet, tablecloth, towel
"""

# ---------------------------------------------------------------------------------------------
# 3. The plots. Each follows the opening, which ends its sentence; a blank line is a new paragraph.
# ---------------------------------------------------------------------------------------------

PLOTS = {
    "lost": """
[Dearest to {him} was|{He} was proudest of|{He} loved|{His} treasure was] {thing.fine} <whose>.
<^day> {he} [showed it to|cleaned it with|lent it to] a <folk> <job> by the {place}[, humming
<tune>|, eating <cake>|, between <hobby> and <hobby>].

[But next|But by] morning the {?thing} was [gone|missing|not in the <tin>]! <search>[ <sad>|]

[In came {friend}, {pal.a} <pal>.|Along came {friend} the {pal}, <pal>.|{friend} the {pal} looked
in, <happily>.|Just then {friend}, {pal.a} <pal>, came to borrow <bit>.] <why> "[I have lost my
{?thing}|My {?thing} is gone]," {he} said, <sadly>. ["Your {?thing}?" {she} <cry>, and [dropped|sat
on|spilled] <cake>. |]"[Think|Think back|Think hard]," {she} said, [<happily>|offering <cake>|in
{hers} <colour> <garment>]. "Where was it last?" "By the {?place}!"

[<together> |<aside> |]There, by the {?place}, <state>, lay the {?thing}. [{He} danced a <colour>
[jig|reel|polka] of joy. <end2>|"Next time," said {?friend}, <happily>, "keep it in a <tin>,
{?hero}."|"[Finders are owed|Now I want] <cake>," said {?friend}, <happily>.|{He} {thing.used}.
<end2>]
""",
    "lent": """
[{He} had|{He} treasured|On {his} <old> <chair> {he} kept] {thing.fine} <whose>. [Next door|Over
the way|Upstairs] lived {friend} the {pal}, <pal>.

<^day> {she} [tapped at the window|stood on the step|came by], in a <colour> <garment>. "I am
[visiting|nursing|surprising] my <relative>, the <folk> <job>. [May|Might] I borrow your {?thing}?"
"[Take it|If you are careful|My {?thing}? Of course]," {he} said, <sadly>. "I shall bring you some
{wish}," {she} promised, [<happily>|with <bit> in {hers} <garment>|humming <tune>, and was gone
past a <folk> <job>]. "Some {?wish}!" {he} told the <old> <chair>.

<waiting>

[Then|At last], one {later} <weekday>, [somebody knocked|the latch clicked|the gate squeaked|a
voice sang <tune>]. It was {?friend}, [muddy|brown as a nut|thin but smiling|in a new <colour>
<garment>|with a <nice> <trinket> on a ribbon]! "Here is your {?thing}," {she} said, <happily>. "It
has [met a <folk> <job>|heard me sing <tune>|smelled <cake>]. And look, in this <tin>, some
{?wish}!" [{He} {thing.used}. <end2>|"[The best of it|Best of all]," {he} said, <happily>, "is you,
{?friend}."|"You remembered, {?friend}!" {he} <cry>, <happily>.|They had <supper>, and {she} told
of <dream> and <fear>.]
""",
    "errand": """
<^day> {his} <relative> [looked into the <big> <vessel>|shook an empty <tin>|put on a <colour>
<garment>]. "<oh>! [We cannot make|There can be no] {wish.dish} without {wish}[. Run and buy some|.
Off you go], {?hero}!"

"Some {?wish}, some {?wish}," {he} [said|sang], to a [sort|kind] of <colour>
[polka|waltz|jig|march]. [<walk> |<aside> |]By the {place} [{he} met|stood|sat] {friend} the {pal},
<pal>. ["Look, a <nice> <trinket>!" {she} said, <happily>. "I must buy some {?wish}," said {?hero},
but they [took turns at <hobby>|shared <cake>|talked of <fear>]|"Mind the <big> <vessel>!" {she}
<cry>. Too late! Head over heels went {?hero}. "Hurt?" asked {?friend}, <sadly>. {He} needed
<cake>|"<oh>!" said {?friend}. "I am stuck, {hero}!" And so {she} was, in a <big> <vessel>. A
<folk> <job> pulled {her} out]. [Bong! It|The clock] struck [three|four|five|six].

["Well?" said a <folk> shopkeeper.|In the shop {he} went blank.] [<^goods>? A <nice> <trinket>?|A
<trinket>? <^goods>?|Was it <goods>? Or <goods>, or a <nice> <trinket>?] {He} thought of
[<dream>|<hobby>|that <big> <vessel>]. "Some {?wish}, please!"

[They had {wish.dish} that night|The house smelled of {wish.dish}|{He} ate {wish.dish} till {his}
<garment> was tight]. By {his} plate [lay|stood] {thing.fine} <whose>. ["For you, {?hero}," said a
voice, "for remembering."|The first to see the {?thing}, on <weekday> by the {?place}, was
{?friend}.|<end>|Next day {he} took the {?thing} to {?friend}, and they shared <cake>.]
""",
    "count": """
In [a|the] [<trade>|<folk> <trade>]'s window [stood|was|lay] {thing.fine}. The <colour> ticket
said: {sum.had} {treat}. {He} [helped a <folk> <job>|sold <fruit> <dish>] all {season}, until {he}
had {?sum.had}, and off {he} {kind.went}, [<happily>|humming <tune>|in a <colour> <garment>].

[<walk> |<aside> |]<meeting> {He} looked at the {?treat}, and at [a <perky> <bird>|<perch>]. {She}
got {sum.gave}, and ate them with [<bit>|<fruit> jam]. [Now there were {?sum.left}. |]"[Thank
you|How kind|Bless you]," said {?friend}, <happily>.

[<walk> |<walk> <passer> |<aside> |]The <folk> shopkeeper put down [<load>|<tune>|a <nice>
<trinket>|<cake>]. "I make it {?sum.left}. The price is {?sum.had}." "I met a hungry {pal}," {he}
said, <sadly>. "[Then {?sum.left} will do|Call it paid|So did I, once. Take it]."

[So {he} went home|Home {he} went, <over>,] with the {?thing} under one {kind.paw} and {?friend}
[humming|whistling] <tune>. [<end2>|"You could have kept all {?sum.had}, {?hero}," {she} said,
<happily>.]
""",
    "race": """
<^day> a <colour> notice [hung on|was nailed to|flapped on|leaned on] the {place}: "[Race|Great
race|Running race|Race for all] today! First prize, {thing.fine}!" [{friend} the {pal}, <pal>, read
it twice|{friend} the {pal} read it aloud, <happily>|{friend}, {pal.a} <pal>, was there already].
"[That is mine|I have trained on <cake>|My <relative> won it once]," {she} said.

{He} had no shoes, [only <bit>|only one sock], but the {owed} [next door|over the way] had a
<colour> pair. "[Borrow mine|Take them]. What do I get?" "First turn for the {?owed}," {he}
promised. [They smelled of <fruit> jam.|"The {?owed} first!" {he} told the <colour> laces.|They had
<colour> laces and <bit> inside.]

[Bang! Off they went|Ready, steady, go|A <folk> <job> fired a cork|A <colour> <garment> was
dropped]! [<passer> |][Ahead, {she} [tripped over|ran into] a <big> <vessel>. "<oh>!" {He} could
have run past. "{friend}! [Lean on me|Up you get], {?friend}," {he} said, and they [hobbled|limped]
to the {?place}|They were nose to nose when {she} stopped: a <perky> <bug> lay on its back. "Go on,
{?hero}!" {she} <cry>. "And leave you both, {?friend}?" {he} said. They turned it over with <bit>,
and came to the {?place}|They were side by side when a <folk> <job> dropped <load>. "Stop,
{?friend}!" {he} <cry>, and they picked it all up, and came to the {?place}] last, behind a <folk>
<job> [on stilts|with a <big> <vessel>|in a <colour> <garment>].

The umpire, a <folk> <job>, [blew the whistle|put down <load>|sniffed into a <colour>
handkerchief]. "[Legs are common|Anybody can run]. [Kindness is rarer|A kind heart is
faster|Stopping is harder]. The {?thing} goes to {?hero}!" And who had the first turn? The {?owed},
<happily>.[ <end>|]
""",
    "storm": """
<^day> a storm [came up|broke|blew in|woke {him}]. <trouble> Somebody [knocked|scratched|bumped] at
the door: {pal.a}, with [no hat and one <colour> shoe|a <nice> <trinket> and a hiccup|nothing dry
but <bit>]. "I am {friend}," {she} said, <sadly>, "and my house by the {place} has [lost its
roof|blown away|filled with <veg> soup]." "Come in, {?friend}!"

<guest> [In the morning|By breakfast|At dawn] {she} [was gone|had left], but on the <old> <chair>
[stood|lay] {thing.fine}, with <bit> and a note: "[Thank you|With love|I will not forget]."

Then, one {later} <weekday>, [a <folk> <job>|a <perky> <bird>] brought a letter. "The [roof is
on|house is mended]. Come to tea[, and wear a <colour> <garment>|, there is <cake>|], and bring the
{?thing}!" It was signed {?friend}.

[<passer> |]There, by the {?place}, [stood|shone|leaned] a house with a <colour> door, [smelling of
<cake>|full of <tune>|and <plant> under the windows]. "[How dry you are|What a roof|So this is
it|Here I am]!" {he} <cry>, <happily>. "[And you are just in time|Mind the <big> <vessel>|Have some
soup], {?hero}," {she} said. <end2>
""",
    "present": """
{His} [best|oldest|dearest|newest] friend was {friend} the {pal}, <pal>. On <weekday> it would be
{hers} birthday. {He} [bought|found] {thing.fine}, wrapped it in a <colour> <cloth>, and hid it by
the {place}. "What would you [make|cook|bake]," {he} [asked|wondered|inquired], [<happily>|over
<cake>], "if you had some {wish}?" "Some {?wish}? {^wish.dish}," {she} said. "Why?" "[No
reason|Nothing]," said {?hero}, [<sadly>|and hummed <tune>|and talked of <hobby>].

[The day came|It came|The day was here]. [<passer> |]"[They|They all] forgot," {she} told the <old>
<chair>, [<sadly>|over cold <veg> soup|and counted {hers} <nice> <trinket>s]. Then a note came,
[tied to a <nice> <trinket>|in <colour> ink|in a <tin> with <bit>]: "[Look|Go and look|Please look]
by the {?place}."

[Off {she} {pal.went}, <over>. |]There, in <colour> [string|ribbon|wool], was the {?thing}! "[Happy
birthday|Surprise], {?friend}!" {he} <cry>, [jumping out|popping up|bursting out|rolling out] from
behind <cover>[ with <tune>|, in a <colour> <garment>|]. [<end2>|"And now for {wish.dish}!"
<end2>|They had {wish.dish}, which took all the {?wish}. "So that was why you asked, {?hero}!"
{she} said, <happily>.]
""",
    "broken": """
{friend} the {pal}, <pal>, had {thing.fine}[ from a <folk> <job>|]. <^day> {he} took it from the
<old> <chair>, only to look, and, [slip|oops|bump], {thing.harm}! {He} turned
[pink|red|scarlet|white], and dropped [<cake>|a <nice> <trinket>]. {He} hid it by the {place},
[under a <big> <vessel>|behind <cover>|in a <tin>].

"[Have you seen|Where is] my {?thing}?" said {?friend}, <sadly>. "[Was it a thief|Did you look in
the <big> <vessel>|Is it not on the <old> <chair>]?" {he} <low>, [and the <cake> stuck in {his}
throat|<sadly>|and talked of <hobby>]. All night [the <old> <chair> creaked: you, you, you|{he}
dreamed of <fear> and <fear>|{he} sat up with <tune> and a <heavy> on {his} heart].

[At sunrise|At first light|Before breakfast] {he} was at {hers} door, with <cake>. "{friend}! It
was me, {?friend}. I broke it, and it is by the {?place}." {She} put down a <nice> <trinket>. Then
{she} smiled. "[Thank you for telling me|That was brave], {?hero}. [I once broke a <folk> <job>'s
<nice> <trinket>|I once sat on my <relative>'s <baked> <fruit> <dish>|I once lost a <job>'s
<garment>]."

They fetched the {?thing}, and with <bit> and a <nice> <trinket> they {thing.mend}. [<end2>|A
<folk> <job> said it was better than new.]
""",
    "noise": """
[One {season} [evening|night]|One <weekday> night in {season}] {he} lay thinking of
[<cake>|<hobby>|<dream>]. <noises>! [It was not the <old> <chair>|Not the <vessel>]. <noises>! It
came from the {place}.

[Next door|Upstairs|Across the lane] slept {friend} the {pal}, <pal>. "{friend}! [Wake up|I heard a
noise], {?friend}!" {She} took a <nice> <trinket>, [for courage|just in case]. {He} took
{thing.fine}. <^over> they crept, [past a <folk> <job>, fast asleep|in <colour> socks|holding
paws].

They looked behind the {?place}, and there, in a <big> <vessel>, sat a very small {owed}[ with a
<nice> <trinket>| in a <colour> <garment>]. "I am lost," it <low>, <sadly>, "and [I am afraid of
<fear>|I miss my <relative>|I want <cake>]." "[Poor|There, there,] {?owed}," {she} said, and {he}
{thing.soothe}. {She} [told it of <dream>|gave it <soup>|sang <tune>].

At breakfast there was a note, [tied to a <nice> <trinket>|in <colour> ink|under <cake>]. "Dear
{?hero}, I [dreamed of <dream>|slept in a <colour> <garment>]. [Love from|Your friend,] the
{?owed}." And beside it, [with <bit>|in a <colour> <cloth>], lay the {?thing}.
""",
    "map": """
<^day> {he} [opened|dusted|dropped] a <nice> book on <hobby>, and out [fell|slid|fluttered] a map.
A <colour> [cross|star|arrow] [marked|showed] the {place}. {He} had no spade, but the {owed} [next
door|over the way] did. "What do I get?" "The first slice of my <baked> <fruit> <dish>," {he}
promised. ["Agreed!"|"The {owed} first, and none before the {?owed}."]

{friend} the {pal}, <pal>, came to help, [<happily>|with a <big> <vessel>]. By the {?place} they
dug up a <nice> <trinket>. [Then a <big> <vessel>! |A <folk> <job> stopped to watch. |{She} leaned
on the spade and hummed <tune>. ]"One more try, {?friend}," {he} said, <happily>.
[Clunk|Clang|Tock]! [A <colour> box, and in it|A <colour> chest, and inside|A <big> <vessel>, and
there], wrapped in a <colour> <cloth>, {thing.fine}. [{She} {thing.used}, and then so did
{he}.|They took turns, past a <folk> <job> and home.|"<oh>!" {she} <cry>, <happily>.]

[Next day|That evening|On <weekday>] {he} baked. "May I have some, {?hero}?" {she} asked,
[<happily>|in a <colour> apron|with a <big> spoon]. "[Not yet|Wait]," {he} said. "The first slice
goes to the {?owed}." [On the <old> <chair> stood the {?thing}.|<end2>]
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
    while total < max(2, characters):  # one tale at least
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

    Tales do not repeat: the cheapest of 6,000 costs 149 bits (the median 243). Even if all tales
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
