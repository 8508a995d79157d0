"""Which pre-trained model should I fine-tune? Companion of Deshpande et al. 2021, arXiv:2102.00084."""

from mzlib.finetuning import finetune
from mzlib.images import open_images
from mzlib.ranking import load_zoo, rank
from mzlib.tasks import few_shot, list_tasks, load_task

__all__ = ["few_shot", "finetune", "list_tasks", "load_task", "load_zoo", "open_images", "rank"]
