//! The option `--instance` of `certdist simulator`: one instance of the simulated account.

use crate::iot_platform::simulator::InstanceConfig;

/// Parses `KEY=VALUE,KEY=VALUE,…`. Only `product` may be repeated.
pub(super) fn parse(text: &str) -> Result<InstanceConfig, String> {
    let mut instance = InstanceConfig::default();
    let mut seen = Vec::new();
    for pair in text.split(',') {
        let Some((key, value)) = pair.split_once('=').filter(|(_, value)| !value.is_empty()) else {
            return Err(format!("{pair:?} is not KEY=VALUE; it should look like id=iot-a"));
        };
        if key != "product" && seen.contains(&key) {
            return Err(format!("{key} is there twice"));
        }
        seen.push(key);
        match key {
            "id" => instance.id = value.into(),
            "region" => instance.region = Some(value.into()),
            "product" => instance.products.push(value.into()),
            "mqtt" => {
                let wrong =
                    |_| format!("mqtt={value} is not an address; it should look like mqtt=127.0.0.1:1883");
                instance.mqtt = Some(value.parse().map_err(wrong)?);
            }
            "devices" => {
                let wrong = |_| format!("devices={value} is not a number; it should look like devices=500");
                instance.max_devices = Some(value.parse().map_err(wrong)?);
            }
            "expires" => instance.expires = Some(super::duration(value)?),
            _ => {
                return Err(format!(
                    "{key} is unknown; expected id, region, mqtt, product, devices or expires"
                ));
            }
        }
    }
    Ok(instance)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_key_of_an_instance_arrives() {
        let text =
            "id=iot-a,region=cn-shanghai,mqtt=127.0.0.1:1883,product=a1,product=a2,devices=500,expires=5s";
        let expected = InstanceConfig {
            id: "iot-a".into(),
            region: Some("cn-shanghai".into()),
            mqtt: Some("127.0.0.1:1883".parse().unwrap()),
            products: vec!["a1".into(), "a2".into()],
            max_devices: Some(500),
            expires: Some(Duration::from_secs(5)),
        };
        assert_eq!(parse(text), Ok(expected));
        let public = InstanceConfig { region: Some("cn-shanghai".into()), ..InstanceConfig::default() };
        assert_eq!(parse("region=cn-shanghai"), Ok(public));
    }

    #[test]
    fn an_instance_that_cannot_be_read_is_refused_with_what_is_expected() {
        for (text, expected) in [
            ("", "is not KEY=VALUE"),
            ("iot-a", "is not KEY=VALUE"),
            ("id=", "is not KEY=VALUE"),
            ("id=iot-a,", "is not KEY=VALUE"),
            ("id=iot-a,id=iot-b", "id is there twice"),
            ("name=iot-a", "expected id, region, mqtt, product, devices or expires"),
            ("mqtt=localhost:1883", "it should look like mqtt=127.0.0.1:1883"),
            ("devices=-1", "it should look like devices=500"),
            ("devices=many", "it should look like devices=500"),
            ("expires=5", "should look like 50ms"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
