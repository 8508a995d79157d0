"""PED: Li et al. 2023, "Exploring model transferability through the lens of potential energy",
ICCV, arXiv:2308.15074.
"""

import torch
from torch import Tensor

from mzlib.selectors._checks import Array, features_and_labels, need_pairs, varying
from mzlib.selectors._linalg import class_means
from mzlib.selectors.shao2022 import sfda

REACH = 0.6  # radii are this many deviations
TIME = 0.1  # of a step
STEPS = 6  # at most
EXIT = 0.5  # stops when a step moves the classes by less than this share of the first


def ped(features: Array, labels: Array) -> float:
    """SFDA after classes that overlap have pushed each other away: where would fine-tuning move
    them?

    Li et al. 2023 as in the authors' code: on features of unit deviation, class a moves by ½t² Σ_b
    overlap_ab (m_a − m_b)/‖m_a − m_b‖, overlap_ab = max(.6 (r_a + r_b) − ‖m_a − m_b‖, 0), r² the
    summed variance of a class, t = .1, up to six times; then `sfda`. The authors divide by the
    deviation that each feature has on ImageNet, which does not travel with an expert: here by that
    on the target's images.
    features [N, D], labels int [N]; O(ND·min(N, D)), float64; `Missing` as `sfda`.
    """
    features, labels, sizes = features_and_labels(features, labels)
    need_pairs(sizes)
    centred = varying(features)
    deviations = centred.square().mean(0).sqrt().clamp_min(1e-3)
    x = centred / deviations
    start = class_means(x, labels, sizes)
    within = (x - start[labels]).square().sum(1, keepdim=True)
    radii = REACH * class_means(within, labels, sizes)[:, 0].sqrt()
    means = start
    first = 0.0
    for _ in range(STEPS):
        moves = _moves(means, radii)
        change = float(moves.abs().sum())
        first = first or change
        if not change > EXIT * first:
            break
        means = means + moves
    shifts = (means - start) * deviations
    return sfda(features + shifts[labels], labels)


def _moves(means: Tensor, radii: Tensor) -> Tensor:
    """½t² Σ_b overlap_ab (m_a − m_b)/‖m_a − m_b‖ for each class a, [C, D]."""
    exact = "donot_use_mm_for_euclid_dist"
    gaps = torch.cdist(means, means, compute_mode=exact)
    overlap = (radii[:, None] + radii - gaps).clamp_min(0).fill_diagonal_(0)
    per_gap = torch.where(gaps > 0, overlap / gaps, 0.0)
    pull = TIME**2 / 2 * per_gap
    return pull.sum(1, keepdim=True) * means - pull @ means
