"""Scores, multi-scale inference, whole or in sliding windows, and exact batch-norm statistics."""

from segkit.evaluation.batchnorm import exact_statistics
from segkit.evaluation.boundary import TrimapIoU
from segkit.evaluation.inference import (
    MULTI_SCALE,
    Evaluation,
    evaluate,
    evaluation_mode,
    load_model,
    predict,
    read_checkpoint,
)
from segkit.evaluation.metrics import (
    CITYSCAPES_MEAN_SIZES,
    REDUCED_WITHOUT,
    ConfusionMatrix,
    InstanceIoU,
    MeanIoUs,
    ObjectAreas,
    reduced_miou,
    sixty_class_miou,
    three_mious,
)
from segkit.evaluation.windows import FASTFCN_SCALES, Windows

__all__ = [
    "CITYSCAPES_MEAN_SIZES",
    "FASTFCN_SCALES",
    "MULTI_SCALE",
    "REDUCED_WITHOUT",
    "ConfusionMatrix",
    "Evaluation",
    "InstanceIoU",
    "MeanIoUs",
    "ObjectAreas",
    "TrimapIoU",
    "Windows",
    "evaluate",
    "evaluation_mode",
    "exact_statistics",
    "load_model",
    "predict",
    "read_checkpoint",
    "reduced_miou",
    "sixty_class_miou",
    "three_mious",
]
