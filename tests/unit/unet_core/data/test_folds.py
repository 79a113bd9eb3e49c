"""Folds never split a patient, are rejected if a class is missing, and are stored in a file."""

from __future__ import annotations

import json
import warnings
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from unet_core.data.folds import FoldMember, Folds, FoldSettings, assign_folds, keep_folds, read_folds, write_folds
from unet_core.errors import AnnotationError

METHODS = ("kfold", "grouped", "stratified", "temporal")
DAY = date(2024, 1, 1)


def plain(patients: int, images: int = 2, classes: frozenset[str] = frozenset({"nucleus"})) -> list[FoldMember]:
    """Patients with several images each, of two strata, one patient per week."""
    return [
        FoldMember(f"{p}-{i}.png", f"p{p}", classes, DAY + timedelta(days=7 * p + i), "ab"[p % 2])
        for p in range(patients)
        for i in range(images)
    ]


one = st.tuples(st.integers(0, 3), st.integers(0, 60), st.sampled_from("abc"), st.frozensets(st.sampled_from("xyz")))
patients = st.lists(st.lists(one, min_size=1, max_size=4), min_size=1, max_size=14)


@settings(max_examples=120, deadline=None)
@given(patients, st.sampled_from(METHODS), st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_fault_62_no_patient_is_split_and_no_fold_lacks_a_class(
    drawn: list[list[tuple[int, int, str, frozenset[str]]]], method: str, k: int, seed: int
) -> None:
    members = [
        FoldMember(f"{p}.{i}", f"patient {p}", classes, DAY + timedelta(days=day), stratum)
        for p, images in enumerate(drawn)
        for i, (_, day, stratum, classes) in enumerate(images)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what the library would only warn of must have been refused
        try:
            folds = assign_folds(members, FoldSettings(method=method, k=k, seed=seed))
        except AnnotationError:
            return
    assert set(folds.folds) == {member.name for member in members}
    assert set(folds.folds.values()) == set(range(k))
    sides: dict[str, set[int]] = {}
    for member in members:
        sides.setdefault(member.patient, set()).add(folds.folds[member.name])
    assert all(len(found) == 1 for found in sides.values())
    for fold in range(k):
        held = [member for member in members if folds.folds[member.name] == fold]
        assert set().union(*(m.classes for m in held)) == set().union(*(m.classes for m in members))
        if method == "stratified":
            assert {m.stratum for m in held} == {m.stratum for m in members}
        if method == "temporal" and fold:
            before = [member for member in members if folds.folds[member.name] < fold]
            assert max(m.date for m in before) <= min(m.date for m in held)


@pytest.mark.parametrize("method", METHODS)
def test_sufficient_patients_with_all_classes_always_give_folds(method: str) -> None:
    for seed in range(20):
        folds = assign_folds(plain(10), FoldSettings(method=method, k=5, seed=seed))
        assert (folds.method, folds.k, folds.seed) == (method, 5, seed)
        counts = np.bincount(list(folds.folds.values()))
        assert counts.tolist() == [4] * 5, "ten patients of two images are five folds of four"


@pytest.mark.parametrize("method", METHODS)
def test_images_of_a_patient_stay_together(method: str) -> None:
    members = plain(10, 3)
    for seed in range(5):
        folds = assign_folds(members, FoldSettings(method=method, k=5, seed=seed)).folds
        assert len({(member.patient, folds[member.name]) for member in members}) == 10


@pytest.mark.parametrize("method", ["kfold", "grouped", "stratified"])
def test_folds_depend_on_the_seed(method: str) -> None:
    drawn = [assign_folds(plain(12), FoldSettings(method=method, k=3, seed=seed)).folds for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    shuffled = assign_folds(plain(12)[::-1], FoldSettings(method="kfold", k=3, seed=1)).folds
    assert shuffled == assign_folds(plain(12), FoldSettings(method="kfold", k=3, seed=1)).folds


def test_grouped_folds_hold_as_many_images_as_patients_allow() -> None:
    sizes = [9, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    members = [FoldMember(f"{p}-{i}", f"p{p}") for p, size in enumerate(sizes) for i in range(size)]
    folds = assign_folds(members, FoldSettings(method="grouped", k=2)).folds
    assert sorted(np.bincount(list(folds.values())).tolist()) == [9, 9]


def test_fault_62_fewer_patients_than_folds_are_rejected_with_both_numbers() -> None:
    for method in METHODS:
        with pytest.raises(AnnotationError, match=r"as many patients as folds \(5\), found 3 .*Set folds\.k=3"):
            assign_folds(plain(3), FoldSettings(method=method, k=5))


def test_a_class_that_one_patient_has_is_refused_by_name() -> None:
    members = [*plain(6), FoldMember("rare.png", "p0", frozenset({"mitosis"}), DAY, "a")]
    for method in METHODS:
        with pytest.raises(AnnotationError, match=r"fold \d has no object of class 'mitosis'.*folds\.k"):
            assign_folds(members, FoldSettings(method=method, k=3))


def test_a_rare_class_is_in_every_fold() -> None:
    """Three of thirty patients have the class; a shuffle exists that gives one to each of three folds."""
    members = plain(30, 1)
    members[:3] = [FoldMember(f"rare {i}", f"p{i}", frozenset({"nucleus", "mitosis"}), DAY, "a") for i in range(3)]
    for method in ("kfold", "grouped", "stratified"):
        folds = assign_folds(members, FoldSettings(method=method, k=3)).folds
        assert {folds[f"rare {i}"] for i in range(3)} == {0, 1, 2}


def test_no_fold_lacks_positives_where_the_library_leaves_one_without() -> None:
    """With positive images in few large patients, some seed of the library leaves a fold without any."""
    sizes = [(6, "pos"), (5, "pos"), (1, "pos"), *[(1, "neg")] * 12]
    members = [
        FoldMember(f"{p}-{i}", f"p{p:02}", frozenset(), None, stratum)
        for p, (size, stratum) in enumerate(sizes)
        for i in range(size)
    ]
    strata, groups = [m.stratum for m in members], [m.patient for m in members]
    failed = 0
    for seed in range(30):
        splits = StratifiedGroupKFold(3, shuffle=True, random_state=seed).split(groups, strata, groups)
        failed += any("pos" not in {strata[i] for i in held} for _, held in splits)
        folds = assign_folds(members, FoldSettings(method="stratified", k=3, seed=seed)).folds
        assert {folds[m.name] for m in members if m.stratum == "pos"} == {0, 1, 2}
    print(f"{failed} of 30 seeds of the library alone leave a fold without positives")


def test_a_stratum_of_fewer_patients_than_folds_is_refused() -> None:
    members = [*plain(8), FoldMember("x", "x", frozenset({"nucleus"}), DAY, "rare")]
    with pytest.raises(AnnotationError, match=r"stratum 'rare' has 1 patients, fewer than 4 folds"):
        assign_folds(members, FoldSettings(method="stratified", k=4))


@pytest.mark.parametrize(("method", "column"), [("stratified", "stratum"), ("temporal", "date")])
def test_missing_dates_or_strata_are_rejected(method: str, column: str) -> None:
    members = [*plain(6), FoldMember("bare.png", "p0", frozenset({"nucleus"}))]
    with pytest.raises(AnnotationError, match=f"need a {column} for every image: none for bare.png"):
        assign_folds(members, FoldSettings(method=method, k=3))


def test_temporal_folds_train_on_earlier_folds_only() -> None:
    folds = assign_folds(plain(9), FoldSettings(method="temporal", k=3))
    train, held = folds.split(1)
    assert {name.split("-")[0] for name in train} == {"0", "1", "2"}
    assert {name.split("-")[0] for name in held} == {"3", "4", "5"}
    assert len(folds.split(2)[0]) == 12
    with pytest.raises(AnnotationError, match="fold 0 is the earliest"):
        folds.split(0)
    with pytest.raises(AnnotationError, match="expected one of 0, 1, 2"):
        folds.split(3)


def test_a_patient_with_dates_before_and_after_others_is_rejected() -> None:
    members = [*plain(6), FoldMember("late.png", "p0", frozenset({"nucleus"}), DAY + timedelta(days=400))]
    with pytest.raises(AnnotationError, match=r"late\.png .* of fold 0 is later than"):
        assign_folds(members, FoldSettings(method="temporal", k=3))


def test_training_images_are_those_not_held_back() -> None:
    folds = assign_folds(plain(6), FoldSettings(k=3))
    for fold in folds.numbers:
        train, held = folds.split(fold)
        assert sorted(train + held) == sorted(folds.folds)
        assert {folds.folds[name] for name in held} == {fold}


# ---- the column ------------------------------------------------------------------------------------------------------


def with_folds(*numbers: int | None) -> list[FoldMember]:
    return [FoldMember(f"{i}.png", f"p{i // 2}", frozenset({"x"}), None, "", fold) for i, fold in enumerate(numbers)]


def test_a_fold_column_takes_precedence_over_the_method() -> None:
    folds = assign_folds(with_folds(3, 3, 1, 1), FoldSettings(method="temporal", k=7))
    assert (folds.method, folds.k, folds.numbers) == ("column", 2, (1, 3))
    assert folds.folds == {"0.png": 3, "1.png": 3, "2.png": 1, "3.png": 1}


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 1, 1, 1), r"patient 'p0' is on both sides: 0\.png in fold 0, 1\.png in fold 1"),
        ((0, 0, None, 1), r"expected a number for every image, found none for 2\.png"),
        ((0, 0, 0, 0), "expected at least 2 folds, found 1"),
    ],
)
def test_an_invalid_fold_column_is_rejected(numbers: tuple[int | None, ...], message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        assign_folds(with_folds(*numbers), FoldSettings())


def test_a_column_whose_fold_lacks_a_class_is_refused() -> None:
    members = [FoldMember("a", "a", frozenset({"x", "y"}), fold=0), FoldMember("b", "b", frozenset({"x"}), fold=1)]
    with pytest.raises(AnnotationError, match="fold 1 has no object of class 'y'"):
        assign_folds(members, FoldSettings())


# ---- the file --------------------------------------------------------------------------------------------------------


def test_stored_folds_are_reused(tmp_path: Path) -> None:
    path = tmp_path / "folds.json"
    first = keep_folds(path, plain(8), FoldSettings(k=4, seed=3))
    written = path.read_bytes()
    assert json.loads(written) == {"method": "grouped", "seed": 3, "k": 4, "folds": first.folds}
    assert keep_folds(path, plain(8), FoldSettings(k=4, seed=3)) == first == read_folds(path)
    assert path.read_bytes() == written
    assert [found.name for found in tmp_path.iterdir()] == ["folds.json"]
    by_hand = first.model_copy(update={"folds": dict(zip(first.folds, [0, 0, 1, 1, 2, 2, 3, 3] * 2, strict=True))})
    by_hand = by_hand.model_copy(update={"folds": {m.name: int(m.patient[1:]) % 4 for m in plain(8)}})
    write_folds(path, by_hand)
    assert keep_folds(path, plain(8), FoldSettings(k=4, seed=3)) == by_hand, "the file is right, not the library"


def test_a_file_of_other_images_or_settings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "folds.json"
    keep_folds(path, plain(8), FoldSettings(k=4))
    with pytest.raises(AnnotationError, match=r"folds\.json: .* 8-0\.png, 8-1\.png are new"):
        keep_folds(path, plain(9), FoldSettings(k=4))
    with pytest.raises(AnnotationError, match=r"folds\.json: .* 7-0\.png, 7-1\.png are gone"):
        keep_folds(path, plain(7), FoldSettings(k=4))
    for other in (FoldSettings(k=2), FoldSettings(k=4, seed=1), FoldSettings(k=4, method="kfold")):
        with pytest.raises(AnnotationError, match=r"folds\.json: expected folds of method=.*found method=grouped, k=4"):
            keep_folds(path, plain(8), other)
    joined = [FoldMember(m.name, "p0" if m.patient == "p1" else m.patient, m.classes) for m in plain(8)]
    if len({read_folds(path).folds[name] for name in ("0-0.png", "1-0.png")}) == 2:
        with pytest.raises(AnnotationError, match="'p0' is on both sides"):
            keep_folds(path, joined, FoldSettings(k=4))
    stated = [FoldMember(m.name, m.patient, m.classes, fold=0 if m.patient < "p4" else 1) for m in plain(8)]
    with pytest.raises(AnnotationError, match="expected those of the column 'fold', found grouped ones"):
        keep_folds(path, stated, FoldSettings(k=4))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"method": "grouped", "seed": 0, "k": 2}', b'{"method":"x","seed":0,"k":2,"folds":{}}'],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "folds.json"
    path.write_bytes(content)
    with pytest.raises(AnnotationError, match=r"folds\.json: expected folds, found something else"):
        keep_folds(path, plain(8), FoldSettings(k=2))
    assert path.read_bytes() == content


def test_folds_survive_json() -> None:
    folds = assign_folds(plain(4), FoldSettings(k=2))
    assert Folds.model_validate_json(folds.model_dump_json()) == folds
