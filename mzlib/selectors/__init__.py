"""Selectors: score an expert for a target task without fine-tuning. Pure functions of arrays, higher is better.

`SELECTORS[id]` says what each needs (parameter name -> attribute of the evidence), where it comes from, whether it is
a baseline, and, where the paper normalises over the zoo, how per-expert components combine into scores.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from mzlib.selectors.bao2019 import hscore
from mzlib.selectors.baselines import generic_first, parameter_count, random, source_accuracy
from mzlib.selectors.cui2018 import domain_similarity, otce, otce_combine
from mzlib.selectors.deshpande2021 import (
    inverse_label_alignment,
    label_alignment,
    lfc,
    lfc_centred,
    lfc_cosine,
    lfc_unnormalised,
    lgc,
    lgc_unnormalised,
)
from mzlib.selectors.dwivedi2019 import cka, dds, parc, rsa
from mzlib.selectors.huang2022 import gbc, transrate
from mzlib.selectors.li2021 import nleep
from mzlib.selectors.nguyen2020 import leep, nce
from mzlib.selectors.renggli2020 import knn, ntk_loo, ridge_loo, ridge_loo_mse
from mzlib.selectors.shao2022 import etran, etran_combine, ncti, ncti_combine, pactran, sfda
from mzlib.selectors.ueno2020 import feature_metrics, hoyer_sparsity, zero_share
from mzlib.selectors.you2021 import logme


@dataclass(frozen=True)
class Selector:
    """One entry of the registry. `function(**{parameter: evidence.attribute})` returns the score, or, when `combine`
    is given (scores normalised over the zoo), a tuple of k components; `combine([E, k]) -> [E]` scores."""

    id: str
    title: str
    function: Callable
    needs: Mapping[str, str]
    citation: str
    kind: str = "score"
    combine: Callable | None = None
    direction: str = "higher is better"


def resolve(selector: Selector, evidence):
    """The selector's value on the evidence (a tuple of components where `combine` is given); may raise `Missing`."""
    return selector.function(
        **{parameter: getattr(evidence, name) for parameter, name in selector.needs.items()}
    )


def _needs(*names: str) -> Mapping[str, str]:
    return {
        name: name for name in names
    }  # parameters bear the evidence's names; kernels are the exception


_F, _P = _needs("features", "labels"), _needs("source_probabilities", "labels")
_SOURCE = _needs("features", "labels", "source_class_means", "source_class_counts")
_PAPER = "Deshpande et al. 2021, eq. 8"

SELECTORS: dict[str, Selector] = {
    entry.id: entry
    for entry in (
        Selector("lfc", "LFC", lfc, _F, _PAPER),
        Selector(
            "lfc_centred",
            "LFC, centred features",
            lfc_centred,
            _F,
            "variant of Deshpande et al. 2021",
        ),
        Selector("lfc_cosine", "LFC, cosine", lfc_cosine, _F, "variant of Deshpande et al. 2021"),
        Selector("lgc", "LGC", lgc, {"kernel": "last_conv_kernel", "labels": "labels"}, _PAPER),
        Selector(
            "lgc_full",
            "LGC, all layers",
            lgc,
            {"kernel": "full_kernel", "labels": "labels"},
            _PAPER,
        ),
        Selector(
            "label_alignment",
            "Label alignment",
            label_alignment,
            {"kernel": "full_kernel", "labels": "labels"},
            "Deshpande et al. 2021, eq. 3, 5",
        ),
        Selector(
            "inverse_label_alignment",
            "Inverse label alignment",
            inverse_label_alignment,
            {"kernel": "full_kernel", "labels": "labels"},
            "Deshpande et al. 2021, eq. 4, 5",
        ),
        Selector("leep", "LEEP", leep, _P, "Nguyen et al. 2020, eq. 1-2"),
        Selector("nce", "NCE", nce, _P, "Tran et al. 2019, eq. 8"),
        Selector(
            "nleep",
            "N-LEEP",
            nleep,
            _needs("features", "labels", "seed"),
            "Li et al. 2021, Sec. 3.2",
        ),
        Selector("hscore", "H-score", hscore, _F, "Bao et al. 2019, eq. 2; Ibrahim et al. 2021"),
        Selector("logme", "LogME", logme, _F, "You et al. 2021, eq. 2-3"),
        Selector("transrate", "TransRate", transrate, _F, "Huang et al. 2022, eq. 7-8"),
        Selector("gbc", "GBC", gbc, _F, "Pándy et al. 2022, eq. 2-5"),
        Selector("parc", "PARC", parc, _F, "Bolya et al. 2021, eq. 3-4"),
        Selector("knn", "1-NN", knn, _F, "Renggli et al. 2020"),
        Selector("knn_5", "5-NN", partial(knn, k=5), _F, "Sorkhei et al. 2025"),
        Selector("ridge_loo", "Ridge LOO", ridge_loo, _F, "Allen 1974"),
        Selector("ridge_loo_mse", "Ridge LOO, squared error", ridge_loo_mse, _F, "Allen 1974"),
        Selector("ntk_loo", "NTK LOO", ntk_loo, {**_F, "kernel": "full_kernel"}, "this project"),
        Selector("sfda", "SFDA", sfda, _F, "Shao et al. 2022, eq. 5-9"),
        Selector("ncti", "NCTI", ncti, _F, "Wang et al. 2023, eq. 5-9", combine=ncti_combine),
        Selector(
            "etran", "ETran", etran, _F, "Gholami et al. 2023, eq. 3-7", combine=etran_combine
        ),
        Selector("pactran", "PACTran", pactran, _F, "Ding et al. 2022, eq. 14"),
        Selector(
            "cka", "CKA with labels", cka, _F, "Kornblith et al. 2019, eq. 3; variant beside LFC"
        ),
        Selector(
            "dds", "DDS", dds, _needs("features", "reference_features"), "Dwivedi et al. 2020"
        ),
        Selector("otce", "OTCE", otce, _SOURCE, "Tan et al. 2021, eq. 2-6", combine=otce_combine),
        Selector(
            "rsa", "RSA", rsa, _needs("features", "reference_features"), "Dwivedi & Roig 2019"
        ),
        Selector(
            "feature_metrics",
            "Feature metrics",
            feature_metrics,
            _needs("features"),
            "Ueno & Kondo 2020",
        ),
        Selector(
            "zero_share", "Share of zeros", zero_share, _needs("features"), "Ueno & Kondo 2020"
        ),
        Selector(
            "hoyer_sparsity", "Hoyer sparsity", hoyer_sparsity, _needs("features"), "Hoyer 2004"
        ),
        Selector(
            "domain_similarity", "Domain similarity", domain_similarity, _SOURCE, "Cui et al. 2018"
        ),
        Selector(
            "source_accuracy",
            "Source accuracy",
            source_accuracy,
            _needs("source_accuracy"),
            "-",
            "baseline",
        ),
        Selector(
            "parameter_count",
            "Parameters",
            parameter_count,
            _needs("parameter_count"),
            "-",
            "baseline",
        ),
        Selector(
            "generic_first",
            "Generic expert first",
            generic_first,
            _needs("is_generic"),
            "-",
            "baseline",
        ),
        Selector("random", "Random", random, {}, "expectation over all orders", "baseline"),
    )
}
