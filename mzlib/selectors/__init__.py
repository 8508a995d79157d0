"""Selectors: score an expert for a target task without fine-tuning. Pure functions of arrays,
higher is better.

`SELECTORS[id]` says what each needs (parameter name -> attribute of the evidence), where it comes
from, whether it is a baseline, and, where the paper normalises over the zoo, how per-expert
components combine into scores.
"""

from mzlib.selectors.bao2019 import hscore, hscore_pinv
from mzlib.selectors.cui2018 import domain_similarity, otce
from mzlib.selectors.deshpande2021 import (
    inverse_label_alignment,
    label_alignment,
    lfc,
    lfc_centred,
    lfc_cosine,
    lgc,
)
from mzlib.selectors.ding2022 import pactran, pactran_dirichlet, pactran_gamma, pactran_gaussian
from mzlib.selectors.dwivedi2019 import cka, dds, parc, rsa
from mzlib.selectors.garrido2023 import rankme
from mzlib.selectors.gholami2023 import etran, etran_energy
from mzlib.selectors.huang2022 import gbc, transrate, transrate_authors
from mzlib.selectors.li2021 import nleep
from mzlib.selectors.li2023 import ped
from mzlib.selectors.martin2021 import weighted_alpha
from mzlib.selectors.nguyen2020 import leep, nce
from mzlib.selectors.registry import SELECTORS, Selector, resolve
from mzlib.selectors.renggli2020 import knn, ntk_loo, ridge_loo, ridge_loo_mse
from mzlib.selectors.shao2022 import sfda
from mzlib.selectors.ueno2020 import feature_metrics, hoyer_sparsity, zero_share
from mzlib.selectors.wang2023 import ncti
from mzlib.selectors.you2021 import logme

__all__ = [
    "SELECTORS",
    "Selector",
    "cka",
    "dds",
    "domain_similarity",
    "etran",
    "etran_energy",
    "feature_metrics",
    "gbc",
    "hoyer_sparsity",
    "hscore",
    "hscore_pinv",
    "inverse_label_alignment",
    "knn",
    "label_alignment",
    "leep",
    "lfc",
    "lfc_centred",
    "lfc_cosine",
    "lgc",
    "logme",
    "nce",
    "ncti",
    "nleep",
    "ntk_loo",
    "otce",
    "pactran",
    "pactran_dirichlet",
    "pactran_gamma",
    "pactran_gaussian",
    "parc",
    "ped",
    "rankme",
    "resolve",
    "ridge_loo",
    "ridge_loo_mse",
    "rsa",
    "sfda",
    "transrate",
    "transrate_authors",
    "weighted_alpha",
    "zero_share",
]
