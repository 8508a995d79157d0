"""The table of selectors: a new one is a function in its paper's file and a row here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from mzlib.selectors import (
    bao2019,
    baselines,
    cui2018,
    deshpande2021,
    ding2022,
    dwivedi2019,
    garrido2023,
    gholami2023,
    huang2022,
    li2021,
    li2023,
    martin2021,
    nguyen2020,
    renggli2020,
    shao2022,
    ueno2020,
    wang2023,
    you2021,
)


@dataclass(frozen=True)
class Selector:
    """One entry of the registry. `function(**{parameter: evidence.attribute})` returns the score,
    or, when `combine` is given (scores normalised over the zoo), a tuple of k components;
    `combine([E, k]) -> [E]` scores.
    """

    id: str
    title: str
    function: Callable
    needs: dict[str, str]
    citation: str
    kind: str = "score"
    combine: Callable | None = None


def resolve(selector: Selector, evidence):
    """The selector's value on the evidence (a tuple of components where `combine` is given); may
    raise `Missing`.
    """
    arguments = {name: getattr(evidence, key) for name, key in selector.needs.items()}
    return selector.function(**arguments)


def _needs(*names: str) -> dict[str, str]:
    """Parameters that bear the evidence's names; kernels are the exception."""
    return dict(zip(names, names))


FEATURES = _needs("features", "labels")
PROBABILITIES = _needs("source_probabilities", "labels")
REFERENCE = _needs("features", "reference_features")
SOURCE = _needs("features", "labels", "source_class_means", "source_class_counts")
LAST_CONV = {"kernel": "last_conv_kernel", "labels": "labels"}
FULL = {"kernel": "full_kernel", "labels": "labels"}
PAPER = "Deshpande et al. 2021"

_ROWS = (
    Selector("lfc", "LFC", deshpande2021.lfc, FEATURES, f"{PAPER}, eq. 8"),
    Selector(
        "lfc_centred",
        "LFC, centred features",
        deshpande2021.lfc_centred,
        FEATURES,
        f"variant of {PAPER}",
    ),
    Selector(
        "lfc_cosine", "LFC, cosine", deshpande2021.lfc_cosine, FEATURES, f"variant of {PAPER}"
    ),
    Selector("lgc", "LGC", deshpande2021.lgc, LAST_CONV, f"{PAPER}, eq. 8"),
    Selector("lgc_full", "LGC, all layers", deshpande2021.lgc, FULL, f"{PAPER}, eq. 8"),
    Selector(
        "label_alignment",
        "Label alignment",
        deshpande2021.label_alignment,
        FULL,
        f"{PAPER}, eq. 3, 5",
    ),
    Selector(
        "inverse_label_alignment",
        "Inverse label alignment",
        deshpande2021.inverse_label_alignment,
        FULL,
        f"{PAPER}, eq. 4, 5",
    ),
    Selector("leep", "LEEP", nguyen2020.leep, PROBABILITIES, "Nguyen et al. 2020, eq. 1-2"),
    Selector("nce", "NCE", nguyen2020.nce, PROBABILITIES, "Tran et al. 2019, eq. 8"),
    Selector(
        "nleep",
        "N-LEEP",
        li2021.nleep,
        _needs("features", "labels", "seed"),
        "Li et al. 2021, Sec. 3.2",
    ),
    Selector(
        "hscore",
        "H-score",
        bao2019.hscore,
        FEATURES,
        "Bao et al. 2019, eq. 2; Ibrahim et al. 2021",
    ),
    Selector("logme", "LogME", you2021.logme, FEATURES, "You et al. 2021, eq. 2-3"),
    Selector("transrate", "TransRate", huang2022.transrate, FEATURES, "Huang et al. 2022, eq. 7-8"),
    Selector("gbc", "GBC", huang2022.gbc, FEATURES, "Pándy et al. 2022, eq. 2-5"),
    Selector("parc", "PARC", dwivedi2019.parc, FEATURES, "Bolya et al. 2021, eq. 3-4"),
    Selector("knn", "1-NN", renggli2020.knn, FEATURES, "Renggli et al. 2020"),
    Selector("knn_5", "5-NN", partial(renggli2020.knn, k=5), FEATURES, "Sorkhei et al. 2025"),
    Selector("ridge_loo", "Ridge LOO", renggli2020.ridge_loo, FEATURES, "Allen 1974"),
    Selector(
        "ridge_loo_mse",
        "Ridge LOO, squared error",
        renggli2020.ridge_loo_mse,
        FEATURES,
        "Allen 1974",
    ),
    Selector("ntk_loo", "NTK LOO", renggli2020.ntk_loo, {**FEATURES, **FULL}, "this project"),
    Selector("sfda", "SFDA", shao2022.sfda, FEATURES, "Shao et al. 2022, eq. 5-9"),
    Selector(
        "ncti",
        "NCTI",
        wang2023.ncti,
        FEATURES,
        "Wang et al. 2023, eq. 5-9",
        combine=wang2023.ncti_combine,
    ),
    Selector(
        "etran",
        "ETran",
        gholami2023.etran,
        FEATURES,
        "Gholami et al. 2023, eq. 3-7",
        combine=gholami2023.etran_combine,
    ),
    Selector("pactran", "PACTran", ding2022.pactran, FEATURES, "Ding et al. 2022, eq. 14"),
    Selector(
        "cka",
        "CKA with labels",
        dwivedi2019.cka,
        FEATURES,
        "Kornblith et al. 2019, eq. 3; variant beside LFC",
    ),
    Selector("dds", "DDS", dwivedi2019.dds, REFERENCE, "Dwivedi et al. 2020"),
    Selector(
        "otce",
        "OTCE",
        cui2018.otce,
        SOURCE,
        "Tan et al. 2021, eq. 2-6",
        combine=cui2018.otce_combine,
    ),
    Selector("rsa", "RSA", dwivedi2019.rsa, REFERENCE, "Dwivedi & Roig 2019"),
    Selector(
        "feature_metrics",
        "Feature metrics",
        ueno2020.feature_metrics,
        _needs("features"),
        "Ueno & Kondo 2020",
    ),
    Selector(
        "zero_share", "Share of zeros", ueno2020.zero_share, _needs("features"), "Ueno & Kondo 2020"
    ),
    Selector(
        "hoyer_sparsity",
        "Hoyer sparsity",
        ueno2020.hoyer_sparsity,
        _needs("features"),
        "Hoyer 2004",
    ),
    Selector(
        "domain_similarity",
        "Domain similarity",
        cui2018.domain_similarity,
        SOURCE,
        "Cui et al. 2018",
    ),
    Selector(
        "hscore_pinv",
        "H-score, not shrunk",
        bao2019.hscore_pinv,
        FEATURES,
        "Bao et al. 2019, eq. 2",
    ),
    Selector(
        "transrate_authors",
        "TransRate, authors' code",
        huang2022.transrate_authors,
        FEATURES,
        "Huang et al. 2022, code",
    ),
    Selector(
        "pactran_gaussian",
        "PACTran-Gaussian",
        ding2022.pactran_gaussian,
        _needs("features", "labels", "seed"),
        "Ding et al. 2022, eq. 14",
        combine=ding2022.pactran_gaussian_combine,
    ),
    Selector(
        "pactran_dirichlet",
        "PACTran-Dirichlet",
        ding2022.pactran_dirichlet,
        PROBABILITIES,
        "Ding et al. 2022",
    ),
    Selector(
        "pactran_gamma", "PACTran-Gamma", ding2022.pactran_gamma, PROBABILITIES, "Ding et al. 2022"
    ),
    Selector(
        "etran_energy",
        "ETran's energy",
        gholami2023.etran_energy,
        _needs("features"),
        "Gholami et al. 2023, eq. 3-4",
    ),
    Selector("ped", "PED", li2023.ped, FEATURES, "Li et al. 2023"),
    Selector(
        "rankme", "RankMe", garrido2023.rankme, _needs("features"), "Garrido et al. 2023, eq. 1-2"
    ),
    Selector(
        "weighted_alpha",
        "Weighted alpha",
        martin2021.weighted_alpha,
        _needs("weight_matrices"),
        "Martin et al. 2021",
    ),
    Selector(
        "source_accuracy",
        "Source accuracy",
        baselines.source_accuracy,
        _needs("source_accuracy"),
        "-",
        "baseline",
    ),
    Selector(
        "parameter_count",
        "Parameters",
        baselines.parameter_count,
        _needs("parameter_count"),
        "-",
        "baseline",
    ),
    Selector(
        "generic_first",
        "Generic expert first",
        baselines.generic_first,
        _needs("is_generic"),
        "-",
        "baseline",
    ),
    Selector("random", "Random", baselines.random, {}, "expectation over all orders", "baseline"),
)
SELECTORS: dict[str, Selector] = {row.id: row for row in _ROWS}
