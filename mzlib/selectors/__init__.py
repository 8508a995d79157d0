"""Selectors: score an expert for a target task without fine-tuning. Pure functions of arrays,
higher is better.

`SELECTORS[id]` says what each needs (parameter name -> attribute of the evidence), where it comes
from, whether it is a baseline, and, where the paper normalises over the zoo, how per-expert
components combine into scores.
"""

from mzlib.selectors.bao2019 import hscore
from mzlib.selectors.cui2018 import domain_similarity, otce
from mzlib.selectors.deshpande2021 import (
    inverse_label_alignment,
    label_alignment,
    lfc,
    lfc_centred,
    lfc_cosine,
    lgc,
)
from mzlib.selectors.ding2022 import pactran
from mzlib.selectors.dwivedi2019 import cka, dds, parc, rsa
from mzlib.selectors.gholami2023 import etran
from mzlib.selectors.huang2022 import gbc, transrate
from mzlib.selectors.li2021 import nleep
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
    "feature_metrics",
    "gbc",
    "hoyer_sparsity",
    "hscore",
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
    "parc",
    "resolve",
    "ridge_loo",
    "ridge_loo_mse",
    "rsa",
    "sfda",
    "transrate",
    "zero_share",
]
