"""`--zoo recommended`: some twenty networks of timm, spread over size and pre-training.

Chosen by hand for spread, not by any score of ours; timm's registry has no network pre-trained on
iNaturalist or Places. Their weights are downloaded by timm when they
are loaded, four bytes a parameter.
"""

import pandas as pd
import timm
import torch

# Name at timm -> what it was pre-trained on, and how.
RECOMMENDED = {
    "mobilenetv4_conv_small.e2400_r224_in1k": "ImageNet-1k, supervised",
    "mobilenetv3_large_100.miil_in21k_ft_in1k": "ImageNet-21k, supervised",
    "efficientnet_b0.ra4_e3600_r224_in1k": "ImageNet-1k, supervised",
    "tf_efficientnetv2_s.in21k_ft_in1k": "ImageNet-21k, supervised",
    "resnet18.a1_in1k": "ImageNet-1k, supervised",
    "resnet50.a1_in1k": "ImageNet-1k, supervised",
    "resnet50.fb_swsl_ig1b_ft_in1k": "Instagram-1B, semi-weakly supervised",
    "resnetv2_50x1_bit.goog_in21k": "ImageNet-21k, supervised (BiT)",
    "regnety_032.ra_in1k": "ImageNet-1k, supervised",
    "convnext_tiny.fb_in22k_ft_in1k": "ImageNet-22k, supervised",
    "convnext_base.clip_laion2b_augreg_ft_in1k": "LAION-2B, CLIP",
    "convnextv2_tiny.fcmae_ft_in22k_in1k": "ImageNet-22k, masked autoencoder (FCMAE)",
    "swin_tiny_patch4_window7_224.ms_in22k_ft_in1k": "ImageNet-22k, supervised",
    "vit_small_patch16_224.augreg_in21k_ft_in1k": "ImageNet-21k, supervised",
    "deit3_small_patch16_224.fb_in22k_ft_in1k": "ImageNet-22k, supervised",
    "vit_base_patch16_224.mae": "ImageNet-1k, masked autoencoder",
    "vit_base_patch16_224.dino": "ImageNet-1k, self-distillation (DINO)",
    "vit_small_patch14_dinov2.lvd142m": "LVD-142M, self-distillation (DINOv2)",
    "vit_small_patch16_dinov3.lvd1689m": "LVD-1689M, self-distillation (DINOv3)",
    "convnext_tiny.dinov3_lvd1689m": "LVD-1689M, self-distillation (DINOv3)",
    "vit_base_patch16_clip_224.openai": "WIT-400M, CLIP",
    "vit_base_patch16_siglip_224.webli": "WebLI, SigLIP",
    "eva02_small_patch14_336.mim_in22k_ft_in1k": "ImageNet-22k, masked image modelling (EVA-02)",
}


def recommended() -> pd.DataFrame:
    """A row a network: name, pretraining, licence (of the weights, as timm states it), pixels,
    classes, parameters (millions), megabytes (to download).
    """
    rows = []
    for name, pretraining in RECOMMENDED.items():
        config = timm.get_pretrained_cfg(name)
        with torch.device("meta"):  # no memory for the weights
            parameters = sum(p.numel() for p in timm.create_model(name).parameters())
        row: dict[str, object] = {"name": f"timm:{name}", "pretraining": pretraining}
        row |= {"licence": config.license or "not stated", "pixels": config.input_size[-1]}
        row |= {"classes": config.num_classes, "parameters": round(parameters / 1e6, 1)}
        rows.append(row | {"megabytes": round(parameters * 4 / 1e6)})
    return pd.DataFrame(rows)
