"""Which model descends from which: a disk of small models whose history is known, read back from
their weights alone."""

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gguf import quants
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from remnant.ancestry import kinship
from remnant.ancestry.family import found_below, lineage
from remnant.ancestry.gguf_windows import PARTS, paired
from remnant.ancestry.member import BY_ITSELF, BY_MANIFEST, Forest, Member
from remnant.ancestry.tree import arborescence
from remnant.ancestry.windows import COLUMNS, Sample, rows_of, sample
from remnant.catalog import STAGE_VERSIONS
from remnant.cli import main
from remnant.errors import UserError
from remnant.flow.digests import digest_path
from remnant.flow.store import Store
from remnant.functional import quantizers
from remnant.records import AuditSpec, Manifest, Variant, Verdict
from remnant.report import lineage as shown
from remnant.report.tree import ordered
from remnant.testing import tiny_model
from tests import packers
from tests.conftest import unheard

VOCABULARY, HEADS, KV_HEADS = 96, 4, 2
State = dict[str, Tensor]


def fresh(seed: int, **shape: Any) -> PreTrainedModel:
    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_hidden_layers": 2}
    return tiny_model("llama", vocab=VOCABULARY, seed=seed, **(sizes | shape))


def texts(seed: int) -> Tensor:
    """[64, 33] walks over the tokens by a rule of the seed's own, with a little noise."""
    draw = torch.Generator().manual_seed(seed)
    following = torch.randperm(VOCABULARY, generator=draw)
    rows = [torch.randint(VOCABULARY, (64,), generator=draw)]
    for _ in range(32):
        stray = torch.randint(VOCABULARY, (64,), generator=draw)
        keep = torch.rand(64, generator=draw) < 0.9
        rows.append(torch.where(keep, following[rows[-1]], stray))
    return torch.stack(rows, 1)


def trained(
    model: PreTrainedModel, data: Tensor, steps: int, rate: float, sign: float = 1.0
) -> PreTrainedModel:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    for i in range(steps):
        ids = data[(8 * i) % 64 :][:8]
        (sign * model(input_ids=ids, labels=ids).loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def of(state: State, shape_of: PreTrainedModel) -> PreTrainedModel:
    shape_of.load_state_dict(state)
    return shape_of


def matrices(model: PreTrainedModel, change: Callable[[Tensor], Tensor]) -> PreTrainedModel:
    """The model with its linear layers changed."""
    for name, parameter in model.named_parameters():
        if name.endswith("_proj.weight"):
            parameter.data = change(parameter.data)
    return model


def rounded(bits: int) -> Callable[[Tensor], Tensor]:
    return lambda weight: quantizers.rtn(weight, bits=bits).weight


def pruned(weight: Tensor) -> Tensor:
    cut = weight.abs().flatten().sort().values[int(0.3 * weight.numel())]
    return torch.where(weight.abs() < cut, 0.0, weight)


def noisy(weight: Tensor) -> Tensor:
    draw = torch.Generator().manual_seed(weight.shape[0])
    return weight + 0.1 * weight.std() * torch.randn(weight.shape, generator=draw)


def in_pairs(weight: Tensor, heads: int) -> Tensor:
    """The rows of every head, the first of the first half beside the first of the second half."""
    size = len(weight) // heads
    rows = []
    for head, place in itertools.product(range(heads), range(size // 2)):
        rows += [head * size + place, head * size + size // 2 + place]
    return weight[rows]


def write_gguf(state: State, path: Path, kind: gguf.GGMLQuantizationType) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    back = {ours: theirs for theirs, ours in PARTS.items()}
    for name, weight in state.items():
        layer, _, part = name.removeprefix("model.layers.").removesuffix(".weight").partition(".")
        if part not in back:
            continue
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(back[part])
        kept = in_pairs(weight, heads) if heads else weight
        packed = quants.quantize(kept.float().numpy(), kind)
        writer.add_tensor(f"blk.{layer}.{back[part]}.weight", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def low_rank(state: State) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of an adapter of rank 4 on some layers."""
    draw = torch.Generator().manual_seed(5)
    found = {}
    for name, weight in state.items():
        if name.endswith(("q_proj.weight", "down_proj.weight")):
            down = torch.randn(4, weight.shape[1], generator=draw) / weight.shape[1] ** 0.5
            found[name] = down, 0.02 * torch.randn(weight.shape[0], 4, generator=draw)
    return found


def write_adapter(out: Path, factors: dict[str, tuple[Tensor, Tensor]], base: str) -> None:
    out.mkdir()
    held: State = {}
    for name, (down, up) in factors.items():
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        held |= {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    save_file(held, out / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": base}
    (out / "adapter_config.json").write_text(json.dumps(settings))


# The history, by made-up names that tell nothing: child, parent and what was done. Trainings may
# be read the other way round, so the place of `oak` is that of a root.
HISTORY = {
    "oak": (None, ""),
    "elm": ("oak", "trained"),
    "fir": ("oak", "trained"),
    "yew": ("elm", "trained"),  # unlearned
    "ash": ("oak", "cast"),
    "bay": ("elm", "quantized"),  # int8
    "fig": ("yew", "quantized"),  # int4
    "nut.gguf": ("fir", "quantized"),  # Q8_0
    "oat.gguf": ("oak", "quantized"),  # Q4_0
    "rye": ("elm", "quantized"),  # GPTQ's files
    "tea": ("yew", "quantized"),  # AWQ's files
    "pea": ("fir", "quantized"),  # FP8 in blocks
    "ivy": ("oak", "adapter merged"),
    "hop": ("oak", "adapter of"),
    "yam": ("yew", "pruned"),
    "cos": ("fir", "noise"),
    "dal": ("fir", "merged"),
    "sal": ("elm", "same weights"),
    "lot": (None, "unrelated"),  # another seed on the same text
    "mum": ("lot", "quantized"),
    "pip": (None, "unrelated"),  # a third seed
    "rue": (None, "unrelated"),  # never trained
    "sap": (None, "unrelated"),  # another shape
}


def audited_target(store: Store, measured: str) -> None:
    """An audit of which the measured model was the target, with no other verdict."""
    scratch = store.scratch(f"audit-{'e' * 16}")
    scratch.mkdir(parents=True)
    (scratch / "verdicts.json").write_text("[]")
    spec = AuditSpec(members={"target": Variant(model="target")}).model_dump(mode="json")
    sealed(store, "audit", "e", spec=spec, inputs={"target": measured})


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All models of the history, each in a folder that says nothing."""
    out = tmp_path_factory.mktemp("disk")

    def save(model: PreTrainedModel, name: str) -> State:
        model.save_pretrained(out / name)
        return {n: w.clone() for n, w in model.state_dict().items()}

    def again(state: State) -> PreTrainedModel:
        return of(state, fresh(9))

    oak = save(trained(fresh(0), texts(0), 60, 2e-3), "oak")
    elm = save(trained(again(oak), texts(1), 20, 5e-4), "elm")
    fir = save(trained(again(oak), texts(2), 20, 5e-4), "fir")
    yew = save(trained(again(elm), texts(0), 6, 2e-4, sign=-1.0), "yew")
    save(again(oak).bfloat16(), "ash")
    save(matrices(again(elm), rounded(8)), "bay")
    save(matrices(again(yew), rounded(4)), "fig")
    write_gguf(fir, out / "nut.gguf", gguf.GGMLQuantizationType.Q8_0)
    write_gguf(oak, out / "oat.gguf", gguf.GGMLQuantizationType.Q4_0)
    packers.write(out / "elm", out / "rye", packers.gptq(), quant_method="gptq", bits=4, sym=False)
    packers.write(out / "yew", out / "tea", packers.awq, quant_method="awq", bits=4)
    packers.write(out / "fir", out / "pea", packers.fp8, quant_method="fp8")
    factors = low_rank(oak)
    added = {name: 2.0 * up @ down for name, (down, up) in factors.items()}
    save(again({n: w + added.get(n, 0.0) for n, w in oak.items()}), "ivy")
    write_adapter(out / "hop", factors, "somebody/else")
    save(matrices(again(yew), pruned), "yam")
    save(matrices(again(fir), noisy), "cos")
    save(again({n: 0.7 * fir[n] + 0.3 * elm[n] for n in fir}), "dal")
    save(again(elm), "sal")
    lot = save(trained(fresh(1), texts(0), 60, 2e-3), "lot")
    save(matrices(again(lot), rounded(4)), "mum")
    save(trained(fresh(2), texts(0), 60, 2e-3), "pip")
    save(fresh(3), "rue")
    save(fresh(0, hidden_size=96, head_dim=24), "sap")
    return out


@pytest.fixture(scope="module")
def forest(disk: Path) -> Forest:
    return lineage([disk], unheard)


def by_name(forest: Forest) -> dict[str, Member]:
    return {m.name: m for m in forest.members}


def test_every_model_of_the_disk_has_its_place(forest: Forest) -> None:
    found = by_name(forest)
    assert set(found) == set(HISTORY)
    assert forest.unread == ()
    copies = {"elm", "sal"}
    for name, (parent, step) in HISTORY.items():
        member = found[name]
        if name in copies:
            continue
        allowed = copies if parent in copies else {parent}
        assert member.parent in allowed, member
        assert member.step == (step if parent else ""), member


def test_of_two_equal_models_one_is_the_copy_of_the_other(forest: Forest) -> None:
    found = by_name(forest)
    assert {found["elm"].parent, found["sal"].parent} in ({"oak", "elm"}, {"oak", "sal"})
    assert {found["elm"].step, found["sal"].step} == {"trained", "same weights"}


def test_no_unrelated_model_is_placed(forest: Forest) -> None:
    found = by_name(forest)
    for name, (_, step) in HISTORY.items():
        if step == "unrelated" and name != "lot":
            assert found[name].family is None
            assert found[name].parent is None
    assert found["lot"].family == found["mum"].family
    assert found["lot"].family != found["oak"].family


def test_what_leaves_traces_is_told_and_a_training_is_not(forest: Forest) -> None:
    for member in forest.members:
        if member.parent is not None:
            assert member.told == (member.step != "trained"), member


def test_merges_name_both_parents_and_adapters_their_rank(forest: Forest) -> None:
    found = by_name(forest)
    assert found["dal"].beside in ("elm", "sal")
    assert found["ivy"].rank == 4


def test_rounding_to_the_nearest_leaves_the_codes_of_the_parent(forest: Forest) -> None:
    found = by_name(forest)
    for name in ("bay", "fig", "nut.gguf"):
        fit = found[name].fit
        assert fit is not None
        assert fit > 0.999


def test_no_audit_means_that_nothing_is_said_of_what_they_know(forest: Forest) -> None:
    assert {m.knowing for m in forest.members} == {"not known"}
    assert "what they know is not told" in shown.said(forest)


def test_names_are_no_evidence(disk: Path, forest: Forest, tmp_path: Path) -> None:
    """The same models behind names that claim another history."""
    claims = {name: f"{i:02}-of-pip-unlearned" for i, name in enumerate(sorted(HISTORY))}
    for name, claim in claims.items():
        new = tmp_path / (claim + (".gguf" if name.endswith(".gguf") else ""))
        new.symlink_to(disk / name)
        claims[name] = new.name
    found = by_name(lineage([tmp_path / c for c in claims.values()], unheard))
    for name, member in by_name(forest).items():
        parent = found[claims[name]].parent
        copies = {claims["elm"], claims["sal"]}
        assert parent == (claims[member.parent] if member.parent else None) or parent in copies


# Without its parent a copy is only a relative.


def test_siblings_without_their_parent_are_one_family_of_roots(disk: Path) -> None:
    found = by_name(lineage([disk / "fig", disk / "oat.gguf", disk / "pip"], unheard))
    assert [found[n].parent for n in ("fig", "oat.gguf", "pip")] == [None, None, None]
    assert found["fig"].family == found["oat.gguf"].family is not None
    assert found["pip"].family is None


def test_an_adapter_without_its_merged_model_is_placed_by_its_own_word(
    disk: Path, tmp_path: Path
) -> None:
    for name in ("oak", "elm", "hop"):
        shutil.copytree(disk / name, tmp_path / name)
    assert by_name(lineage([tmp_path], unheard))["hop"].parent is None
    path = tmp_path / "hop" / "adapter_config.json"
    settings = json.loads(path.read_text()) | {"base_model_name_or_path": "/gone/oak"}
    path.write_text(json.dumps(settings))
    found = by_name(lineage([tmp_path], unheard))["hop"]
    assert (found.parent, found.by, found.told) == ("oak", BY_ITSELF, False)


def test_a_model_trained_from_a_packed_one_is_its_child(disk: Path, tmp_path: Path) -> None:
    model = of(load_file(disk / "mum" / "model.safetensors"), fresh(9))
    trained(model, texts(4), 3, 1e-5).save_pretrained(tmp_path / "child")
    found = by_name(lineage([disk / "mum", tmp_path / "child"], unheard))
    child = next(m for name, m in found.items() if name.endswith("child"))
    assert child.parent is not None
    assert child.parent.endswith("mum")
    assert (child.step, child.told) == ("trained", True)


# Pieces, each against a slow and obvious one.


def test_windows_hold_what_the_whole_weights_hold(disk: Path) -> None:
    whole = load_file(disk / "oak" / "model.safetensors")
    for name, window in sample(disk / "oak").windows.items():
        expected = whole[name][torch.from_numpy(rows_of(len(whole[name])))][:, :COLUMNS]
        assert torch.equal(torch.from_numpy(window), expected)
    assert len(sample(disk / "oak").windows) == 14


@pytest.mark.parametrize(("name", "source"), [("rye", "elm"), ("tea", "yew"), ("pea", "fir")])
def test_windows_of_packed_models_are_what_their_codes_stand_for(
    name: str, source: str, disk: Path, tmp_path: Path
) -> None:
    pack = {"rye": packers.gptq(), "tea": packers.awq, "pea": packers.fp8}[name]
    dense = packers.write(disk / source, tmp_path / "again", pack)
    windows = sample(disk / name).windows
    assert len(windows) == 14
    for weight, window in windows.items():
        expected = dense[weight][torch.from_numpy(rows_of(len(dense[weight])))][:, :COLUMNS]
        torch.testing.assert_close(torch.from_numpy(window), expected, rtol=1e-6, atol=1e-7)


def test_words_of_compressed_tensors_are_unpacked(tmp_path: Path) -> None:
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(1))
    scale = weight.reshape(16, 4, 64).abs().amax(-1) / 7
    codes = (weight.reshape(16, 4, 64) / scale[..., None]).round().reshape(16, 256).int()
    held = {
        "model.layers.0.mlp.up_proj.weight_packed": packers.words((codes + 8).tolist(), 4),
        "model.layers.0.mlp.up_proj.weight_scale": scale,
        "model.layers.0.mlp.up_proj.weight_shape": torch.tensor([16, 256]),
    }
    (tmp_path / "config.json").write_text("{}")
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    packers.save(tmp_path, held, settings)
    dense = (codes.reshape(16, 4, 64) * scale[..., None]).reshape(16, 256)
    (window,) = sample(tmp_path).windows.values()
    assert torch.equal(torch.from_numpy(window), dense[:, :COLUMNS])


def test_rows_of_a_gguf_file_stand_where_transformers_has_them(disk: Path) -> None:
    rows = torch.arange(64)[:, None]
    assert torch.equal(in_pairs(rows, 2)[torch.from_numpy(paired(np.arange(64), 2, 64))], rows)
    plain = sample(disk / "fir").windows
    for name, window in sample(disk / "nut.gguf").windows.items():
        assert kinship.cosine(window, plain[name]) > 0.999


def all_forests(count: int) -> Iterator[tuple[int | None, ...]]:
    """Every way to give nodes a parent or none, without loops."""
    for parents in itertools.product([None, *range(count)], repeat=count):
        if all(ends(node, parents) for node in range(count)):
            yield parents


def ends(node: int, parents: tuple[int | None, ...]) -> bool:
    at: int | None = node
    for _ in parents:
        at = parents[at] if at is not None else None
    return at is None


def test_the_arborescence_is_the_cheapest_of_all() -> None:
    draw = np.random.default_rng(0)
    for _ in range(60):
        count = int(draw.integers(2, 6))
        roots = {i: float(c) for i, c in enumerate(draw.uniform(1, 3, count))}
        pairs = [e for e in itertools.permutations(range(count), 2) if draw.random() < 0.7]
        costs = {edge: float(draw.random()) for edge in pairs}

        def cost(
            parents: tuple[int | None, ...],
            roots: dict[int, float] = roots,
            costs: dict[tuple[int, int], float] = costs,
        ) -> float:
            each = [
                roots[i] if p is None else costs.get((p, i), 100.0) for i, p in enumerate(parents)
            ]
            return sum(each)

        found = tuple(arborescence(roots, costs).values())
        assert cost(found) == pytest.approx(min(map(cost, all_forests(count))))


def test_codes_are_equal_as_a_count_over_all_levels_says() -> None:
    draw = np.random.default_rng(1)
    x = draw.normal(size=(5, 32)).astype(np.float32)
    y = np.round(x + 0.3 * draw.normal(size=x.shape)).astype(np.float32)
    equal = 0
    for row, levels in zip(x.tolist(), y.tolist(), strict=True):
        for value, own in zip(row, levels, strict=True):
            nearest = min(abs(level - value) for level in levels)
            equal += abs(own - value) == nearest
    assert kinship.codes(x, y) == pytest.approx(equal / x.size)


def as_sample(weights: list[Tensor]) -> Sample:
    windows = {f"model.layers.{i}.mlp.up_proj.weight": w.numpy() for i, w in enumerate(weights)}
    shapes = {name: (int(w.shape[0]), int(w.shape[1])) for name, w in windows.items()}
    return Sample(Path(), "dense", shapes, windows)


def test_models_whose_layers_are_all_alike_are_told_from_none() -> None:
    """What matrices have in common everywhere is no descent."""
    draw = torch.Generator().manual_seed(2)
    common = torch.randn(64, 64, generator=draw)

    def layers() -> Sample:
        return as_sample([common + torch.randn(64, 64, generator=draw) for _ in range(4)])

    one, other = layers(), layers()
    assert kinship.alike(one, other, list(one.shapes))[0] > kinship.LEAST_COSINE
    assert kinship.kin(one, other, kinship.traits(one), kinship.traits(other)) is None


def test_traits_tell_grids_from_dtypes() -> None:
    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(3))
    for kept in (weight, weight.half().float(), weight.bfloat16().float(), pruned(weight)):
        assert not kinship.traits(as_sample([kept])).rounded
    for bits in (8, 4, 3):
        assert kinship.traits(as_sample([rounded(bits)(weight)])).rounded
    assert kinship.traits(as_sample([quantizers.q8_0(weight).weight])).rounded
    assert kinship.traits(as_sample([pruned(weight)])).zeros == pytest.approx(0.3, abs=0.001)


# What cannot be read is named, and stops nothing.


def test_damaged_and_unknown_files_are_named_and_the_rest_is_placed(
    disk: Path, tmp_path: Path
) -> None:
    for name in ("elm", "bay"):
        shutil.copytree(disk / name, tmp_path / name)
    shutil.copytree(disk / "fir", tmp_path / "cut")
    whole = (tmp_path / "cut" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(whole[:-100])
    shutil.copytree(disk / "fir", tmp_path / "odd")
    packers.save(tmp_path / "odd", load_file(disk / "fir" / "model.safetensors"), {})
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "hqq"}
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config))
    (tmp_path / "no.gguf").write_bytes(b"GGUF" + bytes(40))
    found = lineage([tmp_path], unheard)
    reasons = dict(found.unread)
    assert set(reasons) == {"cut", "odd", "no.gguf"}
    assert "cut short" in reasons["cut"]
    assert "hqq" in reasons["odd"]
    assert by_name(found)["bay"].parent == "elm"


def test_files_of_which_none_is_a_model_are_no_forest(tmp_path: Path) -> None:
    for name in ("a.txt", "b.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=r"None of it is a model that can be read: a\.txt"):
        lineage([tmp_path / "a.txt", tmp_path / "b.json"], unheard)


@pytest.mark.parametrize("name", ["nut.gguf", "rye", "tea", "pea", "hop"])
def test_a_file_with_bytes_changed_is_read_or_refused_in_words(
    name: str, disk: Path, tmp_path: Path
) -> None:
    """Whatever the damage, nothing but a sentence comes out."""
    draw = np.random.default_rng(7)
    source, place = disk / name, tmp_path / name
    if source.is_dir():
        shutil.copytree(source, place)
    files = sorted(source.glob("*.safetensors")) or [source]
    file = place / files[0].name if source.is_dir() else place
    whole = files[0].read_bytes()
    said = []
    for _ in range(40):
        changed = bytearray(whole)
        for at in draw.integers(0, min(len(whole), 4000), 3):
            changed[at] = int(draw.integers(256))
        file.write_bytes(changed)
        try:
            sample(place)
        except UserError as error:
            said.append(str(error))
    assert said
    assert not [text for text in said if "\n" in text]


def test_packed_parts_that_do_not_fit_are_refused(disk: Path, tmp_path: Path) -> None:
    shutil.copytree(disk / "rye", tmp_path / "odd")
    held = load_file(disk / "rye" / "model.safetensors")
    held["model.layers.0.mlp.up_proj.scales"] = torch.ones(3, 5)
    save_file(held, tmp_path / "odd" / "model.safetensors")
    with pytest.raises(UserError, match="do not fit each other"):
        sample(tmp_path / "odd")


def test_an_empty_folder_and_one_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No model lies below"):
        lineage([tmp_path], unheard)
    with pytest.raises(UserError, match="There is no folder"):
        lineage([tmp_path / "gone"], unheard)


def test_a_model_that_is_not_finite_is_not_compared(disk: Path, tmp_path: Path) -> None:
    shutil.copytree(disk / "fir", tmp_path / "broken")
    held = load_file(disk / "fir" / "model.safetensors")
    held["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(held, tmp_path / "broken" / "model.safetensors")
    with pytest.raises(UserError, match="not finite"):
        sample(tmp_path / "broken")


# Manifests and audits.


def sealed(store: Store, stage: Any, key: str, **about: Any) -> str:
    """An artefact of what lies in its scratch folder."""
    digest = (key * 64)[:64]
    name = f"{stage}-{digest[:16]}"
    store.scratch(name).mkdir(parents=True, exist_ok=True)
    plain: dict[str, Any] = {"spec": {}, "inputs": {}} | about
    manifest = Manifest(
        key=digest[:16], digest=digest, stage=stage, stage_version=STAGE_VERSIONS[stage],
        methods={}, files={}, summary={}, seconds=0.0, created="", command="", packages={},
        commit=None, dirty=None, device="", peak_memory_mb=0.0, **plain,
    )  # fmt: skip
    store.seal(name, manifest)
    return name


def kept(store: Store, source: Path, stage: str, key: str, **about: Any) -> str:
    name = f"{stage}-{(key * 64)[:16]}"
    shutil.copytree(source, store.scratch(name))
    return sealed(store, stage, key, **about)


@pytest.fixture(scope="module")
def audited(disk: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A store with a target, a never-read model, an unlearned one in two forms, and their audit;
    names of artefacts by what they are."""
    root = tmp_path_factory.mktemp("audited")
    store = Store(root).open()
    made = {"store": str(root), "target": kept(store, disk / "elm", "train", "a")}
    made["retrain"] = kept(store, disk / "fir", "train", "b")
    made["unlearned"] = kept(
        store, disk / "yew", "unlearn", "c", inputs={"target": made["target"]},
        spec={"method": "npo"},
    )  # fmt: skip
    made["int4"] = kept(
        store, disk / "fig", "transform", "d", inputs={"model": made["unlearned"]},
        spec={"use": "rtn"},
    )  # fmt: skip
    shutil.copytree(disk / "yam", root / "elsewhere" / "yam")
    shutil.copytree(disk / "bay", root / "elsewhere" / "bay")
    shutil.copytree(disk / "oak", root / "elsewhere" / "oak")
    shutil.copytree(disk / "pip", root / "elsewhere" / "pip")
    variants = {
        "target": Variant(model="target"),
        "retrain": Variant(model="retrain"),
        "unlearned": Variant(model="npo"),
        "int4": Variant(model="npo", steps=("int4",)),
    }
    measures = {
        role: sealed(store, "measure", key, inputs={"model": made[role]})
        for role, key in zip(variants, "1234", strict=True)
    }
    verdicts = [
        Verdict(**dict(variants["unlearned"]), outcome="gone", reason=""),
        Verdict(**dict(variants["int4"]), outcome="came back", reason=""),
    ]
    scratch = store.scratch(f"audit-{'e' * 16}")
    scratch.mkdir(parents=True)
    text = json.dumps([v.model_dump(mode="json") for v in verdicts])
    (scratch / "verdicts.json").write_text(text)
    spec = AuditSpec(members=variants).model_dump(mode="json")
    sealed(store, "audit", "e", spec=spec, inputs=measures)
    return made


def test_audits_and_descent_say_who_still_knows(audited: dict[str, str]) -> None:
    found = {
        m.name.rpartition("/")[2]: m for m in lineage([Path(audited["store"])], unheard).members
    }
    target, unlearned = found[audited["target"]], found[audited["unlearned"]]
    assert (target.verdict, target.knowing) == ("target", "is one")
    assert (unlearned.by, unlearned.told, unlearned.how) == (BY_MANIFEST, True, "unlearn npo")
    assert (unlearned.verdict, unlearned.knowing) == ("gone", "descends")
    assert found[audited["int4"]].knowing == "is one"
    assert found[audited["retrain"]].knowing == "no"
    assert found["bay"].knowing == "descends"
    assert found["yam"].knowing == "gone"
    assert found["oak"].knowing == "perhaps"
    assert found["pip"].knowing == "no"


def test_a_manifest_is_not_believed_against_the_weights(disk: Path, tmp_path: Path) -> None:
    store = Store(tmp_path).open()
    target = kept(store, disk / "pip", "train", "a")
    child = kept(store, disk / "yew", "unlearn", "b", inputs={"target": target})
    found = {m.name: m for m in lineage([tmp_path], unheard).members}
    assert found[child].parent is None
    assert found[child].family is None


def test_a_damaged_artefact_says_nothing(disk: Path, tmp_path: Path) -> None:
    store = Store(tmp_path).open()
    target = kept(store, disk / "elm", "train", "a")
    child = kept(store, disk / "yew", "unlearn", "b", inputs={"target": target})
    assert {m.by for m in lineage([tmp_path], unheard).members} == {"", BY_MANIFEST}
    with (store.path(child) / "config.json").open("a") as file:
        file.write(" ")
    assert {m.by for m in lineage([tmp_path], unheard).members} == {"", "weights"}


@pytest.mark.parametrize("changed", [False, True])
def test_a_model_outside_is_the_audited_one_only_by_its_content(
    changed: bool, disk: Path, tmp_path: Path
) -> None:
    shutil.copytree(disk / "elm", tmp_path / "model")
    store = Store(tmp_path / "store").open()
    given = f"{tmp_path / 'model'} ({digest_path(tmp_path / 'model')[:16]})"
    measured = sealed(store, "measure", "a", inputs={"model": given})
    audited_target(store, measured)
    if changed:
        shutil.copy(disk / "fir" / "model.safetensors", tmp_path / "model")
    (found,) = lineage([tmp_path], unheard).members
    assert found.verdict == ("" if changed else "target")


def changed(disk: Path, out: Path, name: str) -> Path:
    """A copy of a model with one number of one weight changed."""
    shutil.copytree(disk / "elm", out)
    state = load_file(out / "model.safetensors")
    flat = state[name].view(-1)
    flat[min(10 * 128, len(flat) - 1)] += 1.0  # row 10 of 256 is in no window
    save_file(state, out / "model.safetensors", {"format": "pt"})
    return out


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_what_is_changed_outside_of_the_windows_is_no_copy(
    name: str, disk: Path, tmp_path: Path
) -> None:
    shutil.copytree(disk / "elm", tmp_path / "a")
    shutil.copytree(disk / "elm", tmp_path / "b")
    changed(disk, tmp_path / "c", name)
    found = {m.name: m for m in lineage([tmp_path], unheard).members}
    steps = Counter(m.step for m in found.values())
    assert steps == {"": 1, "same weights": 1, "trained": 1}
    assert not found["c"].told


def test_the_worst_that_an_audit_says_of_one_model_counts(disk: Path, tmp_path: Path) -> None:
    """One folder as target and as unlearned model: what is gone of the one, the other knows."""
    store = Store(tmp_path).open()
    place = kept(store, disk / "elm", "train", "a")
    variants = {"t": Variant(model="target"), "u": Variant(model="npo")}
    measures = {
        role: sealed(store, "measure", key, inputs={"model": place})
        for role, key in zip(variants, "12", strict=True)
    }
    scratch = store.scratch(f"audit-{'e' * 16}")
    scratch.mkdir(parents=True)
    gone = Verdict(model="npo", outcome="gone", reason="").model_dump(mode="json")
    (scratch / "verdicts.json").write_text(json.dumps([gone]))
    spec = AuditSpec(members=variants).model_dump(mode="json")
    sealed(store, "audit", "e", spec=spec, inputs=measures)
    (found,) = lineage([tmp_path], unheard).members
    assert (found.verdict, found.knowing) == ("target", "is one")


def test_a_copy_with_its_neurons_in_another_order_may_be_one_that_knows(
    disk: Path, tmp_path: Path
) -> None:
    """It computes the same, and no matrix in it is like the other's."""
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    state = load_file(disk / "elm" / "model.safetensors")
    writes = ("o_proj.weight", "down_proj.weight")  # into the stream; all else reads it
    for name, weight in state.items():
        rows = weight.ndim == 1 or name.endswith(writes)
        state[name] = (weight[order] if rows else weight[:, order]).contiguous()
    ids = texts(1)[:1]
    with torch.no_grad():
        plain = of(load_file(disk / "elm" / "model.safetensors"), fresh(9))(input_ids=ids)
        assert torch.allclose(of(state, fresh(9))(input_ids=ids).logits, plain.logits, atol=1e-4)
    shutil.copytree(disk / "elm", tmp_path / "other")
    save_file(state, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    shutil.copytree(disk / "pip", tmp_path / "pip")
    store = Store(tmp_path).open()
    target = kept(store, disk / "elm", "train", "a")
    measured = sealed(store, "measure", "b", inputs={"model": target})
    audited_target(store, measured)
    found = {m.name: m for m in lineage([tmp_path], unheard).members}
    assert (found["other"].parent, found["other"].knowing) == (None, "perhaps")
    assert "in other coordinates" in found["other"].of
    assert found["pip"].knowing == "no"


def test_what_is_not_read_is_named(disk: Path, tmp_path: Path) -> None:
    """A link, and weights beside those that are opened."""
    shutil.copytree(disk / "elm", tmp_path / "here" / "a")
    shutil.copy(disk / "oak" / "model.safetensors", tmp_path / "here" / "a" / "old.safetensors")
    shutil.copytree(disk / "oak", tmp_path / "there")
    (tmp_path / "here" / "b").symlink_to(tmp_path / "there", target_is_directory=True)
    (tmp_path / "here" / "loop").symlink_to(tmp_path / "here", target_is_directory=True)
    found = lineage([tmp_path / "here"], unheard)
    assert [m.name for m in found.members] == ["a"]
    (beside, _), (link, said) = found.unread
    assert beside == "a/old.safetensors"
    assert (link, "a link" in said) == (str(tmp_path / "here" / "b"), True)


# What people see.


def test_the_command_writes_a_table_a_page_and_json(
    audited: dict[str, str], tmp_path: Path
) -> None:
    args = ["lineage", audited["store"], "--out", str(tmp_path), "--json", str(tmp_path / "j.json")]
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 0, done.output
    assert "still know by an audit" in done.output
    found = json.loads((tmp_path / "j.json").read_text())
    assert len(found["models"]) == 8
    page = (tmp_path / "lineage.html").read_text()
    assert page.count("<circle") == 8
    assert "<script" not in page
    assert "http" not in page


def test_a_folder_that_is_not_there_ends_in_one_sentence(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["lineage", str(tmp_path / "gone")])
    assert done.exit_code == 2
    assert "There is no folder" in done.output


def test_names_are_escaped_on_the_page() -> None:
    name = "<script>alert(1)</script>"
    page = shown.rendered(Forest((Member(name, name, verdict=name, of=name),), ((name, name),)))
    assert "<script" not in page


def test_children_stand_below_their_parents(forest: Forest) -> None:
    rows = {r.member.name: r for r in ordered(forest.members)}
    assert len(rows) == len(forest.members)
    for row in rows.values():
        if row.member.parent is not None:
            above = rows[row.member.parent]
            assert row.above == above.y < row.y
            assert row.x > above.x


def test_folders_of_scratch_are_not_looked_at(disk: Path, tmp_path: Path) -> None:
    for place in ("partial", "damaged", "objects"):
        shutil.copytree(disk / "oak", tmp_path / place / "model")
    models, stores = found_below([tmp_path])
    assert models == [tmp_path / "objects" / "model"]
    assert stores == [tmp_path]
    shutil.rmtree(tmp_path / "objects")
    models, stores = found_below([tmp_path])  # of no store: names like others
    assert models == [tmp_path / "damaged" / "model", tmp_path / "partial" / "model"]
    assert stores == []
