"""Drives the simulated Tablestore through Alibaba Cloud's own SDK for Python.

    tablestore_sdk.py ENDPOINT INSTANCE 2|4

The last argument is the version of the signature. The SDK checks MD5, date and signature of
each answer itself. Ends with 0 when the SDK accepts all that the simulator says, and the
simulator all that the SDK says.
"""

import os
import sys

from tablestore import *
from tablestore.error import OTSServiceError
from tablestore.retry import NoRetryPolicy

KEY_ID = os.environ["SDK_KEY_ID"]
KEY_SECRET = os.environ["SDK_KEY_SECRET"]
TABLE = "device_table"
IGNORE = Condition(RowExistenceExpectation.IGNORE)
EXISTS = Condition(RowExistenceExpectation.EXPECT_EXIST)
ABSENT = Condition(RowExistenceExpectation.EXPECT_NOT_EXIST)


def refused(code, status, call, *arguments, **parameters):
    """A call that the service refuses."""
    try:
        answer = call(*arguments, **parameters)
    except OTSServiceError as error:
        assert (error.code, error.http_status) == (code, status), error
        assert error.request_id, error
        return
    raise AssertionError(f"{code} was expected, not {answer}")


def pk(id):
    return [("deviceId", id)]


def columns(row):
    return {name: value for name, value, _version in row.attribute_columns}


def tables(client):
    options = TableOptions(-1, 1, 86400)
    none = ReservedThroughput(CapacityUnit(0, 0))
    meta = TableMeta(TABLE, [("deviceId", "STRING")])
    client.create_table(meta, options, none)
    refused("OTSObjectAlreadyExist", 409, client.create_table, meta, options, none)
    audit = TableMeta("audit", [("stream", "STRING"), ("seq", "INTEGER"), ("part", "BINARY")])
    client.create_table(audit, TableOptions(86400, 3, 3600), none)
    assert list(client.list_table()) == ["audit", TABLE]
    described = client.describe_table("audit")
    assert described.table_meta.schema_of_primary_key == audit.schema_of_primary_key
    options = described.table_options
    assert (options.time_to_live, options.max_version, options.max_time_deviation) == (86400, 3, 3600)
    client.delete_table("audit")
    refused("OTSObjectNotExist", 404, client.describe_table, "audit")
    refused("OTSParameterInvalid", 400, client.create_table, TableMeta("1st", [("a", "STRING")]),
            TableOptions(-1, 1, 86400), none)


def single_rows(client):
    kinds = [("blob", bytearray(b"\x00\xff\x10")), ("double", -2.5), ("empty", ""), ("falsity", False),
             ("least", -(2**63)), ("text", "\u8bbe\u5907 \u2713"), ("truth", True)]
    consumed, returned = client.put_row(TABLE, Row(pk("types"), kinds), ABSENT, ReturnType.RT_PK)
    assert (consumed.read, consumed.write) == (1, 1)
    assert returned.primary_key == pk("types"), returned.primary_key
    consumed, row, token = client.get_row(TABLE, pk("types"), max_version=1)
    assert (consumed.read, consumed.write) == (1, 0) and not token
    assert row.primary_key == pk("types")
    assert columns(row) == dict(kinds), row.attribute_columns
    assert all(version > 1_700_000_000_000 for _, _, version in row.attribute_columns)
    refused("OTSConditionCheckFail", 403, client.put_row, TABLE, Row(pk("types"), kinds), ABSENT)
    refused("OTSConditionCheckFail", 403, client.put_row, TABLE, Row(pk("none"), kinds), EXISTS)

    _, row, _ = client.get_row(TABLE, pk("none"), max_version=1)
    assert row is None
    _, row, _ = client.get_row(TABLE, pk("types"), ["text", "truth"], max_version=1)
    assert set(columns(row)) == {"text", "truth"}

    update = {"PUT": [("text", "new")], "DELETE_ALL": ["blob", "double"], "INCREMENT": [("count", 5)]}
    client.update_row(TABLE, Row(pk("types"), update), EXISTS)
    client.update_row(TABLE, Row(pk("types"), {"INCREMENT": [("count", -7)]}), IGNORE)
    _, row, _ = client.get_row(TABLE, pk("types"), max_version=1)
    assert columns(row)["count"] == -2 and columns(row)["text"] == "new"
    assert not {"blob", "double"} & set(columns(row))

    client.delete_row(TABLE, Row(pk("types")), EXISTS)
    refused("OTSConditionCheckFail", 403, client.delete_row, TABLE, Row(pk("types")), EXISTS)
    refused("OTSParameterInvalid", 400, client.put_row, TABLE, Row(pk("x" * 1025), kinds), IGNORE)
    refused("OTSInvalidPK", 400, client.get_row, TABLE, [("id", "SN1")], max_version=1)


def conditions(client):
    def single(name, value, comparator=ComparatorType.EQUAL, missing=True):
        return SingleColumnCondition(name, value, comparator, pass_if_missing=missing, latest_version_only=True)

    def composite(how, *parts):
        made = CompositeColumnCondition(how)
        for part in parts:
            made.add_sub_condition(part)
        return made

    def take(owner, now):
        free = composite(LogicalOperator.AND, single("deviceSecret", ""),
                         single("leaseUntil", now, ComparatorType.LESS_THAN))
        lease = {"PUT": [("leaseOwner", owner), ("leaseUntil", now + 60)]}
        client.update_row(TABLE, Row(pk("SN1"), lease), Condition(RowExistenceExpectation.EXPECT_EXIST, free))

    client.put_row(TABLE, Row(pk("SN1"), [("state", "enabled")]), IGNORE)
    take("a", 100)
    refused("OTSConditionCheckFail", 403, take, "b", 120)
    take("b", 161)
    client.update_row(TABLE, Row(pk("SN1"), {"PUT": [("deviceSecret", "hush")]}), Condition(
        RowExistenceExpectation.EXPECT_EXIST, single("leaseOwner", "b", missing=False)))
    refused("OTSConditionCheckFail", 403, take, "a", 1000)
    negated = composite(LogicalOperator.NOT, single("state", "enabled", missing=False))
    either = composite(LogicalOperator.OR, negated, single("absent", 1, missing=False))
    refused("OTSConditionCheckFail", 403, client.delete_row, TABLE, Row(pk("SN1")),
            Condition(RowExistenceExpectation.IGNORE, either))


def batches(client):
    def write(items):
        request = BatchWriteRowRequest()
        request.add(TableInBatchWriteRowItem(TABLE, items))
        return client.batch_write_row(request)

    items = [PutRowItem(Row(pk("SN1"), [("n", 1)]), ABSENT),
             UpdateRowItem(Row(pk("SN2"), {"PUT": [("n", 2)]}), IGNORE),
             DeleteRowItem(Row(pk("SN3")), IGNORE)]
    answer = write(items)
    assert not answer.is_all_succeed()
    puts, updates, deletes = (
        rows(TABLE)
        for rows in (answer.get_put_by_table, answer.get_update_by_table, answer.get_delete_by_table)
    )
    assert [item.is_ok for item in puts + updates + deletes] == [False, True, True]
    assert puts[0].error_code == "OTSConditionCheckFail", puts[0].error_code
    refused("OTSParameterInvalid", 400, write, [PutRowItem(Row(pk("x"), [("n", 1)]), IGNORE)] * 2)
    many = [PutRowItem(Row(pk(f"m{n:03}"), [("n", n)]), IGNORE) for n in range(201)]
    refused("OTSParameterInvalid", 400, write, many)
    assert write(many[:200]).is_all_succeed()

    request = BatchGetRowRequest()
    request.add(TableInBatchGetRowItem(TABLE, [pk("m000"), pk("none"), pk("m199")], max_version=1))
    results = client.batch_get_row(request).get_result_by_table(TABLE)
    assert [item.is_ok for item in results] == [True] * 3
    found = [item.row and item.row.primary_key for item in results]
    assert found == [pk("m000"), None, pk("m199")], found


def ranges(client):
    def page(direction, start, end, limit, **more):
        return client.get_range(TABLE, direction, start, end, limit=limit, max_version=1, **more)

    first, last = pk(INF_MIN), pk(INF_MAX)
    consumed, next_start, rows, _ = page(Direction.FORWARD, pk("m"), last, 150)
    assert len(rows) == 150 and next_start == pk("m150"), next_start
    assert consumed.read == 1
    _, next_start, rows, _ = page(Direction.FORWARD, next_start, last, 150)
    assert len(rows) == 50 and next_start is None
    _, next_start, rows, _ = page(Direction.BACKWARD, last, first, 1)
    assert [row.primary_key for row in rows] == [pk("m199")] and next_start == pk("m198")
    big = SingleColumnCondition("n", 190, ComparatorType.GREATER_EQUAL, False, True)
    _, _, rows, _ = page(Direction.FORWARD, first, last, 5000, column_filter=big)
    assert len(rows) == 10, len(rows)
    refused("OTSParameterInvalid", 400, page, Direction.FORWARD, last, first, 1)


def gateway(make):
    refused("OTSAuthFailed", 403, make(secret="other").list_table)
    refused("OTSAuthFailed", 403, make(key_id="other").list_table)
    refused("OTSAuthFailed", 403, make(instance="other").list_table)
    refused("OTSAuthFailed", 403, make(sts_token="token").list_table)


def main():
    endpoint, instance, version = sys.argv[1:]
    region = {"region": "cn-shanghai"} if version == "4" else {}

    def make(key_id=KEY_ID, secret=KEY_SECRET, instance=instance, **more):
        # Each call is made once: a retry would hide the first answer.
        return OTSClient(f"http://{endpoint}", key_id, secret, instance, retry_policy=NoRetryPolicy(),
                         enable_native=False, **region, **more)

    client = make()
    for topic in (tables, single_rows, conditions, batches, ranges):
        topic(client)
    gateway(make)


main()
