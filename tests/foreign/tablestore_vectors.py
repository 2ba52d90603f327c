#!/usr/bin/env python3
"""Makes tests/data/tablestore/vectors.json with the official SDK for Python, whose connection is
replaced, so that no socket is opened. The same SDK gives the same file.

    build/sdk/bin/python tests/foreign/tablestore_vectors.py [OUT]
    build/sdk/bin/python tests/foreign/tablestore_vectors.py --check FILE

- The bytes and the signature of a request are the SDK's. This script encodes the rows, the
  checksums and the signature a second time, and stops if they differ.
- The bytes of an answer are this script's. The SDK must accept them (headers, MD5, signature,
  protobuf, PlainBuffer), and what it has read is beside them.
"""
import base64, datetime, hashlib, hmac, json, struct, sys
from pathlib import Path

import tablestore
import tablestore.utils
from tablestore import *
from tablestore.error import OTSServiceError, OTSClientError
from tablestore.retry import NoRetryPolicy
import tablestore.protobuf.table_store_pb2 as pb
import tablestore.protobuf.table_store_filter_pb2 as pbf

ENDPOINT = "https://certdist.cn-shanghai.ots.aliyuncs.com"
INSTANCE = "certdist"
KEY_ID, SECRET = "LTAI5tFakeKeyForVectors", "fakeSecret0123456789abcdefABCDEF"
STS_TOKEN = "CAISfakeStsToken/with+base64=="
REGION = "cn-shanghai"
NOW = datetime.datetime(2026, 11, 26, 8, 30, 15, tzinfo=datetime.timezone.utc)
DATE = "2026-11-26T08:30:15.000Z"
REQUEST_ID = "00064a7b-1c2d-3e4f-5061-728394a5b6c7"
TS = 1795681815000  # the version that the stand-in gives to cells, ms

# ---------------------------------------------------------------- own encoder ----


def crc8(data, crc=0):
    """CRC-8, polynomial 0x07, initial value 0, not reflected, no final xor."""
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 7) & 0xFF if crc & 0x80 else crc << 1
    return crc


class Inf:
    def __init__(self, tag):
        self.tag = tag


MIN, MAX = Inf(9), Inf(10)


def variant(value):
    """Type byte and payload: what stands in a cell after the length."""
    if isinstance(value, Inf):
        return bytes([value.tag])
    if isinstance(value, bool):
        return bytes([2, value])
    if isinstance(value, int):
        return b"\x00" + struct.pack("<q", value)
    if isinstance(value, float):
        return b"\x01" + struct.pack("<d", value)
    if isinstance(value, str):
        raw = value.encode()
        return b"\x03" + struct.pack("<I", len(raw)) + raw
    return b"\x07" + struct.pack("<I", len(value)) + bytes(value)


def cell(name, value=None, timestamp=None, kind=None):
    """A cell's bytes and its CRC. kind: 1 delete all versions, 3 delete one, 4 increment."""
    raw = name.encode()
    out = b"\x03\x04" + struct.pack("<I", len(raw)) + raw
    summed = raw
    if value is not None:
        body = variant(value)
        out += b"\x05" + struct.pack("<I", len(body)) + body
        summed += body
    if kind is not None:
        out += b"\x06" + bytes([kind])
    if timestamp is not None:
        out += b"\x07" + struct.pack("<q", timestamp)
        summed += struct.pack("<q", timestamp)
    if kind is not None:  # behind the timestamp in the sum, before it in the bytes
        summed += bytes([kind])
    crc = crc8(summed)
    return out + b"\x0a" + bytes([crc]), crc


def row(pk, cells=(), delete=False):
    """A row without the header."""
    done = [cell(*c) for c in pk]
    out = b"\x01" + b"".join(b for b, _ in done)
    crcs = [c for _, c in done]
    if cells:
        done = [cell(*c) for c in cells]
        out += b"\x02" + b"".join(b for b, _ in done)
        crcs += [c for _, c in done]
    if delete:
        out += b"\x08"
    return out + b"\x09" + bytes([crc8(bytes(crcs + [1 if delete else 0]))])


HEADER = struct.pack("<I", 0x75)


def plain(*rows):
    return HEADER + b"".join(rows)


def md5(body):
    return base64.b64encode(hashlib.md5(body).digest()).decode()


def canonical(headers):
    return "\n".join(sorted(f"{k}:{v.strip()}" for k, v in headers.items() if k.startswith("x-ots-")))


def sign_request(path, headers):
    text = f"{path}\nPOST\n\n{canonical(headers)}\n"
    mac = hmac.new(SECRET.encode(), text.encode(), hashlib.sha1).digest()
    return text, base64.b64encode(mac).decode()


def v4_key(date):
    key = b"aliyun_v4" + SECRET.encode()
    for part in (date, REGION, "ots", "aliyun_v4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return base64.b64encode(key)


def sign_request_v4(path, headers, date):
    text = f"{path}\nPOST\n\n{canonical(headers)}\nots"
    mac = hmac.new(v4_key(date), text.encode(), hashlib.sha256).digest()
    return text, base64.b64encode(mac).decode()


def sign_response(path, headers, key):
    text = f"{canonical(headers)}\n{path}"
    return text, base64.b64encode(hmac.new(key, text.encode(), hashlib.sha1).digest()).decode()


# -------------------------------------------------------------------- running ----

tablestore.utils.get_now_utc_datetime = lambda: NOW


class Caught:
    """In place of the SDK's ConnectionPool."""

    def __init__(self):
        self.reply, self.key = None, SECRET.encode()

    def send_receive(self, url, headers, body):
        self.request = {"method": "POST", "path": url, "headers": dict(headers), "body": bytes(body)}
        status, content, authorized = self.reply
        answer = {
            "x-ots-contentmd5": md5(content),
            "x-ots-contenttype": "protocol buffer",
            "x-ots-date": DATE,
            "x-ots-requestid": REQUEST_ID,
        }
        text, signature = sign_response(url, answer, self.key)
        if authorized:
            answer["Authorization"] = f"OTS {KEY_ID}:{signature}"
        self.response = {"status": status, "headers": answer, "string_to_sign": text, "body": content}
        return status, "reason", answer, content


def client(**more):
    made = OTSClient(ENDPOINT, KEY_ID, SECRET, INSTANCE, retry_policy=NoRetryPolicy(),
                     enable_native=False, **more)
    made.connection = Caught()
    return made


def shown(value):
    """What the SDK has parsed, as JSON."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (bytes, bytearray)):
        return {"hex": bytes(value).hex()}
    if isinstance(value, (list, tuple)):
        return [shown(v) for v in value]
    if isinstance(value, dict):
        return {k: shown(v) for k, v in value.items()}
    return {k: shown(v) for k, v in vars(value).items()}


VECTORS = []


def vector(name, note, call, reply, *, status=200, authorized=True, rows=(), on=None, v4=False):
    """Runs one call of the SDK. `rows` are byte strings that this script has encoded and
    that must be in the request's body as they are."""
    made = on or client()
    made.connection.reply = (status, reply if isinstance(reply, bytes) else reply.SerializeToString(), authorized)
    if v4:
        made.connection.key = v4_key("20261126")
    try:
        parsed = {"ok": shown(call(made))}
    except OTSServiceError as error:
        parsed = {"error": {"class": "OTSServiceError", "http_status": error.http_status, "code": error.code,
                            "message": error.message, "request_id": error.request_id}}
    request, response = made.connection.request, made.connection.response
    headers = {k: v for k, v in request["headers"].items() if k.startswith("x-ots-")}
    signed_by = "x-ots-signaturev4" if v4 else "x-ots-signature"
    signature = headers.pop(signed_by)
    text, own = (sign_request_v4(request["path"], headers, "20261126") if v4
                 else sign_request(request["path"], headers))
    assert own == signature, (name, own, signature)
    assert headers["x-ots-contentmd5"] == md5(request["body"]), name
    for encoded in rows:
        assert encoded in request["body"], (name, encoded.hex(), request["body"].hex())
    VECTORS.append({
        "name": name,
        "note": note,
        "request": {
            "method": "POST",
            "path": request["path"],
            "headers": headers,
            "string_to_sign": text,
            "signature_header": signed_by,
            "signature": signature,
            "body": request["body"].hex(),
            "plainbuffer": [encoded.hex() for encoded in rows],
        },
        "response": {
            "status": status,
            "headers": response["headers"],
            "string_to_sign": response["string_to_sign"],
            "body": response["body"].hex(),
        },
        "parsed": parsed,
    })


def used(read, write):
    return pb.ConsumedCapacity(capacity_unit=pb.CapacityUnit(read=read, write=write))


def pk(id):
    return [("deviceId", id)]


def rejection(code, message):
    return pb.Error(code=code, message=message)


TABLE = "device_table"
SN1, SN2, SN3 = "SN00000001", "SN00000002", "0A1B2C3D4E5F"
CERTIFICATE = [("IotId", "Zq8FakeIotId000100"), ("activateTime", 1795681700), ("deviceName", SN1),
               ("deviceSecret", "7e5b4c3d2e1f0a9b8c7d6e5f4a3b2c1d"), ("productKey", "a1B2c3D4e5F"),
               ("registerTime", 1795681600)]


def timed(columns):
    return [(name, value, TS) for name, value in columns]


def missing_or(name, value, comparator=ComparatorType.EQUAL):
    return SingleColumnCondition(name, value, comparator, pass_if_missing=True, latest_version_only=True)


def present_and(name, value, comparator=ComparatorType.EQUAL):
    return SingleColumnCondition(name, value, comparator, pass_if_missing=False, latest_version_only=True)


def both(*conditions, how=LogicalOperator.AND):
    made = CompositeColumnCondition(how)
    for condition in conditions:
        made.add_sub_condition(condition)
    return made


def make():
    # --- tables ---
    meta = TableMeta(TABLE, [("deviceId", "STRING")])
    vector("create_table", "device_table: TTL -1, 1 version, offset 86400 s, no reserved throughput",
           lambda c: c.create_table(meta, TableOptions(-1, 1, 86400), ReservedThroughput(CapacityUnit(0, 0))),
           pb.CreateTableResponse())
    keys = TableMeta("device_key", [("pskIdentity", "STRING")], [("deviceId", "STRING")])
    index = SecondaryIndexMeta("device_key_by_device", ["deviceId"], [], SecondaryIndexType.GLOBAL_INDEX)
    vector("create_table_with_index", "a table of keys with a predefined column and a global index on it; "
           "an index wants 1 version; index_type and index_update_mode are both 0 for a global one",
           lambda c: c.create_table(keys, TableOptions(-1, 1, 86400), ReservedThroughput(CapacityUnit(0, 0)), [index]),
           pb.CreateTableResponse())
    vector("create_table_exists", "the table is there already: HTTP 409",
           lambda c: c.create_table(meta, TableOptions(-1, 1, 86400), ReservedThroughput(CapacityUnit(0, 0))),
           rejection("OTSObjectAlreadyExist", "Requested table already exists."), status=409)
    vector("list_table", "an empty body; its MD5 is that of nothing", lambda c: c.list_table(),
           pb.ListTableResponse(table_names=["device_key", TABLE]))
    described = pb.DescribeTableResponse(
        table_meta=pb.TableMeta(table_name=TABLE, primary_key=[pb.PrimaryKeySchema(name="deviceId", type=pb.STRING)]),
        reserved_throughput_details=pb.ReservedThroughputDetails(
            capacity_unit=pb.CapacityUnit(read=0, write=0), last_increase_time=1795680000),
        table_options=pb.TableOptions(time_to_live=-1, max_versions=1, deviation_cell_version_in_sec=86400,
                                      allow_update=True))
    # The Go SDK requires a field that the Python SDK does not know: table_status = 4, 1 is ACTIVE. The
    # Python SDK ignores unknown fields.
    described = described.SerializeToString() + b"\x20\x01"
    vector("describe_table", "with field 4 (table_status, 1 = ACTIVE), which the Go SDK requires",
           lambda c: c.describe_table(TABLE), described)
    vector("describe_table_absent", "HTTP 404", lambda c: c.describe_table("device_tabel"),
           rejection("OTSObjectNotExist", "Requested table does not exist."), status=404)

    # --- single rows ---
    get = plain(row(pk(SN1)))
    vector("get_row_found", "all columns; cells of the answer carry their version (tag 7), in order of name",
           lambda c: c.get_row(TABLE, pk(SN1), max_version=1),
           pb.GetRowResponse(consumed=used(1, 0), row=plain(row(pk(SN1), timed(CERTIFICATE)))), rows=[get])
    for name, note, key in [
        ("get_row_columns", "some columns only", pk(SN1)),
        ("get_row_columns_bare", "the same, answered without the primary key, which was not asked for: whether the "
         "service does that is not known here, and a client must not care", [])]:
        vector(name, note,
               lambda c: c.get_row(TABLE, pk(SN1), columns_to_get=["productKey", "deviceName"], max_version=1),
               pb.GetRowResponse(consumed=used(1, 0), row=plain(
                   row(key, timed([("deviceName", SN1), ("productKey", "a1B2c3D4e5F")])))), rows=[get])
    vector("get_row_absent", "the row field is there and empty", lambda c: c.get_row(TABLE, pk(SN2), max_version=1),
           pb.GetRowResponse(consumed=used(1, 0), row=b""), rows=[plain(row(pk(SN2)))])
    imported = [("productKey", "a1B2c3D4e5F"), ("enrollment", "factory"), ("state", "enabled")]
    put = plain(row(pk(SN2), imported))
    new = Condition(RowExistenceExpectation.EXPECT_NOT_EXIST)
    vector("put_row_new", "expects that there is no such row",
           lambda c: c.put_row(TABLE, Row(pk(SN2), imported), new),
           pb.PutRowResponse(consumed=used(1, 1), row=b""), rows=[put])
    vector("put_row_not_new", "the same, and there is: HTTP 403, so no signature of the response is looked at for "
           "OTSAuthFailed only",
           lambda c: c.put_row(TABLE, Row(pk(SN2), imported), new),
           rejection("OTSConditionCheckFail", "Condition check failed."), status=403, rows=[put])
    kinds = [("blob", bytearray(b"\x00\xff\x10")), ("double", -2.5), ("empty", ""), ("falsity", False),
             ("least", -(2 ** 63)), ("text", "\u8bbe\u5907 \u2713"), ("truth", True)]
    vector("put_row_types", "every type a column can have, without a condition",
           lambda c: c.put_row(TABLE, Row(pk("types"), kinds), Condition(RowExistenceExpectation.IGNORE),
                               ReturnType.RT_PK),
           pb.PutRowResponse(consumed=used(0, 1), row=plain(row(pk("types")))), rows=[plain(row(pk("types"), kinds))])
    vector("get_row_types", "the same read back", lambda c: c.get_row(TABLE, pk("types")),
           pb.GetRowResponse(consumed=used(1, 0), row=plain(row(pk("types"), timed(kinds)))))

    # --- conditional updates ---
    lease = {"PUT": [("leaseOwner", "server-a/7"), ("leaseUntil", 1795681875)]}
    leased = plain(row(pk(SN2), [("leaseOwner", "server-a/7"), ("leaseUntil", 1795681875)]))
    free = both(missing_or("deviceSecret", ""), missing_or("leaseUntil", 1795681815, ComparatorType.LESS_THAN))
    vector("update_row_take_lease", "the row exists AND deviceSecret is missing AND (leaseUntil is missing or past)",
           lambda c: c.update_row(TABLE, Row(pk(SN2), lease), Condition(RowExistenceExpectation.EXPECT_EXIST, free)),
           pb.UpdateRowResponse(consumed=used(1, 1)), rows=[leased])
    vector("update_row_lease_taken", "the same when another server holds it",
           lambda c: c.update_row(TABLE, Row(pk(SN2), lease), Condition(RowExistenceExpectation.EXPECT_EXIST, free)),
           rejection("OTSConditionCheckFail", "Condition check failed."), status=403, rows=[leased])
    stored = {"PUT": [("deviceName", SN2), ("deviceSecret", "00112233445566778899aabbccddeeff"),
                      ("IotId", "Zq8FakeIotId000200"), ("registerTime", 1795681816)],
              "DELETE_ALL": ["leaseOwner", "leaseUntil", "refusal"]}
    vector("update_row_store_certificate", "one column condition: leaseOwner is still ours; columns put and removed",
           lambda c: c.update_row(TABLE, Row(pk(SN2), stored), Condition(
               RowExistenceExpectation.EXPECT_EXIST, present_and("leaseOwner", "server-a/7"))),
           pb.UpdateRowResponse(consumed=used(1, 1)),
           rows=[plain(row(pk(SN2), stored["PUT"] + [(n, None, None, 1) for n in stored["DELETE_ALL"]]))])
    vector("update_row_first_issue", "firstIssued is set unless it is there: one server's call is the first",
           lambda c: c.update_row(TABLE, Row(pk(SN2), {"PUT": [("firstIssued", 1795681817)]}), Condition(
               RowExistenceExpectation.EXPECT_EXIST, missing_or("firstIssued", -1))),
           pb.UpdateRowResponse(consumed=used(1, 1)), rows=[plain(row(pk(SN2), [("firstIssued", 1795681817)]))])
    vector("update_row_not_or", "NOT and OR: enabled unless disabled",
           lambda c: c.update_row(TABLE, Row(pk(SN2), {"PUT": [("state", "enabled")]}), Condition(
               RowExistenceExpectation.EXPECT_EXIST,
               both(present_and("state", "disabled"),
                    both(present_and("enrollment", "factory", ComparatorType.NOT_EQUAL), how=LogicalOperator.NOT),
                    how=LogicalOperator.OR))),
           pb.UpdateRowResponse(consumed=used(1, 1)))
    vector("update_row_increment", "the atomic counter, and one version removed by its timestamp",
           lambda c: c.update_row("certdist_total", Row([("shard", "factory#03")], {
               "INCREMENT": [("registered", 1)], "DELETE": [("old", None, TS)]}),
               Condition(RowExistenceExpectation.IGNORE)),
           pb.UpdateRowResponse(consumed=used(0, 1)),
           rows=[plain(row([("shard", "factory#03")], [("registered", 1, None, 4), ("old", None, TS, 3)]))])
    gone = plain(row(pk(SN3), (), True))
    vector("delete_row", "the whole row; tag 8 and a 1 in the row's CRC",
           lambda c: c.delete_row(TABLE, Row(pk(SN3)), Condition(RowExistenceExpectation.EXPECT_EXIST)),
           pb.DeleteRowResponse(consumed=used(1, 1)), rows=[gone])

    # --- many rows ---
    ids = [SN1, SN2, SN3]

    def batch_get(c):
        asked = BatchGetRowRequest()
        asked.add(TableInBatchGetRowItem(TABLE, [pk(i) for i in ids], max_version=1))
        return c.batch_get_row(asked)

    one = pb.RowInBatchGetRowResponse
    vector("batch_get_row", "three rows: there, absent, and failed on its own, under HTTP 200", batch_get,
           pb.BatchGetRowResponse(tables=[pb.TableInBatchGetRowResponse(table_name=TABLE, rows=[
               one(is_ok=True, consumed=used(1, 0), row=plain(row(pk(SN1), timed(CERTIFICATE)))),
               one(is_ok=True, consumed=used(1, 0), row=b""),
               one(is_ok=False, error=rejection("OTSServerBusy", "Server is busy."))])]),
           rows=[plain(row(pk(i))) for i in ids])

    def batch_write(c):
        asked = BatchWriteRowRequest()
        asked.add(TableInBatchWriteRowItem(TABLE, [
            PutRowItem(Row(pk("SN00000011"), imported), Condition(RowExistenceExpectation.EXPECT_NOT_EXIST)),
            UpdateRowItem(Row(pk(SN1), {"PUT": [("enrollment", "factory")], "DELETE_ALL": ["refusal"]}),
                          Condition(RowExistenceExpectation.EXPECT_EXIST, present_and("productKey", "a1B2c3D4e5F"))),
            DeleteRowItem(Row(pk(SN3)), Condition(RowExistenceExpectation.IGNORE))]))
        return c.batch_write_row(asked)

    one = pb.RowInBatchWriteRowResponse
    vector("batch_write_row", "put, update and delete; the second fails on its own, under HTTP 200", batch_write,
           pb.BatchWriteRowResponse(tables=[pb.TableInBatchWriteRowResponse(table_name=TABLE, rows=[
               one(is_ok=True, consumed=used(1, 1)),
               one(is_ok=False, error=rejection("OTSConditionCheckFail", "Condition check failed."), consumed=used(1, 1)),
               one(is_ok=True, consumed=used(0, 1))])]),
           rows=[plain(row(pk("SN00000011"), imported)),
                 plain(row(pk(SN1), [("enrollment", "factory"), ("refusal", None, None, 1)])), gone])
    first, last = [("deviceId", INF_MIN)], [("deviceId", INF_MAX)]
    vector("get_range_first_page", "forward from -inf, 2 rows; next_start_primary_key is where to go on",
           lambda c: c.get_range(TABLE, Direction.FORWARD, first, last, limit=2, max_version=1),
           pb.GetRangeResponse(consumed=used(1, 0),
                               rows=plain(row(pk(SN3), timed(imported)), row(pk(SN1), timed(CERTIFICATE))),
                               next_start_primary_key=plain(row(pk(SN2)))),
           rows=[plain(row([("deviceId", MIN)])), plain(row([("deviceId", MAX)]))])
    vector("get_range_last_page", "from an ID with a NUL behind it, the next string there is (whether the service takes "
           "a NUL in a key is not known: rows_after had better start at the ID and drop it); no "
           "next_start_primary_key: the end",
           lambda c: c.get_range(TABLE, Direction.FORWARD, pk(SN1 + "\0"), last, limit=1000, max_version=1),
           pb.GetRangeResponse(consumed=used(1, 0), rows=plain(row(pk(SN2), timed(imported)))),
           rows=[plain(row(pk(SN1 + "\0"))), plain(row([("deviceId", MAX)]))])
    vector("get_range_empty", "no row at all: rows is empty, without a header",
           lambda c: c.get_range(TABLE, Direction.FORWARD, first, last, limit=1, max_version=1),
           pb.GetRangeResponse(consumed=used(1, 0), rows=b""))
    vector("get_range_filter", "rows without a certificate, two columns of each; a filter does not save capacity, "
           "and a page may be empty and have a next page",
           lambda c: c.get_range(TABLE, Direction.FORWARD, first, last, ["deviceId", "enrollment"], 5000,
                                 missing_or("deviceSecret", "")),
           pb.GetRangeResponse(consumed=used(7, 0), rows=b"", next_start_primary_key=plain(row(pk(SN2)))))
    vector("get_range_backward", "from +inf down, the newest of an ordered key first",
           lambda c: c.get_range(TABLE, Direction.BACKWARD, last, first, limit=1, max_version=1),
           pb.GetRangeResponse(consumed=used(1, 0), rows=plain(row(pk(SN2), timed(imported))),
                               next_start_primary_key=plain(row(pk(SN1)))))

    # --- transactions in one partition key ---
    vector("start_local_transaction", "the key is the partition key as a row; the table must have been made for it",
           lambda c: c.start_local_transaction(TABLE, pk(SN1)),
           pb.StartLocalTransactionResponse(transaction_id="A7B8C9FAKE"), rows=[get])
    vector("put_row_in_transaction", "any row call with a transaction_id",
           lambda c: c.put_row(TABLE, Row(pk(SN1), imported), Condition(RowExistenceExpectation.IGNORE), None,
                               "A7B8C9FAKE"),
           pb.PutRowResponse(consumed=used(0, 1)))
    vector("commit_transaction", "", lambda c: c.commit_transaction("A7B8C9FAKE"), pb.CommitTransactionResponse())

    # --- credentials and errors ---
    vector("get_row_sts", "temporary credentials: one more header, signed",
           lambda c: c.get_row(TABLE, pk(SN1), max_version=1), pb.GetRowResponse(consumed=used(1, 0), row=b""),
           on=client(sts_token=STS_TOKEN), rows=[get])
    vector("get_row_v4", "signature version 4: HMAC-SHA256 under a derived key, 'ots' behind the text; the response "
           "is signed with HMAC-SHA1 under the same derived key, in base64",
           lambda c: c.get_row(TABLE, pk(SN1), max_version=1), pb.GetRowResponse(consumed=used(1, 0), row=b""),
           on=client(region=REGION), rows=[get], v4=True)
    read = lambda c: c.get_row(TABLE, pk(SN1), max_version=1)
    for status, code, message, authorized, note in [
        (400, "OTSParameterInvalid", "Invalid column name: 'device secret'.", True, "not to be repeated"),
        (403, "OTSAuthFailed", "Signature mismatch.", False, "not to be repeated; has no Authorization"),
        (403, "OTSNotEnoughCapacityUnit", "Remaining capacity unit is not enough.", True, "to be repeated"),
        (403, "OTSQuotaExhausted", "Too frequent table operations.", True, "to be repeated, with this very message only"),
        (409, "OTSRowOperationConflict", "Data is being modified by the other request.", True, "to be repeated"),
        (413, "OTSRequestBodyTooLarge", "The size of POST data is too large.", True, "not to be repeated"),
        (503, "OTSServerBusy", "Server is busy.", True, "to be repeated"),
        (503, "OTSPartitionUnavailable", "The partition is not available.", True, "to be repeated"),
        (503, "OTSTimeout", "Operation timeout.", True, "a read is to be repeated; a write may have happened"),
        (500, "OTSInternalServerError", "Internal server error.", True, "a read is to be repeated; a write may have happened"),
    ]:
        vector(f"error_{code}", note, read, rejection(code, message), status=status, authorized=authorized)


def codec():
    """What a first unit test of an encoder wants."""
    cells = {
        "string": cell("deviceId", SN1), "integer": cell("registerTime", 1795681600),
        "negative": cell("n", -1), "double": cell("d", 1.5), "true": cell("t", True), "false": cell("f", False),
        "binary": cell("b", b"\x00\x01"), "empty": cell("e", ""), "utf8": cell("u", "\u8bbe"),
        "inf_min": cell("deviceId", MIN), "inf_max": cell("deviceId", MAX),
        "timestamp": cell("registerTime", 1795681600, TS), "delete_all": cell("refusal", None, None, 1),
        "delete_one": cell("old", None, TS, 3), "increment": cell("registered", 1, None, 4),
    }
    return {
        "crc8": {text: f"{crc8(text.encode()):02x}" for text in ["", "a", "deviceId", "123456789"]},
        "crc8_table_first_16": bytes(crc8([i]) for i in range(16)).hex(),
        "cells": {name: {"bytes": raw.hex(), "crc": f"{crc:02x}"} for name, (raw, crc) in cells.items()},
        "condition_values": {"text": variant("server-a/7").hex(), "integer": variant(1795681815).hex(),
                             "empty": variant("").hex()},
    }


def main():
    from tablestore.plainbuffer.plain_buffer_crc8 import CRC8_TABLE
    assert [crc8([i]) for i in range(256)] == CRC8_TABLE
    make()
    made = json.dumps({
        "about": "Requests of the official Python SDK for Tablestore, and responses that it takes. "
                 "Made by make_vectors.py. Keys and secrets are invented.",
        "sdk": f"tablestore {tablestore.__version__} (PyPI), pure Python codec",
        "endpoint": ENDPOINT, "instance": INSTANCE, "access_key_id": KEY_ID, "access_key_secret": SECRET,
        "sts_token": STS_TOKEN, "v4_region": REGION, "date": DATE,
        "codec": codec(), "vectors": VECTORS,
    }, indent=1, ensure_ascii=True, sort_keys=False) + "\n"
    if sys.argv[1:2] == ["--check"]:
        same = Path(sys.argv[2]).read_text() == made
        print("the same" if same else "it differs")
        return 0 if same else 1
    out = Path(sys.argv[1] if sys.argv[1:] else Path(__file__).parent.parent / "data/tablestore/vectors.json")
    out.write_text(made)
    print(f"{len(VECTORS)} vectors, {len(made)} bytes: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
