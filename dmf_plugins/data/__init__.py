"""Readers, bilateral filter, leakage-safe splits and writers for breast-ultrasound data sets."""

from dmf_plugins.data.convert import Conversion, convert_dataset
from dmf_plugins.data.filter import filter_images
from dmf_plugins.data.images import BilateralParameters, bilateral_filter
from dmf_plugins.data.readers import READERS
from dmf_plugins.data.splits import split_cases
from dmf_plugins.data.writers import WRITERS

__all__ = [
    "READERS",
    "WRITERS",
    "BilateralParameters",
    "Conversion",
    "bilateral_filter",
    "convert_dataset",
    "filter_images",
    "split_cases",
]
