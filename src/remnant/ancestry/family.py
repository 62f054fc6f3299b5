"""Models on a disk -> a forest: which descends from which, how that is known, and which descend
from one that still knows.
"""

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, permutations
from pathlib import Path
from typing import NamedTuple

from remnant.adapterfiles import CONFIG, is_adapter
from remnant.ancestry import kinship
from remnant.ancestry.everywhere import contents, equal
from remnant.ancestry.facts import FROM_SCRATCH, KNOWING, UNREAD, Facts, facts
from remnant.ancestry.kinship import Kin, Traits
from remnant.ancestry.member import BY_ITSELF, BY_MANIFEST, BY_WEIGHTS, Forest, Member
from remnant.ancestry.tree import arborescence
from remnant.ancestry.windows import Array, Sample, embedded, sample
from remnant.errors import UserError
from remnant.flow.unread import unread
from remnant.packing import SUFFIX
from remnant.weightfiles import object_in

Progress = Callable[[int, int, str], None]
Pairs = Mapping[tuple[int, int], Kin]
# A model without a parent costs more than any distance within a family, so that there are as few as
# may be, and twice as much where the weights tell a parent. Among those that could be it, the one
# in the middle is the cheapest by a little: a family is rooted at the midpoint of its longest path,
# as phylogenies are where nothing else tells (Farris 1972, American Naturalist 106).
NO_PARENT, IN_THE_MIDDLE = 1e6, 1e-3
# A parent is named beside the nearest one where it is farther by fewer standard errors than this:
# one in 700 by chance.
SURE = 3.0
BESIDE = "It lies beside the weights that are opened."
LINKED = "It is a link to a folder. Name the folder that it leads to."
# What a transformed copy keeps beside its weights.
CODES = "codes.safetensors"


class _Edge(NamedTuple):
    """How a model comes from another one; ``beside``: from a third one too."""

    kin: Kin
    by: str = BY_WEIGHTS
    beside: int | None = None


def lineage(folders: Sequence[Path], report: Progress) -> Forest:
    """Look for models below some folders and place them.

    Raises:
        UserError: a folder that is not there, or no model in any that can be read.
    """
    paths, stores = found_below(folders)
    if not paths:
        raise UserError(
            f"No model lies below {', '.join(map(str, folders))}.",
            "Give folders of safetensors, of adapters or of GGUF files.",
        )
    models: list[Sample] = []
    left: list[tuple[str, str]] = []
    names = _names(paths)
    for count, path in enumerate(paths):
        report(count, len(paths), names[path])
        try:
            models.append(sample(path))
            left += [(f"{names[path]}/{n}", BESIDE) for n in _beside(path)]
        except UserError as error:
            left.append((names[path], str(error)))
    left += [(name, LINKED) for name in _linked(folders, paths)]
    if not models:
        raise UserError(f"None of it is a model that can be read: {left[0][0]}. {left[0][1]}")
    return Forest(place(models, facts(stores), names), tuple(left))


def found_below(folders: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Folders and files that hold weights, and stores."""
    models: set[Path] = set()
    stores: set[Path] = set()
    for folder in folders:
        if not folder.exists():
            raise UserError(f"There is no folder {folder}.", "Name folders that hold models.")
        if folder.is_file():
            models.add(folder)
        for place, inside, files in os.walk(folder):
            here = Path(place)
            inside.sort()
            if "objects" in inside:
                stores.add(here)
                inside[:] = [d for d in inside if d not in ("partial", "damaged")]
            if here.name == "objects":
                stores.add(here.parent)
            if _holds_model(here, files):
                models.add(here)
            models |= {here / f for f in files if f.lower().endswith(SUFFIX)}
    return sorted(models), sorted(stores)


def _beside(path: Path) -> list[str]:
    """Weights in a model's folder that are not the model's, and are no model of their own here."""
    if not path.is_dir() or is_adapter(path):
        return []
    names = unread(path, sorted(p.name for p in path.iterdir()))
    return [n for n in names if not n.endswith(SUFFIX) and n != CODES]


def _linked(folders: Sequence[Path], found: Sequence[Path]) -> list[str]:
    """Links to models that are not looked at otherwise, since links are not followed."""
    there, linked = {path.resolve() for path in found}, []
    for folder in folders:
        for place, inside, _ in os.walk(folder):
            paths = [Path(place, name) for name in inside]
            linked += [p for p in paths if p.is_symlink() and p.resolve() not in there]
    return [str(p) for p in linked if _holds_model(p, os.listdir(p))]


def _holds_model(folder: Path, files: Sequence[str]) -> bool:
    weights = [f for f in files if f.endswith((".safetensors", ".bin"))]
    described = "config.json" in files or any(f.startswith("model") for f in weights)
    return is_adapter(folder) or bool(weights and described)


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """Paths as short as tells them apart: below the folder that all lie in."""
    home = os.path.commonpath([p.absolute().parent for p in paths])
    return {p: os.path.relpath(p.absolute(), home) for p in paths}


def place(models: Sequence[Sample], known: Facts, names: Mapping[Path, str]) -> tuple[Member, ...]:
    """The place of every model, told from windows and manifests."""
    whole = [i for i, m in enumerate(models) if m.kind != "adapter"]
    pairs = _pairs(models, whole)
    where = {_artefact(m.path): i for i, m in enumerate(models)}
    edges = _edges(models, pairs, known, where)
    parents = _parents(models, pairs, edges, _from_scratch(models, known))
    families = _families(len(models), pairs)
    for i in set(range(len(models))) - set(whole):
        if found := _adapted(i, models, pairs, known, where):
            parents[i], edges[found[0], i] = found
            families[i] = families[found[0]]
    sizes = Counter(families.values())
    members = []
    for i, model in enumerate(models):
        path = _artefact(model.path)
        made = known.made.get(path)
        member = Member(
            names[model.path],
            model.kind,
            family=families[i] if sizes[families[i]] > 1 else None,
            how=made.how if made else "",
            verdict=known.verdicts.get(path, ""),
        )
        parent = parents[i]
        if parent is not None:
            member = _with_parent(member, (parent, i), edges, models, names)
        members.append(member)
    return _answered(_turned(members, models))


def _turned(members: Sequence[Member], models: Sequence[Sample]) -> list[Member]:
    """With the model that still knows of which one may be a copy in other coordinates, where none
    of its family does.
    """
    read = functools.cache(embedded)
    pairs = list(zip(members, models, strict=True))
    knowing = [(m, s) for m, s in pairs if m.verdict in KNOWING]
    found = []
    for member, model in pairs:
        apart = [(m, s) for m, s in knowing if m.family is None or m.family != member.family]
        like = [m for m, s in apart if m != member and _is_turned(model, s, read)]
        of = f"{like[0].name} ({like[0].verdict})" if like else ""
        found.append(member._replace(turned=of))
    return found


def _is_turned(a: Sample, b: Sample, read: Callable[[Path], Array | None]) -> bool:
    """Whether tokens are as alike in one model as in another of its shape."""
    if not kinship.shared(a, b):
        return False
    one, other = read(a.path), read(b.path)
    return (
        one is not None
        and other is not None
        and (kinship.turned(one, other) >= kinship.LEAST_TURNED)
    )


def _artefact(path: Path) -> Path:
    """What facts are known by: a folder, of a file in it too."""
    found = path.resolve()
    return found.parent if path.is_file() and (path.parent / "manifest.json").exists() else found


def _pairs(models: Sequence[Sample], whole: Sequence[int]) -> dict[tuple[int, int], Kin]:
    """What every two models of one family are to each other, in both orders."""
    own: dict[int, Traits] = {i: kinship.traits(models[i]) for i in whole}
    read = functools.cache(contents)
    found: dict[tuple[int, int], Kin] = {}
    for i, j in combinations(whole, 2):
        if kin := kinship.kin(models[i], models[j], own[i], own[j]):
            if kin.step == "same weights" and not equal(models[i], models[j], read):
                kin = kin._replace(step="trained")
            found[i, j], found[j, i] = kin, kin.turned
    return found


def _families(count: int, pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
    """The family of every model: that of its relatives' relatives too."""
    found = {i: i for i in range(count)}
    for i, j in sorted(pairs):
        old, new = max(found[i], found[j]), min(found[i], found[j])
        found = {k: new if f == old else f for k, f in found.items()}
    return found


def _from_scratch(models: Sequence[Sample], known: Facts) -> set[int]:
    """Models of which a manifest says that they were trained from nothing."""
    found = set()
    for i, model in enumerate(models):
        made = known.made.get(_artefact(model.path))
        if made and made.how == FROM_SCRATCH:
            found.add(i)
    return found


def _edges(
    models: Sequence[Sample], pairs: Pairs, known: Facts, where: Mapping[Path, int]
) -> dict[tuple[int, int], _Edge]:
    """All (parent, child) that may be: by manifest where there is one, else by the weights."""
    scratch = _from_scratch(models, known)
    found = {}
    for (i, j), kin in pairs.items():
        if kin.a_first and (j not in scratch or kin.step == "same weights"):
            found[i, j] = _Edge(kin)
    mixed = _mixed(models, pairs)
    found |= mixed
    for (parent, child), edge in mixed.items():
        ends = parent, edge.beside
        for other in [j for i, j in found if i == child and not found[i, j].kin.told]:
            if not _may_come_from(other, child, ends, pairs):
                del found[child, other]
    for j, model in enumerate(models):
        made = known.made.get(_artefact(model.path))
        parents = [where[p] for p in (made.parents if made else ()) if p in where]
        related = [p for p in parents if (p, j) in pairs]
        if related:
            first = related[0]
            beside = related[1] if len(set(related)) > 1 else None
            found = {e: edge for e, edge in found.items() if e[1] != j and e != (j, first)}
            kin = pairs[first, j]._replace(a_first=True, b_first=False)
            found[first, j] = _Edge(kin, BY_MANIFEST, beside)
    return found


def _may_come_from(other: int, merged: int, ends: Sequence[int | None], pairs: Pairs) -> bool:
    """Whether another model may come from a merged one: it is nearer to that than its parents are.

    A merged model lies amid its family, and so is near to what it does not come from.
    """
    least = min(pairs[end, merged].distance for end in ends if end is not None)
    return other not in ends and pairs[other, merged].distance < least


def _mixed(models: Sequence[Sample], pairs: Pairs) -> dict[tuple[int, int], _Edge]:
    """Models that lie on the straight way between two others of their family: merged of both."""
    found: dict[tuple[int, int], _Edge] = {}
    dense = sorted({i for (i, _), kin in pairs.items() if kin.step == "trained"})
    for child in dense:
        near = [i for i in dense if (i, child) in pairs and pairs[i, child].step == "trained"]
        best, least = None, kinship.LEFT_OVER
        for one, other in combinations(near, 2):
            names = kinship.shared(models[one], models[other])
            if (one, other) not in pairs or kinship.shared(models[one], models[child]) != names:
                continue
            way = [kinship.flattened(models[i], names) for i in (child, one, other)]
            share, left = kinship.mix(*way)
            if left < least and kinship.LEAST_MIX < share < 1 - kinship.LEAST_MIX:
                best, least = (one, other), left
        if best:
            for first, second in permutations(best):
                kin = pairs[first, child]._replace(step="merged", a_first=True, b_first=False)
                found[first, child] = _Edge(kin, BY_WEIGHTS, second)
    return found


def _parents(
    models: Sequence[Sample],
    pairs: Pairs,
    edges: Mapping[tuple[int, int], _Edge],
    scratch: set[int],
) -> dict[int, int | None]:
    """The parent of every model; None of one that begins a family, or has none."""
    roots = {}
    with_parent = {child for (_, child), edge in edges.items() if edge.kin.told}
    for i in range(len(models)):
        others = [j for j in range(len(models)) if (i, j) in pairs and j not in with_parent]
        far = max((pairs[i, j].distance for j in others), default=0.0)
        alone = NO_PARENT * (2 if i in with_parent else 1) + IN_THE_MIDDLE * far
        roots[i] = 0.0 if i in scratch else alone
    return arborescence(roots, {edge: e.kin.cost for edge, e in edges.items()})


def _adapted(
    adapter: int,
    models: Sequence[Sample],
    pairs: Pairs,
    known: Facts,
    where: Mapping[Path, int],
) -> tuple[int, _Edge] | None:
    """The model that an adapter is of: where the merged model is there too, the weights tell it;
    else its manifest, else what it says itself, if its shapes fit.
    """
    own = models[adapter]
    merges = [(kinship.off_update(own, models[i], models[j]), i, j) for i, j in pairs]
    off, first, merged = min(merges, default=(1.0, 0, 0))
    if off < kinship.OFF_UPDATE:
        kin = pairs[first, merged]._replace(step="adapter merged", a_first=True, b_first=False)
        return first, _Edge(kin._replace(rank=None))
    made = known.made.get(own.path.resolve())
    said = [p for p in (made.parents if made else ()) if p in where]
    by = BY_MANIFEST if said else BY_ITSELF
    base = Path(str(object_in(own.path / CONFIG).get("base_model_name_or_path")))
    said = said or [p.resolve() for p in (base, own.path.parent / base.name)]
    for path in said:
        of = where.get(path)
        if of is not None and all(models[of].shapes.get(n) == s for n, s in own.shapes.items()):
            return of, _Edge(Kin(0.0, 0.0, "adapter merged", True, False), by)
    return None


def _with_parent(
    member: Member,
    step_to: tuple[int, int],
    edges: Mapping[tuple[int, int], _Edge],
    models: Sequence[Sample],
    names: Mapping[Path, str],
) -> Member:
    """With what the edge from its parent says."""
    parent, own = step_to
    edge = edges[parent, own]
    adapter = member.kind == "adapter"
    step = "adapter of" if adapter else edge.kin.step
    perhaps = [names[models[i].path] for i in _as_well(own, parent, edges, models)]
    told = (edge.kin.told or step == "same weights") and edge.by != BY_ITSELF
    return member._replace(
        parent=names[models[parent].path],
        step=step,
        told=told,
        by=edge.by,
        beside=None if edge.beside is None else names[models[edge.beside].path],
        perhaps=tuple(perhaps),
        distance=None if adapter else edge.kin.distance,
        fit=edge.kin.fit,
        rank=edge.kin.rank,
    )


def _as_well(
    own: int, parent: int, edges: Mapping[tuple[int, int], _Edge], models: Sequence[Sample]
) -> list[int]:
    """Other models that this one may come from, of which neither the step's traces nor the distance
    tell the parent apart beyond chance.
    """
    edge = edges[parent, own]
    if edge.by != BY_WEIGHTS or edge.kin.step in ("merged", "same weights"):
        return []
    found = []
    for (i, j), other in edges.items():
        if j != own or i == parent or other.kin.step != edge.kin.step:
            continue
        between = edges.get((i, parent)) or edges.get((parent, i))
        if between and between.kin.step == "same weights":
            continue
        # What was lost on the way to one of the two is lost in a grid too, and brings it nearer.
        counts = edge.kin.step != "quantized" or not between or between.kin.step == "trained"
        apart = kinship.fits_better(edge.kin, other.kin) >= SURE
        if not apart and not (counts and _nearer(models, own, parent, i)):
            found.append(i)
    return found


def _nearer(models: Sequence[Sample], own: int, parent: int, other: int) -> bool:
    """Whether a model is nearer to its parent than to another one, beyond chance."""
    shared = set.intersection(*(set(models[i].shapes) for i in (own, parent, other)))
    windows = [kinship.flattened(models[i], sorted(shared)) for i in (own, parent, other)]
    return kinship.nearest(*windows) > SURE


def _answered(members: Sequence[Member]) -> tuple[Member, ...]:
    """With the answer for every model whether it descends from one that still knows.

    "is one": an audit found so. "descends": one of its ancestors is one, and every step to it is
    told. "gone": its first ancestor that was audited is gone, and this copy was not audited.
    "perhaps": it is of a family with such a model, and nothing tells that it does not descend from
    it; or its tokens are as alike as those of one, in other coordinates. "no": it is of no such
    family, or comes from a model that never read the text. "not known": no audit found any model
    that knows, so there is none to descend from.
    """
    by_name = {m.name: m for m in members}
    knowing: dict[int | None, Member] = {}
    for m in members:
        if m.verdict in KNOWING:
            knowing.setdefault(m.family, m)
    return tuple(_answer(m, by_name, knowing) for m in members)


def _answer(
    member: Member, by_name: Mapping[str, Member], knowing: Mapping[int | None, Member]
) -> Member:
    if member.verdict in KNOWING:
        return member._replace(knowing="is one", of=member.verdict)
    for at in _sure_ancestors(member, by_name):
        if at.verdict in KNOWING:
            return member._replace(knowing="descends", of=f"{at.name} ({at.verdict})")
        if at.verdict == UNREAD or at.how == FROM_SCRATCH:
            return member
        if at.verdict == "gone" and not member.verdict:
            return member._replace(knowing="gone", of=at.name)
    if not knowing:
        return member._replace(knowing="not known")
    near = knowing.get(member.family) if member.family is not None else None
    if near is None and member.turned:
        return member._replace(knowing="perhaps", of=f"{member.turned}, in other coordinates")
    if near is None:
        return member
    return member._replace(knowing="perhaps", of=f"{near.name} ({near.verdict})")


def _sure_ancestors(member: Member, by_name: Mapping[str, Member]) -> list[Member]:
    """A model and those that it comes from, as far as every step is told."""
    found = [member]
    while (last := found[-1]).parent is not None and last.told and not last.perhaps:
        found.append(by_name[last.parent])
    return found
