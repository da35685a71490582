"""The table of LoraConfig's fields against the installed PEFT."""

import dataclasses
import re

from peft import LoraConfig

from utils.lora.config_fields import FIELDS
from utils.models import ASSETS


def test_the_table_has_every_field_of_the_installed_peft_and_no_other():
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    assert fields - set(FIELDS) == set(), "PEFT has new fields: put them into utils/lora/config_fields.py"
    assert set(FIELDS) - fields == set(), "PEFT has dropped fields: take them out of utils/lora/config_fields.py"


def test_what_the_table_says_is_shown_in_chapter_8_is():
    lesson = (ASSETS.parent / "lessons" / "08_loraconfig.md").read_text(encoding="utf-8")
    code = "".join(re.findall(r"```python[^\n]*\n(.*?)```", lesson, flags=re.S))
    for name, field in FIELDS.items():
        if field.where == "here":
            assert re.search(rf"\b{name}\b", code), (
                f"{name} is said to be shown in chapter 8 and is in none of its cells"
            )
