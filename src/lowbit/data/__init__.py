"""What comes in: sources, preprocessing, content hashes, splits."""

from lowbit.data.dataset import MIN_SAMPLES, Dataset, prepare
from lowbit.data.open import open_data
from lowbit.data.preprocess import PRESETS, Preprocess
from lowbit.data.source import check_labels
from lowbit.data.splits import Split, refuse_leak, split

__all__ = ["MIN_SAMPLES", "PRESETS", "Dataset", "Preprocess", "Split", "check_labels", "open_data", "prepare", "refuse_leak", "split"]
