"""Which labels form a group: an order of the labels whose runs of G neighbours belong together.

    semantic     balanced clusters of exactly G (the last one ragged), by recursive 2-means over features of the labels
    frequency    neighbours in falling frequency
    random       a seeded permutation

Whatever is passed in decides the layer, so pass features and frequencies of the TRAINING data alone: `label_features`
makes the usual ones. `grouped` keeps an order on disk, found again by the content of what it was made from.
"""

from gskernels.grouping.orders import METHODS, frequency_order, grouped, random_order
from gskernels.grouping.quality import GroupingReport, report
from gskernels.grouping.semantic import label_features, semantic_order

__all__ = [
    "METHODS", "GroupingReport", "frequency_order", "grouped", "label_features", "random_order", "report", "semantic_order",
]  # fmt: skip
