"""Settings: dataclasses hold the defaults; YAML files and command-line overrides change them."""

from zipper.config.evaluation import EvaluateConfig as EvaluateConfig
from zipper.config.evaluation import JudgeConfig as JudgeConfig
from zipper.config.evaluation import SamplingConfig as SamplingConfig
from zipper.config.fields import modalities_of as modalities_of
from zipper.config.fields import task_name as task_name
from zipper.config.loading import (
    ROOT as ROOT,
)
from zipper.config.loading import (
    asset as asset,
)
from zipper.config.loading import (
    describe as describe,
)
from zipper.config.loading import (
    flat as flat,
)
from zipper.config.loading import (
    from_dict as from_dict,
)
from zipper.config.loading import (
    load_config as load_config,
)
from zipper.config.loading import (
    overridden_keys as overridden_keys,
)
from zipper.config.loading import (
    read_json as read_json,
)
from zipper.config.loading import (
    save_config as save_config,
)
from zipper.config.loading import (
    setting_type as setting_type,
)
from zipper.config.loading import (
    to_dict as to_dict,
)
from zipper.config.loading import (
    upgraded as upgraded,
)
from zipper.config.loading import (
    with_overrides as with_overrides,
)
from zipper.config.model import ModelConfig as ModelConfig
from zipper.config.model import TowerConfig as TowerConfig
from zipper.config.model import ZipConfig as ZipConfig
from zipper.config.schema import (
    CodecConfig as CodecConfig,
)
from zipper.config.schema import (
    DataConfig as DataConfig,
)
from zipper.config.schema import (
    LogConfig as LogConfig,
)
from zipper.config.schema import (
    RunConfig as RunConfig,
)
from zipper.config.training import TrainCodecConfig as TrainCodecConfig
from zipper.config.training import TrainConfig as TrainConfig
