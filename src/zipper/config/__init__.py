"""Settings: dataclasses hold the defaults; YAML files and command-line overrides change them."""

from zipper.config.evaluation import AsrScorerConfig, EvaluateConfig, SamplingConfig
from zipper.config.fields import modalities_of, task_name
from zipper.config.loading import (
    ROOT,
    asset,
    check_list,
    describe,
    expanded,
    flat,
    from_dict,
    is_section_file,
    load_config,
    overridden_keys,
    read_json,
    save_config,
    setting_type,
    to_dict,
    upgraded,
    with_overrides,
)
from zipper.config.model import ModelConfig, TowerConfig, ZipConfig
from zipper.config.schema import CodecConfig, DataConfig, LogConfig, RunConfig
from zipper.config.training import TrainCodecConfig, TrainConfig
