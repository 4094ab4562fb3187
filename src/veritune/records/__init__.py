"""FILE -> RECORDS.

In: files as users have them (JSON Lines, JSON, CSV, Parquet, Arrow, saved data sets, hub ids), in
the column conventions of the ecosystem. Out: records whose text is valid and which know their file
and line, and what is true of the whole set. Never: tokens, models, or a repair that nobody asked
for; a row that cannot be used is an error or is counted.
"""

from veritune.records.content import content_key, prompt_key
from veritune.records.convert import Converted, convert_records
from veritune.records.kinds import (
    KINDS,
    Demonstration,
    Message,
    Messages,
    Origin,
    Paired,
    Prompt,
    Record,
    Rendering,
    Scored,
    Text,
    TokenIds,
    Unpaired,
)
from veritune.records.read import DataConfig, ReadResult, read_records
from veritune.records.sources import iter_rows
from veritune.records.split import split_by_prompt
from veritune.records.survey import Survey, prompts_in_common, survey_records
from veritune.records.validate import validate_record
from veritune.records.write import write_records

__all__ = [
    "KINDS",
    "Converted",
    "DataConfig",
    "Demonstration",
    "Message",
    "Messages",
    "Origin",
    "Paired",
    "Prompt",
    "ReadResult",
    "Record",
    "Rendering",
    "Scored",
    "Survey",
    "Text",
    "TokenIds",
    "Unpaired",
    "content_key",
    "convert_records",
    "iter_rows",
    "prompt_key",
    "prompts_in_common",
    "read_records",
    "split_by_prompt",
    "survey_records",
    "validate_record",
    "write_records",
]
