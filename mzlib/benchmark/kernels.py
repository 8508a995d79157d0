"""Features of a task's images while an expert is fine-tuned on it: what Fig. 8 is drawn from."""

import torch
from torch import Tensor

from mzlib.evidence import prepared
from mzlib.training import Recipe, ResidentSet, train
from mzlib.zoo import Expert, features, with_fresh_head


def features_during_finetuning(
    expert: Expert,
    data: ResidentSet,
    recipe: Recipe,
    images: Tensor,
    *,
    seed: int,
) -> dict[int, Tensor]:
    """Epoch -> features [N, D] of uint8 `images` before, half-way through and after fine-tuning (in
    place).
    """
    model = with_fresh_head(expert.model, int(data.labels.max()) + 1, seed)
    epochs = recipe.total_epochs(data.batches_per_epoch(recipe.batch_size))
    seen = {}

    def look(epoch: int, epochs: int) -> None:
        if epoch in (0, epochs // 2, epochs):
            model.eval()
            with torch.no_grad():
                seen[epoch] = features(model, prepared(expert, images))
            model.train()

    look(0, epochs)
    train(model, data, recipe, seed=seed, progress=False, after_epoch=look)
    return seen
