"""Readers, bilateral filter, leakage-safe splits and writers for breast-ultrasound data sets."""

from dmf_plugins.bilateral import BilateralParameters
from dmf_plugins.data.cases import Case, DatasetInfo, Problem, Reading
from dmf_plugins.data.convert import Conversion, convert_dataset
from dmf_plugins.data.filter import filter_images
from dmf_plugins.data.images import bilateral_filter
from dmf_plugins.data.options import ConversionOptions
from dmf_plugins.data.readers import READERS, read_paired
from dmf_plugins.data.source import Source
from dmf_plugins.data.splits import split_cases
from dmf_plugins.data.writers import WRITERS

__all__ = [
    "READERS",
    "WRITERS",
    "BilateralParameters",
    "Case",
    "Conversion",
    "ConversionOptions",
    "DatasetInfo",
    "Problem",
    "Reading",
    "Source",
    "bilateral_filter",
    "convert_dataset",
    "filter_images",
    "read_paired",
    "split_cases",
]
