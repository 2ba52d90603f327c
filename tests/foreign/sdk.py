"""Drives the simulated IoT Platform through one of Alibaba Cloud's own SDKs.

    sdk.py core|tea TOPIC ENDPOINT

core is aliyun-python-sdk-core (version 1 of the signature), tea is
alibabacloud-iot20180120 (version 3); TOPIC is a function below. Ends with 0 when the
SDK accepts all that the simulator says, and the simulator all that the SDK says.
"""

import http.client
import http.server
import json
import os
import re
import sys
import threading
import time

KEY_ID = os.environ["SDK_KEY_ID"]
KEY_SECRET = os.environ["SDK_KEY_SECRET"]
PRODUCT = "a1BwAGVxyz1"
REGION = "cn-shanghai"


class Refused(Exception):
    """An error of the gateway, as the SDK raises it."""

    def __init__(self, status, code):
        super().__init__(f"{status} {code}")
        self.status, self.code = status, code


class Core:
    """aliyun-python-sdk-core."""

    def __init__(self, endpoint, key_id=KEY_ID, secret=KEY_SECRET):
        from aliyunsdkcore.client import AcsClient

        # Each call once: what is repeated would hide what was answered.
        self.client = AcsClient(key_id, secret, REGION, auto_retry=False)
        self.endpoint = endpoint
        self.driven = set()

    def call(self, action, **parameters):
        import importlib

        from aliyunsdkcore.acs_exception.exceptions import ServerException

        module = importlib.import_module(f"aliyunsdkiot.request.v20180120.{action}Request")
        request = getattr(module, f"{action}Request")()
        request.set_endpoint(self.endpoint)
        request.set_protocol_type("http")
        for name, value in parameters.items():
            plural = "s" if isinstance(value, list) else ""
            getattr(request, f"set_{name}{plural}")(value)
        try:
            answer = self.client.do_action_with_exception(request)
        except ServerException as error:
            raise Refused(error.get_http_status(), error.get_error_code()) from error
        self.driven.add(action)
        return json.loads(answer)


class Tea:
    """alibabacloud-iot20180120."""

    def __init__(self, endpoint, key_id=KEY_ID, secret=KEY_SECRET):
        from alibabacloud_iot20180120.client import Client
        from alibabacloud_tea_openapi.models import Config

        self.client = Client(
            Config(
                access_key_id=key_id,
                access_key_secret=secret,
                region_id=REGION,
                endpoint=endpoint,
                protocol="http",
                signature_algorithm="ACS3-HMAC-SHA256",
            )
        )
        self.driven = set()

    def call(self, action, **parameters):
        from alibabacloud_iot20180120 import models
        from alibabacloud_tea_util.models import RuntimeOptions
        from Tea.exceptions import TeaException

        def snake(name):
            return re.sub("(?<!^)(?=[A-Z])", "_", name).lower()

        request = getattr(models, f"{action}Request")(
            **{snake(name): value for name, value in parameters.items()}
        )
        method = getattr(self.client, f"{snake(action)}_with_options")
        try:
            # Through the SDK's own model of the answer, and back.
            answer = method(request, RuntimeOptions(autoretry=False)).body.to_map()
        except TeaException as error:
            raise Refused(getattr(error, "status_code", None) or error.data["statusCode"], error.code) from error
        self.driven.add(action)
        return answer


def done(answer):
    """An answer that says Success."""
    assert answer["Success"] is True and answer["RequestId"], answer
    return answer


def failed(answer, code):
    """An answer of the business level that says why not."""
    assert answer["Success"] is False and answer["Code"] == code and answer["ErrorMessage"], answer


def refused(code, status, call, *arguments, **parameters):
    """A call that the gateway refuses."""
    try:
        answer = call(*arguments, **parameters)
    except Refused as error:
        assert (error.code, error.status) == (code, status), error
        return
    raise AssertionError(f"{code} expected, got {answer}")


def ended(sdk, apply_id):
    """The status of a batch whose step under way has ended."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        status = done(sdk.call("QueryBatchRegisterDeviceStatus", ProductKey=PRODUCT, ApplyId=apply_id))["Data"]
        if status["Status"] not in ("CHECK", "CREATE"):
            return status
    raise AssertionError("the batch does not end")


def actions(sdk_of, endpoint):
    """Every action, as documented."""
    sdk = sdk_of(endpoint)
    one = {"ProductKey": PRODUCT, "DeviceName": "AA:BB:CC@dd.ee-ff_1"}

    made = done(sdk.call("RegisterDevice", Nickname="灯 1+*~", **one))["Data"]
    assert len(made["DeviceSecret"]) == 32 and made["Nickname"] == "灯 1+*~", made
    failed(sdk.call("RegisterDevice", **one), "iot.device.AlreadyExistedDeviceName")
    failed(sdk.call("RegisterDevice", ProductKey=PRODUCT, DeviceName="S"), "iot.device.InvalidFormattedDeviceName")
    failed(sdk.call("RegisterDevice", ProductKey="a1other", DeviceName="SN01"), "iot.prod.NotExistedProduct")

    found = done(sdk.call("QueryDeviceDetail", **one))["Data"]
    assert all(found[name] == made[name] for name in made), found
    assert found["Status"] == "UNACTIVE" and found["UtcCreate"].endswith("Z") and found["NodeType"] == 0, found
    by_id = done(sdk.call("QueryDeviceDetail", IotId=made["IotId"]))["Data"]
    assert by_id == found, by_id
    failed(sdk.call("QueryDeviceDetail", ProductKey=PRODUCT, DeviceName="SN99"), "iot.device.NotExistedDevice")

    names = [f"SN{number:04}" for number in range(60)]
    checked = done(sdk.call("BatchCheckDeviceNames", ProductKey=PRODUCT, DeviceName=names))["Data"]["ApplyId"]
    status = ended(sdk, checked)
    assert status["Status"] == "CHECK_SUCCESS" and status["InvalidList"] == {"Name": []}, status
    batch = {"ProductKey": PRODUCT, "ApplyId": checked}
    assert done(sdk.call("BatchRegisterDeviceWithApplyId", **batch))["Data"]["ApplyId"] == checked
    status = ended(sdk, checked)
    assert (status["Status"], status["ValidList"]["Name"]) == ("CREATE_SUCCESS", names), status
    failed(sdk.call("BatchRegisterDeviceWithApplyId", **batch), "iot.device.ApplyManyDevicesFailed")

    devices = []
    for number in (1, 2):
        page = done(sdk.call("QueryPageByApplyId", ApplyId=checked, PageSize=50, CurrentPage=number))
        assert (page["Page"], page["PageSize"], page["PageCount"], page["Total"]) == (number, 50, 2, 60), page
        devices += page["ApplyDeviceList"]["ApplyDeviceInfo"]
    assert [device["DeviceName"] for device in devices] == names, devices
    failed(sdk.call("QueryPageByApplyId", ApplyId=checked, PageSize=51), "iot.common.InvalidPageParams")
    failed(sdk.call("QueryPageByApplyId", ApplyId=1), "iot.device.DeviceApplyIsNotFound")

    again = done(sdk.call("BatchCheckDeviceNames", ProductKey=PRODUCT, DeviceName=["SN0001", "NEW1", "NEW1"]))
    status = ended(sdk, again["Data"]["ApplyId"])
    assert status["Status"] == "CHECK_FAILED" and status["InvalidList"]["Name"] == ["SN0001", "NEW1"], status
    assert len(status["InvalidDetailList"]["invalidDetailList"]) == 2, status
    failed(sdk.call("BatchCheckDeviceNames", ProductKey=PRODUCT), "iot.device.NoneDeviceNameElement")

    details = done(sdk.call("BatchQueryDeviceDetail", ProductKey=PRODUCT, DeviceName=["SN0001", "SN99", "SN0000"]))
    details = details["Data"]["Data"]
    assert [device["DeviceSecret"] for device in details] == [devices[1]["DeviceSecret"], devices[0]["DeviceSecret"]]

    done(sdk.call("DisableThing", **one))
    assert sdk.call("QueryDeviceDetail", **one)["Data"]["Status"] == "DISABLE"
    done(sdk.call("EnableThing", IotId=made["IotId"]))
    assert sdk.call("QueryDeviceDetail", **one)["Data"]["Status"] == "UNACTIVE"
    done(sdk.call("DeleteDevice", **one))
    for action in ("DeleteDevice", "DisableThing", "EnableThing"):
        failed(sdk.call(action, **one), "iot.device.NotExistedDevice")
        failed(sdk.call(action, IotId=made["IotId"]), "iot.device.NotExistedDevice")
    again = done(sdk.call("RegisterDevice", **one))["Data"]
    assert again["DeviceSecret"] != made["DeviceSecret"] and again["IotId"] != made["IotId"], again
    # The call is about the device with this ID, whatever name it gives.
    failed(sdk.call("DeleteDevice", IotId=made["IotId"], **one), "iot.device.NotExistedDevice")
    done(sdk.call("DeleteDevice", IotId=again["IotId"]))
    failed(sdk.call("QueryDeviceDetail", **one), "iot.device.NotExistedDevice")

    every = set(os.environ["SDK_ACTIONS"].split())
    assert sdk.driven == every, sdk.driven ^ every


def instances(sdk_of, endpoint):
    """An account with the instances iot-a, which holds one device, and iot-b."""
    sdk = sdk_of(endpoint)
    one = {"ProductKey": PRODUCT, "DeviceName": "SN01"}
    in_a, in_b = ({"IotInstanceId": instance} for instance in ("iot-a", "iot-b"))
    first = done(sdk.call("RegisterDevice", **one, **in_a))["Data"]
    failed(sdk.call("RegisterDevice", ProductKey=PRODUCT, DeviceName="SN02", **in_a), "iot.device.DeviceCountExceeded")
    second = done(sdk.call("RegisterDevice", ProductKey="a1other", DeviceName="SN01", **in_b))["Data"]
    assert first["DeviceSecret"] != second["DeviceSecret"] and first["IotId"] != second["IotId"]
    failed(sdk.call("RegisterDevice", **one, **in_b), "iot.prod.NotExistedProduct")
    for wrong in ({}, {"IotInstanceId": "iot-c"}):
        for action in ("QueryDeviceDetail", "DisableThing", "EnableThing", "DeleteDevice"):
            failed(sdk.call(action, **one, **wrong), "iot.system.InstanceNotFound")
    for action in ("DisableThing", "EnableThing", "DeleteDevice"):
        failed(sdk.call(action, IotId=first["IotId"], **in_b), "iot.device.NotExistedDevice")
        done(sdk.call(action, IotId=first["IotId"], **in_a))


def full_batch(sdk_of, endpoint):
    """10,000 names, and an answer that names them all."""
    sdk = sdk_of(endpoint)
    names = [f"LAMP:2026@{number:022}" for number in range(10_000)]
    apply_id = done(sdk.call("BatchCheckDeviceNames", ProductKey=PRODUCT, DeviceName=names))["Data"]["ApplyId"]
    assert ended(sdk, apply_id)["ValidList"]["Name"] == names


def gateway(sdk_of, endpoint):
    """What the gateway refuses, raised with its code."""
    one = {"ProductKey": PRODUCT, "DeviceName": "SN01"}
    # The older SDK finds that the strings to sign are the same, so that the secret is not.
    wrong_secret = "InvalidAccessKeySecret" if sdk_of is Core else "SignatureDoesNotMatch"
    wrong = sdk_of(endpoint, secret="another")
    refused(wrong_secret, 400, wrong.call, "RegisterDevice", **one)
    stranger = sdk_of(endpoint, key_id="nobody")
    refused("InvalidAccessKeyId.NotFound", 404, stranger.call, "RegisterDevice", **one)
    sdk = sdk_of(endpoint)
    refused("MissingProductKey", 400, sdk.call, "RegisterDevice", DeviceName="SN01")

    with Middle(endpoint) as middle:
        sdk = sdk_of(middle.address)
        done(sdk.call("RegisterDevice", ProductKey=PRODUCT, DeviceName="SN00"))
        assert middle.signature == ("1.0" if sdk_of is Core else "ACS3-HMAC-SHA256"), middle.signature
        middle.change = (b"SN01", b"SN02")
        refused("SignatureDoesNotMatch", 400, sdk.call, "RegisterDevice", **one)
        names = {"ProductKey": PRODUCT, "DeviceName": ["SN01", "SN03"]}
        refused("SignatureDoesNotMatch", 400, sdk.call, "BatchCheckDeviceNames", **names)
        assert middle.changed == 2, middle.changed


def throttling(sdk_of, endpoint):
    """What is more than the account may do."""
    sdk = sdk_of(endpoint)
    passed = 0
    started = time.monotonic()
    try:
        for _ in range(1000):
            sdk.call("BatchQueryDeviceDetail", ProductKey=PRODUCT, DeviceName=["SN01"])
            passed += 1
    except Refused as error:
        assert (error.code, error.status) == ("Throttling.User", 400), error
        most = 5 + 5 * (time.monotonic() - started)
        assert 5 <= passed <= most, (passed, most)
        return
    raise AssertionError("1,000 calls and no throttling")


class Middle:
    """Somebody on the way who changes what is signed."""

    def __init__(self, endpoint):
        self.change, self.changed = None, 0
        # Version 1 or the algorithm of version 3, as the newest call was signed.
        self.signature = None
        middle = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = self.path
                version = re.search("SignatureVersion=([0-9.]+)", path)
                authorization = self.headers.get("Authorization", "")
                middle.signature = version[1] if version else authorization.split(" ")[0]
                if middle.change:
                    before, after = middle.change
                    changed = (path.replace(before.decode(), after.decode()), body.replace(before, after))
                    middle.changed += changed != (path, body)
                    path, body = changed
                connection = http.client.HTTPConnection(endpoint, timeout=30)
                connection.request("POST", path, body, dict(self.headers))
                answer = connection.getresponse()
                content = answer.read()
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.headers["Content-Type"])
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()


if __name__ == "__main__":
    sdks = {"core": Core, "tea": Tea}
    topics = {topic.__name__: topic for topic in (actions, instances, full_batch, gateway, throttling)}
    topics[sys.argv[2]](sdks[sys.argv[1]], sys.argv[3])
