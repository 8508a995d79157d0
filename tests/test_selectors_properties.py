"""Invariances of selectors (hypothesis), order on separable features and noise, ugly inputs."""

import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mzlib import selectors
from mzlib.errors import Missing
from mzlib.selectors import SELECTORS, resolve

BASELINES = {"random", "source_accuracy", "parameter_count", "generic_first"}
ALL = sorted(set(SELECTORS) - BASELINES)
BY_LABEL = [name for name in ALL if "labels" in SELECTORS[name].needs]
PLAIN = [name for name in BY_LABEL if set(SELECTORS[name].needs) == {"features", "labels"}]


def evidence(n=80, d=12, c=4, seed=0, shift=1.0, s=6):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % c
    centres = shift * rng.normal(size=(c, d))
    features = rng.normal(size=(n, d)) + centres[labels] + 0.5
    logits = rng.normal(size=(n, s)) + 3 * shift * np.eye(max(c, s))[labels][:, :s]
    gradients = rng.normal(size=(n, 9)) + 2 * shift * rng.normal(size=(c, 9))[labels]
    reference = features[:, : max(1, d // 2)] + 0.3 * rng.normal(size=(n, max(1, d // 2)))
    return SimpleNamespace(
        labels=labels,
        features=features,
        source_probabilities=np.exp(logits) / np.exp(logits).sum(1, keepdims=True),
        last_conv_kernel=gradients @ gradients.T,
        full_kernel=gradients @ gradients.T,
        reference_features=reference,
        source_class_means=centres[rng.integers(c, size=s)] + rng.normal(size=(s, d)),
        source_class_counts=np.arange(4, 4 + s),
        source_accuracy=0.7,
        parameter_count=1000,
        is_generic=True,
        seed=0,
        weight_matrices=[rng.standard_t(3, size=(60, 70))],
    )


def run(name, e):
    return np.array(resolve(SELECTORS[name], e), dtype=float)


def images(e, index):
    """The evidence of the images `index`."""
    rows = {
        k: getattr(e, k)[index]
        for k in ("labels", "features", "source_probabilities", "reference_features")
    }
    pairs = {k: getattr(e, k)[index][:, index] for k in ("last_conv_kernel", "full_kernel")}
    return SimpleNamespace(**{**vars(e), **rows, **pairs})


def changed(e, **changes):
    return SimpleNamespace(**{**vars(e), **changes})


# nleep and pactran_gaussian draw; hscore_pinv has no score for N < D
DRAWN = {"nleep", "pactran_gaussian", "hscore_pinv"}


@pytest.mark.parametrize("name", sorted(set(ALL) - DRAWN))
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.sampled_from([66, 80]), d=st.sampled_from([5, 90]))
def test_order_of_images_does_not_matter(name, seed, n, d):
    e = evidence(n, d, seed=seed, shift=0.5)
    shuffled = images(e, np.random.default_rng(seed).permutation(n))
    assert run(name, shuffled) == pytest.approx(run(name, e), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", BY_LABEL)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10**6), names=st.permutations([-7, 3, 10**12, 55]))
def test_names_of_classes_do_not_matter(name, seed, names):
    e = evidence(seed=seed, shift=0.5)
    renamed = changed(e, labels=np.array(names)[e.labels])
    assert run(name, renamed) == pytest.approx(run(name, e), rel=1e-6, abs=1e-6)


# which change of the features leaves the score as it is, by definition
SCALE = [
    "lfc",
    "lfc_centred",
    "lfc_cosine",
    "hscore",
    "logme",
    "gbc",
    "parc",
    "knn",
    "knn_5",
    "ridge_loo",
    "ridge_loo_mse",
    "cka",
    "dds",
    "rsa",
    "nleep",
    "zero_share",
    "hoyer_sparsity",
    "feature_metrics",
    "hscore_pinv",
    "transrate_authors",
    "rankme",
]
ROTATION = [
    "lfc",
    "lfc_centred",
    "lfc_cosine",
    "hscore",
    "logme",
    "transrate",
    "gbc",
    "knn",
    "knn_5",
    "ridge_loo",
    "ridge_loo_mse",
    "cka",
    "dds",
    "ncti",
    "pactran",
    "domain_similarity",
    "otce",
    "nleep",
    "ntk_loo",
    "transrate_authors",
    "rankme",
    "pactran_gaussian",
]
CONSTANT = [
    "lfc_centred",
    "gbc",
    "ridge_loo",
    "ridge_loo_mse",
    "cka",
    "ncti",
    "nleep",
    "transrate",
    "hscore_pinv",
    "transrate_authors",
]
DUPLICATES = [
    "lfc",
    "lfc_centred",
    "lfc_cosine",
    "lgc",
    "lgc_full",
    "leep",
    "nce",
    "gbc",
    "transrate",
    "cka",
    "sfda",
    "zero_share",
    "hoyer_sparsity",
    "feature_metrics",
    "otce",
    "hscore_pinv",
    "transrate_authors",
    "rankme",
    "ped",
]


@pytest.mark.parametrize("name", SCALE)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-3, 0.3, 50.0]))
def test_scale_of_features_does_not_matter(name, seed, scale):
    e = evidence(seed=seed, shift=0.5)
    assert run(name, changed(e, features=e.features * scale)) == pytest.approx(
        run(name, e), rel=1e-5, abs=1e-5
    )


@pytest.mark.parametrize("name", ROTATION)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10**6), d=st.sampled_from([7, 90]))
def test_rotation_of_features_does_not_matter(name, seed, d):
    e = evidence(d=d, seed=seed, shift=0.5)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]
    turned = changed(e, features=e.features @ turn, source_class_means=e.source_class_means @ turn)
    assert run(name, turned) == pytest.approx(run(name, e), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", CONSTANT)
def test_a_constant_feature_changes_nothing(name):
    e = evidence(shift=0.5)
    wider = changed(e, features=np.concatenate([e.features, np.full((80, 1), 4.25)], axis=1))
    assert run(name, wider) == pytest.approx(run(name, e), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", DUPLICATES)
def test_the_sample_twice_is_the_same_sample(name):
    e = evidence(shift=0.5)
    assert run(name, images(e, np.tile(np.arange(80), 2))) == pytest.approx(
        run(name, e), rel=1e-6, abs=1e-6
    )


# domain_similarity and sparsity do not see the labels' signal, etran's energy neither
@pytest.mark.parametrize(
    "name", sorted(set(BY_LABEL) - {"domain_similarity", "etran", "sfda", "otce", "transrate"})
)
def test_separable_classes_score_above_noise(name):
    good, noise = (run(name, evidence(shift=shift, seed=3)) for shift in (3.0, 0.0))
    if SELECTORS[name].combine is not None:
        good, noise = SELECTORS[name].combine(np.array([good, noise]))
    assert good > noise


@pytest.mark.parametrize(
    "name", ["transrate", "sfda"]
)  # they depend on the scale: compare shuffled labels
def test_true_labels_score_above_shuffled_ones(name):
    e = evidence(shift=1.0)
    shuffled = changed(e, labels=np.random.default_rng(0).permutation(e.labels))
    assert run(name, e) > run(name, shuffled)


def ugly():
    e = evidence()
    d1, one_each = evidence(d=1), evidence(n=6, c=6)
    nan, inf, zero = e.features.copy(), e.features.copy(), e.source_probabilities.copy()
    nan[3, 2], inf[0, 0] = np.nan, np.inf
    zero[:, 2:] = 0
    zero /= zero.sum(1, keepdims=True)
    half = {
        k: v.astype(np.float16)
        for k, v in vars(e).items()
        if isinstance(v, np.ndarray) and v.dtype == np.float64
    }
    ones, flat = np.ones((80, 80)), np.ones((80, 12))
    return {
        "few images": evidence(n=12, d=40),
        "very few images": evidence(n=4, d=300, c=2),
        "two images": evidence(2, 5, 2),
        "one image per class": one_each,
        "two classes": evidence(c=2),
        "one feature": d1,
        "one class": changed(e, labels=np.zeros(80, int)),
        "many classes": evidence(n=1050, d=8, c=1000),
        "imbalanced": changed(e, labels=np.r_[np.zeros(76, int), [1, 2, 3, 4]]),
        "constant features": changed(e, features=flat),
        "zero features": changed(e, features=0 * flat),
        "constant but for one image": changed(e, features=flat * np.eye(80)[:, :1]),
        "constant kernel": changed(e, full_kernel=ones, last_conv_kernel=ones),
        "duplicate rows": images(e, np.arange(80) % 8),
        "all rows equal per class": images(e, np.arange(80) % 4),
        "empty source classes": changed(e, source_probabilities=zero),
        "NaN": changed(e, features=nan),
        "Inf": changed(e, features=inf),
        "integers": changed(e, features=(e.features * 10).astype(np.int32)),
        "float16": changed(e, **half),
        "bytes": changed(
            e, features=(np.abs(e.features) * 20).astype(np.uint8), labels=e.labels.astype(np.uint8)
        ),
        "huge": changed(e, features=e.features * 1e200),
        "tiny": changed(e, features=e.features * 1e-200),
        "far": changed(e, features=(e.features + 1e6).astype(np.float32)),
        "wrong length": changed(e, labels=e.labels[:-1]),
        "float labels": changed(e, labels=e.labels + 0.5),
        "empty": changed(e, features=np.zeros((0, 3)), labels=np.zeros(0, int)),
        "read only": changed(e, features=np.broadcast_to(e.features[:1], (80, 12))),
        "strided": changed(
            e,
            features=e.features[:, ::-1],
            labels=e.labels[::1],
            source_class_counts=e.source_class_counts[::-1],
        ),
        "needs gradients": changed(e, features=torch.tensor(e.features, requires_grad=True)),
        "labels of bools": changed(e, labels=e.labels > 1),
        "labels of words": changed(e, labels=e.labels.astype(str)),
        "objects": changed(e, features=e.features.astype(object)),
        "complex": changed(e, features=e.features + 1j),
        "other bytes first": changed(e, features=e.features.astype(">f8")),
        "masked": changed(e, features=np.ma.masked_less(e.features, 0)),
        "counts of nothing": changed(e, source_class_counts=np.zeros(6)),
        "counts NaN": changed(e, source_class_counts=np.full(6, np.nan)),
        "counts below zero": changed(e, source_class_counts=np.arange(-3, 3)),
        "counts as a table": changed(e, source_class_counts=np.ones((6, 1))),
    }


@pytest.mark.parametrize("name", ALL)
def test_ugly_inputs_give_a_number_or_a_reason(name):
    for case, e in ugly().items():
        try:
            values = run(name, e)
        except Missing as missing:
            assert str(missing).startswith("expected") and "\n" not in str(missing), case
        else:
            assert np.isfinite(values).all(), case


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("transrate", {"eps": 0}),
        ("pactran", {"factor": 0}),
        ("knn", {"k": 1.5}),
        ("knn", {"k": 0}),
        ("knn", {"metric": "cos"}),
        ("feature_metrics", {"weight": np.nan}),
    ],
)
def test_impossible_options_say_so(name, options):
    e = evidence()
    given = {
        parameter: getattr(e, attribute) for parameter, attribute in SELECTORS[name].needs.items()
    }
    with pytest.raises(Missing, match="^expected"):
        SELECTORS[name].function(**given, **options)


EXTREME = ["lfc", "lfc_centred", "lfc_cosine", "hscore", "gbc", "parc", "knn", "dds", "cka"]


@pytest.mark.parametrize("name", EXTREME)
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(np.float32, 1e-14), (np.float32, 1e8), (np.float64, 1e-90), (np.float64, 1e76)],
)
def test_scores_without_a_unit_neither_overflow_nor_vanish(name, dtype, scale):
    e = evidence(shift=0.5)
    scaled = changed(e, features=(e.features * scale).astype(dtype))
    assert run(name, scaled) == pytest.approx(run(name, e), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["lfc", "lfc_centred", "gbc", "parc", "knn", "knn_5"])
@pytest.mark.parametrize("scale", [1e12, 1e36])
def test_single_precision_serves_all_numbers_it_can_hold(name, scale):
    e = evidence(shift=0.5)
    scaled = changed(e, features=(e.features * scale).astype(np.float32))
    assert run(name, scaled) == pytest.approx(run(name, e), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("name", "offset"), [("dds", 1e4), ("dds", 1e8), ("parc", 1e6)])
def test_an_offset_hides_no_difference(name, offset):
    e = evidence(n=60, shift=0.5)
    kind = np.float64 if name == "dds" else np.float32
    near = changed(e, features=e.features + 100 if name == "dds" else e.features)
    far = changed(e, features=(e.features + offset).astype(kind))
    assert run(name, far) == pytest.approx(run(name, near), abs=0.02)


@pytest.mark.parametrize("name", ["sfda", "ped", "otce", "domain_similarity"])
def test_definitions_without_an_origin_keep_none(name):
    e = evidence(shift=0.5)
    ways = {"features": e.features - 1e9, "source_class_means": e.source_class_means - 1e9}
    assert run(name, changed(e, **ways)) == pytest.approx(run(name, e), rel=1e-6)


def test_what_no_number_can_hold_has_a_reason_and_no_warning():
    e = evidence(n=60, d=60, shift=0.5)
    spectra = {"NaN": np.full((60, 60), np.nan), "equal": np.eye(60), "2": 2 * np.eye(60)}
    cases = [("weighted_alpha", {"weight_matrices": [spectrum]}) for spectrum in spectra.values()]
    cases += [
        ("transrate", {"features": 1e20 * e.features}),
        ("lfc", {"features": torch.eye(60).to_sparse()}),
        ("lfc", {"labels": [[0]] * 59 + [[0, 1]]}),
        ("lfc", {"labels": np.where(e.labels, e.labels, np.inf)}),
    ]
    for name, changes in cases:
        with warnings.catch_warnings(), pytest.raises(Missing, match="^expected"):
            warnings.simplefilter("error")
            run(name, changed(e, **changes))
    rows = [torch.tensor(row, requires_grad=True) for row in e.features]
    with pytest.raises(Missing, match="array of numbers"):
        run("lfc", changed(e, features=rows))


def test_labels_of_any_type_that_can_mean_one_thing_only():
    e = evidence(shift=0.5)
    expected = run("lfc", e)
    words = np.array(["dog", "cat", "owl", "ant"])[e.labels]
    for labels in (
        e.labels.astype(float),
        e.labels[:, None],
        words,
        list(words),
        words.astype(object),
        torch.tensor(e.labels).double(),
    ):
        assert run("lfc", changed(e, labels=labels)) == pytest.approx(expected, abs=1e-12)
    for labels in (e.labels + 0.5, np.where(e.labels, e.labels, np.nan), np.eye(4)[e.labels]):
        with pytest.raises(Missing, match="whole numbers or words"):
            run("lfc", changed(e, labels=labels))


def test_labels_are_no_weight():
    e = evidence()
    with pytest.raises(TypeError):
        SELECTORS["feature_metrics"].function(e.features, e.labels)


@pytest.mark.parametrize("name", ["knn", "knn_5", "lfc_cosine"])
@pytest.mark.parametrize("offset", [100, 1000])
def test_nearly_parallel_features_in_single_precision(name, offset):
    e = evidence(n=200, d=64, shift=0.4)
    far = np.concatenate([e.features, np.full((200, 1), offset)], axis=1).astype(np.float32)
    single, double = (
        run(name, changed(e, features=far.astype(kind))) for kind in (np.float32, np.float64)
    )
    assert single == pytest.approx(double, abs=0.005)


@pytest.mark.parametrize("name", ["lfc_centred", "gbc", "cka"])
def test_one_large_constant_feature_hides_no_other(name):
    e = evidence(shift=0.5)
    wider = np.concatenate([e.features, np.full((80, 1), 1e7)], axis=1).astype(np.float32)
    assert run(name, changed(e, features=wider)) == pytest.approx(run(name, e), rel=1e-4, abs=1e-4)


def test_an_outlier_does_not_blur_the_neighbours_of_others():
    e = evidence(shift=0.5)
    features = e.features.copy()
    features[0, 0] = 1e4
    single, double = (
        SELECTORS["knn"].function(features.astype(kind), e.labels, metric="euclidean")
        for kind in (np.float32, np.float64)
    )
    assert single == pytest.approx(double, abs=0.02) and double > 0.5


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(
    "case", ["one class", "constant features", "NaN", "Inf", "wrong length", "float labels"]
)
def test_what_has_no_score_says_so(name, case):
    if case == "constant features" and name in (
        "knn",
        "knn_5",
        "logme",
    ):  # defined: all tie, no better than chance
        assert np.isfinite(run(name, ugly()[case]))
        return
    with pytest.raises(Missing):
        run(name, ugly()[case])


@pytest.mark.parametrize("name", ALL)
def test_tensors_of_any_precision_and_device(name):
    e = evidence(shift=0.6)
    exact = run(name, e)
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    for device in devices:
        tensors = {
            k: torch.as_tensor(v).to(device) if isinstance(v, np.ndarray) else v
            for k, v in vars(e).items()
        }
        assert run(name, SimpleNamespace(**tensors)) == pytest.approx(exact, rel=1e-6, abs=1e-6)
        single = {
            k: v.float() if getattr(v, "dtype", None) == torch.float64 else v
            for k, v in tensors.items()
        }
        assert run(name, SimpleNamespace(**single)) == pytest.approx(exact, rel=2e-3, abs=2e-3)


def test_registry_is_complete_and_its_answers_are_plain_floats():
    e = evidence()
    for name, selector in SELECTORS.items():
        assert selector.id == name and selector.title and selector.citation
        assert selector.kind == ("baseline" if name in BASELINES else "score")
        value = resolve(selector, e)
        parts = value if selector.combine is not None else (value,)
        assert isinstance(parts, tuple) and all(type(part) is float for part in parts), name


def test_names_in_the_package_are_selectors_and_nothing_else():
    for name in selectors.__all__:
        if name not in ("SELECTORS", "Selector", "resolve"):
            assert getattr(selectors, name).__module__.startswith("mzlib.selectors."), name
    modules = {path.stem for path in Path(selectors.__file__).parent.glob("*.py")}
    extra = {n for n in dir(selectors) if not n.startswith("__")} - set(selectors.__all__) - modules
    assert not extra, extra


HEAVY = "timm torchvision matplotlib pandas pyarrow ot sklearn PIL safetensors".split()


def test_a_selector_loads_torch_numpy_and_scipy_only():
    code = f"""
import sys, numpy, torch, scipy.linalg
before = set(sys.modules)
from mzlib.selectors import lfc
new = {{name.split(".")[0] for name in set(sys.modules) - before}} - set(sys.stdlib_module_names)
assert new <= {{"mzlib", "scipy"}}, new
assert not set({HEAVY}) & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
