"""What botocore is spared comes out as if it had done it itself."""

import json
import re
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from botocore.session import Session
from botocore.utils import parse_timestamp
from hypothesis import given
from hypothesis import strategies as st

from clients.s3 import ADDRESSED_WITHOUT, moment

moments = st.datetimes(datetime(1970, 1, 1), datetime(2199, 1, 1), timezones=st.just(UTC))


@given(moments)
def test_a_date_in_xml_is_read_as_botocore_reads_it(when: datetime) -> None:
    text = when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert moment(text) == parse_timestamp(text)
    assert moment(text).tzinfo is not None


@given(moments)
def test_a_date_in_a_header_is_read_as_botocore_reads_it(when: datetime) -> None:
    text = format_datetime(when, usegmt=True)
    assert moment(text) == parse_timestamp(text) == when.replace(microsecond=0)


@pytest.mark.parametrize("text", ["", "soon", "2026"])
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Invalid"):
        moment(text)


def test_no_rule_for_an_address_looks_at_what_is_left_out() -> None:
    rules = Session().get_component("data_loader").load_service_model("s3", "endpoint-rule-set-1")
    assert set(ADDRESSED_WITHOUT) < set(rules["parameters"])

    looked_at = set(re.findall(r'"ref": "(\w+)"|{(\w+)', json.dumps(rules["rules"])))

    names = {name for pair in looked_at for name in pair}
    assert {"Bucket", "Endpoint"} < names
    assert names.isdisjoint(ADDRESSED_WITHOUT)
