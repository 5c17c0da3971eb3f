"""Scores, multi-scale inference and exact batch-norm statistics."""

from segkit.evaluation.batchnorm import exact_statistics
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
    reduced_miou,
)

__all__ = [
    "CITYSCAPES_MEAN_SIZES",
    "MULTI_SCALE",
    "REDUCED_WITHOUT",
    "ConfusionMatrix",
    "Evaluation",
    "InstanceIoU",
    "evaluate",
    "evaluation_mode",
    "exact_statistics",
    "load_model",
    "predict",
    "read_checkpoint",
    "reduced_miou",
]
