"""params.yaml as typed, checked, frozen objects. The only place that reads it.

Every value is checked when the file is loaded, for the active profile and the others alike, so that a
mistake is an error that names its key before any work starts.
"""

from abctune.core.params.data import Part, SourceParams, SplitParams
from abctune.core.params.evaluation import (
    ChoiceCheck,
    CommandCheck,
    JsonCheck,
    OwnCheck,
    PythonCheck,
    RegexCheck,
    TextCheck,
    ToolCallCheck,
)
from abctune.core.params.origins import (
    HubModel,
    HubSource,
    LocalModel,
    LocalSource,
    ModelOrigin,
    SourceOrigin,
    WheelModel,
    WheelSource,
)
from abctune.core.params.recipe import LoraParams, Optimizer, Scheduler, TrainParams
from abctune.core.params.section import BASE, KEY, PARAMS_FILE, VARIANT_KEYS, BaseFormat, ExportFormat
from abctune.core.params.stage import (
    FormatArgument,
    ItemArgument,
    VariantArgument,
    exported_item,
    exported_stage,
    key_from_dvc,
)
from abctune.core.params.study import Params, Variant, load_params

__all__ = [
    "BASE",
    "KEY",
    "PARAMS_FILE",
    "VARIANT_KEYS",
    "BaseFormat",
    "ChoiceCheck",
    "CommandCheck",
    "ExportFormat",
    "FormatArgument",
    "HubModel",
    "HubSource",
    "ItemArgument",
    "JsonCheck",
    "LocalModel",
    "LocalSource",
    "LoraParams",
    "ModelOrigin",
    "Optimizer",
    "OwnCheck",
    "Params",
    "Part",
    "PythonCheck",
    "RegexCheck",
    "Scheduler",
    "SourceOrigin",
    "SourceParams",
    "SplitParams",
    "TextCheck",
    "ToolCallCheck",
    "TrainParams",
    "Variant",
    "VariantArgument",
    "WheelModel",
    "WheelSource",
    "exported_item",
    "exported_stage",
    "key_from_dvc",
    "load_params",
]
