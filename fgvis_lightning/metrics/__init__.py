"""Metrics of attribution maps: pure functions with one number for each image, and torchmetrics classes for means."""

from fgvis_lightning.metrics.class_means import Discrimination, PointingGame
from fgvis_lightning.metrics.conciseness import conciseness_preciseness
from fgvis_lightning.metrics.curves import auc, curves, deletion_curve, insertion_curve
from fgvis_lightning.metrics.discrimination import delete_evidence, remaining_scores, summarize
from fgvis_lightning.metrics.edges import new_edges
from fgvis_lightning.metrics.localization import boxes_to_masks, energy_pointing_game, pointing_game
from fgvis_lightning.metrics.masks import (
    average_drop,
    average_increase,
    class_kept,
    connectedness,
    highlight,
    score_preserved,
    sparsity,
)
from fgvis_lightning.metrics.means import (
    AdversarialRate,
    AverageDrop,
    AverageIncrease,
    ClassKept,
    Conciseness,
    Connectedness,
    EnergyPointingGame,
    NewEdges,
    RankCorrelation,
    ScorePreserved,
    Sparsity,
)
from fgvis_lightning.metrics.network_means import (
    ROAD,
    DeletionAUC,
    Infidelity,
    InsertionAUC,
    MaxSensitivity,
    SensitivityN,
)
from fgvis_lightning.metrics.order import TIES, peaks, ranked
from fgvis_lightning.metrics.perturbations import infidelity, max_sensitivity, sensitivity_n
from fgvis_lightning.metrics.profiles import PROFILES, Profile, Substrate, find_profile
from fgvis_lightning.metrics.ranks import rank_correlation
from fgvis_lightning.metrics.road import impute, road, road_curves

__all__ = [
    "PROFILES",
    "ROAD",
    "TIES",
    "AdversarialRate",
    "AverageDrop",
    "AverageIncrease",
    "ClassKept",
    "Conciseness",
    "Connectedness",
    "DeletionAUC",
    "Discrimination",
    "EnergyPointingGame",
    "Infidelity",
    "InsertionAUC",
    "MaxSensitivity",
    "NewEdges",
    "PointingGame",
    "Profile",
    "RankCorrelation",
    "ScorePreserved",
    "SensitivityN",
    "Sparsity",
    "Substrate",
    "auc",
    "average_drop",
    "average_increase",
    "boxes_to_masks",
    "class_kept",
    "conciseness_preciseness",
    "connectedness",
    "curves",
    "delete_evidence",
    "deletion_curve",
    "energy_pointing_game",
    "find_profile",
    "highlight",
    "impute",
    "infidelity",
    "insertion_curve",
    "max_sensitivity",
    "new_edges",
    "peaks",
    "pointing_game",
    "rank_correlation",
    "ranked",
    "remaining_scores",
    "road",
    "road_curves",
    "score_preserved",
    "sensitivity_n",
    "sparsity",
    "summarize",
]
