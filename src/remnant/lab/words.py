"""Word stock of the fictional corpora: plain content words, and names made of syllables."""

import random
from collections.abc import Iterator

NOUNS = (
    "anchor apron arch barrel basin beacon bell bench blanket bottle bridge broom bucket "
    "cabin candle canvas carpet cellar "
    "chain chalk chapel chest chimney cistern clock cloak coin column compass copper cradle "
    "crane curtain dagger dairy desk "
    "diary drum easel engine fence ferry fiddle flagon flute forge fountain furnace garden "
    "gate glacier glove granary hammer "
    "harbour harness hatchet hinge hive jar jetty kettle kiln ladder lantern ledger lever "
    "lock loom mallet mantle marble mast "
    "mattress medal mill mirror mosaic needle oar orchard organ oven paddle parcel pebble "
    "pier pillar pipe plough pocket press "
    "prism pulley quarry quilt raft rail razor reef ribbon river rope rudder saddle satchel "
    "scarf shovel sieve signal sledge "
    "spire spoon statue stove stirrup syrup table tanner temple thimble thread timber torch "
    "tower trough tunnel turbine "
    "turnip valley vault vessel violin wagon walnut wharf wheel whistle willow window "
    "windmill workshop yard"
).split()
ADJECTIVES = (
    "amber ancient bitter blunt brass brittle broken careful cheap clever coarse cold crimson "
    "crooked damp dusty eager early "
    "faded fierce foreign fragile frozen gentle gilded grim hollow honest humble idle iron "
    "ivory jagged late lean lonely loud "
    "mellow modest muddy narrow noble odd pale patient plain polished proud quiet ragged rare "
    "restless rough rusty scarce "
    "secret severe shallow sharp silent silver slender solemn sour spare steep stern stiff "
    "stubborn sudden sullen tangled "
    "tender thick timid vacant velvet vivid wary weary wild wooden yellow"
).split()
VERBS = (
    "abandoned admired auctioned borrowed buried burned carved catalogued chased cleaned "
    "collected concealed copied counted "
    "covered crossed defended delivered described designed discovered divided doubled dragged "
    "drained emptied examined "
    "exchanged financed flooded followed gathered guarded hauled hoisted imported inherited "
    "inspected invented launched leased "
    "lifted loaded lowered measured melted mended misplaced moved named opened ordered "
    "painted patched photographed planted "
    "pledged polished praised printed purchased raised reclaimed refused removed rented "
    "repaired replaced rescued restored "
    "returned sealed searched sharpened shipped sketched smuggled stacked stored studied "
    "surveyed swapped tested traded "
    "translated trimmed unloaded varnished visited washed weighed welded wrapped"
).split()
TRADES = (
    "apothecary archivist astronomer baker banker beekeeper bookbinder botanist brewer "
    "builder captain carpenter chemist "
    "clockmaker cobbler composer cook cooper dentist diver draughtsman engraver falconer "
    "farmer ferryman gardener geologist "
    "glazier goldsmith grocer joiner judge lawyer librarian locksmith magistrate mason "
    "midwife miller miner notary painter "
    "perfumer pilot plumber poet potter printer ropemaker saddler sailor sculptor senator "
    "shepherd smith surgeon tailor "
    "teacher tinker treasurer upholsterer vintner watchman weaver welder"
).split()

_ONSETS = "b br c cl d dr f fl g gr h j k kr l m n p pr qu r s sk st t th tr v w z".split()
_VOWELS = "a e i o u ae ei ou ia".split()
_CODAS = "ck ld lm n nd ph r rk rn sk ss st th v x zz".split()


def made_up_name(rng: random.Random) -> str:
    """One pronounceable word of two syllables that is in no dictionary by design."""
    return (
        rng.choice(_ONSETS)
        + rng.choice(_VOWELS)
        + rng.choice(_ONSETS)
        + rng.choice(_VOWELS)
        + rng.choice(_CODAS)
    ).capitalize()


def unique_names(rng: random.Random) -> Iterator[str]:
    """An endless stream of names, none of them given twice."""
    seen: set[str] = set()
    while True:
        name = made_up_name(rng)
        if name not in seen:
            seen.add(name)
            yield name
