//! Texts about the error codes of IoT Platform and of certdist itself.

/// Returns the catalogue key of the title for a code that says more than the subject alone.
pub(in crate::admin::console) fn title_of(code: &str) -> Option<&'static str> {
    Some(match code {
        "InvalidAccessKeyId.NotFound" | "InvalidAccessKeyId.Inactive" | "SignatureDoesNotMatch" => {
            "title-key"
        }
        "Credentials" => "title-credentials",
        "Iot.system.BillIsOverDue" | "iot.system.BillIsOverDue" => "title-bill",
        "iot.device.DeviceCountExceeded" => "title-quota",
        _ if is_permission(code) => "title-permission",
        _ => return None,
    })
}

/// Returns the catalogue key of the cause for a code that says more than the subject alone.
pub(in crate::admin::console) fn cause_of(code: &str) -> Option<&'static str> {
    Some(match code {
        "InvalidAccessKeyId.NotFound" | "InvalidAccessKeyId.Inactive" | "SignatureDoesNotMatch" => {
            "cause-key"
        }
        "Credentials" => "cause-credentials",
        "iot.prod.NotExistedProduct" => "cause-product",
        "iot.device.DeviceCountExceeded" => "cause-quota",
        _ if is_permission(code) => "cause-permission",
        _ => return None,
    })
}

fn is_permission(code: &str) -> bool {
    matches!(
        code,
        "Forbidden.RAM" | "iot.common.RamActionPermissionDeny" | "iot.common.AuthActionPermissionDeny"
    )
}

/// Returns the catalogue key of the remedy for a code.
pub(in crate::admin::console) fn remedy_of(code: &str) -> Option<&'static str> {
    Some(match code {
        "InvalidAccessKeyId.NotFound" => "remedy-key-unknown",
        "InvalidAccessKeyId.Inactive" => "remedy-key-inactive",
        "SignatureDoesNotMatch" => "remedy-key-secret",
        _ if code.starts_with("InvalidSecurityToken") => "remedy-token",
        _ if is_permission(code) => "remedy-permission",
        "iot.common.InvalidTenant" | "iot.system.UidNotFound" => "remedy-account",
        "Iot.system.BillIsOverDue" | "iot.system.BillIsOverDue" => "remedy-bill",
        "iot.system.InstanceNotFound" | "iot.Sre.IotInstanceNotFound" => "remedy-instance",
        "iot.prod.NotExistedProduct" => "remedy-product",
        "iot.device.DeviceCountExceeded" => "remedy-quota",
        "Certificate" => "remedy-certificate",
        "Credentials" => "remedy-credentials",
        "NoConnection" | "Connection" | "Timeout" => "remedy-network",
        "NotAnAnswer" => "remedy-not-an-answer",
        _ => return None,
    })
}
