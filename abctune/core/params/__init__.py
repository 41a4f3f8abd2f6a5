"""params.yaml as typed, checked, frozen objects. The only place that reads it.

Every value is checked when the file is loaded, for the active profile and the others alike, so that a
mistake is an error that names its key before any work starts.
"""

from abctune.core.params.data import Part as Part
from abctune.core.params.data import SourceParams as SourceParams
from abctune.core.params.data import SplitParams as SplitParams
from abctune.core.params.evaluation import ChoiceCheck as ChoiceCheck
from abctune.core.params.evaluation import CommandCheck as CommandCheck
from abctune.core.params.evaluation import JsonCheck as JsonCheck
from abctune.core.params.evaluation import OwnCheck as OwnCheck
from abctune.core.params.evaluation import PythonCheck as PythonCheck
from abctune.core.params.evaluation import RegexCheck as RegexCheck
from abctune.core.params.evaluation import TextCheck as TextCheck
from abctune.core.params.evaluation import ToolCallCheck as ToolCallCheck
from abctune.core.params.origins import HubModel as HubModel
from abctune.core.params.origins import HubSource as HubSource
from abctune.core.params.origins import LocalModel as LocalModel
from abctune.core.params.origins import LocalSource as LocalSource
from abctune.core.params.origins import ModelOrigin as ModelOrigin
from abctune.core.params.origins import SourceOrigin as SourceOrigin
from abctune.core.params.origins import WheelModel as WheelModel
from abctune.core.params.origins import WheelSource as WheelSource
from abctune.core.params.recipe import LoraParams as LoraParams
from abctune.core.params.recipe import Optimizer as Optimizer
from abctune.core.params.recipe import Scheduler as Scheduler
from abctune.core.params.recipe import TrainParams as TrainParams
from abctune.core.params.section import BASE as BASE
from abctune.core.params.section import KEY as KEY
from abctune.core.params.section import PARAMS_FILE as PARAMS_FILE
from abctune.core.params.section import VARIANT_KEYS as VARIANT_KEYS
from abctune.core.params.section import BaseFormat as BaseFormat
from abctune.core.params.section import ExportFormat as ExportFormat
from abctune.core.params.stage import FormatArgument as FormatArgument
from abctune.core.params.stage import ItemArgument as ItemArgument
from abctune.core.params.stage import VariantArgument as VariantArgument
from abctune.core.params.stage import exported_item as exported_item
from abctune.core.params.stage import exported_stage as exported_stage
from abctune.core.params.stage import key_from_dvc as key_from_dvc
from abctune.core.params.study import Params as Params
from abctune.core.params.study import Variant as Variant
from abctune.core.params.study import load_params as load_params
