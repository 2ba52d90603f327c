//! Actions of a batch, in the order in which they are called.

use serde_json::{Value, json};

use super::{ActionResult, Context, FULL, Failure, TOO_MANY, names, product};
use crate::iot_platform::{ApplyId, MAX_BATCH, PAGE_SIZE, batches::Refused, simulator::request::Parameters};

/// Default number of devices on a page.
const DEFAULT_PAGE_SIZE: u64 = 10;

pub(super) fn check(parameters: &Parameters, context: &mut Context<'_>) -> ActionResult {
    let product_key = product(parameters, context)?;
    // If the caller also sends nicknames, the names are in `DeviceNameList`. Otherwise, the names
    // are in `DeviceName`.
    let listed: Vec<_> = parameters
        .numbered("DeviceNameList.", ".DeviceName")
        .take(MAX_BATCH + 1)
        .map(str::to_owned)
        .collect();
    let names = match listed.len() {
        1..=MAX_BATCH => listed,
        _ => names(parameters, MAX_BATCH)?,
    };
    if !context.account.devices.has_room_for(names.len()) {
        return Err(Failure::Business { code: TOO_MANY, message: FULL });
    }
    let id = context.account.batches.check(product_key, names, context.now_ms, context.batch_delay);
    Ok(json!({ "Data": { "ApplyId": id.0 } }))
}

pub(super) fn status(parameters: &Parameters, context: &mut Context<'_>) -> ActionResult {
    let product_key = product(parameters, context)?;
    let apply_id = apply_id(parameters)?;
    let progress = context.account.batches.progress(product_key, apply_id).map_err(refused)?;
    let details: Vec<_> = progress
        .invalid
        .iter()
        .map(|name| json!({ "DeviceName": name, "ErrorMsg": "The device name is invalid or exists." }))
        .collect();
    Ok(json!({ "Data": {
        "Status": progress.status.name(),
        "ValidList": { "Name": progress.valid },
        "InvalidList": { "Name": progress.invalid },
        "InvalidDetailList": { "invalidDetailList": details },
    }}))
}

pub(super) fn register(parameters: &Parameters, context: &mut Context<'_>) -> ActionResult {
    let product_key = product(parameters, context)?;
    let apply_id = apply_id(parameters)?;
    let batches = &mut context.account.batches;
    batches.register(product_key, apply_id, context.now_ms, context.batch_delay).map_err(refused)?;
    Ok(json!({ "Data": { "ApplyId": apply_id.0 } }))
}

pub(super) fn page(parameters: &Parameters, context: &mut Context<'_>) -> ActionResult {
    let apply_id = apply_id(parameters)?;
    let size = positive(parameters, "PageSize", DEFAULT_PAGE_SIZE)?;
    let page = positive(parameters, "CurrentPage", 1)?;
    if size > PAGE_SIZE as u64 {
        return Err(wrong_page());
    }
    let (product_key, names) = context.account.batches.created(apply_id).map_err(refused)?;
    let size = size as usize;
    let of_page = usize::try_from(page - 1).ok().and_then(|page| names.chunks(size).nth(page));
    let devices = of_page.unwrap_or_default().iter();
    // A page leaves out a device that was deleted after the batch had created it.
    let devices = devices.filter_map(|name| context.account.devices.get(product_key, name));
    let infos: Vec<Value> = devices
        .map(|device| {
            json!({
                "DeviceId": "",
                "DeviceName": device.device_name,
                "DeviceSecret": device.device_secret,
                "IotId": device.iot_id,
            })
        })
        .collect();
    Ok(json!({
        "ApplyDeviceList": { "ApplyDeviceInfo": infos },
        "Page": page,
        "PageSize": size,
        "PageCount": names.len().div_ceil(size),
        "Total": names.len(),
    }))
}

fn apply_id(parameters: &Parameters) -> Result<ApplyId, Failure> {
    let text = super::required(parameters, "ApplyId")?;
    let wrong = Failure::Business {
        code: "iot.device.InvalidFormattedApplyId",
        message: "The ApplyId is incorrect.",
    };
    text.parse().map(ApplyId).map_err(|_| wrong)
}

/// Reads a number of at least 1.
fn positive(parameters: &Parameters, name: &str, default: u64) -> Result<u64, Failure> {
    match parameters.get(name) {
        None => Ok(default),
        Some(text) => text.parse().ok().filter(|number| *number > 0).ok_or_else(wrong_page),
    }
}

fn wrong_page() -> Failure {
    Failure::Business {
        code: "iot.common.InvalidPageParams",
        message: "The specified page size or page number is invalid.",
    }
}

fn refused(code: Refused) -> Failure {
    Failure::Business { code, message: "The application does not allow this." }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::iot_platform::{
        Action,
        simulator::{account::Account, actions::carry_out},
    };

    fn call(action: Action, query: &str, account: &mut Account) -> Result<Value, String> {
        let mut parameters = Parameters::default();
        parameters.read_form(query.as_bytes()).unwrap_or_else(|_| panic!("{query}"));
        account.advance(0);
        let products = ["a1".to_owned(), "a2".to_owned()];
        let mut context = Context { account, products: &products, batch_delay: Duration::ZERO, now_ms: 0 };
        carry_out(action, &parameters, &mut context).map_err(|failure| match failure {
            Failure::Business { code, .. } => code.to_owned(),
            Failure::Refused(refusal) => refusal.code.into_owned(),
        })
    }

    /// Creates `count` devices in a batch, and returns its `ApplyId`.
    fn created(count: usize, account: &mut Account) -> u64 {
        let names: String = (1..=count).map(|number| format!("&DeviceName.{number}=SN{number:04}")).collect();
        let made = call(Action::BatchCheckDeviceNames, &format!("ProductKey=a1{names}"), account).unwrap();
        let id = made["Data"]["ApplyId"].as_u64().unwrap();
        let query = format!("ProductKey=a1&ApplyId={id}");
        assert_eq!(call(Action::BatchRegisterDeviceWithApplyId, &query, account).unwrap(), made);
        let status = call(Action::QueryBatchRegisterDeviceStatus, &query, account).unwrap();
        assert_eq!(status["Data"]["Status"], "CREATE_SUCCESS");
        assert_eq!(status["Data"]["ValidList"]["Name"].as_array().unwrap().len(), count);
        id
    }

    #[test]
    fn pages_have_every_device_once_in_the_order_asked_for() {
        let mut account = Account::new(1);
        let id = created(120, &mut account);
        let mut names = Vec::new();
        for page in 1..=4 {
            let query = format!("ApplyId={id}&PageSize=50&CurrentPage={page}");
            let page = call(Action::QueryPageByApplyId, &query, &mut account).unwrap();
            assert_eq!((&page["PageCount"], &page["Total"]), (&3.into(), &120.into()));
            let infos = page["ApplyDeviceList"]["ApplyDeviceInfo"].as_array().unwrap().clone();
            names.extend(infos.iter().map(|info| info["DeviceName"].as_str().unwrap().to_owned()));
        }
        assert_eq!(names, (1..=120).map(|number| format!("SN{number:04}")).collect::<Vec<_>>());
        let default = call(Action::QueryPageByApplyId, &format!("ApplyId={id}"), &mut account).unwrap();
        assert_eq!((&default["PageSize"], &default["PageCount"]), (&10.into(), &12.into()));
    }

    #[test]
    fn names_may_come_with_nicknames() {
        let mut account = Account::new(1);
        let query = "ProductKey=a1&DeviceNameList.1.DeviceName=SN01&DeviceNameList.1.DeviceNickname=lamp";
        let made = call(Action::BatchCheckDeviceNames, query, &mut account).unwrap();
        let query = format!("ProductKey=a1&ApplyId={}", made["Data"]["ApplyId"]);
        let status = call(Action::QueryBatchRegisterDeviceStatus, &query, &mut account).unwrap();
        assert_eq!(status["Data"]["ValidList"]["Name"], json!(["SN01"]));
    }

    #[test]
    fn each_business_error_has_its_code() {
        let mut account = Account::new(1);
        let id = created(1, &mut account);
        let many: String = (1..=MAX_BATCH + 1).map(|number| format!("&DeviceName.{number}=SN01")).collect();
        use Action::*;
        for (action, query, code) in [
            (BatchCheckDeviceNames, "ProductKey=a1".to_owned(), "iot.device.NoneDeviceNameElement"),
            (BatchCheckDeviceNames, format!("ProductKey=a1{many}"), "iot.device.DeviceCountExceeded"),
            (BatchCheckDeviceNames, "ProductKey=a3&DeviceName.1=SN01".into(), "iot.prod.NotExistedProduct"),
            (BatchCheckDeviceNames, "DeviceName.1=SN01".into(), "MissingProductKey"),
            (QueryBatchRegisterDeviceStatus, "ProductKey=a1".into(), "MissingApplyId"),
            (
                QueryBatchRegisterDeviceStatus,
                "ProductKey=a1&ApplyId=x".into(),
                "iot.device.InvalidFormattedApplyId",
            ),
            (
                QueryBatchRegisterDeviceStatus,
                "ProductKey=a1&ApplyId=1".into(),
                "iot.device.DeviceApplyIsNotFound",
            ),
            (
                QueryBatchRegisterDeviceStatus,
                format!("ProductKey=a2&ApplyId={id}"),
                "iot.device.IncorrentDeviceApplyInfo",
            ),
            (
                BatchRegisterDeviceWithApplyId,
                format!("ProductKey=a1&ApplyId={id}"),
                "iot.device.ApplyManyDevicesFailed",
            ),
            (QueryPageByApplyId, "ApplyId=1".into(), "iot.device.DeviceApplyIsNotFound"),
            (QueryPageByApplyId, format!("ApplyId={id}&PageSize=51"), "iot.common.InvalidPageParams"),
            (QueryPageByApplyId, format!("ApplyId={id}&CurrentPage=0"), "iot.common.InvalidPageParams"),
        ] {
            assert_eq!(call(action, &query, &mut account).unwrap_err(), code, "{query:.80}");
        }
    }
}
